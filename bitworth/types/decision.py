"""What a deployment must meet, and what is recommended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bitworth.types.accuracy import AVERAGE, Verdict
from bitworth.types.serving import QueryCost, Source, UseCase

Quantity = Literal["latency", "first_token", "per_output_token"]
Statistic = Literal["mean", "p50", "p90", "p95", "p99"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyLimit:
    """Most seconds that a statistic of a quantity may take, such as the 95th percentile of the first token."""

    of: Quantity
    at: Statistic
    most_s: float

    @property
    def name(self) -> str:
        """As `QueryCost.figures` names it: `first_token_p95`."""
        return f"{self.of}_{self.at}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What a deployment must meet; None means no limit.

    `recovery_of` names the row whose recovery counts: `average`, a suite or a task. `max_latency_s` and
    `max_first_token_s` are of means; `limits` takes any statistic. `confidence_pct` is that of the two-sided interval
    of recovery whose lower end must reach the least. With `queries_per_second`, the traffic to be served, costs are
    those of as many whole deployments as it takes, and the budget of a month is theirs; without it, they are those of a
    deployment that is never idle. `available` is the most devices that can be had, by name.
    """

    min_recovery_pct: float = 99.0
    recovery_of: str = AVERAGE
    max_latency_s: float | None = None
    max_first_token_s: float | None = None
    max_usd_per_1k_queries: float | None = None
    confidence_pct: float = 95.0
    limits: tuple[LatencyLimit, ...] = ()
    max_usd_per_month: float | None = None
    queries_per_second: float | None = None
    available: Mapping[str, int] = field(default_factory=dict)

    @property
    def latency_limits(self) -> tuple[LatencyLimit, ...]:
        """All limits of seconds, those of means first."""
        means: tuple[tuple[Quantity, float | None], ...] = (
            ("latency", self.max_latency_s),
            ("first_token", self.max_first_token_s),
        )
        found = (LatencyLimit(of=of, at="mean", most_s=most) for of, most in means if most is not None)
        return (*found, *self.limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One deployable way (format on hardware) in one scenario, and the reasons why it falls out, if it does.

    `usd_per_1k_queries` is what it costs under the constraint's traffic, with `deployments` of it side by side.
    `verdict_bounds_pct` is the interval of recovery at the constraint's confidence, which the verdict rests on;
    `judged` is False where accuracy does not count because none was measured at all.
    """

    format: str
    hardware: str
    recovery_pct: float
    recovery_ci95_pct: tuple[float, float]
    recovery_verdict: Verdict
    cost: QueryCost
    rejected: tuple[str, ...] = ()
    recovery_source: Source = "measured"
    usd_per_1k_queries: float | None = None
    deployments: int = 1
    verdict_bounds_pct: tuple[float, float] = (math.nan, math.nan)
    judged: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Where the choice changes when one thing alone does: `now` is its value, `at` the last one at which it stands.

    `what` is a field of the constraint, a statistic of its limits (`first_token_p95`), `usd_per_hour of NAME` (each
    device of that name) or `speed of NAME` (a factor). Beyond `at`, in the
    direction of `at` from `now`, the choice is `to`, or nothing.
    """

    what: str
    now: float
    at: float
    up: bool
    to: str | None
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """How likely the choice is the best option, by draws from the intervals of accuracy, cost and latency.

    `of` is the choice's name, `probability` that it is the cheapest that meets the constraint, `meets` that it does.
    `by_option` has the options that are best in some draw, by name, and `nothing` where none meets the constraint.
    `left_out` names options whose figures have no interval to draw from, and why.
    """

    of: str
    probability: float
    meets: float
    draws: int
    seed: int
    by_option: Mapping[str, float]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A measurement that would settle something: what of, how much more of it, and what that takes.

    `count` is further questions by task, or further requests under `requests`. Seconds and dollars are None where
    nothing was timed or priced.
    """

    kind: Literal["questions", "requests", "accuracy"]
    format: str
    hardware: str | None
    count: Mapping[str, int]
    seconds: float | None
    usd: float | None
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The choice for one use case under one load: the cheapest option that meets the constraint, with the rows behind.

    `contender` is a cheaper option that falls out only because its recovery is undecided; `next_step` says what
    measurement would settle it. `frontier` are the options that none beats in recovery, cost and latency at once.
    """

    use_case: UseCase
    load: str
    choice: Option | None
    runner_up: Option | None
    contender: Option | None
    options: tuple[Option, ...]
    why: str
    next_step: str | None = None
    frontier: tuple[Option, ...] = ()
    flips: tuple[Flip, ...] = ()
    chance: Chance | None = None
    steps: tuple[Step, ...] = ()
