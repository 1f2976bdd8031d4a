"""Which format wins for a size, GPU and load, and by how much, beside what the paper's abstracts advise.

The first versions and the ACL 2025 abstract: W4A16 for synchronous deployment and for asynchronous on mid-tier GPUs,
W8A8 for asynchronous deployment on high-end GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitworth.paper.costs import LOADS, SYNCHRONOUS, LoadTable, cost, place, use_cases
from bitworth.paper.printed import BASELINE_FORMAT, Row, Span, Tables
from bitworth.paper.recomputed import gain, printed_gain
from bitworth.recommendation import recommend
from bitworth.types import BASELINE, Constraint, QueryCost

HIGH_END = ("A100", "H100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guideline:
    """The winner of one cell of the paper's grid, by its mean gain in queries per dollar over BF16.

    `margin_pct` is how much more than the runner-up's that gain is, `margin_span` what the printed figures' rounding
    leaves open of it; `wins` counts the use cases in which each format answers the most queries per dollar.
    """

    size: str
    gpu: str
    load: str
    winner: str
    runner_up: str
    gains: dict[str, float]
    margin_pct: float
    margin_span: Span
    wins: dict[str, int]
    advised: str

    @property
    def agrees(self) -> bool:
        """Whether the winner is of the advised kind."""
        return self.winner.startswith(self.advised.lower())

    @property
    def settled(self) -> bool:
        """Whether the winner stays the winner whatever the rounding hid."""
        return self.margin_span.low > 1e-9


def advised(gpu: str, load: LoadTable) -> str:
    """`W4A16` or `W8A8`: what the paper advises."""
    return "W8A8" if load is not SYNCHRONOUS and gpu in HIGH_END else "W4A16"


def guidelines(tables: Tables) -> Iterator[Guideline]:
    """A guideline a size, GPU and load, in the tables' order."""
    for load in LOADS:
        for (size, gpu), rows in tables[load.number].groups().items() if load.number in tables else ():
            baseline = tables[load.number].baseline(rows[0])
            others = [row for row in rows if row.format != BASELINE_FORMAT]
            if baseline is not None and len(others) > 1:
                yield _guideline(tables, load, size, gpu, baseline, others)


def _guideline(tables: Tables, load: LoadTable, size: str, gpu: str, baseline: Row, others: Sequence[Row]) -> Guideline:
    found = {row.name: _gain(tables, row, baseline, load) for row in others}
    best, second, *_ = sorted(found, key=lambda format: -found[format][0])
    (first, mine), (next_, theirs) = found[best], found[second]
    return Guideline(
        size=size,
        gpu=gpu,
        load=load.load.name,
        winner=best,
        runner_up=second,
        gains={format: value for format, (value, _) in found.items()},
        margin_pct=100 * (first / next_ - 1),
        margin_span=Span(100 * (mine.low / theirs.high - 1), 100 * (mine.high / theirs.low - 1)),
        wins=dict(_wins(_costs(tables, load, [baseline, *others]))),
        advised=advised(gpu, load),
    )


def _gain(tables: Tables, row: Row, baseline: Row, load: LoadTable) -> tuple[float, Span]:
    """The mean gain, as narrowly as all that is printed of it tells: timings, queries per dollar, the gain itself."""
    value, span = gain(tables, row, baseline, load)
    known = [printed_gain(row, baseline)[1], *([row.figures[load.gain].span] if load.gain in row.figures else [])]
    for other in known:
        span = span.shared(other) or span  # a defect may leave nothing in common
    return min(max(value, span.low), span.high), span


def _costs(tables: Tables, load: LoadTable, rows: Sequence[Row]) -> list[QueryCost]:
    """Every timing of the rows as a cost of the project's, use case by use case."""
    return [cost(row, name, load, place(tables, row)) for row in rows for name in use_cases(row, load.timing)]


def _wins(costs: Sequence[QueryCost]) -> Counter[str]:
    """What `recommend` chooses a use case, on cost alone; BF16 wins too where it does."""
    chosen = [row.choice.format for row in recommend(costs, (), Constraint(), baseline=BASELINE) if row.choice]
    return Counter(chosen)
