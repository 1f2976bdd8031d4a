"""kill -9 a thousand times: does a study that was killed ever say something else than one that was not?

A fast study (its cells are computed, not measured, so that any two runs of it should agree to the last byte) is
started again and again from a process that has everything loaded, and its driver's process group is killed at a random
moment of its run, until one gets through; then the next folder. The reports must be the same bytes every time; in them
stand the plots' specifications, since drawing a plot takes as long as the rest of a hundred runs. Compaction is killed
before every line of its code (--quick: every 40th) and must keep every result, each once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from claims import Claim, say

from bitworth import ledger as package
from bitworth.assembly import assemble
from bitworth.execute import Watcher, Work
from bitworth.ledger import Ledger, key_of, records
from bitworth.ledger.checking import check
from bitworth.ledger.compaction import compact
from bitworth.report import plots, svg, write_report
from bitworth.running import run_cells
from bitworth.study import Study, parse_study
from bitworth.types import Answer, Cell, EngineFacts, Timing
from bitworth.workloads import use_case as shape_of

QUESTIONS = 60
FACTS = asdict(EngineFacts(engine="fake", kernel="none", device="none", versions={"fake": "1"}))
REPORT = ("report.html", "report.md", "recommendation.json")


def main() -> None:
    """Kill and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, help="how often to kill (1000, or 40 with --quick)")
    arguments = parser.parse_args()
    kills = arguments.kills or (40 if arguments.quick else 1000)
    prepare()
    with tempfile.TemporaryDirectory(prefix="bitworth-kills-") as scratch:
        found = drill(Path(scratch), kills, random.Random(arguments.seed))
        lines, harmed = compactions(Path(scratch), 40 if arguments.quick else 1)
    other = found.reports - 1
    say(
        [
            Claim("kills: of the driver's process group", f"{kills}", found.kills, "kills", found.kills >= kills),
            Claim("kills: reports other than the undisturbed run's", "0", other, "reports", other == 0),
            Claim(
                "kills: finished results lost, changed or made twice", "0", found.harmed, "results", not found.harmed
            ),
            Claim("kills: of a compaction, results lost or doubled", "0", harmed, f"of {lines}", not harmed),
        ],
        as_json=arguments.json,
    )


def prepare() -> None:
    """What would make two reports differ, or slow: the date of the newest result, and V8, which draws the plots."""
    records.now = lambda: "2026-01-01T00:00:00+00:00"
    plots.draw = specified  # type: ignore[attr-defined]


def specified(chart: Any, *, alt: str, words: Sequence[svg.Word] = ()) -> str:
    """In place of `svg.draw`."""
    return f"<svg>{chart.to_dict(validate=False)} {alt} {words}</svg>"


class Found:
    """What happened: kills that hit, studies finished, different reports, results harmed."""

    def __init__(self) -> None:
        self.kills = self.harmed = 0
        self.digests: set[str] = set()

    @property
    def reports(self) -> int:
        """Different reports seen."""
        return len(self.digests)


def drill(scratch: Path, kills: int, moments: random.Random) -> Found:
    """Run the study undisturbed, then kill it so many times over as many folders as that takes."""
    found = Found()
    run_study(scratch / "undisturbed")  # here, so that its forks find everything imported
    shutil.rmtree(scratch / "undisturbed")
    began = time.monotonic()
    killed(scratch / "undisturbed", None)
    whole = time.monotonic() - began
    found.digests.add(digest(scratch / "undisturbed"))
    number = 0
    while found.kills < kills:
        root = scratch / str(number)
        seen: dict[str, bytes] = {}
        while True:
            hit = killed(root, moments.uniform(0, whole))
            now = results(root)
            found.harmed += sum(now.get(name) != raw for name, raw in seen.items()) + len(Ledger(root).damaged())
            seen = now
            if not hit:
                break
            found.kills += 1
            if found.kills >= kills:
                killed(root, None)
                break
        found.harmed += sum(entry.fault for entry in check(Ledger(root)))
        found.digests.add(digest(root))
        shutil.rmtree(root)
        number += 1
        print(f"{found.kills} kills, {number} studies, {found.reports} report", file=sys.stderr)
    return found


