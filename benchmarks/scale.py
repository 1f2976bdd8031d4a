"""What a cluster costs and gains: the Ray executor beside the local one, in one run, on raylets of one core each.

Cells that sleep show the executors alone: what Ray adds to a cell that takes no time, and how close several raylets
come to their number. Cells that answer questions with a real model show what a machine's cores allow. Every executor
first runs a cell on each of its nodes, which starts workers and imports, and is left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from claims import Claim, say

from bitworth.cells import evaluate_cell
from bitworth.execute import Executor, Tell, Work
from bitworth.execute.fleet import FleetExecutor
from bitworth.execute.local import LocalExecutor
from bitworth.execute.ray import connect
from bitworth.planning import checkpoint_subject, evaluation_inputs
from bitworth.running import Unwatched
from bitworth.types import Cell, TaskSpec
from bitworth.work import work

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default="demo:smollm2", help="a model folder or hub id; the demo's otherwise")
    parser.add_argument("--data", default="demo:data", help="a folder of benchmark rows; the demo's otherwise")
    parser.add_argument("--raylets", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    empty, slow, tasks = (50, 16, 4) if arguments.quick else (400, 48, 12)
    questions = 20 if arguments.quick else 100
    asked = answering(arguments.model, arguments.data, tasks, questions)
    loads = {
        "empty cells": ([sleep(0.0, at) for at in range(empty)], sleeping),
        "cells of 1 s": ([sleep(1.0, at) for at in range(slow)], sleeping),
        f"{questions} questions a cell": (asked, work),
    }
    took = {name: {0: timed(LocalExecutor(), 1, *load)} for name, load in loads.items()}
    for raylets in arguments.raylets:
        with cluster(raylets) as executor:
            for name, load in loads.items():
                took[name][raylets] = timed(executor, raylets, *load)
                print(f"{name}, {raylets} raylets: {took[name][raylets]:.2f} s", file=sys.stderr)
    say([*overheads(took["empty cells"], empty), *gains(took)], as_json=arguments.json)


def overheads(took: dict[int, float], cells: int) -> list[Claim]:
    """What a cell costs beyond what it costs locally, with one raylet."""
    first = min(raylets for raylets in took if raylets)
    local, there = 1000 * took[0] / cells, 1000 * took[first] / cells
    return [
        Claim("an empty cell, local executor", "< 50", local, "ms", local < 50),
        Claim(f"an empty cell, Ray with {first} raylets", "< 50", there, "ms", there < 50),
    ]


def gains(took: dict[str, dict[int, float]]) -> list[Claim]:
    """How many times as fast as the local executor, of as many as there are raylets, or cores for what computes."""
    claims = []
    for name, row in list(took.items())[1:]:
        for raylets in [one for one in row if one]:
            most = raylets if name.startswith("cells of") else min(raylets, os.cpu_count() or 1)
            found = row[0] / row[raylets]
            claims.append(Claim(f"{name}, {raylets} raylets", f">= {0.8 * most:.1f}", found, "x", found >= 0.8 * most))
    return claims


def timed(executor: Executor, nodes: int, cells: Sequence[Cell], doing: Work) -> float:
    """Seconds for all cells, after one like them has run on every node."""
    warm = [Cell(**{**_fields(cells[0]), "inputs": {**cells[0].inputs, "warm": at}}) for at in range(nodes)]
    log, began = Log(), 0.0

    def draws() -> Iterator[Cell | None]:
        nonlocal began
        yield from warm
        while log.ended_at is None or log.count < nodes:
            yield None
        began = time.monotonic()
        yield from cells

    with tempfile.TemporaryDirectory(prefix="bitworth-scale-") as root:
        executor.run(draws(), doing, root, log)
    if log.causes:
        raise SystemExit(f"A cell failed: {log.causes[0]}")
    assert log.ended_at is not None
    return log.ended_at - began


class Log(Unwatched):
    """Counts what ended, and notes when."""

    def __init__(self) -> None:
        self.count = 0
        self.ended_at: float | None = None
        self.causes: list[str] = []

    def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
        """Note it."""
        self.count, self.ended_at = self.count + 1, time.monotonic()
        self.causes += [cause] if cause is not None else []


def sleep(seconds: float, number: int) -> Cell:
    """A cell that takes so long."""
    return Cell(kind="diverge", title=f"sleep {number}", format="none", inputs={"seconds": seconds, "number": number})


def sleeping(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """Its work."""
    time.sleep(cell.inputs["seconds"])
    return {}


def answering(model: str, data: str, cells: int, questions: int) -> list[Cell]:
    """Evaluations of one model on ARC-Challenge, each of other questions."""
    subject = checkpoint_subject(model, "baseline")
    asked = evaluation_inputs([TaskSpec(name="arc_challenge")], data)
    return [evaluate_cell(subject, *asked[0], batch=(at * questions, (at + 1) * questions)) for at in range(cells)]


@contextmanager
def cluster(raylets: int) -> Iterator[FleetExecutor]:
    """A Ray cluster of this machine, ended with the block."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("RAY_agent_register_timeout_ms", "200000")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "200")
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 1, "object_store_memory": 80 << 20}
    found = Cluster(initialize_head=True, head_node_args={**one, "include_dashboard": False})
    try:
        for _ in range(raylets - 1):
            found.add_node(**one)
        with tempfile.TemporaryDirectory() as root, connect(found.address, Path(root)) as there:
            yield FleetExecutor(there)
    finally:
        found.shutdown()


def _fields(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in Cell.__dataclass_fields__}


if __name__ == "__main__":
    # by its own name, not as __main__: workers import what they are to run
    import scale

    scale.main()
