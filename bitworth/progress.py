"""How far a running study is: its driver keeps one small file up to date, which any other process may read.

    OUT/progress.json     there while a driver runs; a killed driver leaves it behind, and its process id tells

Time left is a sum over the cells that have no result: the running one by its own rate, each other by the mean of what
finished cells of its kind took, those of the same task, use case or load before the rest.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bitworth.errors import BitworthError
from bitworth.execute import Watcher
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.ledger import Ledger, canonical, key_of, revive
from bitworth.types import Cell

FILE = "progress.json"
_EVERY_S = 1.0
"""Least time between two writes that only move a count."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellProgress:
    """A running cell: `done` of `total` of its `step` at `rate_per_s`; what nobody knows yet is None."""

    key: str
    kind: str
    title: str
    format: str
    began: float
    step: str | None = None
    done: int = 0
    total: int = 0
    rate_per_s: float | None = None
    left_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """A running study at a moment (`updated`, seconds since 1970): its cells, and the process that drives them.

    `left_s` is None where nothing is known of the time left, and `left_is_least` where it is known of some cells only.
    """

    host: str
    pid: int
    process_began: float
    began: float
    updated: float
    cells_done: int
    cells_failed: int
    cells_total: int
    left_s: float | None
    left_is_least: bool
    running: tuple[CellProgress, ...]


@dataclass(slots=True)
class _Running:
    """A cell on its way; `at` is when its step first said a count, `first` that count."""

    cell: Cell
    began: float
    step: str | None = None
    at: float = 0.0
    first: int = 0
    done: int = 0
    total: int = 0


class Tracker:
    """A Watcher that knows how far a study is; `seconds` are what its finished cells took, by key."""

    def __init__(self, cells: Sequence[Cell], seconds: Mapping[str, float], clock: Clock = time.time) -> None:
        self._likes = {key_of(cell): _likes(cell) for cell in cells}
        self._seconds = {key: took for key, took in seconds.items() if key in self._likes}
        self._failed: set[str] = set()
        self._running: dict[str, _Running] = {}
        # Sums over all cells are kept up to date, since the file is written twice a cell.
        self._sums: dict[str, tuple[float, int]] = {}
        self._todo: Counter[tuple[str, str]] = Counter()
        for key in self._likes:
            self._weigh(key, 1)
        self._clock = clock
        self._began = clock()

    @property
    def total(self) -> int:
        """How many cells the study has."""
        return len(self._likes)

    @property
    def done(self) -> int:
        """How many have a result."""
        return len(self._seconds)

    def started(self, cell: Cell) -> None:
        """The cell runs; a result it had is to be replaced."""
        key = key_of(cell)
        self._weigh(key, -1)
        self._seconds.pop(key, None)
        self._weigh(key, 1)
        self._running[key] = _Running(cell=cell, began=self._clock())

    def told(self, cell: Cell, what: str, done: int, total: int) -> None:
        """The cell has come so far; its rate counts from the first word on a step, so that loading a model does not."""
        row = self._running.setdefault(key_of(cell), _Running(cell=cell, began=self._clock()))
        if row.step != what or done < row.done:
            row.step, row.at, row.first = what, self._clock(), done
        row.done, row.total = done, total

    def ended(self, cell: Cell, result: Mapping[str, Any] | None, cause: str | None, seconds: float) -> None:
        """The cell is done, or failed."""
        key = key_of(cell)
        self._running.pop(key, None)
        self._weigh(key, -1)
        if result is not None:
            self._seconds[key] = seconds
        else:
            self._failed.add(key)
        self._weigh(key, 1)

    def _weigh(self, key: str, sign: int) -> None:
        """Count a cell in, or out, as it stands now."""
        if key in self._seconds:
            for name in self._likes[key]:
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + sign * self._seconds[key], count + sign)
        elif key not in self._failed:
            self._todo[self._likes[key]] += sign

    def now(self) -> RunProgress:
        """The study as it is now."""
        running = tuple(self._cell(key, row) for key, row in self._running.items())
        left, least = self._left({row.key: row for row in running})
        return RunProgress(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_began=psutil.Process().create_time(),
            began=self._began,
            updated=self._clock(),
            cells_done=self.done,
            cells_failed=len(self._failed),
            cells_total=self.total,
            left_s=left,
            left_is_least=least,
            running=running,
        )

    def _cell(self, key: str, row: _Running) -> CellProgress:
        passed = self._clock() - row.at
        rate = (row.done - row.first) / passed if row.done > row.first and passed > 0 else None
        left = (row.total - row.done) / rate if rate and row.total else None
        return CellProgress(
            key=key,
            kind=row.cell.kind,
            title=row.cell.title,
            format=row.cell.format,
            began=row.began,
            step=row.step,
            done=row.done,
            total=row.total,
            rate_per_s=rate,
            left_s=left,
        )

    def _left(self, running: Mapping[str, CellProgress]) -> tuple[float | None, bool]:
        """Seconds until all cells are done, and whether that leaves cells out; None where it leaves all out."""
        waiting = Counter(self._todo)
        known: list[tuple[float | None, int]] = []
        for key, cell in running.items():
            if key not in self._seconds and key not in self._failed:
                waiting[self._likes[key]] -= 1
                known.append((self._cell_left(key, cell), 1))
        known += [(self._usual(likes), count) for likes, count in waiting.items() if count]
        found = [left * count for left, count in known if left is not None]
        return (sum(found) if found or not known else None), len(found) < len(known)

    def _cell_left(self, key: str, running: CellProgress) -> float | None:
        if running.left_s is not None:
            return running.left_s
        usual = self._usual(self._likes[key])
        return None if usual is None else max(0.0, usual - (self._clock() - running.began))

    def _usual(self, likes: tuple[str, str]) -> float | None:
        """Mean seconds of the finished cells that are most like these."""
        sums = (self._sums.get(name, (0.0, 0)) for name in likes)
        return next((max(0.0, total) / count for total, count in sums if count), None)


