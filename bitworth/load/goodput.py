"""Goodput: the highest rate at which a percentile of the requests keeps to the user's limits.

Rates are doubled or halved until one passes and one fails, then the gap between them is halved on a log scale. Every
rate that was tried is kept with its figures, so that a reader sees how close the decision was.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bitworth.errors import BitworthError
from bitworth.load.chunks import token_gaps
from bitworth.load.metrics import LATE_S, Metrics, keeps_to, metrics_of, per_output_token, steady, thirds
from bitworth.types import Limits, RatePoint, Timing

#: The last passing and the first failing rate are this close together in the end.
CLOSE = 1.05
#: Doublings or halvings before a side is given up, and rates in all.
MOST_STEPS, MOST_RATES = 10, 24

Run = Callable[[float], Sequence[Timing]]
"""Sends requests at that rate; those that count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One rate: its figures (None where every request failed), what it broke, and why it says nothing where it doesn't.

    `goodput_per_second` counts the requests that kept to every limit themselves.
    """

    rate: float
    metrics: Metrics | None
    broken: tuple[str, ...]
    goodput_per_second: float
    timings: tuple[Timing, ...]
    void: str | None = None

    @property
    def passes(self) -> bool:
        """Whether the rate keeps to the limits, and the client to the rate."""
        return not self.broken and self.void is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Every rate in the order in which it was tried; no rate that passes lies above one that does not."""

    limits: Limits
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The highest rate that passes, if any does."""
        passing = [trial for trial in self.trials if trial.passes]
        return max(passing, key=lambda trial: trial.rate, default=None)

    @property
    def points(self) -> tuple[RatePoint, ...]:
        """What was seen at each rate where requests were answered, by rising rate."""
        seen = [trial for trial in self.trials if trial.metrics is not None and trial.void is None]
        return tuple(_point(trial) for trial in sorted(seen, key=lambda trial: trial.rate))


def _point(trial: Trial) -> RatePoint:
    assert trial.metrics is not None
    first = trial.metrics.first_token
    return RatePoint(
        rate=trial.rate,
        queries_per_second=trial.metrics.queries_per_second,
        latency_p50_s=trial.metrics.latency.at(50),
        latency_p95_s=trial.metrics.latency.at(95),
        first_token_p95_s=first.at(95) if first is not None else None,
        keeps=trial.passes,
    )


def sweep(run: Run, limits: Limits, *, start_rate: float) -> Sweep:
    """Find the highest rate that keeps to the limits.

    Args:
        run: measures a rate.
        limits: what to keep to; at least one.
        start_rate: requests a second to begin with, such as one over the latency of a request that runs alone.

    Raises:
        BitworthError: no limits, or a percentile that is none.
    """
    check(limits)
    if not (math.isfinite(start_rate) and start_rate > 0):
        raise BitworthError(f"A sweep must start at a rate above 0 requests a second, not at {start_rate:g}.")
    trials: list[Trial] = []

    def tried(rate: float) -> Trial:
        trials.append(judge(rate, run(rate), limits))
        return trials[-1]

    for _ in _search(tried, start_rate):
        if len(trials) >= MOST_RATES:
            break
    return Sweep(limits=limits, trials=tuple(trials))


def check(limits: Limits | None) -> None:
    """Refuse limits that limit nothing.

    Raises:
        BitworthError: see above.
    """
    found = limits and (limits.max_first_token_s, limits.max_inter_token_s, limits.max_latency_s)
    if not limits or not found or all(limit is None for limit in found):
        raise BitworthError(
            "A sweep needs a limit: a most for the time to first token, the inter-token latency or the latency."
        )
    if any(limit is not None and not limit > 0 for limit in found) or not 0 < limits.percentile < 100:
        raise BitworthError("A sweep's limits must be above 0 seconds, and its percentile between 0 and 100.")


def requests_for(limits: Limits) -> int:
    """Fewest requests at which a percentile means something: five beyond it on average."""
    return math.ceil(5 / (1 - limits.percentile / 100))


def judge(rate: float, timings: Sequence[Timing], limits: Limits) -> Trial:
    """Whether requests at a rate kept to the limits.

    A failed request counts as one that takes for ever. A queue that keeps growing fails whatever its percentiles were
    so far: with more requests they would be worse.
    """
    good = [timing for timing in timings if timing.error is None]
    metrics = metrics_of(timings) if good else None
    late = metrics.late.at(99) if metrics is not None and metrics.late is not None else 0.0
    kept = sum(keeps_to(timing, limits) for timing in timings)
    return Trial(
        rate=rate,
        metrics=metrics,
        broken=tuple(_broken(timings, limits)),
        goodput_per_second=kept / metrics.requests * metrics.queries_per_second if metrics is not None else 0.0,
        timings=tuple(timings),
        void=f"the client itself was {1000 * late:.0f} ms late" if late > LATE_S else None,
    )


def _search(tried: Callable[[float], Trial], start: float) -> Iterator[None]:
    """Try rates until the bracket is narrow; yields after each."""
    low = high = start
    passes = tried(start).passes
    yield
    up = passes
    for _ in range(MOST_STEPS):
        low, high = (high, 2 * high) if up else (low / 2, low)
        passes = tried(high if up else low).passes
        yield
        if passes != up:
            break
    else:
        return  # nothing fails, or nothing passes
    while high / low > CLOSE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if tried(middle).passes else (low, middle)
        yield


def _broken(timings: Sequence[Timing], limits: Limits) -> Iterator[str]:
    """What a rate did not keep to, in words."""
    good = [timing for timing in timings if timing.error is None]
    failed = [math.inf] * (len(timings) - len(good))
    firsts = [t.first_token_s - t.start_s for t in good if t.first_token_s is not None]
    rows = (
        ("time to first token", [*firsts, *failed], limits.max_first_token_s),
        ("inter-token latency", [*_gaps(good), *failed], limits.max_inter_token_s),
        ("latency", [*(t.latency_s for t in good), *failed], limits.max_latency_s),
    )
    for name, values, most in rows:
        if most is None or not values:
            continue
        # The next order statistic up, not a value between two: infinity must not be interpolated.
        found = float(np.percentile(values, limits.percentile, method="higher"))
        if found > most:
            said = f"{found:.4g} s" if math.isfinite(found) else "not reached"
            yield f"p{limits.percentile:g} of the {name} is {said}, over {most:g} s"
    if len(failed) > (1 - limits.percentile / 100) * len(timings):
        cause = next(t.error for t in timings if t.error is not None)
        yield f"{len(failed)} of {len(timings)} requests failed ({cause})"
    if good and steady(good) is False and operator.lt(*thirds(good)):
        yield "the latency keeps rising: a queue builds up"


def _gaps(timings: Sequence[Timing]) -> Iterator[float]:
    """Gaps of all tokens; equal ones within a request of which only the first and the last token's times are known."""
    for timing in timings:
        mean = per_output_token(timing)
        if timing.chunks:
            yield from token_gaps(timing.chunks).tolist()
        elif mean is not None:
            yield from [mean] * (timing.output_tokens - 1)
