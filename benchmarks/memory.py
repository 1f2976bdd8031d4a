"""Peak memory of quantizing as a model grows deeper, beside llm-compressor's GPTQ: ours stays, theirs grows with it.

Random Llamas of 1.1 billion weights and of about half as many, with the demo's tokenizer, are quantized to W4A16 by
GPTQ, each alone in a process of its own on the same few tokens; peaks are the whole process's, imports included. What
a model of 135M takes in `quantizers.py` is half imports, which a model worth quantizing does not notice. Weights
are random, so nothing is said of what the formats lose. The peer lives in `.venv-peers` (`make peers`); --quick takes
smaller models and no peer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from claims import Claim, say
from quantizers import PEER, alone, tell

#: Ours, and what does no more than the peer, GPTQ as published with clipping.
RECIPE, PLAIN, RIVAL = "w4a16-int-gptq", "w4a16-int-gptq-published", "llm-compressor gptq"
#: Sizes of a block, as in models of about 1.1 billion weights.
SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
QUICK = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_key_value_heads": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What one run took: seconds and MiB of its whole process, of a model whose files have so many MiB."""

    seconds: float
    mib: float
    model_mib: float


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--blocks", type=int, default=22, help="of the deeper model; the other has half")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.samples, arguments.length = 2, 128
    if not arguments.quick and not PEER.is_file():
        raise SystemExit(f"llmcompressor is not installed in {PEER.parents[2]}; run `make peers` first.")
    with tempfile.TemporaryDirectory(prefix="bitworth-memory-") as scratch:
        peaks = measure(arguments, Path(scratch))
    say(claims_of(peaks), as_json=arguments.json)


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[tuple[str, str], Peak]:
    """Peaks by (who, `half` or `whole`)."""
    from bitworth.sources import demo_calibration, demo_model

    demo, peaks = demo_model(tell), {}
    job = {"source": str(demo_calibration(tell)), "samples": arguments.samples, "length": arguments.length}
    job |= {"group_size": 64, "tokens": str(scratch / "tokens.json")}
    blocks = {"half": arguments.blocks // 2, "whole": arguments.blocks}
    for depth, count in blocks.items():
        sizes = {**(QUICK if arguments.quick else SIZES), "num_hidden_layers": count}
        model = scratch / depth
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:  # whose peak a run of ours would inherit
            other.submit(random_llama, demo, model, sizes).result()
        write_tokens(model, job)
        size = sum(path.stat().st_size for path in model.glob("*.safetensors")) / 2**20
        jobs: dict[str, tuple[str, dict[str, Any]]] = {
            name: (sys.executable, {"recipes": [name]}) for name in (RECIPE, PLAIN)
        }
        if not arguments.quick:
            jobs[RIVAL] = (str(PEER), {"peer": RIVAL})
        for name, (python, own) in jobs.items():
            out = scratch / "out"
            seconds, mib = alone(python, {**job, **own, "model": str(model), "out": str(out)})
            peaks[name, depth] = Peak(seconds=seconds, mib=mib, model_mib=size)
            tell(f"{name}, {count} blocks, {size:.0f} MiB of weights: {seconds:.1f} s, {mib:.0f} MiB")
            shutil.rmtree(out)
        shutil.rmtree(model)
    return peaks


def random_llama(demo: Path, out: Path, sizes: dict[str, int]) -> None:
    """A random Llama in bfloat16 with the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(demo)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        config = LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=2048, tie_word_embeddings=True)
        LlamaForCausalLM(config).save_pretrained(out)
    finally:
        torch.set_default_dtype(torch.float32)
    tokenizer.save_pretrained(out)


def write_tokens(model: Path, job: dict[str, Any]) -> None:
    """The calibration's tokens, which both sides read."""
    from bitworth.calibration import calibration_tokens
    from bitworth.types import Calibration

    spec = Calibration(source=job["source"], samples=job["samples"], length=job["length"])
    Path(job["tokens"]).write_text(json.dumps(calibration_tokens(model, spec, tell).tolist()))


def claims_of(peaks: dict[tuple[str, str], Peak]) -> list[Claim]:
    """Growth with depth of each, and ours over theirs at the full depth."""
    grown = growth(peaks, RECIPE)
    name = "memory for each MiB of deeper weights"
    claims = [Claim(f"{name}: {RECIPE}", "<= 0.1", grown, "MiB", grown <= 0.1)]
    if (RIVAL, "whole") in peaks:
        theirs = growth(peaks, RIVAL)
        claims.append(Claim(f"{name}: {RIVAL}", "more than ours", theirs, "MiB", theirs > grown))
        for own, (figure, limit) in product((RECIPE, PLAIN), (("mib", 0.5), ("seconds", 0.4))):
            share = getattr(peaks[own, "whole"], figure) / getattr(peaks[RIVAL, "whole"], figure)
            claims.append(Claim(f"{figure}: {own} / {RIVAL}", f"<= {limit:g}", share, "ratio", share <= limit))
    return claims


def growth(peaks: dict[tuple[str, str], Peak], name: str) -> float:
    """MiB of memory for each further MiB of weights."""
    half, whole = peaks[name, "half"], peaks[name, "whole"]
    return (whole.mib - half.mib) / (whole.model_mib - half.model_mib)


if __name__ == "__main__":
    main()
