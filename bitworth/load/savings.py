"""The paper's averages over use cases: how many times the baseline's queries per dollar and queries a second.

Its tables 5 and 6 call the first the cost reduction (requests one at a time) and the second the speedup (as many as the
hardware takes). Both are arithmetic means of the ratios of the use cases:

>>> fmean([284 / 183, 2157 / 1395, 276 / 180])  # three use cases of INT8 on an A6000
1.5438...
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bitworth.types import BASELINE, QueryCost, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A format under one load on one hardware row, over the use cases that both it and the baseline have figures for.

    All are measured, or all predicted (`source`).

    `cost_reduction` is the mean ratio of queries per dollar, `speedup` of queries a second, `latency_reduction` of the
    baseline's mean latency to the format's. `baseline_count` devices ran the baseline.
    """

    format: str
    load: str
    hardware: str
    count: int
    baseline_count: int
    source: Source
    use_cases: tuple[str, ...]
    cost_reduction: float
    speedup: float
    latency_reduction: float


def savings(costs: Sequence[QueryCost], *, baseline: str = BASELINE) -> tuple[Saving, ...]:
    """Averages of every format but the baseline, in the order in which they are met.

    A format is compared with the baseline on as many devices of the same kind; where the baseline has no figures there,
    as with a model that fits fewer devices once it is small, with the baseline on the count that serves it cheapest.
    """
    groups: dict[tuple[object, ...], list[QueryCost]] = {}
    for cost in costs:
        if cost.format != baseline and _has_figures(cost):
            groups.setdefault((cost.format, *_scene(cost), cost.count), []).append(cost)
    found = (_saving(rows, [cost for cost in costs if cost.format == baseline]) for rows in groups.values())
    return tuple(saving for saving in found if saving is not None)


def _saving(rows: Sequence[QueryCost], baselines: Sequence[QueryCost]) -> Saving | None:
    """The averages of one format, load and hardware row."""
    of = rows[0]
    peers = [cost for cost in baselines if _has_figures(cost) and _scene(cost) == _scene(of)]
    count = _count(of, rows, peers)
    theirs = {cost.use_case: cost for cost in peers if cost.count == count}
    pairs = [(row, theirs[row.use_case]) for row in rows if row.use_case in theirs]
    if count is None or not pairs:
        return None
    return Saving(
        format=of.format,
        load=of.load,
        hardware=of.hardware,
        count=of.count,
        baseline_count=count,
        source=of.source,
        use_cases=tuple(row.use_case.name for row, _ in pairs),
        cost_reduction=fmean((row.queries_per_usd or 0) / (other.queries_per_usd or 1) for row, other in pairs),
        speedup=fmean((row.queries_per_second or 0) / (other.queries_per_second or 1) for row, other in pairs),
        latency_reduction=fmean((other.latency_s or 0) / (row.latency_s or 1) for row, other in pairs),
    )


def _count(of: QueryCost, rows: Sequence[QueryCost], peers: Iterable[QueryCost]) -> int | None:
    """How many devices of the baseline to compare with."""
    asked = {row.use_case for row in rows}
    rates: dict[int, list[float]] = {}
    for cost in peers:
        if cost.use_case in asked:
            rates.setdefault(cost.count, []).append(cost.queries_per_usd or 0.0)
    if of.count in rates:
        return of.count
    return max(rates, key=lambda count: fmean(rates[count]), default=None)


def _scene(cost: QueryCost) -> tuple[str, str, str]:
    return cost.load, cost.hardware, cost.source


def _has_figures(cost: QueryCost) -> bool:
    return bool(cost.queries_per_usd and cost.queries_per_second and cost.latency_s)
