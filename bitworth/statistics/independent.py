"""Scores of two models that answered different questions: nothing can be paired."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bitworth.statistics.paired import Z95
from bitworth.statistics.pairs import Floats, Labels, cluster_totals

Sample = tuple[Floats, Labels | None]
"""Scores of a task's questions, and a cluster's label a question where they come in clusters."""


def independent_ratio(before: Sequence[Sample], after: Sequence[Sample]) -> tuple[tuple[float, float], float]:
    """95 % interval of 100 × after / before and the p-value of "they are equal", for means over tasks drawn apart.

    Normal on the logarithm of the ratio, whose variance is the sum of the squared relative errors (delta method). One
    right and one wrong answer are added to each task, so that a score of 0 or 1 is not taken for certain; where
    questions come in clusters, these are the sample, and a right and a wrong one of average size are added.

    Args:
        before: one sample a task, with a mean above 0.
        after: as many, or of another number of questions.
    """
    padded = [[_padded(*sample) for sample in side] for side in (before, after)]
    means = [float(np.mean([scores.mean() for scores, _ in side])) for side in (before, after)]
    nothing = means[1] <= 0
    if nothing:
        means[1] = float(np.mean([sums.sum() / sizes.sum() for sums, sizes in padded[1]]))
    relative = 0.0
    for mean, side in zip(means, padded, strict=True):
        relative += sum(_squared_error(sums, sizes) for sums, sizes in side) / len(side) ** 2 / mean**2
    spread, log = math.sqrt(relative), math.log(means[1] / means[0])
    p_value = math.erfc(abs(log) / spread / math.sqrt(2))
    low = 0.0 if nothing else 100 * math.exp(log - Z95 * spread)
    return (low, 100 * math.exp(log + Z95 * spread)), p_value


def _padded(scores: Floats, labels: Labels | None) -> tuple[Floats, Floats]:
    """Scores summed within clusters, and the clusters' sizes, after a wrong and a right one of average size."""
    sums, sizes = cluster_totals(scores, labels)
    size = sizes.mean()
    return np.append(sums, [0.0, size]), np.append(sizes, [size, size])


def _squared_error(sums: Floats, sizes: Floats) -> float:
    """The variance of a mean, which is a ratio of clusters' sums to their sizes."""
    count = sizes.sum()
    return float(np.square(sums - sums.sum() / count * sizes).sum() / count**2)
