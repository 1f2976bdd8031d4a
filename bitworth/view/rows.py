"""What the page shows of results: rows that several studies share, a column a study, cut to what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, Generic, TypeVar

from bitworth.report.figures import counterpart, hardware_name, times
from bitworth.report.words import scenario_title
from bitworth.types import AVERAGE, BASELINE, Divergence, QueryCost, Recommendation, Recovery, StudyResult

MOST_ROWS = 400
"""Rows of one table; filters reach the rest."""

Results = Mapping[int, StudyResult]
"""Results by their study's place on the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is asked for; empty means all."""

    study: str = ""
    format: str = ""
    task: str = ""
    use_case: str = ""
    load: str = ""
    hardware: str = ""
    source: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filters:
        """From a query string; what is no filter is left out."""
        return cls(**{field.name: query[field.name] for field in fields(cls) if field.name in query})

    def takes(self, **values: str) -> bool:
        """Whether these values are asked for."""
        return all(getattr(self, name) in ("", value) for name, value in values.items())


Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Generic[Value]):
    """One thing in every study that has it, by the study's place; `group` and `names` say what it is."""

    group: str
    names: tuple[str, ...]
    values: Mapping[int, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows(Generic[Value]):
    """A table's rows, and how many there are with those that are not shown."""

    shown: tuple[Row[Value], ...]
    total: int

    @property
    def groups(self) -> list[tuple[str, list[Row[Value]]]]:
        """The rows shown by their group, in order."""
        return [(group, list(rows)) for group, rows in groupby(self.shown, key=lambda row: row.group)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A cost and its ratio to the baseline's with the 95 % interval, where there are both."""

    cost: QueryCost
    ratio: float | None
    bounds: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that the page shows of results."""

    choices: Rows[Recommendation]
    recoveries: Rows[Recovery]
    costs: Rows[Cost]
    divergences: Rows[Divergence]


def figures_of(results: Results, asked: Filters) -> Figures:
    """The rows that are asked for."""
    return Figures(
        choices=_rows(results, lambda result: _choices(result, asked)),
        recoveries=_rows(results, lambda result: _recoveries(result, asked)),
        costs=_rows(results, lambda result: _costs(result, asked)),
        divergences=_rows(results, lambda result: _divergences(result, asked)),
    )


def options_of(results: Results) -> dict[str, list[str]]:
    """What each filter may be set to, in the order of the studies."""
    costs = [cost for result in results.values() for cost in result.costs]
    recoveries = [row for result in results.values() for row in result.recoveries]
    return {
        "format": _distinct(name for result in results.values() for name in _formats(result)),
        "task": _distinct(row.task for row in recoveries),
        "use_case": _distinct(cost.use_case.name for cost in costs),
        "load": _distinct(cost.load for cost in costs),
        "hardware": _distinct(hardware_name(cost) for cost in costs),
        "source": _distinct([*(cost.source for cost in costs), *(row.source for row in recoveries)]),
    }


def _formats(result: StudyResult) -> list[str]:
    return [*result.formats, *(cost.format for cost in result.costs), *(row.format for row in result.recoveries)]


Found = Iterable[tuple[str, tuple[str, ...], Value]]
"""Group, names and value of each row of one study."""


def _rows(results: Results, of: Callable[[StudyResult], Found[Value]]) -> Rows[Value]:
    """One row for what studies have in common, grouped, as things first appear; the average over tasks leads."""
    groups: dict[str, dict[tuple[str, ...], dict[int, Value]]] = {}
    for place, result in results.items():
        for group, names, value in of(result):
            groups.setdefault(group, {}).setdefault(names, {})[place] = value
    rows = [Row(group=group, names=names, values=v) for group, found in groups.items() for names, v in found.items()]
    rows.sort(key=lambda row: row.group != AVERAGE)
    return Rows(shown=tuple(rows[:MOST_ROWS]), total=len(rows))


def _choices(result: StudyResult, asked: Filters) -> Found[Recommendation]:
    for row in (*result.recommendations, *result.deployments):
        cost = row.choice.cost if row.choice else None
        chosen = {"format": cost.format, "hardware": hardware_name(cost), "source": cost.source} if cost else {}
        open_to_all = cost is not None or not (asked.format or asked.hardware or asked.source)
        if open_to_all and asked.takes(use_case=row.use_case.name, load=row.load, **chosen):
            yield "", (scenario_title(row.use_case, row.load),), row


def _recoveries(result: StudyResult, asked: Filters) -> Found[Recovery]:
    for row in result.recoveries:
        if asked.takes(format=row.format, task=row.task, source=row.source):
            yield row.task, (row.format,), row


def _costs(result: StudyResult, asked: Filters) -> Found[Cost]:
    scenes: dict[Any, list[QueryCost]] = {}
    for cost in result.costs:
        scenes.setdefault((cost.use_case, cost.load), []).append(cost)
    for (use_case, load), costs in scenes.items():
        for cost in costs:
            place = hardware_name(cost)
            values = {"use_case": use_case.name, "load": load, "hardware": place, "source": cost.source}
            if asked.takes(format=cost.format, **values):
                yield scenario_title(use_case, load), (cost.format, place, cost.source), _with_ratio(cost, costs)


def _with_ratio(cost: QueryCost, costs: Sequence[QueryCost]) -> Cost:
    if cost.format == BASELINE:
        return Cost(cost=cost, ratio=None, bounds=None)
    ratio, bounds = times(cost, counterpart(cost, costs)) or (None, None)
    return Cost(cost=cost, ratio=ratio, bounds=bounds)


def _divergences(result: StudyResult, asked: Filters) -> Found[Divergence]:
    for format, row in result.divergences.items():
        if asked.takes(format=format) and asked.source in ("", "measured"):
            yield "", (format,), row


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
