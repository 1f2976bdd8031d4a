"""W4A16 and W8A8 weight quantizers beside llm-compressor's and AutoRound's: what each loses, its time, its memory.

Every quantizer runs alone in a process of its own on the same model, the same calibration tokens and the same groups;
seconds and peak memory are the whole process's, imports included. One evaluator, bitworth's, reads all checkpoints.
Four recipes in one process over one shared stream are held against the sum of llm-compressor's runs one by one (its
AWQ needs an accelerator and is not in the sum) and against the sum of our own four, each on a stream of its own.
The peers live in `.venv-peers`, which `make peers` builds. --quick cuts the model to two blocks, --only names some.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims import Claim, say

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-peers"
PEER, AUTOROUND = (PEERS / name / "bin" / "python" for name in ("llmcompressor", "autoround"))
OURS = (
    "w4a16-int-rtn", "w4a16-int-gptq", "w4a16-int-gptq-tuned", "w4a16-int-gptq-published", "w4a16-int-awq",
    "w8a8-int-gptq", "w8a8-fp",
)  # fmt: skip
QUICK = ("w4a16-int-rtn", "w4a16-int-gptq", "w4a16-int-gptq-tuned")
#: llm-compressor's W4A16 GPTQ with the observer of its weights' scales: its default, and the search by squared error.
RIVALS = {"llm-compressor gptq": "memoryless_minmax", "llm-compressor gptq, mse": "memoryless_mse"}
INT8, FP8 = "llm-compressor w8a8-int gptq", "llm-compressor w8a8-fp"
#: AutoRound's W4A16, symmetric, by its iterations a block; without any it rounds to nearest, in ranges it searches.
ROUNDS = {"autoround, rounding": 0, "autoround, 50 iterations": 50}
LEAD, LEAD_INT8 = "w4a16-int-gptq", "w8a8-int-gptq"
#: What also learns block by block, as AutoRound's iterations do.
TUNED = "w4a16-int-gptq-tuned"
TOGETHER = ("w8a8-fp", "w8a8-int-gptq", "w4a16-int-gptq", "w4a16-int-awq")
STREAM = "four recipes, one stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantizer: mean over the evaluated positions, seconds of wall time, MiB."""

    name: str
    perplexity: float
    kl_nats: float
    seconds: float
    peak_mib: float


def main() -> None:
    """Run and report."""
    arguments = parse()
    if arguments.worker:
        worker(json.loads(arguments.worker))
        return
    for python, names in ((PEER, (*RIVALS, INT8, FP8)), (AUTOROUND, ROUNDS)):
        asked = arguments.only is None or not set(names).isdisjoint(arguments.only)
        if asked and not python.is_file():
            raise SystemExit(f"{python.parents[1].name} is not installed in {PEERS}; run `make peers` first.")
    with tempfile.TemporaryDirectory(prefix="bitworth-quantizers-") as scratch:
        rows = measure(arguments, Path(scratch))
    say(claims_of(rows, quick=arguments.quick), as_json=arguments.json)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", type=Path, help="a model folder; the demo's otherwise")
    parser.add_argument("--calibration", type=Path, help="text or JSON Lines; the demo's otherwise")
    parser.add_argument("--text", type=Path, help="held-out text to evaluate on; the demo's otherwise")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample, and of an evaluated window")
    parser.add_argument("--windows", type=int, default=39)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=[*OURS, *RIVALS, INT8, FP8, *ROUNDS, STREAM], help="of all, these")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.samples, arguments.length, arguments.windows = 4, 128, 4
    return arguments


