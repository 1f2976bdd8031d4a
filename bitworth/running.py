"""Run a study: plan its cells, run those that have no result yet, say what they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from bitworth import sources
from bitworth.assembly import assemble
from bitworth.errors import BitworthError
from bitworth.execute import Executor, Watcher
from bitworth.execute.local import LocalExecutor
from bitworth.guard.documents import config_of
from bitworth.guard.folders import is_within
from bitworth.ledger import Ledger, key_of
from bitworth.planning import check_engine, plan_cells
from bitworth.progress import Tracker, reporting, seconds_taken
from bitworth.report import write_report
from bitworth.sources import Note, is_elsewhere, silent
from bitworth.study import Study, load_study
from bitworth.types import Cell, StudyResult
from bitworth.work import work


class Unwatched:
    """A Watcher that looks away."""

    def started(self, cell: Cell) -> None:
        """Nothing."""

    def told(self, cell: Cell, what: str, done: int, total: int) -> None:
        """Nothing."""

    def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A cell and where it stands: `done`, `failed` with its cause, or `to do`."""

    cell: Cell
    state: str
    cause: str | None = None


def run(
    study: Study | Path | str,
    out: Path | str,
    *,
    executor: Executor | None = None,
    machines: Sequence[Mapping[str, str]] = (),
    watcher: Watcher | None = None,
    note: Note = silent,
) -> StudyResult:
    """Run what a study has no result for yet, write the report, and say what follows.

    Args:
        study: a study, or the path of its file.
        out: the results folder; what earlier runs finished there is kept and used.
        executor: where cells run; in a local worker process unless given.
        machines: those that timings are taken on, where that is not this one; see `planning.plan_cells`.
        watcher: told how the cells fare.
        note: told what happens besides the cells (downloads, damaged files).

    Raises:
        BitworthError: the study, its sources or the folder will not do. A cell that fails stops nothing: it is in
            the result's `missing`.
    """
    with session(study, out, note=note, machines=machines) as opened:
        opened.run(executor=executor, watcher=watcher)
        return opened.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A planned study that holds its results folder; `tracker` knows how far it is."""

    ledger: Ledger
    cells: tuple[Cell, ...]
    note: Note
    tracker: Tracker

    def run(self, *, executor: Executor | None = None, watcher: Watcher | None = None) -> None:
        """Run the cells that have no result; `progress.json` says how far it is."""
        with reporting(self.ledger.root, self.tracker, watcher or Unwatched()) as reporter:
            run_cells(self.ledger, self.cells, executor=executor, watcher=reporter, note=self.note)

    def finish(self) -> StudyResult:
        """Write the report and say what the results add up to."""
        result = assemble(self.ledger.root)
        write_report(result, self.ledger.root)
        return result


@contextmanager
def session(
    study: Study | Path | str,
    out: Path | str,
    *,
    note: Note = silent,
    machines: Sequence[Mapping[str, str]] = (),
) -> Iterator[Session]:
    """Plan a study and hold its results folder until the end of the block; see `run` for what it raises.

    `machines` are those that timings are taken on, where that is not this one; see `planning.plan_cells`.
    """
    checked, ledger = _study(study), Ledger(Path(out))
    with ledger.lock():
        cells = plan_cells(checked, note=note, machines=machines)
        config = _config_of(sources.resolve_model(checked.model))
        ledger.write_study(checked.model_dump(mode="json"), cells, config)
        tracker = Tracker(cells, seconds_taken(ledger, cells))
        yield Session(ledger=ledger, cells=cells, note=note, tracker=tracker)


def plan(study: Study | Path | str, out: Path | str, *, note: Note = silent) -> list[Planned]:
    """The study's cells, and which of them the results folder has already.

    A model of the hub that is not on this machine is not fetched to be planned: its cells are listed by name.

    Raises:
        BitworthError: the study or its sources will not do.
    """
    checked = _study(study)
    by_name = is_elsewhere(checked.model)
    if by_name:
        note(f"{checked.model} is not on this machine, so its cells are listed by name; `run` fetches it")
    return standing(Ledger(Path(out)), plan_cells(checked, by_name=by_name, note=note))


def standing(ledger: Ledger, cells: Iterable[Cell]) -> list[Planned]:
    """Where each cell stands."""
    rows = []
    for cell in cells:
        done = ledger.done(cell)
        cause = None if done else ledger.failure(cell)
        state = "done" if done else "failed" if cause else "to do"
        rows.append(Planned(cell=cell, state=state, cause=cause))
    return rows


def run_cells(
    ledger: Ledger,
    cells: tuple[Cell, ...],
    *,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
    note: Note = silent,
) -> None:
    """Run the cells that have no result; each result is on disk before what needs it starts."""
    run_batches(ledger, [cells], executor=executor, watcher=watcher, note=note)


def run_batches(
    ledger: Ledger,
    batches: Iterable[tuple[Cell, ...]],
    *,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
    note: Note = silent,
) -> None:
    """`run_cells` batch after batch, by the same workers; the next batch is drawn when the last is in the ledger."""
    damaged = ledger.damaged()
    if damaged:
        note(f"{len(damaged)} stored results do not match their checksum ({damaged[0].name}); they are run again")
    recorder = _Recorder(ledger, watcher or Unwatched())
    pending = (cell for cells in batches for cell in _pending(ledger, cells, recorder))
    (executor or LocalExecutor()).run(pending, work, str(ledger.root), recorder)


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        return config_of((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise BitworthError(f"{folder}/config.json cannot be read as JSON; fetch the model again.") from error


def _study(study: Study | Path | str) -> Study:
    checked = study if isinstance(study, Study) else load_study(Path(study))
    check_engine(checked)
    return checked


def _pending(ledger: Ledger, cells: tuple[Cell, ...], recorder: _Recorder) -> Iterator[Cell | None]:
    """Cells to run, in order, each when what it needs has been reported; None while nothing else can start.

    A cell whose needs failed is reported without being run. It ends when every cell of the batch has been reported.
    """
    titles = {key_of(cell): cell.title for cell in cells}
    line = _Line(_unfinished(ledger, cells), recorder.running)
    while line.left or recorder.running:
        drawn = line.take()
        if drawn is None:
            yield None
            continue
        key, cell = drawn
        failed = [titles[need] for need in cell.needs if need in recorder.failed]
        if failed:
            recorder.ended(cell, None, f"It was not run: {failed[0]} failed.", 0.0)
            continue
        recorder.running.add(key)
        yield cell


class _Line:
    """Cells that are `left`, by key in order; one waits while anything it needs is left or among `running`."""

    def __init__(self, left: dict[str, Cell], running: Set[str]) -> None:
        self.left, self._running = left, running
        self._ready = list(enumerate(left))
        self._waiting: dict[str, list[tuple[int, str]]] = {}
        """By one thing that each waits for, so that no draw looks at all of them."""

    def take(self) -> tuple[str, Cell] | None:
        """The first cell that need not wait, or None."""
        for need in [need for need in self._waiting if not self._is_open(need)]:
            for entry in self._waiting.pop(need):
                heappush(self._ready, entry)
        while self._ready:
            place, key = heappop(self._ready)
            still = next(filter(self._is_open, self.left[key].needs), None)
            if still is None:
                return key, self.left.pop(key)
            self._waiting.setdefault(still, []).append((place, key))
        return None

    def _is_open(self, key: str) -> bool:
        return key in self.left or key in self._running


def _unfinished(ledger: Ledger, cells: tuple[Cell, ...]) -> dict[str, Cell]:
    """By key, in order: the cells without a result, and those whose checkpoint they need and is not there."""
    absent = {key_of(cell): cell for cell in cells if not ledger.done(cell)}
    wanted = {need for cell in absent.values() for need in cell.needs}
    return {
        key: cell for cell in cells if (key := key_of(cell)) in absent or (key in wanted and not _whole(ledger, cell))
    }


def _whole(ledger: Ledger, cell: Cell) -> bool:
    """True when the checkpoint that a quantize cell made still lies there at its full size."""
    result = ledger.get(cell) if cell.kind == "quantize" else None
    if result is None:
        return True
    path = result.get("path")
    if not isinstance(path, str) or not is_within(path):  # a results folder may come from elsewhere
        return False
    folder = ledger.root / path
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    return (folder / "config.json").is_file() and bool(sizes == result.get("files"))


class _Recorder:
    """A Watcher that puts results into the ledger before it passes the word on."""

    def __init__(self, ledger: Ledger, watcher: Watcher) -> None:
        self._ledger, self._watcher = ledger, watcher
        self.failed: set[str] = set()
        self.running: set[str] = set()

    def started(self, cell: Cell) -> None:
        self._watcher.started(cell)

    def told(self, cell: Cell, what: str, done: int, total: int) -> None:
        self._watcher.told(cell, what, done, total)

    def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
        self.running.discard(key_of(cell))
        if result is not None:
            self._ledger.put(cell, result, seconds=seconds)
        else:
            self.failed.add(key_of(cell))
            self._ledger.fail(cell, cause or "It gave no result and no cause.")
        self._watcher.ended(cell, result, cause, seconds)


def as_rows(planned: Iterable[Planned]) -> list[dict[str, Any]]:
    """For --json: kind, title, format, key, state and cause of each cell."""
    return [
        {
            "key": key_of(row.cell),
            **{name: asdict(row.cell)[name] for name in ("kind", "title", "format")},
            "state": row.state,
            "cause": row.cause,
        }
        for row in planned
    ]
