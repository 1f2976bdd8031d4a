"""How far a running study is: counts, rates and time left by hand, and a file that outlives no driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitworth.ledger import key_of
from bitworth.progress import (
    FILE,
    Tracker,
    cell_words,
    duration,
    left_words,
    rate_words,
    read_progress,
    reporting,
)
from bitworth.running import Unwatched
from bitworth.types import Cell


class Watch:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def asked(task: str, format: str) -> Cell:
    return Cell(kind="evaluate", title=f"{task} on {format}", format=format, inputs={"task": task, "of": format})


CELLS = [asked(task, format) for format in ("baseline", "w8a8-fp", "w4a16") for task in ("arc", "mmlu")]
TIMED = Cell(kind="benchmark", title="rag", format="baseline", inputs={"use_case": "rag"})


def took(cells: Iterable[Cell], seconds: float) -> dict[str, float]:
    return {key_of(cell): seconds for cell in cells}


def test_what_finished_cells_took_tells_what_like_cells_take() -> None:
    watch = Watch()
    tracker = Tracker(CELLS, {**took(CELLS[:1], 10.0), **took(CELLS[1:2], 40.0)}, watch)
    now = tracker.now()
    assert (now.cells_done, now.cells_total, now.running) == (2, 6, ())
    assert now.left_s == 2 * 10.0 + 2 * 40.0
    assert not now.left_is_least


def test_a_kind_of_which_none_is_finished_makes_it_a_least() -> None:
    tracker = Tracker([*CELLS, TIMED], took(CELLS[:1], 10.0), Watch())
    now = tracker.now()
    assert now.left_is_least
    assert now.left_s == 5 * 10.0  # mmlu by the mean of its kind
    assert left_words(now) == "over 50 s left"
    unknown = Tracker(CELLS, {}, Watch()).now()
    assert (unknown.left_s, left_words(unknown)) == (None, "")


def test_a_rate_counts_from_the_first_word() -> None:
    watch = Watch()
    tracker = Tracker(CELLS[:2], {}, watch)
    tracker.started(CELLS[0])
    watch.now += 30  # loading a model
    tracker.told(CELLS[0], "arc", 10, 110)
    assert tracker.now().running[0].rate_per_s is None
    watch.now += 5
    tracker.told(CELLS[0], "arc", 60, 110)
    [row] = tracker.now().running
    assert (row.rate_per_s, row.left_s, row.done, row.total) == (10.0, 5.0, 60, 110)
    assert cell_words(row) == "arc on baseline: 60 of 110, 10 a second"
    tracker.told(CELLS[0], "second half", 1, 100)  # another step begins
    assert tracker.now().running[0].rate_per_s is None


def test_a_running_cell_without_a_rate_is_taken_for_a_usual_one() -> None:
    watch = Watch()
    tracker = Tracker(CELLS[::2], took(CELLS[:1], 20.0), watch)
    tracker.started(CELLS[2])
    watch.now += 5
    assert tracker.now().left_s == 15.0 + 20.0
    watch.now += 100
    assert tracker.now().left_s == 20.0  # late, but never less than nothing


def test_failures_are_neither_done_nor_to_come() -> None:
    tracker = Tracker(CELLS, took(CELLS[:2], 10.0), Watch())
    tracker.started(CELLS[2])
    tracker.ended(CELLS[2], None, "It broke.", 1.0)
    tracker.ended(CELLS[3], {}, None, 10.0)
    now = tracker.now()
    assert (now.cells_done, now.cells_failed, now.left_s) == (3, 1, 20.0)
    again = Tracker(CELLS[:1], took(CELLS[:1], 10.0), Watch())
    again.started(CELLS[0])  # its checkpoint was gone
    assert again.now().cells_done == 0


@given(st.lists(st.sampled_from(["start", "tell", "end", "fail"]), max_size=40), st.randoms())
def test_counts_add_up_whatever_happens(events: list[str], luck: object) -> None:
    watch = Watch()
    tracker = Tracker(CELLS, {}, watch)
    for event in events:
        cell = luck.choice(CELLS)  # type: ignore[attr-defined]
        watch.now += 1
        if event == "start":
            tracker.started(cell)
        elif event == "tell":
            tracker.told(cell, "step", int(watch.now) % 7, 7)
        else:
            tracker.ended(cell, {} if event == "end" else None, "cause", 1.0)
        now = tracker.now()
        assert 0 <= now.cells_done <= now.cells_total == len(CELLS)
        assert now.left_s is None or now.left_s >= 0
        assert all(row.rate_per_s is None or row.rate_per_s > 0 for row in now.running)


def left_by_hand(done: dict[str, float], failed: set[str]) -> tuple[float | None, bool]:
    """Time left cell by cell, of cells that say no count: those done by name, the rest not running."""
    left: list[float | None] = []
    for cell in CELLS:
        if key_of(cell) not in done and key_of(cell) not in failed:
            like = [done[key_of(other)] for other in CELLS if key_of(other) in done]
            alike = [done[key_of(o)] for o in CELLS if key_of(o) in done and o.inputs["task"] == cell.inputs["task"]]
            left.append(sum(alike or like) / len(alike or like) if like else None)
    known = [each for each in left if each is not None]
    return (sum(known) if known or not left else None), len(known) < len(left)


@given(st.lists(st.tuples(st.sampled_from(CELLS), st.sampled_from([0.0, 1.5, 40.0, None])), max_size=30))
def test_time_left_is_that_of_a_sum_over_cells(ends: list[tuple[Cell, float | None]]) -> None:
    tracker = Tracker(CELLS, {}, Watch())
    done: dict[str, float] = {}
    failed: set[str] = set()
    for cell, seconds in ends:
        tracker.started(cell)
        done.pop(key_of(cell), None)
        tracker.ended(cell, None if seconds is None else {}, "cause", seconds or 0.0)
        if seconds is None:
            failed.add(key_of(cell))
        else:
            done[key_of(cell)] = seconds
    now = tracker.now()
    left, least = left_by_hand(done, failed)
    assert now.left_s == (None if left is None else pytest.approx(left, abs=1e-9))
    assert now.left_is_least is least


def test_many_cells_cost_a_look_nothing() -> None:
    cells = [asked(f"t{number % 40}", f"{number}") for number in range(10_000)]
    tracker = Tracker(cells, took(cells[:5000], 2.0), Watch())
    began = time.process_time()
    for _ in range(300):
        now = tracker.now()
    assert now.left_s == 5000 * 2.0
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1.5 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_slow_rates_are_by_the_minute() -> None:
    tracker = Tracker(CELLS, {}, watch := Watch())
    tracker.started(CELLS[0])
    tracker.told(CELLS[0], "blocks", 0, 32)
    watch.now += 60
    tracker.told(CELLS[0], "blocks", 2, 32)
    assert rate_words(tracker.now().running[0]) == "2 a minute"


def test_the_file_is_there_while_the_driver_is(tmp_path: Path) -> None:
    tracker = Tracker(CELLS, {})
    with reporting(tmp_path, tracker, Unwatched()) as reporter:
        reporter.started(CELLS[0])
        found = read_progress(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
        assert [row.title for row in found.running] == ["arc on baseline"]
        reporter.ended(CELLS[0], {}, None, 2.0)
        assert read_progress(tmp_path) is not None
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert read_progress(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow(beside=True)
def test_a_killed_driver_is_not_believed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from bitworth.progress import Tracker, Reporter\nfrom bitworth.running import Unwatched\n"
        "Reporter(Path(sys.argv[1]), Tracker([], {}), Unwatched()).write()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert (tmp_path / FILE).is_file()
    assert read_progress(tmp_path) is None


def test_a_driver_elsewhere_is_believed_and_nonsense_is_not(tmp_path: Path) -> None:
    from dataclasses import asdict

    now = replace(Tracker(CELLS, {}).now(), host="elsewhere", pid=2**22 + 1)
    (tmp_path / FILE).write_text(json.dumps(asdict(now)))
    assert read_progress(tmp_path) == now
    (tmp_path / FILE).write_text(json.dumps({**asdict(now), "host": now.host, "running": "none"}))
    assert read_progress(tmp_path) is None
    (tmp_path / FILE).write_text("{")
    assert read_progress(tmp_path) is None


def test_a_disk_that_will_not_take_the_file_stops_nothing(tmp_path: Path) -> None:
    with reporting(tmp_path / "absent", Tracker(CELLS, {}), Unwatched()) as reporter:
        reporter.started(CELLS[0])
        reporter.ended(CELLS[0], {}, None, 1.0)
    assert not (tmp_path / "absent").exists()
