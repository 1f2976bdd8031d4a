"""Pairs of answers whose truth is known: right and wrong, graded, sharing passages, or a whole task in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Columns = tuple[Floats, Floats]
"""(baseline, quantized) scores."""
Draw = Callable[[np.random.Generator, int], Columns]
"""Scores of so many runs."""
QUANTILE = NormalDist().inv_cdf
BASES, FLIPPED = (0.3, 0.5, 0.7, 0.9), (0.02, 0.05, 0.10, 0.20)


@dataclass(frozen=True, slots=True)
class Truth:
    """Right and wrong answers: the baseline's score, the recovery in percent, the share of questions that flip."""

    base: float
    recovery: float
    flipped: float

    @property
    def lost(self) -> float:
        """Share of questions that only the baseline answers right."""
        return (self.flipped + self.base * (1 - self.recovery / 100)) / 2

    @property
    def won(self) -> float:
        """Share of questions that only the quantized model answers right."""
        return self.flipped - self.lost

    @property
    def possible(self) -> bool:
        """Whether there are such pairs."""
        return self.lost <= self.base and 0 <= self.won <= 1 - self.base

    def draw(self, random: np.random.Generator, *shape: int) -> Columns:
        """(baseline, quantized) scores."""
        point = random.random(shape)
        b = point < self.base
        q = (point < self.base - self.lost) | (b ^ (point < self.base + self.won))
        return b.astype(float), q.astype(float)

    def asked(self, rounds: int) -> Draw:
        """So many questions in a row, for any number of runs."""
        return lambda random, count: self.draw(random, count, rounds)

    def gap(self, margin: float) -> float:
        """Mean of q - margin × b."""
        return self.base * (self.recovery / 100 - margin)

    def planned(self, margin: float, error: float, power: float, *, paired: bool) -> float:
        """Questions of a one-sided test at `error` with this power, on pairs or on two separate standard errors."""
        share = self.base * self.recovery / 100
        variance = margin**2 * self.base * (1 - self.base) + share * (1 - share)
        if paired:
            variance -= 2 * margin * (self.base - self.lost - self.base * share)
        return (QUANTILE(1 - error) + QUANTILE(power)) ** 2 * variance / self.gap(margin) ** 2


def truths(recoveries: tuple[float, ...]) -> list[Truth]:
    """Every combination that is possible."""
    every = (Truth(base, recovery, flipped) for base in BASES for recovery in recoveries for flipped in FLIPPED)
    return [truth for truth in every if truth.possible]


def graded_at_margin(random: np.random.Generator, runs: int, rounds: int, margin: float) -> Columns:
    """Graded scores whose means are exactly in the ratio `margin`."""
    b = random.beta(2, 2, (runs, rounds))
    lost = random.random((runs, rounds)) < 1 - margin
    return b, np.where(lost, 0.0, b)


def passages(random: np.random.Generator, runs: int, count: int, size: int) -> tuple[Floats, Floats, list[int]]:
    """Pairs whose flips come with the passage: it is lost or won for all its questions, half of the time as one."""
    base, lost, won = 0.6, 0.079, 0.061  # recovers 97 %
    together = random.random((runs, count, 1)) < 0.5
    kind = random.random((runs, count, size))
    kind = np.where(together, kind[..., :1], kind)
    b = kind < base
    q = (kind < base - lost) | ((kind >= base) & (kind < base + won))
    labels = np.repeat(np.arange(count), size)
    return b.reshape(runs, -1).astype(float), q.reshape(runs, -1).astype(float), labels.tolist()


def exact_pool(size: int, recovery: float) -> Columns:
    """A task of which 60 % are right and 5 % flip, and whose recovery is as near as whole questions allow."""
    right, flips = round(0.6 * size), round(0.05 * size)
    fewer = round(right * (1 - recovery / 100))
    lost = min(flips, (flips + fewer) // 2)
    won = lost - fewer
    b = np.repeat([1.0, 1.0, 0.0, 0.0], [right - lost, lost, won, size - right - won])
    q = np.repeat([1.0, 0.0, 1.0, 0.0], [right - lost, lost, won, size - right - won])
    return b, q


def shuffles(b: Floats, q: Floats) -> Draw:
    """Orders in which these questions may be asked."""

    def draw(random: np.random.Generator, count: int) -> Columns:
        orders = random.permuted(np.tile(np.arange(len(b)), (count, 1)), axis=1)
        return b[orders], q[orders]

    return draw
