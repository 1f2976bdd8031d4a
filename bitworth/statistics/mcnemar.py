"""The exact test of right and wrong answers: of the questions on which two models differ, is each as likely to lead?"""

from __future__ import annotations

import math

from numpy.typing import ArrayLike

from bitworth.statistics.pairs import pair


def mcnemar_exact(baseline: ArrayLike, quantized: ArrayLike, *, mid_p: bool = False) -> float:
    """Two-sided exact McNemar p-value: a fair coin over the questions on which the two differ.

    A score above 0.5 counts as right. `mid_p` counts half of the observed outcome's probability, which makes the test
    less conservative; its error may then pass the level by a little (Fagerland, Lydersen and Laake, 2013).

    Raises:
        BitworthError: no questions, or different numbers of them.
    """
    b, q = pair("task", baseline, quantized)
    lost, won = int(((b > 0.5) & (q <= 0.5)).sum()), int(((b <= 0.5) & (q > 0.5)).sum())
    flips, fewer = lost + won, min(lost, won)
    tail, ways = 0, 1  # ways to choose 0, 1, ... `fewer` of the flips
    for k in range(fewer + 1):
        tail += 2 * ways
        ways = ways * (flips - k) // (k + 1)
    if mid_p:
        tail -= math.comb(flips, fewer)
    return float(min(1.0, tail / 2**flips))
