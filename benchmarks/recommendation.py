"""Deciding at scale, from the results folder alone: half a million answers to a recommendation and a report.

A synthetic study of ten formats, ten tasks and a grid of timings is written as a ledger; `bitworth recommend` and
`bitworth report` then run on it as a user would run them, each in a process of its own. --quick writes a tenth of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from claims import Claim, say

from bitworth.hardware import machine
from bitworth.ledger import Ledger
from bitworth.study import parse_study
from bitworth.types import BASELINE, Answer, Cell, EngineFacts, Load, Timing, UseCase
from bitworth.workloads import use_case as shape_of

FORMATS = ("w8a8-fp", "w8a8-int-gptq", "w8a8-int-rtn", "w4a16-int-gptq", "w4a16-int-rtn", "w4a16-int-awq",
           "nvfp4-rtn", "mxfp4-rtn", "w8a8-fp+kv-fp8")  # fmt: skip
LOGPROBS = (-1.25, -2.5, -3.75, -4.125)
FACTS = EngineFacts(engine="synthetic", kernel="none", device="none", versions={"bitworth": "0.1.0"})


def main() -> None:
    """Write the ledger, run the verbs, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wanted = 50_000 if arguments.quick else 500_000
    with tempfile.TemporaryDirectory(prefix="bitworth-recommendation-") as scratch:
        answers = write_ledger(Path(scratch), wanted)
        spent, peaks = zip(*(timed(verb, Path(scratch)) for verb in ("recommend", "report")), strict=True)
        document = json.loads((Path(scratch) / "recommendation.json").read_text())
    told = len(document["recommendations"]) + len(document["deployments"])
    claims = [
        Claim("recommendation: answers behind it", f">= {wanted:,}", answers, "answers", answers >= wanted),
        Claim("recommendation: scenarios decided", ">= 1", told, "", told >= 1),
        Claim("recommendation: recommend and report, wall time", "<= 60 s", sum(spent), "s", sum(spent) <= 60),
        Claim("recommendation: peak memory of either", "<= 1.5 GiB", max(peaks), "GiB", max(peaks) <= 1.5),
    ]
    say(claims, as_json=arguments.json)


def write_ledger(root: Path, wanted: int) -> int:
    """A study's folder with at least so many answers; how many there are."""
    study = parse_study(_study())
    formats, tasks = [entry.name for entry in study.formats], [entry.name for entry in study.tasks]
    questions = -(-wanted // (len(formats) * len(tasks)))
    random = np.random.default_rng(0)
    cells: list[tuple[Cell, dict[str, Any]]] = []
    for task in tasks:
        right = random.random(questions) < random.uniform(0.4, 0.8)
        for at, format in enumerate(formats):
            flips = random.random(questions) < 0.01 * at
            cells.append(_answered(task, format, np.where(flips, ~right, right)))
    for use_case in (shape_of(entry.name) for entry in study.use_cases):
        for load, _ in study.timed_loads():
            cells += [_timed(format, use_case, load, 1 + 0.1 * at, random) for at, format in enumerate(formats)]
    ledger = Ledger(root)
    ledger.write_study(study.model_dump(mode="json"), [cell for cell, _ in cells])
    for cell, result in cells:
        ledger.put(cell, {**result, "machine": machine()}, seconds=100.0)
    return questions * len(formats) * len(tasks)


def _study() -> dict[str, Any]:
    return {
        "name": "synthetic",
        "model": "synthetic",
        "formats": [BASELINE, *FORMATS],
        "tasks": _known(),
        "use_cases": ["rag", "docstring", "summarization"],
        "loads": ["synchronous", {"kind": "throughput", "streams": 8}],
        "hardware": [{"name": "local", "usd_per_hour": 0.1}],
        "traffic": {"rag": 0.6, "docstring": 0.3, "summarization": 0.1},
        "constraints": {"min_recovery_pct": 98, "limits": [{"of": "first_token", "at": "p95", "most_s": 5}]},
    }


def _known() -> list[str]:
    """Ten tasks that this version knows."""
    from bitworth import tasks

    return sorted(tasks.NAMES)[:10]


def _answered(task: str, format: str, right: np.ndarray[Any, Any]) -> tuple[Cell, dict[str, Any]]:
    rows = [
        asdict(
            Answer(task=task, item=str(at), prediction="A", score=float(score), logprobs=(-1.25, -2.5, -3.75, -4.125))
        )
        for at, score in enumerate(right)
    ]
    inputs = {"checkpoint": format, "task": {"name": task}, "data": "synthetic"}
    cell = Cell(kind="evaluate", title=f"{task} on {format}", format=format, inputs=inputs)
    return cell, {"answers": rows, "task": {}, "facts": asdict(FACTS)}


def _timed(
    format: str, use_case: UseCase, load: Load, speed: float, random: np.random.Generator
) -> tuple[Cell, dict[str, Any]]:
    took = random.normal(1.0, 0.05, 400) / speed
    timings = [
        Timing(start_s=at, first_token_s=at + seconds / 4, end_s=at + seconds, prompt_tokens=8, output_tokens=8)
        for at, seconds in zip(np.cumsum(took).tolist(), took.tolist(), strict=True)
    ]
    inputs = {"checkpoint": format, "use_case": asdict(use_case), "load": asdict(load)}
    cell = Cell(kind="benchmark", title=f"{use_case.name}, {load.name}, {format}", format=format, inputs=inputs)
    return cell, {"unsupported": None, "timings": [asdict(row) for row in timings], "facts": asdict(FACTS)}


def timed(verb: str, root: Path) -> tuple[float, float]:
    """Seconds that a verb takes on the folder, and the most GiB it held, sampled fifty times a second."""
    command = [sys.executable, "-m", "bitworth", verb, str(root), "--json"]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ))
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"bitworth {verb} ended with exit code {process.returncode}")
    return time.monotonic() - began, peak / 2**30


if __name__ == "__main__":
    main()
