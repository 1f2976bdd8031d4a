"""What the paper's text says in figures, beside what its tables give.

To add a statement, add a row: where it stands, what it says, the range that it claims, and how the tables give it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from bitworth.paper.costs import ASYNCHRONOUS, SYNCHRONOUS, LoadTable, use_cases
from bitworth.paper.printed import BASELINE_FORMAT, Printed, Row, Span, Table, Tables, figure
from bitworth.paper.recomputed import V2_LONG, V2_RECOVERIES

EIGHT_BITS = ("W8A8-FP", "W8A8-INT")
FOUR_BITS = ("W4A16-INT",)
QUANTIZED = (*EIGHT_BITS, *FOUR_BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What the tables give, and what their rounding leaves open."""

    name: str
    value: float
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A statement of the text with its figures from the tables; those that lie outside what it claims speak against."""

    where: str
    says: str
    claimed: Span
    figures: tuple[Figure, ...]

    @property
    def against(self) -> tuple[Figure, ...]:
        """Figures that no unrounded value brings into the range."""
        return tuple(found for found in self.figures if not found.span.meets(self.claimed))


Measure = Callable[[Tables], Iterable[Figure]]


def statements(tables: Tables) -> list[Statement]:
    """Every statement that the tables at hand can tell about."""
    found = []
    for where, says, claimed, needs, measure in _ROWS:
        if set(needs) <= set(tables):
            figures = tuple(measure(tables))
            if figures:
                found.append(Statement(where=where, says=says, claimed=claimed, figures=figures))
    return found


def about(text: str) -> Span:
    """The values that round to a figure of the text."""
    return figure(text).span


def at_least(value: float) -> Span:
    """From a value on."""
    return Span(value, math.inf)


# --- how the tables give a figure ---------------------------------------------------------------------------------


def _printed(table: int, column: str, formats: Sequence[str], tables: Tables) -> Iterator[Figure]:
    for row in _rows(tables[table], formats):
        if column in row.figures:
            yield _plain(row.label, row.figures[column])


def _plain(name: str, cell: Printed) -> Figure:
    return Figure(name=name, value=cell.value, span=cell.span)


def _grid(table: int, formats: Sequence[str], tables: Tables) -> Iterator[Figure]:
    """Every figure of the formats' rows."""
    for row in _rows(tables[table], formats):
        yield from (_plain(f"{row.label}, {column}", cell) for column, cell in row.figures.items())


def _scored_above(least: float, formats: Sequence[str], tables: Tables) -> Iterator[Figure]:
    """Recoveries of Table 11 on tasks on which Table 3's BF16 scores above `least`."""
    for row in _rows(tables[11], formats):
        baseline = tables[3].row(row.size, BASELINE_FORMAT)
        for column in V2_LONG if baseline is not None else ():
            assert baseline is not None
            score = baseline.figures.get(V2_RECOVERIES[column])
            if column in row.figures and score is not None and score.value > least:
                yield _plain(f"{row.label}, {column}", row.figures[column])


def _ratios(table: int, columns: Sequence[str], formats: Sequence[str], tables: Tables) -> Iterator[Figure]:
    """100 x quantized / BF16 of single columns."""
    for row in _rows(tables[table], formats):
        baseline = tables[table].baseline(row)
        for column in columns if baseline is not None else ():
            assert baseline is not None
            if column in row.figures and column in baseline.figures:
                mine, theirs = row.figures[column], baseline.figures[column]
                span = Span(100 * mine.span.low / theirs.span.high, 100 * mine.span.high / theirs.span.low)
                yield Figure(name=f"{row.label}, {column}", value=100 * mine.value / theirs.value, span=span)


def _gap(column: str, size: str, ahead: str, behind: str, tables: Tables) -> Iterator[Figure]:
    """How far one method is ahead of another in Table 1."""
    first, second = tables[1].row(size, ahead), tables[1].row(size, behind)
    if first is not None and second is not None and column in first.figures and column in second.figures:
        mine, theirs = first.figures[column], second.figures[column]
        span = Span(mine.span.low - theirs.span.high, mine.span.high - theirs.span.low)
        yield Figure(name=f"{size}: {ahead} over {behind}", value=mine.value - theirs.value, span=span)