def measure(arguments: argparse.Namespace, scratch: Path) -> list[Row]:
    """Quantize by each, then evaluate each against the baseline."""
    from bitworth.calibration import calibration_tokens
    from bitworth.sources import demo_calibration, demo_heldout, demo_model
    from bitworth.types import Calibration

    model = arguments.model or demo_model(tell)
    if arguments.quick:
        model = shallow(model, scratch / "model", blocks=2)
    source = arguments.calibration or demo_calibration(tell)
    text = arguments.text or demo_heldout(tell)
    spec = Calibration(source=str(source), samples=arguments.samples, length=arguments.length)
    tokens = scratch / "tokens.json"
    tokens.write_text(json.dumps(calibration_tokens(model, spec, tell).tolist()))
    job = {"model": str(model), "source": str(source), "samples": spec.samples, "length": spec.length}
    job |= {"group_size": arguments.group_size, "tokens": str(tokens)}
    rounders = [name for name, iterations in ROUNDS.items() if not (arguments.quick and iterations)]
    peers = dict.fromkeys(RIVALS if arguments.quick else (*RIVALS, INT8, FP8), PEER)
    peers |= dict.fromkeys(rounders, AUTOROUND)
    chosen = arguments.only or [*(QUICK if arguments.quick else (*OURS, STREAM)), *peers]
    made = []
    for name in chosen:
        out = {"out": str(scratch / name)}
        if name in peers:
            made.append((name, *alone(str(peers[name]), {**job, **out, "peer": name})))
        elif name == STREAM:
            costs = alone(sys.executable, {**job, **out, "recipes": TOGETHER})
            made += [(f"{STREAM}/{part}", *costs) for part in TOGETHER]
        else:
            made.append((name, *alone(sys.executable, {**job, **out, "recipes": [name]})))
    return evaluate(model, text.read_text(encoding="utf-8"), made, scratch, arguments)


def tell(text: str) -> None:
    """Progress goes to the error stream."""
    print(text, file=sys.stderr, flush=True)


def shallow(model: Path, out: Path, *, blocks: int) -> Path:
    """The model's first blocks as a model of their own."""
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "num_hidden_layers": blocks}))
    return out


def alone(python: str, job: dict[str, Any]) -> tuple[float, float]:
    """Run a job in a process of its own: its seconds and its peak MiB.

    Raises:
        SystemExit: it failed.
    """
    name = job.get("peer") or ", ".join(job["recipes"])
    tell(f"quantizing: {name}")
    began = time.monotonic()
    command = [python, __file__, "--worker", json.dumps(job)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} ended with exit code {process.returncode}")
    seconds, peak_mib = time.monotonic() - began, usage.ru_maxrss / 1024
    tell(f"  {seconds:.1f} s, {peak_mib:.0f} MiB")
    return seconds, peak_mib


def worker(job: dict[str, Any]) -> None:
    """What runs in the process of its own."""
    if "peer" in job:
        (auto_round if job["peer"] in ROUNDS else llm_compressor)(job)
        return
    from bitworth.quantization import quantize
    from bitworth.recipes import recipe
    from bitworth.types import Calibration, StreamKind

    stream: StreamKind = "shared" if len(job["recipes"]) > 1 else "own"
    calibration = Calibration(source=job["source"], samples=job["samples"], length=job["length"], stream=stream)
    chosen = [recipe(name, group_size=job["group_size"]) for name in job["recipes"]]
    quantize(Path(job["model"]), chosen, Path(job["out"]), calibration=calibration)


def llm_compressor(job: dict[str, Any]) -> None:
    """Its recipes with their own defaults (static activation ordering, damping 0.01), on the given tokens."""
    from datasets import Dataset
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers.gptq import GPTQModifier  # type: ignore[import-not-found]
    from llmcompressor.modifiers.quantization import QuantizationModifier  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": job["group_size"]}
    group = {"targets": ["Linear"], "weights": {**weights, "observer": RIVALS.get(job["peer"])}}
    modifier = GPTQModifier(config_groups={"group_0": group}, ignore=["lm_head"]) if job["peer"] in RIVALS else None
    if job["peer"] == INT8:
        modifier = GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])
    if job["peer"] == FP8:
        modifier = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])
    ids = json.loads(Path(job["tokens"]).read_text())
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}),
        recipe=modifier,
        max_seq_length=job["length"],
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(job["out"], save_compressed=True)
    tokenizer.save_pretrained(job["out"])


def auto_round(job: dict[str, Any]) -> None:
    """Its own defaults but for the iterations, on the given tokens; saved in the compressed-tensors layout."""
    import torch
    from auto_round import AutoRound  # type: ignore[import-not-found]
    from transformers import AutoTokenizer

    ids = torch.tensor(json.loads(Path(job["tokens"]).read_text()))
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rounder = AutoRound(
        job["model"],
        tokenizer=tokenizer,
        scheme="W4A16",
        group_size=job["group_size"],
        iters=ROUNDS[job["peer"]],
        dataset=list(torch.split(ids, 8)),
        nsamples=len(ids),
        seqlen=job["length"],
        device_map="cpu",
    )
    out = Path(job["out"])
    rounder.quantize_and_save(str(out.with_name(f"{out.name} saved")), format="llm_compressor")
    [saved] = out.with_name(f"{out.name} saved").iterdir()  # a folder named after the model and the format
    saved.rename(out)


