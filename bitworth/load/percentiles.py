"""Latencies of requests as figures: means and percentiles, with their intervals.

A mean's interval is that of batches: of requests that run together, or of tenths of those that come at times of their
own, whose latencies follow one another in a queue. A percentile's is that of order statistics: it assumes no
distribution, only requests that are alike and independent. Where the tenths show that requests are not independent, it
is wider by as much as they vary more. Where the requests are too few for a bound, there is none: the 99th percentile of
16 requests is unbounded above (`requests_for` says how many it takes).

>>> requests_for(95), requests_for(99)
(72, 368)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import bdtr, chdtri, ndtri, stdtrit

from bitworth.load.metrics import PERCENTILES, Floats, first_tokens, per_output_tokens
from bitworth.load.rates import batches
from bitworth.statistics import mean_factor
from bitworth.types import Figure, Timing

_TAIL = 0.025
#: Batches that differ more than those of independent requests would once in so many times show dependence.
_CHANCE = 0.05

_COLUMNS: Mapping[str, Callable[[Sequence[Timing]], list[float]]] = {
    "latency": lambda timings: [timing.latency_s for timing in timings],
    "first_token": first_tokens,
    "per_output_token": per_output_tokens,
}


def latency_figures(runs: Sequence[Sequence[Timing]], streams: int | None = None) -> Mapping[str, Figure]:
    """Seconds by name (`latency_mean`, `first_token_p95`, ...) of requests that succeeded, with 95 % intervals.

    Quantities that no request tells have no figures.

    Args:
        runs: the requests of each repeat; none of one ran together with any of another.
        streams: of a closed loop, whose requests run together; None for requests that have times of their own.
    """
    timings = [timing for run in runs for timing in run]
    groups = [batch for run in runs for batch in batches(run, streams)]
    found: dict[str, Figure] = {}
    for name, seconds in _COLUMNS.items():
        ordered = np.sort(seconds(timings))
        if not len(ordered):
            continue
        parts = [np.array(part) for part in map(seconds, groups) if part]
        factor = mean_factor([float(part.mean()) for part in parts]) or math.inf
        mean = float(ordered.mean())
        found[f"{name}_mean"] = Figure(value=mean, low=mean / factor, high=mean * factor)
        queued = parts if streams is None else ()
        found |= {f"{name}_p{percent}": percentile(ordered, percent, queued) for percent in PERCENTILES}
    return found


def percentile(ordered: Floats, percent: float, batches: Sequence[Floats] = ()) -> Figure:
    """A percentile of ascending values, linear between order statistics, and its distribution-free 95 % interval.

    The k-th smallest of n lies above the percentile with the probability that fewer than k fall below it, a binomial's.

    Args:
        ordered: the values.
        percent: which percentile.
        batches: the same values in the order of time, to see whether they depend on those before.
    """
    n, share = len(ordered), percent / 100
    value = float(np.quantile(ordered, share))
    below = bdtr(np.arange(n + 1), n, share)  # below[k]: at most k of n fall below the percentile
    first = int(np.searchsorted(below, _TAIL, side="right"))
    last = int(np.searchsorted(below, 1 - _TAIL, side="left")) + 1
    further = _widening(batches, value, share) - 1
    first, last = first - math.ceil(further * (n * share - first)), last + math.ceil(further * (last - n * share))
    low = float(ordered[first - 1]) if first >= 1 else 0.0
    high = float(ordered[last - 1]) if last <= n else math.inf
    return Figure(value=value, low=min(low, value), high=max(high, value))


def _widening(batches: Sequence[Floats], value: float, share: float) -> float:
    """By how much an interval is longer than that of independent values, of which `share` lie below `value`.

    It is 1 where the shares below in each batch differ no more than chance explains; else the root of how much more
    they vary, with Student's quantile, since that is known from the batches alone.
    """
    free = len(batches) - 1
    if free < 1:
        return 1.0
    size = sum(map(len, batches)) / len(batches)
    shares = [np.mean(batch <= value) for batch in batches]
    excess = float(np.var(shares, ddof=1)) * size / (share * (1 - share))
    if excess <= chdtri(free, _CHANCE) / free:
        return 1.0
    return math.sqrt(excess) * float(stdtrit(free, 1 - _TAIL) / ndtri(1 - _TAIL))


def requests_for(percent: float) -> int:
    """Fewest independent requests whose slowest bounds the percentile from above, in a two-sided 95 % interval."""
    return math.ceil(math.log(_TAIL) / math.log(percent / 100))
