"""A verdict that may be looked at after every question: asking stops as soon as it is settled, at a known error.

The question is whether recovery reaches m, that is whether the mean of d = q - m·b, which lies in [-m, 1], is at least
0. Two bettors start with one unit each: one wins when quantized answers are better than m allows, the other when they
are worse. While the mean of d is not above (not below) 0, no strategy of the first (the second) has an expected gain,
so by Ville's inequality its money ever reaches 1/error with probability at most `error`, however often one looks and
whenever one stops (betting confidence sequences: Waudby-Smith and Ramdas, 2023). The first to reach it gives the
verdict; the ratios that the same bets refute bound recovery at all times.

Which questions are meant is given by `sizes`. With them, the verdict is about the whole task of that many questions,
from which the answered ones were drawn without replacement: what is known already is taken out of the bet, and a task
that is answered whole is settled exactly. Without them, it is about the endless supply of questions of which these are
a sample. Several tasks are asked in rounds, a question of each; the verdict is about the plain mean over tasks.

>>> same = [1.0, 0.0, 1.0, 1.0] * 250
>>> settle({"arc": (same, same)}, min_recovery_pct=98).verdict
'holds'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitworth.errors import BitworthError
from bitworth.statistics.pairs import Floats, pair
from bitworth.types import Verdict

Integers = NDArray[np.int64]

LADDER = (128, 1024, 8192, 65536)
"""A bettor's money is split evenly; each part stakes what would be best if the matter took so many rounds to settle."""
BOLDNESS = 0.6
"""Most that a part may lose in one round, as a share of what it has."""
_PRIOR_ROUNDS, _PRIOR_SQUARE = 20, 0.05
"""The mean square of d before any answer, and how many rounds it counts for."""
_REACH = 1.2
"""Bounds of recovery are looked for within this factor of the least allowed; beyond it they stop being tight."""
_EXACT = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What the answers so far settle.

    Attributes:
        verdict: wrong with probability at most `error`, whenever asking stops; `undecided` while it is open.
        recovery_pct: 100 × quantized / baseline on the answered questions; not a number while the baseline has none.
        bounds_pct: each holds at all times with probability 1 - `error`; the upper one may be infinite.
        questions: answered by each model, over all tasks.
        settled_after: answered when the verdict fell, None while it is open.
        pool: questions that there are, over all tasks; None for an endless supply.
        error: the chance of a wrong verdict.
    """

    verdict: Verdict
    recovery_pct: float
    bounds_pct: tuple[float, float]
    questions: int
    settled_after: int | None
    pool: int | None
    error: float

    @property
    def exhausted(self) -> bool:
        """True when every question there is was answered."""
        return self.pool is not None and self.questions >= self.pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Scores in the order of asking, so prepared that each round estimates the means without bias given its past.

    `b` and `q` have shape (..., T): in round j the part of the mean that is known from earlier rounds, plus the open
    part times the round's scores. `known_b`, `known_q` and `open` have shape (..., T + 1), before each round and after
    the last; without pools nothing is ever known and all stays open.
    """

    b: Floats
    q: Floats
    known_b: Floats
    known_q: Floats
    open: Floats

    def least(self, ratio: float) -> Floats:
        """The least that q - ratio·b can still be on average."""
        return self.known_q - ratio * (self.known_b + self.open)

    def most(self, ratio: float) -> Floats:
        """The most that q - ratio·b can still be on average."""
        return self.known_q + self.open - ratio * self.known_b