def _likes(cell: Cell) -> tuple[str, str]:
    """What the cell is like, the closest first: its kind with what it is asked, its kind."""
    asked = {name: cell.inputs[name] for name in ("task", "use_case", "load") if name in cell.inputs}
    return f"{cell.kind} {canonical(asked)}", cell.kind


# --- the file -----------------------------------------------------------------------------------------------------


class Reporter:
    """A Watcher that tells a tracker, then the file, then another Watcher."""

    def __init__(self, root: Path, tracker: Tracker, after: Watcher) -> None:
        self._path, self._tracker, self._after = root / FILE, tracker, after
        self._written = 0.0

    def started(self, cell: Cell) -> None:
        """The file names the cell."""
        self._tracker.started(cell)
        self.write()
        self._after.started(cell)

    def told(self, cell: Cell, what: str, done: int, total: int) -> None:
        """The file has the count, once a second."""
        self._tracker.told(cell, what, done, total)
        if time.monotonic() - self._written >= _EVERY_S:
            self.write()
        self._after.told(cell, what, done, total)

    def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
        """The file counts the cell."""
        self._tracker.ended(cell, result, cause, seconds)
        self.write()
        self._after.ended(cell, result, cause, seconds)

    def write(self) -> None:
        """Replace the file; a disk that will not take it stops no study, and nothing waits for it to reach the disk."""
        self._written = time.monotonic()
        temporary = self._path.with_name(f".{FILE}.{os.getpid()}.tmp")
        with suppress(OSError):
            temporary.write_text(json.dumps(asdict(self._tracker.now()), ensure_ascii=False), encoding="utf-8")
            os.replace(temporary, self._path)


@contextmanager
def reporting(root: Path, tracker: Tracker, after: Watcher) -> Iterator[Reporter]:
    """A Reporter whose file is there for the length of the block."""
    reporter = Reporter(root, tracker, after)
    reporter.write()
    try:
        yield reporter
    finally:
        with suppress(OSError):
            (root / FILE).unlink(missing_ok=True)


def read_progress(root: Path) -> RunProgress | None:
    """What the folder's driver said last; None where none runs. On another host, nobody can tell: what it said stands.

    The folder's lock is left alone: asking for it, however briefly, could turn a driver away that is about to start.
    """
    try:
        found = revive(RunProgress, json_of((root / FILE).read_text(encoding="utf-8"), nested=MOST_NESTED))
    except (OSError, ValueError, BitworthError):
        return None
    return found if _is_alive(found) else None


def _is_alive(found: RunProgress) -> bool:
    if found.host != socket.gethostname():
        return True
    try:
        return abs(psutil.Process(found.pid).create_time() - found.process_began) < 1.0
    except psutil.Error:
        return False


def seconds_taken(ledger: Ledger, cells: Iterable[Cell]) -> dict[str, float]:
    """Seconds that each finished cell took, by key."""
    found = ((key_of(cell), ledger.seconds(cell)) for cell in cells)
    return {key: took for key, took in found if took is not None}


# --- in words -----------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """`34 s`, `12 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def left_words(found: RunProgress) -> str:
    """`about 12 min left`, `over 12 min left` where some cells are of an unknown length, or nothing."""
    if found.left_s is None:
        return ""
    return f"{'over' if found.left_is_least else 'about'} {duration(found.left_s)} left"


def rate_words(cell: CellProgress) -> str:
    """`3.2 a second`, `1.5 a minute` for the slow, or nothing."""
    if cell.rate_per_s is None:
        return ""
    return f"{cell.rate_per_s:,.3g} a second" if cell.rate_per_s >= 0.1 else f"{60 * cell.rate_per_s:.2g} a minute"


def cell_words(cell: CellProgress) -> str:
    """`arc on w8a8-fp: 12 of 400, 3.2 a second`."""
    count = f"{cell.done:,} of {cell.total:,}" if cell.total else ""
    told = ", ".join(part for part in (count, rate_words(cell)) if part)
    return f"{cell.title}: {told}" if told else cell.title
