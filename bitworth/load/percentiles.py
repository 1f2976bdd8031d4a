"""Latencies of requests as figures: means and percentiles, with their intervals.

A mean's interval is that of batches that run together. A percentile's is that of order statistics: it assumes no
distribution, only requests that are alike and independent. Where the requests are too few for a bound, there is none:
the 99th percentile of 16 requests is unbounded above (`requests_for` says how many it takes).

>>> requests_for(95), requests_for(99)
(72, 368)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from bitworth.load.metrics import PERCENTILES, first_tokens, per_output_tokens
from bitworth.load.rates import batches
from bitworth.statistics import mean_factor
from bitworth.types import Figure, Timing

_TAIL = 0.025


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
        together = [float(np.mean(part)) for part in map(seconds, groups) if part]
        factor = mean_factor(together) or math.inf
        mean = float(ordered.mean())
        found[f"{name}_mean"] = Figure(value=mean, low=mean / factor, high=mean * factor)
        found |= {f"{name}_p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return found


def percentile(ordered: NDArray[np.float64], percent: float) -> Figure:
    """A percentile of ascending values, linear between order statistics, and its distribution-free 95 % interval.

    The k-th smallest of n lies above the percentile with the probability that fewer than k fall below it, a binomial's.
    """
    n = len(ordered)
    below = bdtr(np.arange(n + 1), n, percent / 100)  # below[k]: at most k of n fall below the percentile
    first = int(np.searchsorted(below, _TAIL, side="right"))
    last = int(np.searchsorted(below, 1 - _TAIL, side="left")) + 1
    low = float(ordered[first - 1]) if first >= 1 else 0.0
    high = float(ordered[last - 1]) if last <= n else math.inf
    value = float(np.quantile(ordered, percent / 100))
    return Figure(value=value, low=min(low, value), high=max(high, value))


def requests_for(percent: float) -> int:
    """Fewest requests whose slowest bounds the percentile from above, in a two-sided 95 % interval."""
    return math.ceil(math.log(_TAIL) / math.log(percent / 100))