def killed(root: Path, after_s: float | None) -> bool:
    """Run the study in a fork that leads a process group, and kill that after so many seconds; whether it was hit."""
    process = os.fork()
    if process == 0:
        os.setsid()
        try:
            run_study(root)
        except BaseException as error:
            print(f"the study failed: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if after_s is not None:
        time.sleep(after_s)
        try:
            os.killpg(process, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has ended, or has not come to lead a group yet
            os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit("the study did not finish")
    return status != 0


def run_study(root: Path) -> None:
    """What `bitworth run` does once the study is planned."""
    ledger = Ledger(root)
    study = fake_study()
    cells = plan(study)
    with ledger.lock():
        ledger.write_study(study.model_dump(mode="json"), cells)
        run_cells(ledger, cells, executor=Computed())
        write_report(assemble(root), root)


class Computed:
    """An executor whose results follow from the cell alone."""

    def run(self, cells: Iterable[Cell | None], work: Work, root: str, watcher: Watcher) -> None:
        """Compute each cell in this process."""
        for cell in filter(None, cells):
            watcher.started(cell)
            watcher.ended(cell, {**compute(cell, Path(root)), "machine": {"processor": "fake"}}, None, 2.0)


def fake_study() -> Study:
    """Three formats, two tasks, two loads."""
    return parse_study(
        {
            "name": "fake",
            "model": "fake",
            "formats": ["baseline", "w8a8-fp", "w4a16-int-gptq"],
            "tasks": ["arc_challenge", "hellaswag"],
            "use_cases": ["rag"],
            "loads": ["synchronous", {"kind": "throughput", "streams": 4}],
            "hardware": [{"name": "local", "usd_per_hour": 1.0}],
            "constraints": {"min_recovery_pct": 80},
        }
    )


def plan(study: Study) -> tuple[Cell, ...]:
    """The study's cells."""
    cells: list[Cell] = []
    formats = [entry.name for entry in study.formats]
    for format in formats:
        needs: tuple[str, ...] = ()
        if format != "baseline":
            made = Cell(
                kind="quantize",
                title=f"quantize {format}",
                format=format,
                inputs={"recipe": format},
                where={"out": f"checkpoints/{format}"},
            )
            cells, needs = [*cells, made], (key_of(made),)
        for task in study.task_specs():
            inputs = {"checkpoint": format, "task": asdict(task)}
            title = f"{task.name} on {format}"
            cells.append(Cell(kind="evaluate", title=title, format=format, inputs=inputs, needs=needs))
    for load, _ in study.timed_loads():
        for format in formats:
            inputs = {"checkpoint": format, "use_case": asdict(shape_of("rag")), "load": asdict(load)}
            title = f"rag, {load.name}, {format}"
            cells.append(Cell(kind="benchmark", title=title, format=format, inputs=inputs))
    return tuple(cells)


def compute(cell: Cell, root: Path) -> dict[str, Any]:
    """A cell's result, from its key."""
    draw = random.Random(key_of(cell))
    if cell.kind == "quantize":
        folder = root / cell.where["out"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(draw.randbytes(1000))
        made = {"format": cell.format, "path": cell.where["out"], "seconds": 1.0, "peak_rss_mib": 1.0, "size_mib": 1.0}
        return {**made, "bits_per_weight": 8.0, "files": {"model.safetensors": 1000}}
    if cell.kind == "evaluate":
        task = cell.inputs["task"]["name"]
        answers = [
            Answer(task=task, item=str(item), prediction="A", score=float(draw.random() < 0.8))
            for item in range(QUESTIONS)
        ]
        return {"answers": [asdict(row) for row in answers], "facts": FACTS, "task": {}}
    timings = [
        Timing(
            start_s=at, first_token_s=at + draw.random(), end_s=at + 2 + draw.random(), prompt_tokens=8, output_tokens=5
        )
        for at in range(20)
    ]
    return {"unsupported": None, "timings": [asdict(row) for row in timings], "facts": FACTS}


def results(root: Path) -> dict[str, bytes]:
    """Every finished result's bytes by its name."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob("cells/*/[!.]*.json")}


def digest(root: Path) -> str:
    """SHA-256 of the report."""
    return hashlib.sha256(b"".join((root / name).read_bytes() for name in REPORT)).hexdigest()


# --- compaction ---------------------------------------------------------------------------------------------------


def compactions(scratch: Path, stride: int) -> tuple[int, int]:
    """Kill compaction before every `stride`-th line that it runs: how often, and results lost or doubled over all."""
    origin = scratch / "origin"
    ledger = Ledger(origin)
    for number in range(4):
        ledger.put(_judged(number), {"number": number})
    compact(ledger)
    ledger.put(_judged(1), {"number": "anew"})
    ledger.put(_judged(9), {"number": 9})
    expected = _contents(origin)
    harmed = kills = line = 0
    while True:
        root = scratch / "compacted"
        shutil.copytree(origin, root)
        hit = killed_at_line(line, lambda root=root: compact(Ledger(root)))  # type: ignore[misc]
        harmed += _contents(root) != expected
        compact(Ledger(root))
        harmed += _contents(root) != expected
        shutil.rmtree(root)
        if not hit:
            return kills, harmed
        kills, line = kills + 1, line + stride


def killed_at_line(line: int, action: Callable[[], object]) -> bool:
    """Whether a fork that runs the action was killed before that line of the ledger's code; else it had fewer."""
    process = os.fork()
    if process == 0:
        _arm(line)
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0


def _arm(line: int) -> None:
    code, left = str(Path(package.__file__).parent), line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(code):
            return None
        left -= event == "line"
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def _judged(number: int) -> Cell:
    return Cell(kind="judge", title=f"verdict {number}", format="f", inputs={"number": number})


def _contents(root: Path) -> list[tuple[str, str]]:
    return sorted((key_of(cell), str(result)) for cell, result in Ledger(root).all())


if __name__ == "__main__":
    main()