def evaluate(
    model: Path, text: str, made: list[tuple[str, float, float]], scratch: Path, arguments: argparse.Namespace
) -> list[Row]:
    """Perplexity and KL of each checkpoint, all by the same engine on the same windows."""
    from bitworth.divergence import diverge_models
    from bitworth.engines.torch import load_exact

    baseline = load_exact(model)
    rows = []
    for name, seconds, peak_mib in made:
        found = diverge_models(
            load_exact(scratch / name), baseline, text, window=arguments.length, limit_windows=arguments.windows
        )
        assert found.kl_nats is not None
        rows.append(
            Row(name=name, perplexity=found.perplexity, kl_nats=found.kl_nats, seconds=seconds, peak_mib=peak_mib)
        )
        tell(
            f"{name:<44} perplexity {found.perplexity:9.3f} (baseline {found.baseline_perplexity:.3f})  "
            f"KL {found.kl_nats:.4f}  {seconds:6.1f} s  {peak_mib:5.0f} MiB"
        )
    return rows


def claims_of(rows: list[Row], *, quick: bool) -> list[Claim]:
    """Ours over each rival's, of those that were run: loss, time, memory. Two blocks predict nothing: no perplexity."""
    by_name = {row.name: row for row in rows}
    limits = {"perplexity": 1.0, "kl_nats": 1.0, "seconds": 0.4, "peak_mib": 0.5}
    equal = {**limits, "seconds": 1.0, "peak_mib": 1.0}
    pairs = [(LEAD, rival, limits) for rival in RIVALS]
    for rival, iterations in ROUNDS.items():
        pairs.append((TUNED, rival, {**equal, "seconds": 0.25}) if iterations else (LEAD, rival, equal))
    pairs.append((LEAD_INT8, INT8, {"perplexity": 1.0, "seconds": 0.4}))
    claims = [
        ratio(f"{figure}: {own} / {rival}", by_name[own], by_name[rival], figure, limit)
        for own, rival, wanted in pairs
        if {own, rival} <= by_name.keys()
        for figure, limit in wanted.items()
        if not (quick and figure == "perplexity")
    ]
    for worse, own, least in (("w4a16-int-rtn", LEAD, 1.5), (LEAD, TUNED, 1.1)):
        if {worse, own} <= by_name.keys():
            better = by_name[worse].kl_nats / by_name[own].kl_nats
            claims.append(Claim(f"kl_nats: {worse} / {own}", f">= {least:g}", better, "ratio", better >= least))
    return [*claims, *streams_of(by_name)]


def streams_of(by_name: dict[str, Row]) -> list[Claim]:
    """What it costs and saves that GPTQ reads the unquantized stream, which all recipes share."""
    one_by_one = ("llm-compressor gptq", INT8, FP8)
    if f"{STREAM}/{LEAD}" not in by_name or not {*one_by_one, *TOGETHER} <= by_name.keys():
        return []
    ours = by_name[f"{STREAM}/{LEAD}"].seconds
    share = ours / sum(by_name[name].seconds for name in one_by_one)
    saved = ours / sum(by_name[name].seconds for name in TOGETHER)
    claims = [
        Claim(f"seconds: {STREAM} / its runs one by one", "<= 0.25", share, "ratio", share <= 0.25),
        Claim(f"seconds: {STREAM} / the same on their own", "<= 0.6", saved, "ratio", saved <= 0.6),
    ]
    for name in (LEAD, LEAD_INT8):
        costs = by_name[f"{STREAM}/{name}"].kl_nats / by_name[name].kl_nats
        claim = f"kl_nats: {name} on the shared stream / on its own"
        claims.append(Claim(claim, "<= 1.25", costs, "ratio", costs <= 1.25))
    return claims


def ratio(name: str, ours: Row, theirs: Row, figure: str, limit: float) -> Claim:
    """Ours over theirs, which should be at most `limit`."""
    value = getattr(ours, figure) / getattr(theirs, figure)
    return Claim(name, f"<= {limit:g}", value, "ratio", value <= limit)


if __name__ == "__main__":
    main()
