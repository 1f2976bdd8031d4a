"""Where cells run. An executor is the only code that knows whether that is here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from bitworth.types import Cell

#: Runs one cell to its result; must be importable by name in another process.
Work = Callable[[Cell, str], dict[str, Any]]
#: Told as each cell ends: its result, or the sentence that says why there is none.
Done = Callable[[Cell, dict[str, Any] | None, str | None], None]


class Executor(Protocol):
    """Runs cells whose needs are met, in the order given."""

    def run(self, cells: Iterable[Cell], work: Work, root: str, done: Done) -> None:
        """Run every cell that `cells` yields, calling `done` in this process after each."""