def settle(
    tasks: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    min_recovery_pct: float,
    sizes: Mapping[str, int] | None = None,
    error: float = 0.05,
) -> Settlement:
    """What (baseline, quantized) scores in [0, 1], in the random order in which they were asked, settle so far.

    Args:
        tasks: both columns of each task.
        min_recovery_pct: the recovery that counts as holding, such as 99.
        sizes: how many questions each task has in all; None for an endless supply.
        error: the most that a wrong verdict may be likely.

    Raises:
        BitworthError: scores that cannot be paired or are not in [0, 1], tasks that were not asked in rounds, a pool
            smaller than its answers, or an error outside (0, 1).
    """
    pairs = {name: _bounded(name, *scores) for name, scores in tasks.items()}
    _check(pairs, sizes, min_recovery_pct, error)
    pools = [math.inf if sizes is None else sizes[name] for name in pairs]
    counts = np.array([len(b) for b, _ in pairs.values()])
    rounds = rounds_of(list(pairs.values()), pools)
    margin = min_recovery_pct / 100
    mean_b, mean_q = (float(np.mean([columns[side].mean() for columns in pairs.values()])) for side in (0, 1))
    verdict, fell = verdicts(rounds, margin, error) if mean_b > 0 else (np.array(0), np.array(-1))
    return Settlement(
        verdict="holds" if verdict > 0 else "loses" if verdict < 0 else "undecided",
        recovery_pct=100 * (mean_q / mean_b) if mean_b > 0 else math.nan,
        bounds_pct=_bounds(rounds, margin, error) if mean_b > 0 else (0.0, math.inf),
        questions=int(counts.sum()),
        settled_after=None if verdict == 0 else int(np.minimum(int(fell), counts).sum()),
        pool=None if sizes is None else sum(sizes[name] for name in pairs),
        error=error,
    )


def rounds_of(tasks: list[tuple[Floats, Floats]], pools: list[float]) -> Rounds:
    """Prepare (baseline, quantized) scores of shape (..., n) of each task, drawn from pools of these sizes.

    With pools a task that is exhausted before the others drops out of the rounds: all of it is known. Without, rounds
    end with the shortest task.
    """
    lengths = [b.shape[-1] for b, _ in tasks]
    total = min(lengths) if math.inf in pools else max(lengths)
    asked = np.arange(total + 1)
    parts = []
    for (b, q), pool in zip(tasks, pools, strict=True):
        left = 1 - np.minimum(asked, pool) / pool
        known_b, known_q = _known(b, total, pool), _known(q, total, pool)
        parts.append(
            (
                known_b[..., :-1] + left[:-1] * _padded(b, total),
                known_q[..., :-1] + left[:-1] * _padded(q, total),
                known_b,
                known_q,
                np.broadcast_to(left, known_b.shape),
            )
        )
    b, q, known_b, known_q, left = (np.mean([part[at] for part in parts], axis=0) for at in range(5))
    return Rounds(b=b, q=q, known_b=known_b, known_q=known_q, open=left)


def verdicts(rounds: Rounds, margin: float, error: float) -> tuple[Integers, Integers]:
    """1 (holds), -1 (loses) or 0 (open) and the number of rounds after which it fell (-1: it did not), shape (...)."""
    won, lost = (_first(log_wealth(rounds, margin, margin, error, side) >= math.log(1 / error)) for side in (1, -1))
    never = rounds.open.shape[-1]
    found = np.where(won == lost, 0, np.where(won < lost, 1, -1))
    fell = np.minimum(won, lost)
    return found, np.where(fell == never, -1, fell)


def log_wealth(rounds: Rounds, ratio: float, margin: float, error: float, side: int) -> Floats:
    """Log of the money of the bettor against "the ratio is at most (side 1) or at least (side -1) `ratio`".

    Shape (..., T + 1), before any round first; infinite where the answers leave no doubt. Stakes are chosen before a
    round's answers are seen and do not depend on `ratio`, so the money falls (rises) with it, and the ratios not
    refuted are an interval. Valid for ratios up to (side 1) or from (side -1) `reach`.
    """
    gain = side * (rounds.q - ratio * rounds.b)
    total = np.full(gain.shape, -np.inf)
    for stake in _stakes(rounds, margin, error, side):
        total = np.logaddexp(total, np.cumsum(np.log1p(stake * gain), axis=-1))
    money = np.concatenate([np.zeros((*gain.shape[:-1], 1)), total - math.log(len(LADDER))], axis=-1)
    certain = rounds.least(ratio) >= -_EXACT if side > 0 else rounds.most(ratio) < -_EXACT
    return np.where(certain, np.inf, money)


def reach(margin: float, side: int) -> float:
    """The ratio up to which (side 1) or from which on (side -1) `log_wealth` is valid."""
    return _REACH * max(1.0, margin) if side > 0 else margin / _REACH


