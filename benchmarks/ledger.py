"""Half a million answers in ten thousand results: written, listed, asked, packed, exported.

Five hundred evaluations of a thousand answers each, and small results (a judge's verdicts) up to ten thousand. Writing
is timed with every flush to disk that a run makes; asking is timed in a process of its own, whose peak memory is told.
Wall times on a busy machine say little, so the processor's time stands beside that of writing. --quick writes a tenth.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from claims import Claim, say

from bitworth.ledger import Ledger
from bitworth.types import BASELINE, Answer, Cell

FORMATS = (BASELINE, *(f"format-{number}" for number in range(1, 10)))
QUESTIONS = 1000
REST = "import json, resource, sys, time\nfrom pathlib import Path\nfrom bitworth.ledger import Ledger\n"
"""What a timed process starts with."""


def main() -> None:
    """Write, ask, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    evaluations, cells = (50, 1_000) if arguments.quick else (500, 10_000)
    with tempfile.TemporaryDirectory(prefix="bitworth-ledger-") as scratch:
        root = Path(scratch) / "results"
        rate, of_cpu, each_ms = write(Ledger(root), evaluations, cells)
        indexed, asked = ask(root), ask(root)
        listed = timed(root, "from bitworth.ledger.query import CELLS, query\nquery(ledger, CELLS, most=20000)")
        checked = timed(root, "assert ledger.damaged() == []")
        packed = timed(root, "from bitworth.ledger.compaction import compact\ncompact(ledger)")
        again = ask(root), ask(root)
        exported = timed(
            root, "from bitworth.ledger.archives import export\nexport(ledger, Path(sys.argv[1] + '.tar'))"
        )
        files = sum(path.is_file() for path in root.rglob("*"))
    answers = evaluations * QUESTIONS
    peak = max(run["peak_mib"] for run in (indexed, asked, listed, checked, packed, *again, exported))
    say(
        [
            Claim("ledger: answers written", f"{answers:,}", answers, "answers", asked["rows"] == answers),
            Claim("ledger: answers written a second", ">= 20,000", rate, "1/s", rate >= 20_000),
            Claim("ledger: answers written a second of processor time", ">= 20,000", of_cpu, "1/s", of_cpu >= 20_000),
            Claim("ledger: a small result written", "<= 20 ms", each_ms, "ms", each_ms <= 20),
            claim("first question, which makes the index", 60, indexed),
            claim("recovery of every task and format", 1, asked),
            Claim("ledger: the same, processor time", "<= 1 s", asked["cpu"], "s", asked["cpu"] <= 1),
            claim("list of every result", 1, listed),
            claim("checksums of every result compared", 10, checked),
            claim("compaction", 60, packed),
            claim("recovery after compaction", 1, again[1]),
            claim("export", 30, exported),
            Claim("ledger: files after compaction", "<= 20", files, "files", files <= 20),
            Claim("ledger: peak memory of any of these", "<= 1024 MiB", peak, "MiB", peak <= 1024),
        ],
        as_json=arguments.json,
    )


def claim(name: str, most_s: float, run: dict[str, float]) -> Claim:
    """A timed process as a claim."""
    return Claim(f"ledger: {name}", f"<= {most_s} s", run["seconds"], "s", run["seconds"] <= most_s)


def write(ledger: Ledger, evaluations: int, cells: int) -> tuple[float, float, float]:
    """Write the results: answers a second, by the wall and by the processor's time, and milliseconds a small result."""
    draw = random.Random(0)
    spent = cpu = 0.0
    for number in range(evaluations):
        cell, result = evaluated(number, draw)
        began, cpu_began = time.monotonic(), time.process_time()
        ledger.put(cell, result, seconds=100.0)
        spent, cpu = spent + time.monotonic() - began, cpu + time.process_time() - cpu_began
    small, began = cells - evaluations, time.monotonic()
    for number in range(small):
        ledger.put(*judged(number))
    answers = evaluations * QUESTIONS
    return answers / spent, answers / cpu, 1000 * (time.monotonic() - began) / small


def evaluated(number: int, draw: random.Random) -> tuple[Cell, dict[str, Any]]:
    """One format's answers to one task."""
    task, format = f"task-{number // len(FORMATS)}", FORMATS[number % len(FORMATS)]
    answers = [
        Answer(
            task=task, item=str(item), prediction="ABCD"[item % 4], score=float(draw.random() < 0.7),
            logprobs=(-1.25, -2.5, -draw.random(), -4.125), text="The answer is one of these.",
        )
        for item in range(QUESTIONS)
    ]  # fmt: skip
    inputs = {"checkpoint": format, "task": {"name": task}}
    cell = Cell(kind="evaluate", title=f"{task} on {format}", format=format, inputs=inputs)
    return cell, {"answers": [asdict(row) for row in answers], "facts": {"engine": "none"}, "task": {}}


def judged(number: int) -> tuple[Cell, dict[str, Any]]:
    """One verdict."""
    cell = Cell(kind="judge", title=f"verdict {number}", format="format-1", inputs={"number": number})
    return cell, {"grade": ">", "replies": ["[[A>B]]"], "finish": ["stop"]}


def ask(root: Path) -> dict[str, float]:
    """The recovery of every task and format, from the index."""
    asked = "from bitworth.ledger.query import RECOVERIES, query\nfound = query(ledger, RECOVERIES, most=100000)"
    return timed(root, asked, rows="sum(row[-1] for row in found.rows) * 10 // 9")


def timed(root: Path, code: str, rows: str = "0") -> dict[str, float]:
    """Seconds (imports not counted) and peak MiB of a process that runs this code on the folder."""
    imports = "import pyarrow.parquet, duckdb, bitworth.ledger.query, bitworth.ledger.archives\n"
    script = (
        f"{REST}{imports}ledger = Ledger(Path(sys.argv[1]))\nbegan = time.monotonic(), time.process_time()\n"
        f"{code}\nseconds, cpu = time.monotonic() - began[0], time.process_time() - began[1]\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"print(json.dumps({{'seconds': seconds, 'cpu': cpu, 'peak_mib': peak, 'rows': {rows}}}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
