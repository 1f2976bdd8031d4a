"""A mix of use cases served by one deployment: what its average query costs, and how slow its slowest use case is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bitworth.errors import BitworthError
from bitworth.report.figures import usd_per_1k
from bitworth.types import Figure, QueryCost, UseCase


def mix_costs(costs: Sequence[QueryCost], traffic: Mapping[str, float]) -> tuple[QueryCost, ...]:
    """A row a format, hardware and load: the mix as one use case, whose weights are shares of the queries.

    Dollars a query add up by weight, their intervals (measured apart) in quadrature. Latencies are those of the slowest
    use case, since each has to keep the limits. A deployment that has no figure for one use case has none for the mix;
    what is predicted in part is predicted.

    Raises:
        BitworthError: no weights, one that is not positive, or a use case without costs.
    """
    weights = _shares(costs, traffic)
    rows: dict[tuple[object, ...], dict[str, QueryCost]] = {}
    for cost in costs:
        if cost.use_case.name in weights:
            row = rows.setdefault((cost.format, cost.hardware, cost.count, cost.usd_per_hour, cost.load), {})
            if cost.source == "measured" or cost.use_case.name not in row:
                row[cost.use_case.name] = cost
    mix = _use_case({cost.use_case.name: cost.use_case for cost in costs}, weights)
    return tuple(_mixed(found, mix, weights) for found in rows.values())


def _shares(costs: Sequence[QueryCost], traffic: Mapping[str, float]) -> dict[str, float]:
    if not traffic or not all(math.isfinite(weight) and weight > 0 for weight in traffic.values()):
        raise BitworthError("A mix of use cases needs a positive weight for each of them.")
    known = {cost.use_case.name for cost in costs}
    absent = next((name for name in traffic if name not in known), None)
    if absent is not None:
        raise BitworthError(
            f"The mix names use case '{absent}', which was not timed; timed: {', '.join(sorted(known))}."
        )
    total = sum(traffic.values())
    return {name: traffic[name] / total for name in sorted(traffic)}


def _mixed(found: Mapping[str, QueryCost], mix: UseCase, weights: Mapping[str, float]) -> QueryCost:
    first = next(iter(found.values()))
    named: dict[str, Any] = {
        "format": first.format,
        "use_case": mix,
        "load": first.load,
        "hardware": first.hardware,
        "count": first.count,
        "usd_per_hour": first.usd_per_hour,
        "source": "predicted" if any(row.source == "predicted" for row in found.values()) else "measured",
    }
    absent = [name for name in weights if name not in found]
    broken = next((f"{row.use_case.name}: {row.unsupported}" for row in found.values() if row.unsupported), None)
    if absent or broken:
        return QueryCost(**named, unsupported=broken or f"{absent[0]} was not timed like this")
    parts = [(weights[name], found[name]) for name in weights]
    prices = [usd_per_1k(cost) for _, cost in parts]
    if any(price is None for price in prices):
        return QueryCost(**named)
    usd = sum(weight * (price or 0.0) for (weight, _), price in zip(parts, prices, strict=True))
    rate = 1000 / usd
    return QueryCost(
        **named,
        latency_s=_slowest([cost.latency_s for _, cost in parts]),
        latency_p90_s=_slowest([cost.latency_p90_s for _, cost in parts]),
        first_token_s=_slowest([cost.first_token_s for _, cost in parts]),
        queries_per_second=rate * first.usd_per_hour / 3600,
        queries_per_usd=rate,
        ci95_queries_per_usd=_bounds(parts, usd),
        requests=min(cost.requests for _, cost in parts),
        facts=first.facts,
        figures=_figures([cost.figures for _, cost in parts]),
    )


def _use_case(shapes: Mapping[str, UseCase], weights: Mapping[str, float]) -> UseCase:
    """Named by the shares, with the mean prompt and output."""
    scales = {shapes[name].scale for name in weights}
    return UseCase(
        name=" + ".join(f"{100 * share:.3g} % {name}" for name, share in weights.items()),
        prompt_tokens=round(sum(share * shapes[name].prompt_tokens for name, share in weights.items())),
        output_tokens=round(sum(share * shapes[name].output_tokens for name, share in weights.items())),
        scale=scales.pop() if len(scales) == 1 else fmean(scales),
    )


def _bounds(parts: Sequence[tuple[float, QueryCost]], usd: float) -> tuple[float, float] | None:
    """The interval of queries per dollar from that of dollars per 1,000 queries."""
    cheaper = dearer = 0.0
    for weight, cost in parts:
        bounds, rate = cost.ci95_queries_per_usd, cost.queries_per_usd
        if bounds is None or rate is None or not all(math.isfinite(bound) and bound > 0 for bound in bounds):
            return None
        cheaper += (weight * (1000 / rate - 1000 / bounds[1])) ** 2
        dearer += (weight * (1000 / bounds[0] - 1000 / rate)) ** 2
    return 1000 / (usd + math.sqrt(dearer)), 1000 / (usd - math.sqrt(cheaper))


def _slowest(seconds: Sequence[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return max(known) if len(known) == len(seconds) else None


def _figures(parts: Sequence[Mapping[str, Figure]]) -> dict[str, Figure]:
    names = set.intersection(*(set(part) for part in parts))
    return {name: max((part[name] for part in parts), key=lambda row: row.value) for name in sorted(names)}
