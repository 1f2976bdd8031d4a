"""What the command line shows: notes and progress on standard error, one document on standard output."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from bitworth.errors import BitworthError, Incomplete
from bitworth.guard.keys import without_secrets
from bitworth.guard.text import visible
from bitworth.report.document import as_text, plain
from bitworth.types import Cell

if TYPE_CHECKING:
    from bitworth.progress import Tracker

INTERRUPTED = 130
_PIPED = 160  # columns where nobody says how many: tables keep their cells whole in a log

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress on standard error.")]


def is_follower() -> bool:
    """Whether torchrun started this process beside the one that reports."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def _has_width() -> bool:
    return sys.stdout.isatty() or "COLUMNS" in os.environ


class Terminal:
    """Standard error for people, standard output for the answer."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._err = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None

    def note(self, sentence: str) -> None:
        """Say what happens, unless quiet."""
        if not self.quiet:
            self._err.print(f"[dim]{escape(_clean(sentence))}[/dim]", soft_wrap=True)

    def answer(self, document: dict[str, Any], human: Callable[[], RenderableType]) -> None:
        """Print the verb's result: the document with --json, else what people read."""
        if self.as_json:
            print(_printable(as_text(plain(document))), end="")
        else:
            console = Console(highlight=False, width=None if _has_width() else _PIPED)
            with console.capture() as shown:
                console.print(human(), soft_wrap=True)
            print(_printable(shown.get()), end="")

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """A live bar on a terminal; None where there is none, or when quiet."""
        if self.quiet or not self._err.is_terminal or self._err.is_dumb_terminal:
            yield None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Left(compact=True),
        )
        with Progress(*columns, console=self._err, transient=True) as bars:
            yield bars

    @contextmanager
    def watching(self, total: int | None, done: int, tracker: Tracker | None = None) -> Iterator[CellWatcher]:
        """A Watcher that shows `total` cells (None: nobody knows), `done` of which are finished already.

        With the tracker of a study, which is told before the Watcher is, it shows rates and the time left, too.
        """
        with self.progress() as bars:
            yield CellWatcher(self, bars, total, done, tracker)

    @contextmanager
    def steps(self, what: str) -> Iterator[Callable[[str, int, int], None]]:
        """A callback (step, done, total) that moves a bar, for one long piece of work."""
        with self.progress() as bars:
            if bars is None:
                yield lambda _step, _done, _total: None
                return
            row = bars.add_task(what, total=None)
            yield lambda step, done, total: bars.update(
                row, description=f"{what}: {step}", completed=done, total=total or None
            )


class _Left(TimeRemainingColumn):
    """What a bar's task says of the time left itself (`says`), else what its count so far makes likely."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The words."""
        says: Callable[[], str] | None = task.fields.get("says")
        return super().render(task) if says is None else Text(says(), style="progress.remaining")


class CellWatcher:
    """Shows cells as they run: a bar for all and one for each on a terminal, a line a finished cell elsewhere."""

    def __init__(
        self, terminal: Terminal, bars: Progress | None, total: int | None, done: int, tracker: Tracker | None = None
    ) -> None:
        self._terminal, self._bars, self._total, self._done = terminal, bars, total, done
        self._tracker = tracker
        self._all = (
            bars.add_task("cells", total=total, completed=done, **self._says(self._study_left)) if bars else None
        )
        self._bar_of: dict[str, TaskID] = {}

    def started(self, cell: Cell) -> None:
        """A bar for the cell."""
        if self._bars is not None:
            words = self._says(lambda: self._cell_left(cell))
            self._bar_of[cell.title] = self._bars.add_task(escape(cell.title), total=None, **words)

    def told(self, cell: Cell, what: str, done: int, total: int) -> None:
        """The cell's bar moves."""
        if self._bars is not None and cell.title in self._bar_of:
            self._bars.update(self._bar_of[cell.title], completed=done, total=total or None)

    def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
        """The cell's bar goes, a line stays."""
        self._done += 1
        if self._bars is not None and cell.title in self._bar_of:
            self._bars.remove_task(self._bar_of.pop(cell.title))
        if self._bars is not None and self._all is not None:
            self._bars.update(self._all, completed=self._done)
        how = f"{seconds:.0f} s" if result is not None else f"failed: {cause}"
        if result is not None and result.get("unsupported"):
            how = f"not run: {result['unsupported']}"
        place = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        left = self._study_left() if self._bars is None and self._done != self._total else ""
        self._terminal.note(f"[{place}] {cell.title}: {how}{left and f' ({left})'}")

    def _says(self, words: Callable[[], str]) -> dict[str, Any]:
        return {} if self._tracker is None else {"says": words}

    def _study_left(self) -> str:
        from bitworth.progress import left_words

        return left_words(self._tracker.now()) if self._tracker is not None else ""

    def _cell_left(self, cell: Cell) -> str:
        """`3.2 a second, 40 s left`."""
        from bitworth.progress import duration, rate_words

        running = self._tracker.now().running if self._tracker is not None else ()
        row = next((row for row in running if row.title == cell.title), None)
        if row is None or row.left_s is None:
            return ""
        return f"{rate_words(row)}, {duration(row.left_s)} left"


def pairs_table(title: str, document: dict[str, Any]) -> RenderableType:
    """A document's plain values, a row each."""
    table = Table(title=title, show_header=False)
    for name, value in document.items():
        if value is not None and not isinstance(value, dict | list):
            table.add_row(name, f"{value:.5g}" if isinstance(value, float) else str(value))
    return table


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; whatever goes wrong becomes one sentence and an exit code, never a traceback.

    Set BITWORTH_DEBUG=1 to see where an unexpected error came from.
    """
    try:
        left = command()  # typer hands an exit code back instead of raising it
        sys.stdout.flush()
        return left if isinstance(left, int) else 0
    except typer.Exit as leave:
        return int(leave.exit_code)
    except typer.TyperException as error:
        return _say(f"{error.format_message()} (`bitworth --help` lists verbs, `bitworth VERB --help` options.)", 2)
    except BitworthError as error:
        return _say(str(error), error.exit_code, document=not isinstance(error, Incomplete))
    except (KeyboardInterrupt, typer.Abort):
        return _say("Stopped; what was finished is kept, and the same command goes on from there.", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _say("This machine's memory does not suffice for this model.", 1)
    except PermissionError as error:
        what = error.filename or "What it was given"
        return _say(f"{what} cannot be used: {error.strerror}; check its permissions.", getattr(error, "exit_code", 2))
    except Exception as error:
        if os.environ.get("BITWORTH_DEBUG"):
            print(_printable(traceback.format_exc()), file=sys.stderr)
        says = f"Unexpected {type(error).__name__}: {error} (BITWORTH_DEBUG=1 shows where it came from)."
        return _say(says, getattr(error, "exit_code", 1))


def _printable(text: str) -> str:
    """Without keys, and with half a surrogate pair, which no terminal takes, as JSON writes it."""
    return without_secrets(text).encode(errors="backslashreplace").decode()


def _clean(sentence: str) -> str:
    """A sentence that may quote a server, a file or a model: no keys, nothing that a terminal would obey."""
    return visible(without_secrets(sentence))


def _say(sentence: str, code: int, *, document: bool = True) -> int:
    sentence = _clean(sentence)
    if document and "--json" in sys.argv and not is_follower():
        print(json.dumps({"error": sentence}, ensure_ascii=False))
    print(f"bitworth: {sentence}", file=sys.stderr)
    return code