def _latency_gains(sizes: Sequence[str], tables: Tables) -> Iterator[Figure]:
    """Mean over use cases of BF16's latency over W4A16-INT's, a row each."""
    for row in _rows(tables[5], FOUR_BITS):
        baseline = tables[5].baseline(row)
        names = [name + SYNCHRONOUS.timing for name in use_cases(row, SYNCHRONOUS.timing)]
        if row.size in sizes and baseline is not None and names:
            pairs = [(baseline.figures[name], row.figures[name]) for name in names]
            low = fmean(theirs.span.low / mine.span.high for theirs, mine in pairs)
            high = fmean(theirs.span.high / mine.span.low for theirs, mine in pairs)
            value = fmean(theirs.value / mine.value for theirs, mine in pairs)
            name = f"{row.label} over {baseline.count}x{baseline.gpu} BF16"
            yield Figure(name=name, value=value, span=Span(low, high))


def _cost_gains(sizes: Sequence[str], tables: Tables) -> Iterator[Figure]:
    for row in _rows(tables[5], FOUR_BITS):
        if row.size in sizes and SYNCHRONOUS.gain in row.figures:
            yield _plain(row.label, row.figures[SYNCHRONOUS.gain])


def _leads(load: LoadTable, ahead: Sequence[str], behind: Sequence[str], tables: Tables) -> Iterator[Figure]:
    """The best printed gain of some formats over that of others, a size and GPU each."""
    for (size, gpu), rows in tables[load.number].groups().items():
        gains = [(row, row.figures[load.gain]) for row in rows if load.gain in row.figures]
        mine = [cell for row, cell in gains if row.format in ahead]
        theirs = [cell for row, cell in gains if row.format in behind]
        if mine and theirs:
            first, second = (max(cells, key=lambda cell: cell.value) for cells in (mine, theirs))
            span = Span(first.span.low / second.span.high, first.span.high / second.span.low)
            yield Figure(name=f"{size} {gpu}", value=first.value / second.value, span=span)


def _similarity(metric: str, sizes: Sequence[str], tables: Tables) -> list[Figure]:
    rows = [row for row in tables[0].rows if row.size in sizes and metric in row.figures]
    return _mean(metric, [_plain(row.label, row.figures[metric]) for row in rows])


def _mean(name: str, figures: Iterable[Figure]) -> list[Figure]:
    found = list(figures)
    if not found:
        return []
    low, high = (fmean(getattr(one.span, end) for one in found) for end in ("low", "high"))
    return [Figure(name=name, value=fmean(one.value for one in found), span=Span(low, high))]


def _least(figures: Iterable[Figure]) -> list[Figure]:
    """The lowest of them, under its own name."""
    found = list(figures)
    return [min(found, key=lambda one: one.value)] if found else []


def _by_format(formats: Sequence[str], measure: Callable[[Sequence[str], Tables], Iterable[Figure]]) -> Measure:
    """The mean of a measure, a format each."""
    return lambda tables: [one for format in formats for one in _mean(format, measure((format,), tables))]


def _rows(table: Table, formats: Sequence[str]) -> list[Row]:
    return [row for row in table.rows if row.format in formats]


