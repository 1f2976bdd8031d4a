"""Every derived figure of the tables, computed again from the printed figures it rests on.

A printed figure stands for all values that print so. A derived one agrees when some choice of unrounded inputs gives an
unrounded result that prints as it does; every formula here rises or falls in each of its inputs, so that its least and
greatest value lie at the ends of their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from bitworth.paper.costs import LOADS, SYNCHRONOUS, LoadTable, Pick, cost, mean_ratio, place, printed_ratio, use_cases
from bitworth.paper.printed import PER_USD, Printed, Row, Span, Table, Tables
from bitworth.statistics import mean_recovery
from bitworth.types import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A derived figure: as printed, as recomputed from the printed inputs, and what their rounding leaves open."""

    table: int
    row: str
    column: str
    printed: Printed
    recomputed: float
    span: Span
    formula: str
    group: tuple[str, str] = ("", "")
    """Size and GPU."""

    @property
    def agrees(self) -> bool:
        """Whether unrounded values exist under which both the inputs and the result print as they do."""
        return self.printed.span.meets(self.span)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mean:
    """A column that is the plain mean of others of its row."""

    table: int
    column: str
    of: tuple[str, ...]


V1 = ("mmlu_5shot", "mmlu_cot_0shot", "arc_c_0shot", "gsm8k_cot_8shot", "hellaswag_10shot", "winogrande_5shot")
V1_TASKS = (*V1, "truthfulqa_mc2_0shot")
V2_SHORT = ("ifeval_0shot", "bbh_3shot", "math_lvl5_4shot", "gpqa_0shot", "musr_0shot", "mmlu_pro_5shot")
V2_LONG = (
    "ifeval_0shot", "bbh_acc_norm_3shot", "math_lvl5_exact_match_4shot", "gpqa_acc_norm_0shot", "musr_acc_norm_0shot",
    "mmlu_pro_acc_5shot",
)  # fmt: skip
V1_RECOVERIES = {**{name: name for name in V1}, "truthfulqa_0shot": "truthfulqa_mc2_0shot"}
V2_RECOVERIES = dict(zip(V2_LONG, V2_SHORT, strict=True))
_REASONING = ("aime24", "math500", "gpqa_diamond")
_RUNS = ("run1", "run2")
_MEANS = (
    _Mean(table=1, column="academic_avg", of=("leaderboard_v1", "leaderboard_v2")),
    _Mean(table=1, column="realworld_avg", of=("arena_hard", "humaneval_pass1", "mbpp_pass1")),
    _Mean(table=2, column="average", of=V1_TASKS),
    _Mean(table=3, column="v2_average", of=V2_SHORT),
    _Mean(table=4, column="average", of=_REASONING),
    _Mean(table=7, column="average", of=_RUNS),
    _Mean(table=8, column="average", of=_RUNS),
    _Mean(table=12, column="average", of=V1_TASKS),
    _Mean(table=13, column="average", of=V2_LONG),
)
#: Recovery of the mean over columns of the same table: 100 x quantized / BF16, from what is before rounding.
_RECOVERIES = (
    _Mean(table=2, column="recovery_pct", of=V1_TASKS),
    _Mean(table=3, column="v2_recovery_pct", of=V2_SHORT),
    _Mean(table=4, column="recovery_pct", of=_REASONING),
)
#: Tables of recoveries, a task a column, and where the scores are: (table, table of scores, column to column).
_TASK_RECOVERIES = ((10, 2, V1_RECOVERIES), (11, 3, V2_RECOVERIES))


def checks(tables: Tables) -> list[Check]:
    """All derived figures of the tables that are there, table by table in printed order."""
    found = [*_means(tables), *_recoveries(tables), *_task_recoveries(tables)]
    for load in LOADS:
        found += [*_queries_per_usd(tables, load), *_gains(tables, load)]
    return sorted(found, key=lambda check: check.table)


def _means(tables: Tables) -> Iterator[Check]:
    for rule, table, row in _rows(tables, _MEANS):
        yield _check(table, row, rule.column, f"mean of {', '.join(rule.of)}", fmean, _cells(row, rule.of), ())


def _recoveries(tables: Tables) -> Iterator[Check]:
    for rule, table, row in _rows(tables, _RECOVERIES):
        baseline = table.baseline(row)
        if baseline is None or not _has(baseline, rule.of):
            continue
        words = f"100 x mean of {', '.join(rule.of)} / that of {baseline.label}"
        cells = _cells(row, rule.of), _cells(baseline, rule.of)
        if baseline is row:  # over itself it is 100 whatever it is
            yield _check(table, row, rule.column, words, lambda values: _recovery([*values, *values]), cells[0], ())
        else:
            yield _check(table, row, rule.column, words, _recovery, *cells)


