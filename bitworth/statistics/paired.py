"""Recovery of one task or of the mean of tasks: an interval, a verdict, and how many questions would settle it.

Baseline and quantized model answer the same questions, so their scores are compared pair by pair: the noise that the
questions' difficulty brings cancels, and the interval is several times narrower than that of two separate scores.

The interval of the ratio mean(q) / mean(b) is Fieller's, on the paired differences d_r = q - r·b: it is the set of
ratios r for which a test of "mean d_r = 0" does not reject. Bootstrapping would be the usual choice, but when few
answers flip (as at 8 bits) resampled data hold no flips at all and its interval collapses; here one flip either way is
added to the data before the test (the idea of Agresti and Min's adjustment for paired proportions), so that "no flip
in 50 questions" is not taken for certainty. Where questions share a passage, the clusters are the sample: variances
are those of cluster sums, the imagined flips are a cluster each, and the quantile is Student's. Where scores are graded
or clusters change in part, the imagined ones change as the real ones did on average, beside one that changes whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bitworth.errors import BitworthError
from bitworth.statistics.pairs import Floats, Labels, cluster_sums, pair
from bitworth.types import Verdict

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRecovery:
    """100 × quantized / baseline, its 95 % interval, the verdict, and the further questions that would settle it.

    `p_value` is two-sided, of "recovery equals the least allowed"; it is at most 0.05 where the interval leaves that
    out.
    """

    recovery_pct: float
    ci95_pct: tuple[float, float]
    verdict: Verdict
    questions_needed: int | None
    p_value: float


def paired_recovery(
    baseline: ArrayLike, quantized: ArrayLike, *, min_recovery_pct: float, clusters: Labels | None = None
) -> PairedRecovery:
    """Recovery of one task from scores in [0, 1] of the same questions.

    Args:
        baseline: the unquantized model's scores, shape (n,).
        quantized: the quantized model's, in the same order.
        min_recovery_pct: the recovery that counts as holding, such as 99.
        clusters: a label a question; those that share one (a passage) are not independent.

    Raises:
        BitworthError: no questions, different numbers of them, a single cluster, or a baseline that scores nothing.
    """
    labels = None if clusters is None else {"task": clusters}
    return mean_recovery({"task": (baseline, quantized)}, min_recovery_pct=min_recovery_pct, clusters=labels)


def mean_recovery(
    tasks: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    min_recovery_pct: float,
    clusters: Mapping[str, Labels | None] | None = None,
) -> PairedRecovery:
    """Recovery of the plain mean over tasks, as the paper averages (100 × mean of columns / mean of columns).

    Tasks count alike whatever their number of questions; their sampling errors are independent. `clusters` gives the
    labels of the tasks whose questions belong together.

    Raises:
        BitworthError: see `paired_recovery`.
    """
    pairs = {name: pair(name, *scores) for name, scores in tasks.items()}
    if not pairs:
        raise BitworthError("There are no answers to compare; evaluate at least one task.")
    mean_b = float(np.mean([b.mean() for b, _ in pairs.values()]))
    mean_q = float(np.mean([q.mean() for _, q in pairs.values()]))
    if mean_b <= 0:
        raise BitworthError(
            f"The baseline answers no question of {', '.join(pairs)} right, so there is no recovery to compute; "
            "choose another task or more questions."
        )
    labels = clusters or {}
    moments = _mean([_moments(name, *scores, labels.get(name), flips=1) for name, scores in pairs.items()])
    ratio, margin = mean_q / mean_b, min_recovery_pct / 100
    low, high = _fieller(moments)
    low = max(0.0, low)
    verdict = verdict_of(100 * low, 100 * high, min_recovery_pct)
    count = sum(len(b) for b, _ in pairs.values())
    needed = _further(ratio, (low, high), margin, count) if verdict == "undecided" else None
    return PairedRecovery(
        recovery_pct=100 * ratio,
        ci95_pct=(100 * low, 100 * high),
        verdict=verdict,
        questions_needed=needed,
        p_value=_p_value(moments, margin) if math.isfinite(high) else 1.0,
    )


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, *, clusters: Labels | None = None
) -> tuple[float, float]:
    """95 % interval of mean(numerator) / mean(denominator) of paired figures, Fieller's without imagined flips.

    For seconds or tokens as for scores. Infinite bounds: the denominator is not told apart from zero.

    Raises:
        BitworthError: fewer than two figures, different numbers of them, or a single cluster.
    """
    b, q = pair("figures", denominator, numerator)
    if len(b) < 2:
        raise BitworthError("One pair of figures has no variance; measure at least two.")
    return _fieller(_moments("figures", b, q, clusters, flips=0))


def verdict_of(low_pct: float, high_pct: float, min_recovery_pct: float) -> Verdict:
    """`holds` when the whole interval reaches the tolerance, `loses` when none of it does."""
    if low_pct >= min_recovery_pct:
        return "holds"
    return "loses" if high_pct < min_recovery_pct else "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """Means of baseline and quantized scores, the variances and covariance of those means, and degrees of freedom."""

    b: float
    q: float
    var_b: float
    var_q: float
    cov: float
    freedom: float


def _moments(name: str, b: Floats, q: Floats, labels: Labels | None, *, flips: int) -> _Moments:
    """Moments of one task's means, after adding `flips` imagined clusters lost and as many won.

    A mean is a ratio of cluster sums to sizes, so its error is the sum over clusters of (sum - mean × size) / n.
    """
    (sums_b, sums_q), sizes = cluster_sums(name, (b, q), labels)
    if flips:
        # imagined clusters of average size, one lost and one won: neither model gains, but the difference of the two
        # is never without noise
        size = float(sizes.mean())
        high, low = (size / 2 * (1 + way * _change(sums_q - sums_b, size)) for way in (1, -1))
        sums_b, sums_q = np.append(sums_b, [high, low]), np.append(sums_q, [low, high])
        sizes = np.append(sizes, [size, size])
    n, count = float(sizes.sum()), len(sizes)
    mean_b, mean_q = float(sums_b.sum()) / n, float(sums_q.sum()) / n
    error_b, error_q = sums_b - mean_b * sizes, sums_q - mean_q * sizes
    # the flips make up for n in place of n - 1 where every question stands alone
    scale = 1.0 if labels is None and flips else count / (count - 1)
    return _Moments(
        b=mean_b,
        q=mean_q,
        var_b=scale * float(error_b @ error_b) / n**2,
        var_q=scale * float(error_q @ error_q) / n**2,
        cov=scale * float(error_b @ error_q) / n**2,
        freedom=math.inf if labels is None else count - 1,
    )


def _change(differences: Floats, size: float) -> float:
    """How much of a cluster an imagined flip changes: root mean square of what changed, and of one changed whole."""
    moved = differences[differences != 0] / size
    return min(1.0, math.sqrt((1 + float(moved @ moved)) / (1 + len(moved))))


def _mean(parts: list[_Moments]) -> _Moments:
    """Moments of the plain mean of independent tasks; degrees of freedom as Satterthwaite adds them up."""
    k = len(parts)
    spread = [part.var_b + part.var_q - 2 * part.cov for part in parts]
    uncertain = sum(value**2 / part.freedom for value, part in zip(spread, parts, strict=True))
    return _Moments(
        b=sum(part.b for part in parts) / k,
        q=sum(part.q for part in parts) / k,
        var_b=sum(part.var_b for part in parts) / k**2,
        var_q=sum(part.var_q for part in parts) / k**2,
        cov=sum(part.cov for part in parts) / k**2,
        freedom=sum(spread) ** 2 / uncertain if uncertain > 0 else math.inf,
    )


def _fieller(found: _Moments) -> tuple[float, float]:
    """Roots in r of (Q - rB)² = t² · Var(Q - rB); the whole line where the denominator is not told apart from 0."""
    t = _student(Z95, found.freedom)
    square = found.b**2 - t**2 * found.var_b
    cross = found.b * found.q - t**2 * found.cov
    free = found.q**2 - t**2 * found.var_q
    inside = cross**2 - square * free
    if square <= 0 or inside < -1e-15 * cross**2:
        return -math.inf, math.inf
    root = math.sqrt(max(0.0, inside))
    return (cross - root) / square, (cross + root) / square


def _p_value(found: _Moments, margin: float) -> float:
    """Two-sided, of "the ratio is `margin`"; the test that `_fieller` inverts."""
    variance = found.var_q - 2 * margin * found.cov + margin**2 * found.var_b
    t = abs(found.q - margin * found.b) / math.sqrt(variance) if variance > 0 else math.inf
    return math.erfc(_normal(t, found.freedom) / math.sqrt(2))


def _student(z: float, freedom: float) -> float:
    """The quantile of Student's t that stands where z stands in the normal (Wallace, 1959), within 1.5 % from 3 on."""
    if math.isinf(freedom):
        return z
    scaled = z * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(scaled**2 / freedom))


def _normal(t: float, freedom: float) -> float:
    """The inverse of `_student`."""
    if math.isinf(freedom) or math.isinf(t):
        return t
    return math.sqrt(freedom * math.log1p(t**2 / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)


def _further(ratio: float, interval: tuple[float, float], margin: float, count: int) -> int | None:
    """Further questions until the interval, shrinking as 1/√n around the same ratio, leaves the margin on one side."""
    distance = abs(ratio - margin)
    low, high = interval
    if not math.isfinite(high) or distance < 1e-6:
        return None
    half = (ratio - low) if ratio > margin else (high - ratio)
    total = count * (half / distance) ** 2
    return max(1, math.ceil(total - count)) if total < 1e9 else None
