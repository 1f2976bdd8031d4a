"""Figures that the paper prints twice: the same model, format and task in two tables, which ought to agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitworth.paper.printed import Printed, Tables, title
from bitworth.paper.recomputed import V1_TASKS, V2_LONG, V2_RECOVERIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A printed figure and where it stands."""

    table: int
    row: str
    column: str
    printed: Printed

    @property
    def words(self) -> str:
        """`56.3 in Table 8 (70B AWQ, average)`."""
        return f"{self.printed.value:g} in {title(self.table)} ({self.row}, {self.column})"

    @property
    def key(self) -> tuple[int, str, str]:
        """What identifies it."""
        return self.table, self.row, self.column


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """One figure in two places, the first of which is the summary."""

    first: Cell
    second: Cell
    size: str
    format: str

    @property
    def agrees(self) -> bool:
        """Whether one unrounded value prints as both."""
        return self.first.printed.span.meets(self.second.printed.span)

    @property
    def slip(self) -> bool:
        """Whether they disagree by no more than rounding in the wrong direction does."""
        mine, other = self.first.printed, self.second.printed
        apart = abs(mine.value - other.value) - mine.half - other.half
        return not self.agrees and apart <= max(mine.half, other.half)


#: (summary table, its column, other table, its column)
_TWICE = (
    (1, "leaderboard_v1", 12, "average"),
    (1, "leaderboard_v2", 13, "average"),
    (1, "arena_hard", 8, "average"),
    (1, "arena_hard", 3, "arena_hard_winrate"),
    (1, "humaneval_pass1", 3, "humaneval_pass1"),
    (3, "arena_hard_winrate", 7, "average"),
    (8, "run1", 7, "run1"),
    (8, "run2", 7, "run2"),
    (8, "average", 7, "average"),
    *((12, column, 2, column) for column in ("average", *V1_TASKS)),
    (3, "v2_average", 13, "average"),
    *((3, V2_RECOVERIES[column], 13, column) for column in V2_LONG),
)


def repeats(tables: Tables) -> Iterator[Repeat]:
    """Every figure that two of the tables print."""
    for first, column, second, other in _TWICE:
        for row in tables[first].rows if first in tables and second in tables else ():
            twin = tables[second].row(row.size, row.format)
            if twin is not None and column in row.figures and other in twin.figures:
                yield Repeat(
                    first=Cell(table=first, row=row.label, column=column, printed=row.figures[column]),
                    second=Cell(table=second, row=twin.label, column=other, printed=twin.figures[other]),
                    size=row.size,
                    format=row.format,
                )
