"""Bootstrap intervals of recovery, a second opinion on `paired`.

A resample draws whole clusters (single questions where there are none). Equal clusters are drawn together
by their number, so a resample of right and wrong answers costs four numbers, however many questions there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from bitworth.errors import BitworthError
from bitworth.statistics.pairs import Floats, Labels, cluster_sums, pair

Method = Literal["percentile", "bca"]

_AT_ONCE = 250_000
"""Numbers drawn at once, to bound memory."""
_NORMAL = NormalDist()


def bootstrap_recovery(
    baseline: ArrayLike,
    quantized: ArrayLike,
    *,
    clusters: Labels | None = None,
    method: Method = "bca",
    seed: int = 0,
    resamples: int = 4000,
) -> tuple[float, float]:
    """95 % bootstrap interval of 100 × mean(quantized) / mean(baseline), in percent.

    `bca` corrects the percentiles for bias and skewness by the jackknife (Efron, 1987). Where no answer flips every
    resample says 100 %, and so does the interval: `paired_recovery` is the one to decide by.

    Raises:
        BitworthError: scores that cannot be paired, a single cluster, or a baseline that scores nothing.
    """
    b, q = pair("task", baseline, quantized)
    if b.sum() <= 0:
        raise BitworthError("The baseline scores nothing on these questions, so there is no recovery to compute.")
    (sums_b, sums_q), _ = cluster_sums("task", (b, q), clusters)
    ratios = _resampled(sums_b, sums_q, seed, resamples)
    levels = (0.025, 0.975) if method == "percentile" else _corrected(sums_b, sums_q, ratios)
    low, high = np.quantile(ratios, levels)
    return 100 * float(low), 100 * float(high)


def _steps(numbers: int, resamples: int) -> Iterator[int]:
    """How many resamples of so many numbers to draw at once, until there are enough."""
    step = max(1, _AT_ONCE // numbers)
    return (min(step, resamples - start) for start in range(0, resamples, step))


def _resampled(sums_b: Floats, sums_q: Floats, seed: int, resamples: int) -> Floats:
    """Ratios of resamples, those without a baseline score left out."""
    kinds, counts = np.unique(np.stack([sums_b, sums_q], axis=1), axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    share = counts / len(sums_b)
    steps = _steps(len(kinds), resamples)
    totals = np.concatenate([random.multinomial(len(sums_b), share, some) @ kinds for some in steps])
    totals = totals[totals[:, 0] > 0]
    ratios: Floats = totals[:, 1] / totals[:, 0]
    return ratios


def _corrected(sums_b: Floats, sums_q: Floats, ratios: Floats) -> tuple[float, float]:
    """BCa's levels: the bias z0 from the share of resamples below the estimate, the acceleration from the jackknife."""
    estimate = sums_q.sum() / sums_b.sum()
    below = (np.sum(ratios < estimate) + np.sum(ratios == estimate) / 2) / len(ratios)
    left_b = sums_b.sum() - sums_b
    left = (sums_q.sum() - sums_q)[left_b > 0] / left_b[left_b > 0]
    pull = left.mean() - left if len(left) else np.zeros(1)
    spread = float(np.sum(pull**2)) ** 1.5
    if not 0 < below < 1 or spread == 0:
        return 0.025, 0.975
    bias, acceleration = _NORMAL.inv_cdf(below), float(np.sum(pull**3)) / (6 * spread)

    def level(z: float) -> float:
        return _NORMAL.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))

    return level(_NORMAL.inv_cdf(0.025)), level(_NORMAL.inv_cdf(0.975))
