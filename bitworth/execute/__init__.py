"""Where cells run. An executor is the only code that knows whether that is here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from bitworth.types import Cell

Tell = Callable[[str, int, int], None]
"""Called by running work with (what, done, total)."""

Work = Callable[[Cell, str, Tell], dict[str, Any]]
"""Runs one cell under a results folder; must be importable by name in another process."""


class Watcher(Protocol):
    """Told in the driver's process what happens to the cells."""

    def started(self, cell: Cell) -> None:
        """The cell is about to run."""
        ...

    def told(self, cell: Cell, what: str, done: int, total: int) -> None:
        """The running cell has come this far."""
        ...

    def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
        """The cell has a result, or the sentence that says why there is none."""
        ...


class Executor(Protocol):
    """Runs cells, one after another or side by side."""

    def run(self, cells: Iterable[Cell | None], work: Work, root: str, watcher: Watcher) -> None:
        """Run every cell that is drawn and report it to the watcher.

        What a cell needs has a result when it is drawn. None is drawn where no other cell may start before one that is
        running has been reported; whoever reports each cell before drawing the next never meets it.
        """
        ...