def _stakes(rounds: Rounds, margin: float, error: float, side: int) -> list[Floats]:
    """Stakes of shape (..., T), one a part: √(2 log(1/error) / (rounds × mean square)), capped so that none is ruined.

    That is the best constant stake against a mean that a sum of so many rounds would just settle. The mean square is
    that of earlier rounds; known parts shrink the noise of a round by `open`, and stakes grow with its square.
    """
    left = rounds.open[..., :-1]
    known = rounds.known_q - margin * rounds.known_b
    scores = (rounds.q - margin * rounds.b - known[..., :-1]) / left
    before = np.cumsum(scores**2, axis=-1) - scores**2
    square = (_PRIOR_ROUNDS * _PRIOR_SQUARE + before) / (_PRIOR_ROUNDS + np.arange(scores.shape[-1]))
    worst = -rounds.least(reach(margin, 1)) if side > 0 else rounds.most(reach(margin, -1))
    cap = BOLDNESS / np.maximum(worst[..., :-1], _EXACT)
    return [np.minimum(cap, np.sqrt(2 * math.log(1 / error) / (count * square)) / left**2) for count in LADDER]


def _bounds(rounds: Rounds, margin: float, error: float) -> tuple[float, float]:
    """Percent: the largest ratio that the first bettor refutes, the smallest that the second does."""
    if rounds.open[-1] == 0:  # every question was answered
        ratio = 100 * float(rounds.known_q[-1] / rounds.known_b[-1])
        return ratio, ratio

    def refuted(ratio: float, side: int) -> bool:
        return bool(log_wealth(rounds, ratio, margin, error, side).max() >= math.log(1 / error))

    most, least = reach(margin, 1), reach(margin, -1)
    low = _edge(lambda ratio: refuted(ratio, 1), 0.0, most) if refuted(0.0, 1) else 0.0
    far = 1e3
    high = _edge(lambda ratio: refuted(ratio, -1), far, least) if refuted(far, -1) else math.inf
    return 100 * low, 100 * high


def _edge(refuted: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last refuted ratio on the way from `inside`, which is refuted, to `outside`."""
    if refuted(outside):
        return outside
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if refuted(middle) else (inside, middle)
    return inside


def _first(reached: NDArray[np.bool_]) -> Integers:
    """Index of the first True along the last axis; its length where there is none."""
    found: Integers = np.where(reached.any(-1), reached.argmax(-1), reached.shape[-1])
    return found


def _known(scores: Floats, total: int, pool: float) -> Floats:
    """Sum of the scores before each round over the pool's size, shape (..., total + 1)."""
    sums = np.cumsum(_padded(scores, total), axis=-1)
    return np.concatenate([np.zeros((*sums.shape[:-1], 1)), sums], axis=-1) / pool


def _padded(scores: Floats, total: int) -> Floats:
    """The first `total` scores, zeros after the last."""
    missing = max(0, total - scores.shape[-1])
    return np.pad(scores[..., :total], [(0, 0)] * (scores.ndim - 1) + [(0, missing)])


def _bounded(name: str, baseline: ArrayLike, quantized: ArrayLike) -> tuple[Floats, Floats]:
    b, q = pair(name, baseline, quantized)
    if min(b.min(), q.min()) < 0 or max(b.max(), q.max()) > 1:
        raise BitworthError(f"{name}: scores outside [0, 1] cannot be settled; rescale them.")
    return b, q


def _check(
    pairs: Mapping[str, tuple[Floats, Floats]], sizes: Mapping[str, int] | None, least_pct: float, error: float
) -> None:
    if not pairs:
        raise BitworthError("There are no answers to settle anything by; evaluate at least one task.")
    if not 0 < error < 1 or not least_pct > 0:
        raise BitworthError("The error must lie between 0 and 1, and the least recovery above 0.")
    longest = max(len(b) for b, _ in pairs.values())
    for name, (b, _) in pairs.items():
        if sizes is not None and len(b) > sizes.get(name, 0):
            raise BitworthError(f"{name}: {len(b)} answers are more than its {sizes.get(name, 0)} questions.")
        due = longest if sizes is None else min(longest, sizes[name])
        if len(b) != due:
            raise BitworthError(f"{name}: {len(b)} answers where {due} were due; ask every task in equal rounds.")
