"""GPTQ with a thread for each run of rows beside a team of threads for each product, as it was done before.

The first blocks of the demo's model are quantized both ways in turn, several times, each in a process of its own; the
other way is the same code with its parts one after another, of as many rows as all threads have together. Checkpoints
must be the same to the last bit. --quick takes one block, once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from claims import Claim, say
from quantizers import shallow, tell

RECIPES = ("w4a16-int-gptq-published", "w4a16-int-gptq")
WAYS = ("a team for each product", "a thread for each run of rows")
_Part = TypeVar("_Part")
_Made = TypeVar("_Made")


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=RECIPES, help="of both, these")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way, in turn")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(json.loads(arguments.worker))))
        return
    if arguments.quick:
        arguments.blocks, arguments.repeat, arguments.samples, arguments.length = 1, 1, 4, 128
    with tempfile.TemporaryDirectory(prefix="bitworth-row-threads-") as scratch:
        claims = [claim for recipe in arguments.only for claim in measure(recipe, arguments, Path(scratch) / recipe)]
    say(claims, as_json=arguments.json)


def measure(recipe: str, arguments: argparse.Namespace, scratch: Path) -> list[Claim]:
    """Both ways in turn: the ratio of their median seconds, and whether they give the same."""
    from bitworth.sources import demo_calibration, demo_model

    scratch.mkdir()
    job = {"model": str(shallow(demo_model(tell), scratch / "model", blocks=arguments.blocks)), "recipe": recipe}
    job |= {"source": str(demo_calibration(tell)), "samples": arguments.samples, "length": arguments.length}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    hashes = set()
    for turn in range(arguments.repeat):
        for way in WAYS:
            found = alone({**job, "way": way, "out": str(scratch / f"{way} {turn}")})
            seconds[way].append(found["seconds"])
            hashes.add(found["weights"])
            tell(f"{recipe:<26} {way:<30} {found['seconds']:6.1f} s")
    team, thread = (float(np.median(seconds[way])) for way in WAYS)
    same = len(hashes) == 1
    return [
        Claim(f"seconds: {recipe}, a thread a run / a team", "<= 1", thread / team, "ratio", thread <= team),
        Claim(f"checkpoints of {recipe} are the same", "1", float(same), "yes = 1", same),
    ]


def alone(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{job['recipe']}, {job['way']}, ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def worker(job: dict[str, Any]) -> dict[str, Any]:
    """What runs in the process of its own: seconds of quantizing, imports left out, and a hash of the weights."""
    from bitworth.quantization import quantize
    from bitworth.recipes import recipe
    from bitworth.types import Calibration

    if job["way"] == WAYS[0]:
        one_after_another()
    calibration = Calibration(source=job["source"], samples=job["samples"], length=job["length"])
    out = Path(job["out"])
    began = time.monotonic()
    quantize(Path(job["model"]), [recipe(job["recipe"], group_size=64)], out, calibration=calibration)
    spent = time.monotonic() - began
    weights = hashlib.sha256()
    for shard in sorted(out.rglob("*.safetensors")):
        weights.update(shard.read_bytes())
    return {"seconds": spent, "weights": weights.hexdigest()}


def one_after_another() -> None:
    """Make GPTQ round as it did before: no part beside another, and torch's threads together at each product."""

    def in_turn(work: Callable[[_Part], _Made], parts: Sequence[_Part]) -> list[_Made]:
        return [work(part) for part in parts]

    rounding: Any = import_module("bitworth.quantizers.gptq")
    rounding.side_by_side = in_turn
    rounding._rows_a_run = lambda _: rounding.rows_at_once()


if __name__ == "__main__":
    main()