def _task_recoveries(tables: Tables) -> Iterator[Check]:
    for number, scores, columns in _TASK_RECOVERIES:
        for row in tables[number].rows if number in tables and scores in tables else ():
            source = tables[scores].row(row.size, row.format)
            baseline = tables[scores].baseline(source) if source is not None else None
            if source is None or baseline is None:
                continue
            for column, score in columns.items():
                if column not in row.figures or not (_has(source, (score,)) and _has(baseline, (score,))):
                    continue
                words = f"100 x {score} of {tables[scores].title}, {row.label} / {baseline.label}"
                cells = _cells(source, (score,)), _cells(baseline, (score,))
                yield _check(tables[number], row, column, words, _recovery, *cells)


def _queries_per_usd(tables: Tables, load: LoadTable) -> Iterator[Check]:
    for row in tables[load.number].rows if load.number in tables else ():
        machine = place(tables, row)
        words = f"3600 x queries a second / {machine.usd_per_hour:g} USD an hour"
        for name in use_cases(row, PER_USD):
            cells = _cells(row, (name + load.timing,))
            sides = ((), cells) if load is SYNCHRONOUS else (cells, ())
            formula = partial(_per_usd, row, name, load, machine)
            yield _check(tables[load.number], row, name + PER_USD, words, formula, *sides)


def _per_usd(row: Row, use_case: str, load: LoadTable, machine: Hardware, values: Sequence[float]) -> float:
    found = cost(row, use_case, load, machine, timing=values[0]).queries_per_usd
    assert found is not None
    return found


def _gains(tables: Tables, load: LoadTable) -> Iterator[Check]:
    """Each from its two sources: timings at Table 9's prices, and the printed queries per dollar."""
    table = tables.get(load.number)
    for row in table.rows if table is not None else ():
        assert table is not None
        baseline = table.baseline(row)
        if load.gain not in row.figures or baseline is None:
            continue
        timed = "latencies" if load.load.kind == "synchronous" else "queries a second"
        for words, (value, span) in (
            (
                f"mean over use cases of the ratio of queries per dollar, from {timed}",
                gain(tables, row, baseline, load),
            ),
            ("mean over use cases of the ratio of queries per dollar as printed", printed_gain(row, baseline)),
        ):
            yield Check(
                table=load.number, row=row.label, column=load.gain, printed=row.figures[load.gain], recomputed=value,
                span=span, formula=words, group=(row.size, row.gpu),
            )  # fmt: skip


def gain(tables: Tables, row: Row, baseline: Row, load: LoadTable) -> tuple[float, Span]:
    """The mean gain over the baseline from timings, and what their rounding leaves open."""
    longer_is_worse = load is SYNCHRONOUS
    low, high = (
        mean_ratio(tables, row, baseline, load, _ends(up, raised_by_baseline=longer_is_worse)) for up in (False, True)
    )
    return mean_ratio(tables, row, baseline, load, _as_printed), Span(low, high)


def printed_gain(row: Row, baseline: Row) -> tuple[float, Span]:
    """The same from the printed queries per dollar."""
    low, high = (printed_ratio(row, baseline, _ends(up, raised_by_baseline=False)) for up in (False, True))
    return printed_ratio(row, baseline, _as_printed), Span(low, high)


def _as_printed(cell: Printed, is_baseline: bool) -> float:
    return cell.value


def _ends(up: bool, *, raised_by_baseline: bool) -> Pick:
    """The ends of both sides' intervals that give the ratio's greatest value (`up`) or its least."""

    def pick(cell: Printed, is_baseline: bool) -> float:
        high = up == (is_baseline == raised_by_baseline)
        return cell.span.high if high else max(cell.span.low, cell.half / 1000)

    return pick


def _recovery(values: Sequence[float]) -> float:
    """100 x the mean of the first half over that of the second, the project's own; scores in percent."""
    half = len(values) // 2
    scores = {str(at): ([values[half + at] / 100], [values[at] / 100]) for at in range(half)}
    return mean_recovery(scores, min_recovery_pct=99).recovery_pct


def _rows(tables: Tables, rules: Sequence[_Mean]) -> Iterator[tuple[_Mean, Table, Row]]:
    for rule in rules:
        for row in tables[rule.table].rows if rule.table in tables else ():
            if _has(row, (rule.column, *rule.of)):
                yield rule, tables[rule.table], row


def _has(row: Row, columns: Sequence[str]) -> bool:
    return all(name in row.figures for name in columns)


def _cells(row: Row, columns: Sequence[str]) -> tuple[Printed, ...]:
    return tuple(row.figures[name] for name in columns)


def _check(
    table: Table,
    row: Row,
    column: str,
    words: str,
    formula: Callable[[Sequence[float]], float],
    rising: Sequence[Printed],
    falling: Sequence[Printed],
) -> Check:
    """A check of a formula of the rising inputs followed by the falling ones."""
    lows = [*(cell.span.low for cell in rising), *(cell.span.high for cell in falling)]
    highs = [*(cell.span.high for cell in rising), *(cell.span.low for cell in falling)]
    return Check(
        table=table.number,
        row=row.label,
        column=column,
        printed=row.figures[column],
        recomputed=formula([cell.value for cell in (*rising, *falling)]),
        span=Span(formula(lows), formula(highs)),
        formula=words,
        group=(row.size, row.gpu),
    )
