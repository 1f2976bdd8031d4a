"""The decision itself: of the candidates that meet the constraint, the cheapest; and those that none beats in all.

`decide` is what everything else asks: the recommendation, its flip points and its oracle in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitworth.recommendation.candidates import Candidate, rate_of, verdict_on, violations
from bitworth.types import Constraint


def ranked(candidates: Sequence[Candidate], constraint: Constraint) -> list[Candidate]:
    """Most queries per dollar first, then by place."""
    return sorted(candidates, key=lambda found: (-rate_of(found.cost, constraint), found.place))


def decide(candidates: Sequence[Candidate], constraint: Constraint) -> Candidate | None:
    """The first of the ranking that breaks no limit."""
    for found in ranked(candidates, constraint):
        if not violations(found, constraint):
            return found
    return None


def contenders_to(candidates: Sequence[Candidate], choice: Candidate | None, constraint: Constraint) -> list[Candidate]:
    """Those that would beat the choice and fall out only because their recovery is not settled, cheapest first."""
    least = 0.0 if choice is None else rate_of(choice.cost, constraint)
    cheaper = [found for found in ranked(candidates, constraint) if rate_of(found.cost, constraint) > least]
    return [found for found in cheaper if _only_unsettled(found, constraint)]


def _only_unsettled(candidate: Candidate, constraint: Constraint) -> bool:
    broken = [row.kind for row in violations(candidate, constraint)]
    return broken == ["accuracy"] and verdict_on(candidate, constraint) == "undecided"


def frontier(candidates: Sequence[Candidate], constraint: Constraint) -> list[Candidate]:
    """Those with a price that no other beats: as good in recovery, cost and mean latency, and better in one.

    A recovery that is not known, and a latency that was not measured, is worse than any that is.
    """
    points = [(found, _point(found, constraint)) for found in ranked(candidates, constraint)]
    points = [(found, point) for found, point in points if point[0] > 0 and found.cost.unsupported is None]
    return [found for found, point in points if not any(_beats(other, point) for _, other in points)]


def _point(candidate: Candidate, constraint: Constraint) -> tuple[float, float, float]:
    recovery, latency = candidate.recovery, candidate.cost.latency_s
    return (
        rate_of(candidate.cost, constraint),
        -math.inf if recovery is None else recovery.value,
        -math.inf if latency is None or math.isnan(latency) else -latency,
    )


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))
