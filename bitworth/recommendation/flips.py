"""What would change the choice: the price, speed, tolerance, limit or traffic at which it flips, all else equal.

Each point is found by asking `decide` again and bisecting down to neighbouring numbers. Between now and the end of a
range the choice flips away once and for all, because every change but that of traffic makes options better or worse in
one direction; so one look at the range's end tells whether there is a point at all. Traffic is served by whole
deployments, whose number jumps: there the ranges between two jumps are looked at one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from bitworth.recommendation.candidates import Candidate, faster, repriced, violations
from bitworth.recommendation.deciding import decide, ranked
from bitworth.types import Constraint, LatencyLimit

RANGE = 10.0
"""Prices, speeds and traffic are followed up and down to this many times what they are."""
_FAR = 1e12
_FIELDS = ("max_latency_s", "max_first_token_s", "max_usd_per_1k_queries", "max_usd_per_month")
_JUMPS = 400
"""Most changes of a number of deployments that are looked at, up and down."""

Chooses = Callable[[float], Candidate | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A flip in numbers: of `what`, from `now` to `at`, the last value at which the choice stands, and what follows."""

    what: str
    now: float
    at: float
    up: bool
    to: Candidate | None


def flips_of(candidates: Sequence[Candidate], constraint: Constraint) -> list[Point]:
    """Every point at which the choice changes, in the order recovery, limits, budgets, prices, speeds, traffic."""
    choice = decide(candidates, constraint)
    found = [
        *_recovery(candidates, constraint),
        *_limits(candidates, constraint),
        *_prices(candidates, constraint, choice),
        *_speeds(candidates, constraint, choice),
        *_traffic(candidates, constraint),
    ]
    return [point for point in found if point is not None]


def flip(what: str, chooses: Chooses, now: float, far: float) -> Point | None:
    """The last value from `now` towards `far` at which the choice is still that of `now`; None if it is at `far` too.

    Exact for choices that do not come back: beyond `at` by one representable number the choice is `to`.
    """
    stands = _place(chooses(now))
    inside, outside = now, far
    if _place(chooses(far)) == stands:
        return None
    while inside < (middle := _between(inside, outside)) < outside or outside < middle < inside:
        if _place(chooses(middle)) == stands:
            inside = middle
        else:
            outside = middle
    return Point(what=what, now=now, at=inside, up=far > now, to=chooses(outside))


def with_limit(constraint: Constraint, name: str, most: float) -> Constraint:
    """The constraint with one limit, by its field's or its statistic's name (`first_token_p95`), at another value."""
    if name in _FIELDS:
        changed: dict[str, Any] = {name: most}
        return replace(constraint, **changed)
    return replace(constraint, limits=tuple(_moved(limit, name, most) for limit in constraint.limits))


def _moved(limit: LatencyLimit, name: str, most: float) -> LatencyLimit:
    return replace(limit, most_s=most) if limit.name == name else limit


def _place(choice: Candidate | None) -> int | None:
    return None if choice is None else choice.place


def _between(one: float, other: float) -> float:
    """The middle, in ratio where the two are far apart."""
    low, high = min(one, other), max(one, other)
    return math.sqrt(low) * math.sqrt(high) if low > 0 and high > 2 * low else low + (high - low) / 2


def _recovery(candidates: Sequence[Candidate], constraint: Constraint) -> Iterator[Point | None]:
    def chooses(least: float) -> Candidate | None:
        return decide(candidates, replace(constraint, min_recovery_pct=least))

    for far in (0.0, 1000.0):
        yield flip("min_recovery_pct", chooses, constraint.min_recovery_pct, far)


def _limits(candidates: Sequence[Candidate], constraint: Constraint) -> Iterator[Point | None]:
    limits = [(name, getattr(constraint, name)) for name in _FIELDS]
    for name, now in [*limits, *((limit.name, limit.most_s) for limit in constraint.limits)]:
        if now is not None:
            chooses = partial(_with_limit, candidates, constraint, name)
            for far in (0.0, max(_FAR, 2 * now)):
                yield flip(name, chooses, now, far)


