"""Failure drills: whatever is killed, filled up, cut short or set wrong, finished results stay, the rest is run again.

Servers that are killed under a load: test_load_faults.py. Moments of compaction: test_ledger_packs.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitworth.errors import BitworthError
from bitworth.execute import Tell, Watcher, Work
from bitworth.execute.local import LocalExecutor
from bitworth.ledger import Ledger, records
from bitworth.running import run_cells
from bitworth.types import Cell
from bitworth.work import work

pytestmark = pytest.mark.usefixtures("unsynced")
ROOT = Path(__file__).resolve().parents[1]


def cell(name: str, **inputs: Any) -> Cell:
    return Cell(kind="evaluate", title=name, format="f", inputs={"name": name, **inputs})


class Here:
    """An executor in this process, whose work is a function of the cell."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def run(self, cells: Iterable[Cell | None], work: Work, root: str, watcher: Watcher) -> None:
        for one in filter(None, cells):
            self.titles.append(one.title)
            watcher.ended(one, {"said": one.title}, None, 1.0)


class Once(LocalExecutor):
    """Worker processes, with the work below."""

    def run(self, cells: Iterable[Cell | None], work: Work, root: str, watcher: Watcher) -> None:
        super().run(cells, dies_once, root, watcher)


def dies_once(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """The worker is killed the first time that it is given a cell called `mortal`."""
    mark = Path(root) / "died"
    if cell.title == "mortal" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"said": cell.title}


# --- kills --------------------------------------------------------------------------------------------------------


@pytest.mark.slow(beside=True)
def test_a_killed_worker_costs_its_cell_and_the_next_run_makes_it(tmp_path: Path) -> None:
    ledger, cells = Ledger(tmp_path), tuple(cell(name) for name in ("first", "mortal", "last"))
    run_cells(ledger, cells, executor=Once())
    assert [ledger.get(one) for one in cells] == [{"said": "first"}, None, {"said": "last"}]
    assert "was killed (signal 9)" in str(ledger.failure(cells[1]))
    stamps = [ledger.path(one).stat().st_mtime_ns for one in (cells[0], cells[2])]
    run_cells(ledger, cells, executor=Once())
    assert ledger.get(cells[1]) == {"said": "mortal"}
    assert ledger.failure(cells[1]) is None
    assert [ledger.path(one).stat().st_mtime_ns for one in (cells[0], cells[2])] == stamps


