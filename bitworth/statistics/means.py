"""How sure a mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bitworth.statistics.paired import Z95

#: e to more than this is no float.
_MOST_EXPONENT = 700.0


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of values that vary independently; None below two."""
    if len(values) < 2:
        return None
    mean, reach = float(np.mean(values)), _reach(values)
    return mean - reach, mean + reach


def share_interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % normal interval of the mean of scores in [0, 1] that vary independently, within [0, 1].

    A score of 0 and one of 1 are imagined besides, so that thirty equal ones are not taken for certain.
    """
    padded = np.append(np.asarray(scores, dtype=float), [0.0, 1.0])
    reach = Z95 * float(np.std(padded, ddof=1)) / math.sqrt(padded.size)
    middle = float(padded.mean())
    return max(0.0, middle - reach), min(1.0, middle + reach)


def mean_factor(values: Sequence[float], *, inflation: float = 1.0) -> float | None:
    """The f of the 95 % interval mean / f to mean x f of positive values that vary independently; None below two.

    Where values depend on each other, `inflation` is their mean's variance over that of the mean of independent ones.

    Student's interval of the mean's logarithm, with the standard error that the delta method gives it, so that no bound
    falls below zero however few the values are. A mean of zeros has none.
    """
    if len(values) < 2 or not any(values):
        return None
    exponent = math.sqrt(inflation) * _reach(values) / float(np.mean(values))
    return math.exp(exponent) if exponent < _MOST_EXPONENT else math.inf


def _reach(values: Sequence[float]) -> float:
    """Half the width of Student's 95 % interval of the mean of two or more values."""
    from scipy.special import stdtrit  # a quarter of a second, which no command that only starts should wait for

    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(stdtrit(len(values) - 1, 0.975)) * error
