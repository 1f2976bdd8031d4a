"""What paired scores say: recovery with an honest interval, a verdict, and how many questions would settle it.

Baseline and quantized model answer the same questions, so their scores are compared pair by pair: the noise that the
questions' difficulty brings cancels, and the interval is several times narrower than that of two separate scores.

The interval of the ratio mean(q) / mean(b) is Fieller's, on the paired differences d_r = q - r·b: it is the set of
ratios r for which a test of "mean d_r = 0" does not reject. Bootstrapping would be the usual choice, but when few
answers flip (as at 8 bits) resampled data hold no flips at all and its interval collapses; here one flip either way is
added to the data before the test (the idea of Agresti and Min's adjustment for paired proportions), so that "no flip
in 50 questions" is not taken for certainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitworth.errors import BitworthError
from bitworth.types import Verdict

Z95 = 1.959963984540054
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRecovery:
    """100 × quantized / baseline, its 95 % interval, the verdict, and the further questions that would settle it."""

    recovery_pct: float
    ci95_pct: tuple[float, float]
    verdict: Verdict
    questions_needed: int | None


def paired_recovery(baseline: ArrayLike, quantized: ArrayLike, *, min_recovery_pct: float) -> PairedRecovery:
    """Recovery of one task from scores in [0, 1] of the same questions.

    Args:
        baseline: the unquantized model's scores, shape (n,).
        quantized: the quantized model's, in the same order.
        min_recovery_pct: the recovery that counts as holding, such as 99.

    Raises:
        BitworthError: no questions, different numbers of them, or a baseline that scores nothing.
    """
    return mean_recovery({"task": (baseline, quantized)}, min_recovery_pct=min_recovery_pct)


def mean_recovery(tasks: Mapping[str, tuple[ArrayLike, ArrayLike]], *, min_recovery_pct: float) -> PairedRecovery:
    """Recovery of the plain mean over tasks, as the paper averages (100 × mean of columns / mean of columns).

    Tasks count alike whatever their number of questions; their sampling errors are independent.

    Raises:
        BitworthError: see `paired_recovery`.
    """
    pairs = {name: _pair(name, *scores) for name, scores in tasks.items()}
    if not pairs:
        raise BitworthError("There are no answers to compare; evaluate at least one task.")
    mean_b = float(np.mean([b.mean() for b, _ in pairs.values()]))
    mean_q = float(np.mean([q.mean() for _, q in pairs.values()]))
    if mean_b <= 0:
        raise BitworthError(
            f"The baseline answers no question of {', '.join(pairs)} right, so there is no recovery to compute; "
            "choose another task or more questions."
        )
    ratio = mean_q / mean_b
    low, high = _interval(list(pairs.values()))
    verdict = verdict_of(100 * low, 100 * high, min_recovery_pct)
    count = sum(len(b) for b, _ in pairs.values())
    needed = _further(ratio, (low, high), min_recovery_pct / 100, count) if verdict == "undecided" else None
    return PairedRecovery(
        recovery_pct=100 * ratio, ci95_pct=(100 * low, 100 * high), verdict=verdict, questions_needed=needed
    )


def verdict_of(low_pct: float, high_pct: float, min_recovery_pct: float) -> Verdict:
    """`holds` when the whole interval reaches the tolerance, `loses` when none of it does."""
    if low_pct >= min_recovery_pct:
        return "holds"
    return "loses" if high_pct < min_recovery_pct else "undecided"


def mcnemar_exact(baseline: ArrayLike, quantized: ArrayLike) -> float:
    """Two-sided exact McNemar p-value of right/wrong answers: a fair coin over the questions on which they differ."""
    b, q = _pair("task", baseline, quantized)
    lost, won = int(((b > 0.5) & (q <= 0.5)).sum()), int(((b <= 0.5) & (q > 0.5)).sum())
    flips, fewer = lost + won, min(lost, won)
    tail = sum(math.comb(flips, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**flips))


def mean_interval(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of a mean (seconds, queries a second); one value gives itself twice."""
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2:
        return float(data[0]), float(data[0])
    draws = np.random.default_rng(seed).integers(0, len(data), (resamples, len(data)))
    low, high = np.quantile(data[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def _pair(name: str, baseline: ArrayLike, quantized: ArrayLike) -> tuple[Floats, Floats]:
    b, q = np.asarray(baseline, dtype=np.float64), np.asarray(quantized, dtype=np.float64)
    if b.shape != q.shape or b.ndim != 1:
        raise BitworthError(f"{name}: {b.size} baseline and {q.size} quantized scores cannot be paired.")
    if not b.size:
        raise BitworthError(f"{name}: there are no answers to compare.")
    return b, q


def _interval(pairs: list[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Fieller's interval of the ratio of task means: roots in r of (Q - rB)² = z² · Var(Q - rB), after adding flips."""
    tasks = len(pairs)
    mean_b = mean_q = var_b = var_q = cov = 0.0
    z = Z95
    for b, q in pairs:
        # one imagined question lost and one won: neither model gains, but the difference is never without noise
        b, q = np.append(b, [1.0, 0.0]), np.append(q, [0.0, 1.0])
        n = len(b)
        mean_b += b.mean() / tasks
        mean_q += q.mean() / tasks
        var_b += b.var() / n / tasks**2
        var_q += q.var() / n / tasks**2
        cov += float(((b - b.mean()) * (q - q.mean())).mean()) / n / tasks**2
    square = mean_b**2 - z**2 * var_b
    cross = mean_b * mean_q - z**2 * cov
    free = mean_q**2 - z**2 * var_q
    inside = cross**2 - square * free
    if square <= 0 or inside < 0:  # the baseline itself is not told apart from zero: any ratio is possible
        return 0.0, math.inf
    return max(0.0, (cross - math.sqrt(inside)) / square), (cross + math.sqrt(inside)) / square


def _further(ratio: float, interval: tuple[float, float], margin: float, count: int) -> int | None:
    """Further questions until the interval, shrinking as 1/√n around the same ratio, leaves the margin on one side."""
    distance = abs(ratio - margin)
    low, high = interval
    if not math.isfinite(high) or distance < 1e-6:
        return None
    half = (ratio - low) if ratio > margin else (high - ratio)
    total = count * (half / distance) ** 2
    return max(1, math.ceil(total - count)) if total < 1e9 else None
