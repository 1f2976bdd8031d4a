"""Verdicts on pairs of answers added up: the Bradley-Terry win rate of one model over another.

Each question is judged twice, with the answers in both orders. A verdict is a score s for the model (1 better, 0.5 a
tie, 0 worse) with a weight w (Arena-Hard-Auto v0.1 counts the strong verdicts threefold). Bradley and Terry's
likelihood for two models is that of a single probability, so its maximum has a closed form, sum(w s) / sum(w). The
interval draws whole questions: the two verdicts on one, and the three copies of a strong one, are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from bitworth.errors import BitworthError
from bitworth.statistics.pairs import Floats
from bitworth.statistics.resampling import bootstrap_recovery

Grade = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"]

SCORES: Mapping[Grade, tuple[float, bool]] = MappingProxyType(
    {"A>>B": (1.0, True), "A>B": (1.0, False), "A=B": (0.5, False), "B>A": (0.0, False), "B>>A": (0.0, True)}
)
"""What a grade says of the answer called A, and whether it says it strongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Both verdicts on one question, as the judge gave them.

    In `model_first` the model's answer was shown first, as A; in `model_second` as B.
    """

    item: str
    model_first: Grade
    model_second: Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often the model's answers win, a tie counted half.

    `rate_pct` is Bradley-Terry's probability in percent, `elo` the same as a difference of ratings (None where it is
    infinite). A question is won when both verdicts together favour the model; `contradicted` counts questions on which
    the two orders name different winners. `first_place_pct` is the score of the answer shown first: 50 of a judge
    whom places do not sway.
    """

    rate_pct: float
    ci95_pct: tuple[float, float]
    elo: float | None
    questions: int
    won: int
    tied: int
    lost: int
    contradicted: int
    first_place_pct: float


def win_rate(duels: Sequence[Duel], *, strong_weight: float = 3.0, seed: int = 0, resamples: int = 2000) -> WinRate:
    """The model's win rate over these questions with a 95 % bootstrap interval over questions like them.

    Raises:
        BitworthError: no duels, or a weight that is not positive.
    """
    if not duels:
        raise BitworthError("No question has two readable verdicts, so there is no win rate.")
    if not 0 < strong_weight < math.inf:
        raise BitworthError(f"Strong verdicts cannot weigh {strong_weight:g}; give a positive number.")
    scores, weights = _columns(duels, strong_weight)
    points, totals = (scores * weights).sum(1), weights.sum(1)
    rate = float(points.sum() / totals.sum())
    balance = 2 * points - totals
    first = np.stack([scores[:, 0], 1 - scores[:, 1]], axis=1)
    return WinRate(
        rate_pct=100 * rate,
        ci95_pct=_interval(points, totals, 2 * max(strong_weight, 1.0), seed, resamples),
        elo=400 * math.log10(rate / (1 - rate)) if 0 < rate < 1 else None,
        questions=len(duels),
        won=int((balance > 0).sum()),
        tied=int((balance == 0).sum()),
        lost=int((balance < 0).sum()),
        contradicted=int((abs(scores[:, 0] - scores[:, 1]) == 1).sum()),
        first_place_pct=100 * float((first * weights).sum() / weights.sum()),
    )


def _columns(duels: Sequence[Duel], strong_weight: float) -> tuple[Floats, Floats]:
    """The model's scores and their weights, (questions, 2): shown first, shown second."""
    found = [(SCORES[duel.model_first], SCORES[duel.model_second]) for duel in duels]
    scores = np.array([(one[0], 1 - two[0]) for one, two in found])
    weights = np.array([[strong_weight if strong else 1.0 for _, strong in pair] for pair in found])
    return scores, weights


def _interval(points: Floats, totals: Floats, heaviest: float, seed: int, resamples: int) -> tuple[float, float]:
    """Percentiles of resampled questions; where all of them say the same, what a share unseen so far could change.

    With n equal questions, a share of up to u = 1 - 0.025^(1/n) of others would have stayed unseen; they could weigh up
    to `heaviest` each and be all lost, or all won.
    """
    shares = points / totals
    if np.ptp(shares) > 0:
        return bootstrap_recovery(totals, points, method="percentile", seed=seed, resamples=resamples)
    unseen = heaviest * (1 - 0.025 ** (1 / len(shares)))
    seen = float(totals.mean()) * 0.025 ** (1 / len(shares))
    share = float(shares[0])
    return 100 * share * seen / (seen + unseen), 100 * (share * seen + unseen) / (seen + unseen)