_CODE = ("humaneval_pass1", "humanevalplus_pass1")
_SMALL, _LARGE = ("8B", "70B"), ("70B", "405B")
_ROWS: tuple[tuple[str, str, Span, tuple[int, ...], Measure], ...] = (
    ("the abstract", "W4A16 is the most cost-efficient for synchronous deployment", at_least(1), (5,),
     partial(_leads, SYNCHRONOUS, FOUR_BITS, EIGHT_BITS)),
    ("the abstract", "W8A8 dominates in asynchronous deployment", at_least(1), (6,),
     partial(_leads, ASYNCHRONOUS, EIGHT_BITS, FOUR_BITS)),
    ("section 3.2", "AWQ leads GPTQ by 0.23 points on academic benchmarks (8B)", about("0.23"), (1,),
     partial(_gap, "academic_avg", "8B", "AWQ", "W4A16-INT")),
    ("section 3.2", "AWQ leads GPTQ by 0.35 points on academic benchmarks (70B)", about("0.35"), (1,),
     partial(_gap, "academic_avg", "70B", "AWQ", "W4A16-INT")),
    ("section 3.2", "GPTQ leads AWQ by 2.9 points on real-world benchmarks (8B)", about("2.9"), (1,),
     partial(_gap, "realworld_avg", "8B", "W4A16-INT", "AWQ")),
    ("section 3.2", "GPTQ leads AWQ by 0.8 points on real-world benchmarks (70B)", about("0.8"), (1,),
     partial(_gap, "realworld_avg", "70B", "W4A16-INT", "AWQ")),
    ("section 4.1", "8-bit formats recover 99.75 % on average on V1", about("99.75"), (10,),
     lambda tables: _mean("mean of the 8-bit recoveries of Table 10", _grid(10, EIGHT_BITS, tables))),
    ("section 4.1", "W4A16-INT recovers 99.36 % on average on V1", about("99.36"), (10,),
     lambda tables: _mean("mean of the W4A16-INT recoveries of Table 10", _grid(10, FOUR_BITS, tables))),
    ("section 4.1", "the lowest recovery on a task of V1 is 96.88 %", about("96.88"), (10,),
     lambda tables: _least(_grid(10, QUANTIZED, tables))),
    ("section 4.1", "every model recovers at least 96 % on V2", at_least(96), (3,),
     partial(_printed, 3, "v2_recovery_pct", QUANTIZED)),
    ("section 4.1", "quantized models keep 99 % of the V2 average", about("99"), (3,),
     lambda tables: _mean("mean of Table 3", _printed(3, "v2_recovery_pct", QUANTIZED, tables))),
    ("section 4.1", "on V2 tasks with BF16 above 40 %, W8A8-FP recovers at least 98.44 %", about("98.44"), (3, 11),
     lambda tables: _least(_scored_above(40, ("W8A8-FP",), tables))),
    ("section 4.1", "on V2 tasks with BF16 above 40 %, W8A8-INT recovers at least 97.8 %", about("97.8"), (3, 11),
     lambda tables: _least(_scored_above(40, ("W8A8-INT",), tables))),
    ("section 4.1", "on V2 tasks with BF16 above 40 %, W4A16-INT recovers at least 98 %", about("98"), (3, 11),
     lambda tables: _least(_scored_above(40, FOUR_BITS, tables))),
    ("section 4.2", "8-bit formats recover 99.9 % on code", about("99.9"), (3,),
     lambda tables: _mean("mean over HumanEval and HumanEval+", _ratios(3, _CODE, EIGHT_BITS, tables))),
    ("section 4.2", "W4A16-INT recovers 98.9 % on code", about("98.9"), (3,),
     lambda tables: _mean("mean over HumanEval and HumanEval+", _ratios(3, _CODE, FOUR_BITS, tables))),
    ("section 4.2", "every format recovers at least 98 % on RULER on average", at_least(98), (3,),
     _by_format(QUANTIZED, partial(_ratios, 3, ("ruler",)))),
    *(("section 4.4", f"{name} is {text} on average at {' and '.join(sizes)}", about(text), (0,),
       partial(_similarity, metric, sizes))
      for sizes, texts in ((_LARGE, ("0.7", "0.56", "0.93", "0.96")), (("8B",), ("0.62", "0.46", "0.92", "0.95")))
      for (metric, name), text in zip(
          (("rouge1", "ROUGE-1"), ("rougeL", "ROUGE-L"), ("bertscore", "BERTScore"), ("sts", "STS")), texts, strict=True
      )),
    ("section 5.1", "W4A16-INT cuts the cost of a synchronous query 2 to 3 times at 8B and 70B", Span(2, 3), (5,),
     partial(_cost_gains, _SMALL)),
    ("section 5.1", "W4A16-INT improves synchronous latency 1.5 to 2.5 times at 8B and 70B", Span(1.5, 2.5), (5,),
     partial(_latency_gains, _SMALL)),
    ("section 5.1", "W4A16-INT cuts the cost of a synchronous query 5 to 7 times at 405B", Span(5, 7), (5,),
     partial(_cost_gains, ("405B",))),
)  # fmt: skip
