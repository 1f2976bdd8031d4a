"""Options as numbers: what each costs under a constraint's traffic, and which limits it breaks.

The decision, its flip points and its sentences all ask `violations`, so that none can disagree with another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from bitworth.hardware import HOURS_A_MONTH
from bitworth.report.figures import usd_per_1k
from bitworth.statistics import Z95, verdict_of
from bitworth.types import Constraint, Figure, LatencyLimit, QueryCost, Recovery, Verdict

Broken = Literal["unsupported", "unpriced", "unknown rate", "latency", "budget", "month", "devices", "accuracy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A format on hardware under a load.

    Attributes:
        cost: what it costs and how fast it is.
        recovery: in percent; None where it is not known.
        row: where the recovery comes from; None for the baseline and for predictions.
        judged: whether accuracy counts; it does not where none was measured at all.
        place: its rank among options that cost the same.
    """

    cost: QueryCost
    recovery: Figure | None
    row: Recovery | None = None
    judged: bool = True
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A limit that a candidate breaks: its value (None: unknown) and what would be allowed."""

    kind: Broken
    value: float | None = None
    most: float | None = None
    limit: LatencyLimit | None = None


def ordered(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Each with its place: higher recovery first, then by name; the last part makes the order total."""

    def key(candidate: Candidate) -> tuple[float, str, str]:
        recovery = math.inf if candidate.recovery is None else -candidate.recovery.value
        return recovery, candidate.cost.format, repr(candidate.cost)

    return tuple(replace(found, place=place) for place, found in enumerate(sorted(candidates, key=key)))


# --- cost ---------------------------------------------------------------------------------------------------------


def deployments(cost: QueryCost, constraint: Constraint) -> int | None:
    """How many of it serve the constraint's traffic; 1 without traffic, None where its rate is not known."""
    demand, rate = constraint.queries_per_second, cost.queries_per_second
    if demand is None:
        return 1
    return math.ceil(demand / rate) if rate is not None and math.isfinite(rate) and rate > 0 else None


def rate_of(cost: QueryCost, constraint: Constraint) -> float:
    """Queries per dollar, 0 without a figure: never idle, or of as many deployments as the traffic takes."""
    if usd_per_1k(cost) is None or cost.queries_per_usd is None:
        return 0.0
    if constraint.queries_per_second is None:
        return cost.queries_per_usd
    count = deployments(cost, constraint)
    return 3600 * constraint.queries_per_second / (count * cost.usd_per_hour) if count else 0.0


def usd_per_month(cost: QueryCost, constraint: Constraint) -> float | None:
    """Dollars a month of the deployments that the traffic takes (one without traffic)."""
    count = deployments(cost, constraint)
    return count * cost.usd_per_hour * HOURS_A_MONTH if count else None


def latency_of(cost: QueryCost, limit: LatencyLimit) -> float | None:
    """The seconds that a limit is about, None where they were not measured."""
    plain = {
        "latency_mean": cost.latency_s,
        "latency_p90": cost.latency_p90_s,
        "first_token_mean": cost.first_token_s,
    }.get(limit.name)
    if plain is not None and not math.isnan(plain):
        return plain
    figure = cost.figures.get(limit.name)
    return None if figure is None else figure.value


# --- limits -------------------------------------------------------------------------------------------------------


def bounds_of(recovery: Figure, confidence_pct: float) -> tuple[float, float]:
    """The interval of recovery at a confidence; away from 95 % its halves are stretched as a normal's would be."""
    if confidence_pct == 95:
        return recovery.low, recovery.high
    stretch = NormalDist().inv_cdf(0.5 + confidence_pct / 200) / Z95
    value = recovery.value
    return value - stretch * (value - recovery.low), value + stretch * (recovery.high - value)


def verdict_on(candidate: Candidate, constraint: Constraint) -> Verdict:
    """Whether its recovery reaches the least allowed; undecided where it is not known."""
    if candidate.recovery is None:
        return "undecided"
    return verdict_of(*bounds_of(candidate.recovery, constraint.confidence_pct), constraint.min_recovery_pct)


def cost_violations(cost: QueryCost, constraint: Constraint) -> list[Violation]:
    """The limits on speed and money that it breaks, in the order in which they are told."""
    if cost.unsupported is not None:
        return [Violation(kind="unsupported")]
    found = []
    for limit in constraint.latency_limits:
        seconds = latency_of(cost, limit)
        if seconds is None or not seconds <= limit.most_s:
            found.append(Violation(kind="latency", value=seconds, most=limit.most_s, limit=limit))
    rate = rate_of(cost, constraint)
    if usd_per_1k(cost) is None:
        found.append(Violation(kind="unpriced"))
    elif not rate:
        found.append(Violation(kind="unknown rate"))
    else:
        found += _money_violations(cost, constraint, rate)
    return found


def _money_violations(cost: QueryCost, constraint: Constraint, rate: float) -> list[Violation]:
    month, count = usd_per_month(cost, constraint), deployments(cost, constraint)
    rows: tuple[tuple[Broken, float | None, float | None], ...] = (
        ("budget", 1000 / rate, constraint.max_usd_per_1k_queries),
        ("month", month, constraint.max_usd_per_month),
        ("devices", None if count is None else count * cost.count, constraint.available.get(cost.hardware)),
    )
    return [
        Violation(kind=kind, value=value, most=most)
        for kind, value, most in rows
        if most is not None and value is not None and value > most
    ]


def violations(candidate: Candidate, constraint: Constraint) -> list[Violation]:
    """Everything that keeps it out; empty where it is feasible."""
    found = cost_violations(candidate.cost, constraint)
    if candidate.judged and verdict_on(candidate, constraint) != "holds":
        found.append(Violation(kind="accuracy", most=constraint.min_recovery_pct))
    return found


# --- changes ------------------------------------------------------------------------------------------------------


def repriced(candidate: Candidate, factor: float) -> Candidate:
    """The same at `factor` times the price an hour."""
    cost = candidate.cost
    rate = cost.queries_per_usd
    changed = replace(
        cost,
        usd_per_hour=cost.usd_per_hour * factor,
        queries_per_usd=None if rate is None else rate / factor,
        ci95_queries_per_usd=_over(cost.ci95_queries_per_usd, factor),
    )
    return replace(candidate, cost=changed)


def faster(candidate: Candidate, factor: float) -> Candidate:
    """The same, answering `factor` times as fast: all its rates times that, all its seconds over it."""
    cost = candidate.cost
    changed = replace(
        cost,
        queries_per_usd=_over_one(cost.queries_per_usd, 1 / factor),
        queries_per_second=_over_one(cost.queries_per_second, 1 / factor),
        ci95_queries_per_usd=_over(cost.ci95_queries_per_usd, 1 / factor),
        latency_s=_over_one(cost.latency_s, factor),
        latency_p90_s=_over_one(cost.latency_p90_s, factor),
        first_token_s=_over_one(cost.first_token_s, factor),
        figures=_figures_over(cost.figures, factor),
    )
    return replace(candidate, cost=changed)


def _over_one(value: float | None, factor: float) -> float | None:
    return None if value is None else value / factor


def _over(bounds: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
    return None if bounds is None else (bounds[0] / factor, bounds[1] / factor)


def _figures_over(figures: Mapping[str, Figure], factor: float) -> dict[str, Figure]:
    return {
        name: replace(row, value=row.value / factor, low=row.low / factor, high=row.high / factor)
        for name, row in figures.items()
    }