def _with_limit(candidates: Sequence[Candidate], constraint: Constraint, name: str, most: float) -> Candidate | None:
    return decide(candidates, with_limit(constraint, name, most))


def _prices(
    candidates: Sequence[Candidate], constraint: Constraint, choice: Candidate | None
) -> Iterator[Point | None]:
    """Of every kind of device, for each of it an hour: up for the choice's own, down for the others."""
    seen: set[str] = set()
    for first in ranked(candidates, constraint):
        name, now = first.cost.hardware, first.cost.usd_per_hour / first.cost.count
        if name in seen or first.cost.unsupported is not None or first.cost.queries_per_usd is None:
            continue
        mine = choice is not None and choice.cost.hardware == name
        if choice is not None and mine:
            now = choice.cost.usd_per_hour / choice.cost.count
        elif any(broken.kind in ("latency", "accuracy", "devices") for broken in violations(first, constraint)):
            continue  # no price makes this one feasible; another on the same device may be
        seen.add(name)
        chooses = partial(_at_price, candidates, constraint, name, now)
        yield flip(f"usd_per_hour of {name}", chooses, now, now * RANGE if mine else now / RANGE)


def _at_price(
    candidates: Sequence[Candidate], constraint: Constraint, name: str, now: float, price: float
) -> Candidate | None:
    changed = [repriced(found, price / now) if found.cost.hardware == name else found for found in candidates]
    return decide(changed, constraint)


def _speeds(
    candidates: Sequence[Candidate], constraint: Constraint, choice: Candidate | None
) -> Iterator[Point | None]:
    """How much slower the choice, and how much faster the runner-up, may become."""
    if choice is None:
        return
    rest = [found for found in candidates if found.place != choice.place]
    rival = decide(rest, constraint)
    for found, far in ((choice, 1 / RANGE), (rival, RANGE)):
        if found is not None:
            yield flip(f"speed of {found.place}", partial(_at_speed, candidates, constraint, found), 1.0, far)


def _at_speed(
    candidates: Sequence[Candidate], constraint: Constraint, one: Candidate, factor: float
) -> Candidate | None:
    return decide([faster(found, factor) if found.place == one.place else found for found in candidates], constraint)


def _traffic(candidates: Sequence[Candidate], constraint: Constraint) -> Iterator[Point | None]:
    now = constraint.queries_per_second
    if now is None:
        return

    def chooses(rate: float) -> Candidate | None:
        return decide(candidates, replace(constraint, queries_per_second=rate))

    for up in (False, True):
        inside = now
        for look in _looks(candidates, now, up):
            if _place(chooses(look)) != _place(chooses(now)):
                found = flip("queries_per_second", chooses, inside, look)
                yield None if found is None else replace(found, now=now)
                break
            inside = look


def _looks(candidates: Sequence[Candidate], now: float, up: bool) -> Iterator[float]:
    """Where the choice may have changed: both sides of every jump, and the range's end where no jump is left out.

    Between two jumps only dollars a query change, in one direction, so the ends tell.
    """
    jumps = list(islice(_jumps(candidates, now, up), _JUMPS))
    for jump in jumps:
        beyond = math.nextafter(jump, math.inf)
        yield from (jump, beyond) if up else (beyond, jump)
    if len(jumps) < _JUMPS:
        yield now * RANGE if up else now / RANGE


def _jumps(candidates: Sequence[Candidate], now: float, up: bool) -> Iterator[float]:
    """Rates beyond which some candidate needs one deployment more, from `now` on, within the range; nearest first."""
    rates = {found.cost.queries_per_second for found in candidates if found.cost.unsupported is None}
    known = [rate for rate in rates if rate is not None and math.isfinite(rate) and rate > 0]
    found = set()
    for rate in known:
        first = math.ceil(now / rate)
        counts = range(first, first + _JUMPS) if up else range(first - 1, max(0, first - 1 - _JUMPS), -1)
        found |= {count * rate for count in counts}
    within = [rate for rate in found if (now < rate <= now * RANGE if up else now / RANGE <= rate < now)]
    return iter(sorted(within, reverse=not up))
