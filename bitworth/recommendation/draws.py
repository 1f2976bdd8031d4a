"""How likely the choice is right: the constraint is asked again of figures drawn from their intervals.

A figure is drawn from the split normal whose 2.5 % and 97.5 % points are the ends of its interval (for an even one, the
plain normal). One draw of all figures is one way the world may be; in each, the right choice is the cheapest option
that truly meets the constraint, and the probability is the share of draws in which that is ours.

What was measured once is drawn once: a format's recovery is the same on all hardware, and two rows that price the same
timings err together, latencies against rates. Everything else is drawn independently. Each figure has a random stream
of its own name, so an added option moves no other's draws.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bitworth.hardware import HOURS_A_MONTH
from bitworth.recommendation.candidates import Candidate, latency_of, rate_of
from bitworth.statistics import Z95
from bitworth.types import Chance, Constraint, Figure, QueryCost

Floats = NDArray[np.float64]

DRAWS = 20_000
"""The standard error of a probability is then at most 0.35 percentage points."""
NOTHING = "nothing"


def chance_of(
    candidates: Sequence[Candidate],
    choice: Candidate | None,
    constraint: Constraint,
    name: Callable[[Candidate], str],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Chance | None:
    """The probability that `choice` (None: that nothing meets the constraint) is right; None without any figures.

    Not a number where the choice's own figures have no interval; the reason is then in `left_out`.
    """
    priced = [found for found in candidates if found.cost.unsupported is None and rate_of(found.cost, constraint) > 0]
    whys = {found.place: undrawable(found, constraint) for found in priced}
    drawn = sorted((found for found in priced if whys[found.place] is None), key=lambda found: found.place)
    left_out = tuple(f"{name(found)}: {whys[found.place]}" for found in priced if whys[found.place] is not None)
    if not priced:
        return None
    of = NOTHING if choice is None else name(choice)
    if not drawn or (choice is not None and whys.get(choice.place) is not None):
        nan = math.nan
        return Chance(of=of, probability=nan, meets=nan, draws=0, seed=seed, by_option={}, left_out=left_out)
    stream = _Streams(seed, draws)
    rates = np.stack([_feasible_rates(found, constraint, stream) for found in drawn])
    meets = rates > 0
    best = np.where(meets.any(axis=0), rates.argmax(axis=0), len(drawn))
    shares = np.bincount(best, minlength=len(drawn) + 1) / draws
    names = [*(name(found) for found in drawn), NOTHING]
    mine = len(drawn) if choice is None else [found.place for found in drawn].index(choice.place)
    by_option = {names[at]: float(shares[at]) for at in np.argsort(-shares, kind="stable") if shares[at] > 0}
    return Chance(
        of=of,
        probability=float(shares[mine]),
        meets=float(shares[mine] if choice is None else meets[mine].mean()),
        draws=draws,
        seed=seed,
        by_option=by_option,
        left_out=left_out,
    )


def undrawable(candidate: Candidate, constraint: Constraint) -> str | None:
    """Why one of the figures that the constraint asks for cannot be drawn; None where all can."""
    cost = candidate.cost
    bounds = cost.ci95_queries_per_usd
    if bounds is None or not all(map(math.isfinite, bounds)):
        return "its cost has no interval"
    if candidate.judged and candidate.recovery is None:
        return "its accuracy was not measured"
    if candidate.recovery is not None and not _bounded(candidate.recovery):
        return "its recovery is not bounded"
    for limit in constraint.latency_limits:
        if latency_of(cost, limit) is None:
            return f"its {limit.name} was not measured"
        figure = cost.figures.get(limit.name)
        if figure is not None and not _bounded(figure):
            return f"{cost.requests} requests do not bound its {limit.name}"
    return None


def split_normal(figure: Figure, z: Floats) -> Floats:
    """Standard normal draws as draws of a figure: below the value they reach as far as its interval does, and above."""
    down, up = (figure.value - figure.low) / Z95, (figure.high - figure.value) / Z95
    found: Floats = figure.value + np.where(z < 0, down, up) * z
    return found


class _Streams:
    """Standard normal draws by name."""

    def __init__(self, seed: int, draws: int) -> None:
        self._seed, self._draws = seed, draws

    def normal(self, *name: object) -> Floats:
        generator = np.random.default_rng([self._seed, zlib.crc32(repr(name).encode())])
        found: Floats = generator.standard_normal(self._draws)
        return found


def _feasible_rates(candidate: Candidate, constraint: Constraint, stream: _Streams) -> Floats:
    """Queries per dollar in every draw, 0 where the candidate breaks the constraint, shape (draws,)."""
    cost = candidate.cost
    z = stream.normal("speed", *_measurement(cost))
    speed = np.maximum(split_normal(_rate(cost), z) / _rate(cost).value, 1e-9)
    rates = _served_rates(cost, constraint, speed)
    meets = np.ones(len(z), dtype=bool)
    if candidate.judged and candidate.recovery is not None:
        recovery = split_normal(candidate.recovery, stream.normal("recovery", cost.format))
        meets &= recovery >= constraint.min_recovery_pct
    for limit in constraint.latency_limits:
        figure = cost.figures.get(limit.name)
        value = latency_of(cost, limit) or 0.0
        seconds = value / speed if figure is None else split_normal(figure, -z)
        meets &= seconds <= limit.most_s
    return np.where(meets, rates, 0.0)


def _served_rates(cost: QueryCost, constraint: Constraint, speed: Floats) -> Floats:
    """Queries per dollar at a speed relative to the measured one, 0 where money or devices do not suffice."""
    demand = constraint.queries_per_second
    if demand is None or cost.queries_per_second is None:
        counts = np.ones_like(speed)
        rates = _rate(cost).value * speed
    else:
        counts = np.ceil(demand / (cost.queries_per_second * speed))
        rates = 3600 * demand / (counts * cost.usd_per_hour)
    most = constraint.max_usd_per_1k_queries, constraint.max_usd_per_month, constraint.available.get(cost.hardware)
    paid = 1000 / rates, counts * cost.usd_per_hour * HOURS_A_MONTH, counts * cost.count
    for value, limit in zip(paid, most, strict=True):
        if limit is not None:
            rates = np.where(value <= limit, rates, 0.0)
    return rates


def _rate(cost: QueryCost) -> Figure:
    assert cost.queries_per_usd is not None
    assert cost.ci95_queries_per_usd is not None
    low, high = cost.ci95_queries_per_usd
    return Figure(value=cost.queries_per_usd, low=low, high=high, origin=cost.source)


def _measurement(cost: QueryCost) -> tuple[object, ...]:
    """What two rows share when they price the same timings."""
    return cost.format, cost.use_case, cost.load, cost.source, cost.queries_per_second, cost.requests


def _bounded(figure: Figure) -> bool:
    return all(map(math.isfinite, (figure.value, figure.low, figure.high)))
