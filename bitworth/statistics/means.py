"""How sure a mean of times is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: e to more than this is no float.
_MOST_EXPONENT = 700.0


def mean_factor(values: Sequence[float]) -> float | None:
    """The f of the 95 % interval mean / f to mean x f of positive values that vary independently; None below two.

    Student's interval of the mean's logarithm, with the standard error that the delta method gives it, so that no bound
    falls below zero however few the values are. A mean of zeros has none.
    """
    from scipy.special import stdtrit  # a quarter of a second, which no command that only starts should wait for

    freedom = len(values) - 1
    if freedom < 1 or not any(values):
        return None
    data = np.asarray(values, dtype=np.float64)
    error = float(data.std(ddof=1)) / math.sqrt(len(data)) / float(data.mean())
    exponent = float(stdtrit(freedom, 0.975)) * error
    return math.exp(exponent) if exponent < _MOST_EXPONENT else math.inf
