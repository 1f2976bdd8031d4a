"""The gate of a release: is this format, by these results, good, fast and cheap enough to ship?

Each condition is judged by the whole interval of its figure: it passes where all of the interval keeps the limit, fails
where none of it does, and is undecided in between, as it is without an interval. A release needs every condition, so no
correction for their number is due: the chance to pass one that is truly broken is at most 2.5 %, and to pass all less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bitworth.errors import BitworthError
from bitworth.recommendation.candidates import bounds_of, rate_of, usd_per_month
from bitworth.report.figures import hardware_name, interval, limit, number, percent, seconds, usd_per_1k
from bitworth.report.words import latency_words, scenario_title
from bitworth.types import AVERAGE, BASELINE, Constraint, Figure, QueryCost, Source, StudyResult

Outcome = Literal["passes", "fails", "undecided"]
Dollars = Callable[[QueryCost, Constraint], float | None]

EXIT_CODES: dict[Outcome, int] = {"passes": 0, "fails": 1, "undecided": 2}
UNJUDGED = 3
"""The exit code where nothing could be judged: a wrong option, a folder without results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One limit and what became of it; value and bounds are in `unit`, None where there is no figure."""

    name: str
    outcome: Outcome
    limit: float
    unit: str
    value: float | None
    low: float | None
    high: float | None
    source: Source
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the conditions come to: one that fails fails all, else one that is undecided leaves all undecided."""

    format: str
    outcome: Outcome
    conditions: tuple[Condition, ...]

    @property
    def exit_code(self) -> int:
        """0 passes, 1 fails, 2 undecided."""
        return EXIT_CODES[self.outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which scenarios count; None: all. A load's kind stands for those of that kind, whatever their streams."""

    use_case: str | None = None
    load: str | None = None
    hardware: str | None = None

    def takes(self, cost: QueryCost) -> bool:
        """Whether this row does."""
        asked = (self.use_case, cost.use_case.name), (self.hardware, cost.hardware)
        return self.load in (None, *_called(cost.load)) and all(name in (None, found) for name, found in asked)

    def check(self, costs: Sequence[QueryCost]) -> None:
        """Refuse what no row has.

        Raises:
            BitworthError: such a name; the sentence lists those there are.
        """
        for what, name, known in (
            ("use case", self.use_case, [cost.use_case.name for cost in costs]),
            ("load", self.load, [name for cost in costs for name in _called(cost.load)]),
            ("device", self.hardware, [cost.hardware for cost in costs]),
        ):
            if name is not None and name not in known:
                has = ", ".join(dict.fromkeys(known)) or "none"
                raise BitworthError(f"The study has timings of no {what} '{name}'; it has {has}.")


def _called(load: str) -> tuple[str, ...]:
    """A load's name, and the name it goes by where its streams are left out."""
    return load, load.partition(" (")[0]


def judge_release(
    result: StudyResult,
    constraint: Constraint,
    *,
    format: str | None = None,
    tasks: Sequence[str] = (),
    where: Where | None = None,
    accept_predicted: bool = False,
) -> Gate:
    """Judge one format of a study against a constraint.

    Args:
        result: what the study says.
        constraint: the limits; recovery always counts, of its `recovery_of` and of `tasks`. Dollars are those of as
            many deployments as its traffic takes; without traffic, of one that is never idle.
        format: whose release it is; None takes the only quantized one.
        tasks: tasks that must hold the least recovery on their own.
        where: which use cases, loads and devices count for cost and latency.
        accept_predicted: judge predictions as if they were measured; else they leave a condition undecided.

    Raises:
        BitworthError: no such format or task, several formats and none named, no scenario that counts.
    """
    name = _format(result, format)
    (where or Where()).check(result.costs)
    found = [_recovery(result, constraint, name, task) for task in dict.fromkeys((constraint.recovery_of, *tasks))]
    if constraint.latency_limits or _priced(constraint):
        rows = [row for row in result.costs if row.format == name and (where or Where()).takes(row)]
        if not rows:
            raise BitworthError(
                f"{name} has no timings there, so its cost and latency cannot be judged; run the study."
            )
        found += [condition for row in rows for condition in _costs(row, constraint)]
    if not accept_predicted:
        found = [_measured_only(condition) for condition in found]
    outcomes = {condition.outcome for condition in found}
    outcome: Outcome = "fails" if "fails" in outcomes else "undecided" if "undecided" in outcomes else "passes"
    return Gate(format=name, outcome=outcome, conditions=tuple(found))


def _format(result: StudyResult, asked: str | None) -> str:
    known = [name for name in result.formats if name != BASELINE]
    if asked is not None and asked not in result.formats:
        raise BitworthError(f"The study has no format '{asked}'; it has {', '.join(result.formats)}.")
    if asked is None and len(known) != 1:
        raise BitworthError(
            f"The study has {len(known)} quantized formats; name one with --format: {', '.join(known)}."
        )
    return asked or known[0]


# --- recovery -----------------------------------------------------------------------------------------------------


def _recovery(result: StudyResult, constraint: Constraint, format: str, task: str) -> Condition:
    least, what = constraint.min_recovery_pct, "recovery" if task == AVERAGE else f"recovery on {task}"
    if format == BASELINE:
        figure: Figure | None = Figure(value=100.0, low=100.0, high=100.0)
        row = None
    else:
        row = next((row for row in result.recoveries if (row.format, row.task) == (format, task)), None)
        figure = None if row is None else row.figure
    if figure is None:
        if task not in (AVERAGE, constraint.recovery_of) and task not in {row.task for row in result.recoveries}:
            raise BitworthError(f"No recovery on a task '{task}' was measured.")
        says = f"{what}: undecided, it was not measured{' on every task' if task == AVERAGE else ''}"
        return _condition(what, "undecided", least, "%", None, says)
    low, high = bounds_of(figure, constraint.confidence_pct)
    outcome: Outcome = "passes" if low >= least else "fails" if high < least else "undecided"
    told = f"{percent(figure.value, apart_from=least)} ({interval((low, high), decimals=1)}), at least {limit(least)} %"
    needed = row.questions_needed if row is not None and row.min_recovery_pct == least else None
    more = f"; about {number(needed)} more questions would settle it" if outcome == "undecided" and needed else ""
    figure = Figure(value=figure.value, low=low, high=high, origin=figure.origin)
    return _condition(what, outcome, least, "%", figure, f"{what}: {outcome}, {told}{more}")


# --- cost and latency ---------------------------------------------------------------------------------------------


def _costs(cost: QueryCost, constraint: Constraint) -> Iterable[Condition]:
    place = f"{scenario_title(cost.use_case, cost.load)}, {hardware_name(cost)}"
    for asked in constraint.latency_limits:
        yield _at_most(f"{latency_words(asked)} ({place})", cost.figures.get(asked.name), asked.most_s, "s", cost)
    if constraint.max_usd_per_1k_queries is not None:
        name, most = f"USD per 1,000 queries ({place})", constraint.max_usd_per_1k_queries
        yield _at_most(name, _money(cost, constraint, _price), most, "USD per 1,000 queries", cost)
    if constraint.max_usd_per_month is not None:
        name, most = f"USD a month ({place})", constraint.max_usd_per_month
        yield _at_most(name, _money(cost, constraint, usd_per_month), most, "USD", cost)


def _priced(constraint: Constraint) -> bool:
    return constraint.max_usd_per_1k_queries is not None or constraint.max_usd_per_month is not None


def _money(cost: QueryCost, constraint: Constraint, of: Dollars) -> Figure | None:
    """Dollars under the constraint's traffic, at the rate that was found and at both ends of its interval."""
    value, bounds = of(cost, constraint), cost.ci95_queries_per_usd
    if value is None or usd_per_1k(cost) is None:
        return None
    if bounds is None:
        return Figure(value=value, low=math.nan, high=math.nan, origin=cost.source)
    found = [of(_faster(cost, bound), constraint) if bound > 0 else None for bound in bounds]
    high, low = (math.inf if one is None else one for one in found)
    return Figure(value=value, low=low, high=high, origin=cost.source)


def _price(cost: QueryCost, constraint: Constraint) -> float | None:
    rate = rate_of(cost, constraint)
    return 1000 / rate if rate > 0 else None


def _faster(cost: QueryCost, queries_per_usd: float) -> QueryCost:
    """The same devices answering more or fewer queries a dollar."""
    assert cost.queries_per_usd
    times = queries_per_usd / cost.queries_per_usd
    rate = None if cost.queries_per_second is None else cost.queries_per_second * times
    return replace(cost, queries_per_usd=queries_per_usd, queries_per_second=rate)


def _at_most(name: str, figure: Figure | None, most: float, unit: str, cost: QueryCost) -> Condition:
    if figure is None:
        reason = cost.unsupported or "it was not measured"
        return _condition(name, "undecided", most, unit, None, f"{name}: undecided, {reason.rstrip('. ')}")
    if math.isnan(figure.low) or math.isnan(figure.high):
        says = f"{name}: undecided, {number(figure.value)} has no interval, at most {limit(most)}"
        return _condition(name, "undecided", most, unit, figure, says)
    outcome: Outcome = "passes" if figure.high <= most else "fails" if figure.low > most else "undecided"
    value = seconds(figure.value, apart_from=most) if unit == "s" else number(figure.value, apart_from=most)
    bounds = f"{number(figure.low, apart_from=most)} to {number(figure.high, apart_from=most)}"
    few = ""
    if outcome == "undecided" and math.isinf(figure.high):
        few = f"; {cost.requests} requests do not bound it"
    said = f"{name}: {outcome}, {value} ({bounds}), at most {limit(most)}{' s' if unit == 's' else ''}{few}"
    return _condition(name, outcome, most, unit, figure, said)


def _condition(name: str, outcome: Outcome, most: float, unit: str, figure: Figure | None, says: str) -> Condition:
    return Condition(
        name=name,
        outcome=outcome,
        limit=most,
        unit=unit,
        value=figure.value if figure else None,
        low=figure.low if figure else None,
        high=figure.high if figure else None,
        source=figure.origin if figure else "measured",
        says=says,
    )


def _measured_only(found: Condition) -> Condition:
    if found.source == "measured":
        return found
    says = f"{found.name}: undecided, {number(found.value)} {found.unit} is predicted, not measured"
    return replace(found, outcome="undecided", says=says)
