"""W4A16 and W8A8 weight quantizers beside llm-compressor's: what each loses, how long it takes, what memory it needs.

Every quantizer runs alone in a process of its own on the same model, the same calibration tokens and the same groups;
seconds and peak memory are the whole process's, imports included. One evaluator, bitworth's, reads all checkpoints.
llm-compressor lives in `.venv-peers/llmcompressor`, which `make peers` builds. --quick cuts the model to two blocks.
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
PEER = ROOT / ".venv-peers" / "llmcompressor" / "bin" / "python"
OURS = ("w4a16-int-rtn", "w4a16-int-gptq", "w4a16-int-gptq-published", "w4a16-int-awq", "w8a8-int-gptq", "w8a8-fp")
QUICK = ("w4a16-int-rtn", "w4a16-int-gptq")
#: llm-compressor's GPTQ with the observer of its weights' scales: its default, and the search by squared error.
PEERS = {"llm-compressor gptq": "memoryless_minmax", "llm-compressor gptq, mse": "memoryless_mse"}
LEAD = "w4a16-int-gptq"


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
    if not PEER.is_file():
        raise SystemExit(f"llm-compressor is not installed in {PEER.parents[1]}; run `make peers` first.")
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
    made = []
    for name in QUICK if arguments.quick else OURS:
        made.append((name, scratch / name, *alone(sys.executable, {**job, "recipe": name, "out": str(scratch / name)})))
    for name, observer in PEERS.items():
        out = scratch / observer
        made.append((name, out, *alone(str(PEER), {**job, "observer": observer, "out": str(out)})))
    return evaluate(model, text.read_text(encoding="utf-8"), made, arguments)


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
    name = job.get("recipe") or f"llm-compressor, {job['observer']}"
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
    if "observer" in job:
        llm_compressor(job)
        return
    from bitworth.quantization import quantize
    from bitworth.recipes import recipe
    from bitworth.types import Calibration

    calibration = Calibration(source=job["source"], samples=job["samples"], length=job["length"])
    chosen = recipe(job["recipe"], group_size=job["group_size"])
    quantize(Path(job["model"]), [chosen], Path(job["out"]), calibration=calibration)


def llm_compressor(job: dict[str, Any]) -> None:
    """Its GPTQ with its own defaults (static activation ordering, damping 0.01), in groups, on the given tokens."""
    from datasets import Dataset
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers.gptq import GPTQModifier  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": job["group_size"]}
    group = {"targets": ["Linear"], "weights": {**weights, "observer": job["observer"]}}
    ids = json.loads(Path(job["tokens"]).read_text())
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}),
        recipe=GPTQModifier(config_groups={"group_0": group}, ignore=["lm_head"]),
        max_seq_length=job["length"],
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(job["out"], save_compressed=True)
    tokenizer.save_pretrained(job["out"])


def evaluate(
    model: Path, text: str, made: list[tuple[str, Path, float, float]], arguments: argparse.Namespace
) -> list[Row]:
    """Perplexity and KL of each checkpoint, all by the same engine on the same windows."""
    from bitworth.divergence import diverge_models
    from bitworth.engines.torch import load_exact

    baseline = load_exact(model)
    rows = []
    for name, folder, seconds, peak_mib in made:
        found = diverge_models(
            load_exact(folder), baseline, text, window=arguments.length, limit_windows=arguments.windows
        )
        assert found.kl_nats is not None
        rows.append(
            Row(name=name, perplexity=found.perplexity, kl_nats=found.kl_nats, seconds=seconds, peak_mib=peak_mib)
        )
        tell(
            f"{name:<26} perplexity {found.perplexity:9.3f} (baseline {found.baseline_perplexity:.3f})  "
            f"KL {found.kl_nats:.4f}  {seconds:6.1f} s  {peak_mib:5.0f} MiB"
        )
    return rows


def claims_of(rows: list[Row], *, quick: bool) -> list[Claim]:
    """Our leading recipe over each peer: every ratio should be at most 1. Two blocks predict nothing: no perplexity."""
    by_name = {row.name: row for row in rows}
    lead = by_name[LEAD]
    claims = []
    for name in PEERS:
        for figure in ("kl_nats", "seconds", "peak_mib") if quick else ("perplexity", "kl_nats", "seconds", "peak_mib"):
            ratio = getattr(lead, figure) / getattr(by_name[name], figure)
            claims.append(Claim(f"{figure}: {LEAD} / {name}", "<= 1", ratio, "ratio", ratio <= 1))
    better = by_name["w4a16-int-rtn"].kl_nats / lead.kl_nats
    return [*claims, Claim(f"kl_nats: w4a16-int-rtn / {LEAD}", ">= 1.5", better, "ratio", better >= 1.5)]


if __name__ == "__main__":
    main()
