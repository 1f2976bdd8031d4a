"""What it takes to follow a large study: a ledger of 10,000 cells looked at again and again, and one new result in it.

    python benchmarks/view.py [--quick] [--json]

The ledger is made up: as many formats as it takes, 50 tasks of 50 questions each. The peer is what `bitworth report`
does: read every file. Times are processor seconds of this process, which a busy machine does not change.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from claims import Claim, say

from bitworth.assembly import assemble
from bitworth.ledger import Ledger
from bitworth.ledger.records import encode
from bitworth.study import parse_study
from bitworth.types import Answer, Cell, EngineFacts
from bitworth.view.folder import Folder

TASKS, QUESTIONS = 50, 50
FACTS = asdict(EngineFacts(engine="fake", kernel="none", device="none"))


def main() -> None:
    """Make the ledger, time the looks, say what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 cells")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bitworth-view-") as scratch:
        say(measure(Path(scratch), 1_000 if asked.quick else 10_000), as_json=asked.json)


def measure(root: Path, count: int) -> list[Claim]:
    """The claims, for a ledger of so many cells."""
    cells = make_ledger(root, count)
    whole_s = seconds(lambda: assemble(root))
    time.sleep(2.1)  # what changed within two seconds is listed at each look
    first_s, folder = timed(lambda: Folder(root))
    first_result_s = seconds(folder.result)
    looks_s = sorted(seconds(folder.look) for _ in range(50))
    ledger, read = Ledger(root), folder.reads
    ledger.put(cells[-1], answers(cells[-1], random.Random(9)), seconds=1.0)
    changed_s = seconds(folder.look)
    again_s = seconds(folder.result)
    look_ms = 1000 * looks_s[len(looks_s) // 2]
    return [
        Claim(f"a look at {count:,} cells, nothing new", "<= 5 ms", look_ms, "ms", look_ms <= 5),
        Claim("a look when a result has come", "<= 100 ms", 1000 * changed_s, "ms", changed_s <= 0.1),
        Claim("result files read for that result", "1", folder.reads - read, "files", folder.reads - read == 1),
        Claim("adding up again / reading everything", "<= 0.5", again_s / whole_s, "x", again_s <= 0.5 * whole_s),
        Claim("adding up again", "none", again_s, "s", True),
        Claim("reading everything (peer)", "none", whole_s, "s", True),
        Claim("first look", "none", first_s, "s", True),
        Claim("first result", "none", first_result_s, "s", True),
    ]


def make_ledger(root: Path, count: int) -> list[Cell]:
    """A study of `count` evaluate cells, all done but the last; files are written without waiting for the disk."""
    luck = random.Random(0)
    formats = ["baseline", *(f"format-{at}" for at in range(1, count // TASKS))]
    others = [{"name": name, "base": "w8a8-fp"} for name in formats[1:]]
    study = parse_study({"name": "large", "model": "model", "formats": ["baseline", *others]})
    cells = [cell_of(format, f"task-{at}") for format in formats for at in range(TASKS)]
    ledger = Ledger(root)
    ledger.write_study(study.model_dump(mode="json"), cells)
    ledger.put(cells[0], answers(cells[0], luck), seconds=1.0)
    for cell in cells[1:-1]:
        write_record(ledger, cell, answers(cell, luck))
    return cells


def write_record(ledger: Ledger, cell: Cell, result: dict[str, object]) -> None:
    """A result file like the ledger's own, without waiting for the disk."""
    record = encode(cell, result, seconds=1.0, finished="2026-01-01T00:00:00+00:00")
    ledger.path(cell).write_bytes(record)


def cell_of(format: str, task: str) -> Cell:
    """An evaluate cell."""
    return Cell(
        kind="evaluate",
        title=f"{task} on {format}",
        format=format,
        inputs={"checkpoint": format, "task": {"name": task}},
    )


def answers(cell: Cell, luck: random.Random) -> dict[str, object]:
    """Fifty answers, three of four right, with log-probabilities as a real result has them."""
    task = cell.inputs["task"]["name"]
    rows = [
        asdict(
            Answer(
                task=task,
                item=f"{task}/{at}",
                prediction="ABCD"[at % 4],
                score=float(luck.random() < 0.75),
                logprobs=(-1.234567, -2.345678, -3.456789, -4.567891),
            )
        )
        for at in range(QUESTIONS)
    ]
    return {"answers": rows, "facts": FACTS, "machine": {"processor": "made up"}}


def seconds(work: Callable[[], object]) -> float:
    """What a call takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def timed(work: Callable[[], Folder]) -> tuple[float, Folder]:
    """What a call takes, and what it gives."""
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


if __name__ == "__main__":
    main()