@pytest.mark.slow(beside=True)
def test_a_driver_killed_dozens_of_times_reports_the_same(tmp_path: Path) -> None:
    """A few dozen of the thousand kills of benchmarks/kills.py, in a process of its own."""
    script = textwrap.dedent("""
        import random, sys
        from pathlib import Path
        import kills
        kills.prepare()
        found = kills.drill(Path(sys.argv[1]), 30, random.Random(7))
        print(found.kills, found.reports, found.harmed)
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["30", "1", "0"]


# --- disks --------------------------------------------------------------------------------------------------------

FILLS_UP = """
import os, sys
from pathlib import Path
from bitworth.errors import WorkFailed
from bitworth.ledger import Ledger
from bitworth.ledger.checking import check
from bitworth.types import Cell

root = Path(sys.argv[1])
ledger = Ledger(root)
cells = [Cell(kind="evaluate", title=str(n), format="f", inputs={"n": n}) for n in range(200)]
put = []
try:
    for one in cells:
        ledger.put(one, {"text": str(len(put)) * 4000})
        put.append(one)
    print("the disk never filled up")
except WorkFailed as error:
    assert "the disk is full" in str(error), error
assert put and all(ledger.get(one) == {"text": str(n) * 4000} for n, one in enumerate(put))
left = [entry for entry in check(Ledger(root))]
assert left == [], left
if len(sys.argv) > 2:
    (root / "filler").unlink()
    ledger.put(cells[len(put)], {})
    assert ledger.get(cells[len(put)]) == {}
print("kept", len(put) > 3)
"""


def test_a_disk_that_fills_up_keeps_every_result_and_no_half_one(tmp_path: Path) -> None:
    """A file system of one mebibyte in a user namespace."""
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && head -c 400000 /dev/zero > {tmp_path}/filler"
    probe = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this machine lets no user mount a tmpfs in a namespace")
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(FILLS_UP)
    command = f"{mount} && exec {sys.executable} {script} {tmp_path} free"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("kept True\n", 0), done.stderr


WHERE = {"checksum": 30, "line's end": 77, "schema": 88, "key": 100, "date": 130, "cell": 200, "result": -40, "end": -2}


@pytest.mark.parametrize("place", WHERE)
@pytest.mark.parametrize("harm", ["flipped", "cut", "zeros"])
def test_a_result_that_the_disk_harmed_is_run_again_and_said(tmp_path: Path, place: str, harm: str) -> None:
    ledger, cells = Ledger(tmp_path), (cell("sound"), cell("harmed", padding="x" * 80))
    run_cells(ledger, cells, executor=Here())
    path = ledger.path(cells[1])
    whole = path.read_bytes()
    at = WHERE[place] % len(whole)
    harmed = {
        "flipped": whole[:at] + bytes([whole[at] ^ 1 << random.Random(at).randrange(8)]) + whole[at + 1 :],
        "cut": whole[:at],
        "zeros": whole[:at] + bytes(len(whole) - at),
    }[harm]
    path.write_bytes(harmed)
    notes: list[str] = []
    executor = Here()
    run_cells(Ledger(tmp_path), cells, executor=executor, note=notes.append)
    assert executor.titles == ["harmed"]
    assert notes == [f"1 stored results do not match their checksum ({path.name}); they are run again"]
    assert records.decode(path.read_bytes())["result"] == {"said": "harmed"}  # type: ignore[index]


def test_every_flipped_bit_of_a_record_is_noticed() -> None:
    raw = records.encode(cell("x"), {"score": 0.5}, seconds=1.0, finished="2026-01-01T00:00:00+00:00")
    assert records.is_whole(raw)
    for bit in range(8 * len(raw)):
        harmed = bytearray(raw)
        harmed[bit // 8] ^= 1 << bit % 8
        assert not records.is_whole(bytes(harmed)), bit
    assert not any(records.is_whole(raw[:length]) for length in range(len(raw)))
    assert not records.is_whole(raw + b" ")


# --- clocks and versions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_changes_no_duration_and_runs_nothing_again(
    tmp_path: Path, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, cells = Ledger(tmp_path), (cell("before"), cell("after"))
    run_cells(ledger, cells[:1], executor=Here())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    monkeypatch.setattr(records, "now", lambda: f"{2026 + jump // (365 * 86400)}-01-01T00:00:00+00:00")
    os.utime(ledger.path(cells[0]), (real() - jump,) * 2)
    executor = Here()
    with ledger.lock():
        run_cells(ledger, cells, executor=executor)
    assert executor.titles == ["after"]
    seconds = [record["seconds"] for one in cells if (record := ledger.record(one)) is not None]
    assert seconds == [1.0, 1.0]


@pytest.mark.parametrize("seconds", [-5.0, float("nan"), float("-inf"), float("inf")])
def test_a_duration_is_never_negative(tmp_path: Path, seconds: float) -> None:
    ledger = Ledger(tmp_path)
    ledger.put(cell("x"), {}, seconds=seconds)
    record = ledger.record(cell("x"))
    assert record is not None
    assert record["seconds"] == 0.0


@pytest.mark.parametrize(("package", "here"), [("numpy", None), ("no-such-package", "none")])
def test_a_worker_with_other_versions_refuses_the_cell(tmp_path: Path, package: str, here: str | None) -> None:
    from importlib.metadata import version

    other = Cell(kind="diverge", title="x", format="f", inputs={"versions": {"bitworth": version("bitworth")}})
    wrong = replace(other, inputs={"versions": {**other.inputs["versions"], package: "0.0.1"}})
    said = rf"has {package} {here or version(package)}, but the study was planned with {package} 0\.0\.1"
    with pytest.raises(BitworthError, match=said):
        work(wrong, str(tmp_path), lambda *_: None)


def test_a_result_of_a_later_version_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    import hashlib

    ledger = Ledger(tmp_path)
    ledger.put(cell("x"), {})
    rest = ledger.path(cell("x")).read_bytes()[78:].replace(b'"schema":2', b'"schema":3')
    raw = b'{"sha256":"' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest
    ledger.path(cell("x")).write_bytes(raw)
    assert json.loads(raw)["schema"] == 3
    with pytest.raises(BitworthError, match=r"written by a later bitworth \(schema 3"):
        run_cells(Ledger(tmp_path), (cell("x"),), executor=Here())
    assert ledger.path(cell("x")).read_bytes() == raw
