from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from bitworth.errors import BitworthError
from bitworth.statistics import mcnemar_exact, mean_interval, mean_recovery, paired_recovery, verdict_of

PAIRS = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[npst.arrays(float, n, elements=st.sampled_from([0.0, 1.0]))] * 2)
)


@given(PAIRS)
def test_interval_holds_the_ratio_and_the_verdict_follows_from_it(pair: tuple[np.ndarray, np.ndarray]) -> None:
    baseline, quantized = pair
    if not baseline.any():
        with pytest.raises(BitworthError, match="no question"):
            paired_recovery(baseline, quantized, min_recovery_pct=99)
        return
    found = paired_recovery(baseline, quantized, min_recovery_pct=99)
    low, high = found.ci95_pct
    assert found.recovery_pct == pytest.approx(100 * quantized.mean() / baseline.mean())
    assert low <= found.recovery_pct <= high
    assert found.verdict == verdict_of(low, high, 99)
    assert (found.questions_needed is None) or found.verdict == "undecided"


@given(PAIRS, st.randoms())
def test_the_order_of_questions_does_not_matter(pair: tuple[np.ndarray, np.ndarray], random: object) -> None:
    baseline, quantized = pair
    if not baseline.any():
        return
    order = np.random.default_rng(0).permutation(len(baseline))
    first = paired_recovery(baseline, quantized, min_recovery_pct=99)
    again = paired_recovery(baseline[order], quantized[order], min_recovery_pct=99)
    assert again.ci95_pct == pytest.approx(first.ci95_pct)


@pytest.mark.parametrize(("right", "lost", "won"), [(0.5, 0.01, 0.01), (0.4, 0.08, 0.05), (0.8, 0.05, 0.0)])
@pytest.mark.parametrize("questions", [60, 400])
def test_intervals_cover_the_truth(right: float, lost: float, won: float, questions: int) -> None:
    """Simulated pairs with a known ratio: 95 % intervals cover it at least 94 times in 100.

    Nor are they idly wide, once more than a few flips are expected; with fewer the two imagined flips keep them wide.
    """
    random = np.random.default_rng(7)
    covered, runs = 0, 1500
    truth = 100 * (right * (1 - lost / right) + won) / right
    for _ in range(runs):
        kind = random.choice(4, questions, p=[right - lost, lost, won, 1 - right - won])
        baseline, quantized = np.isin(kind, (0, 1)).astype(float), np.isin(kind, (0, 2)).astype(float)
        low, high = paired_recovery(baseline, quantized, min_recovery_pct=99).ci95_pct
        covered += low <= truth <= high
    assert covered / runs >= 0.94
    assert covered / runs <= 0.99 or questions * (lost + won) < 5


def test_pairing_narrows_the_interval_by_what_the_questions_share() -> None:
    random = np.random.default_rng(3)
    baseline = (random.random(1000) < 0.5).astype(float)
    quantized = np.where(random.random(1000) < 0.03, 1 - baseline, baseline)
    low, high = paired_recovery(baseline, quantized, min_recovery_pct=99).ci95_pct
    unpaired = 2 * 1.96 * 100 * math.sqrt(2 * 0.25 / 1000) / baseline.mean()
    assert high - low < unpaired / 3


def test_questions_needed_settle_the_verdict() -> None:
    """With that many more questions of the same kind the interval leaves the margin."""
    baseline = np.array([1.0] * 60 + [0.0] * 40)
    quantized = np.array([1.0] * 58 + [0.0] * 2 + [1.0] * 1 + [0.0] * 39)
    found = paired_recovery(baseline, quantized, min_recovery_pct=95)
    assert found.verdict == "undecided"
    assert found.questions_needed is not None
    times = math.ceil(1 + found.questions_needed / 100)
    assert paired_recovery(np.tile(baseline, times), np.tile(quantized, times), min_recovery_pct=95).verdict == "holds"


def test_average_of_tasks_is_narrower_than_each() -> None:
    random = np.random.default_rng(1)
    tasks = {}
    for name in "abcd":
        baseline = (random.random(200) < 0.6).astype(float)
        tasks[name] = (baseline, np.where(random.random(200) < 0.05, 1 - baseline, baseline))
    whole = mean_recovery(tasks, min_recovery_pct=99).ci95_pct
    for baseline, quantized in tasks.values():
        low, high = paired_recovery(baseline, quantized, min_recovery_pct=99).ci95_pct
        assert whole[1] - whole[0] < high - low


@given(PAIRS)
def test_mcnemar_is_the_exact_binomial_test(pair: tuple[np.ndarray, np.ndarray]) -> None:
    baseline, quantized = pair
    lost, won = int(((baseline == 1) & (quantized == 0)).sum()), int(((baseline == 0) & (quantized == 1)).sum())
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar_exact(baseline, quantized) == pytest.approx(expected)


def test_mean_interval_covers_and_is_seeded() -> None:
    values = list(np.random.default_rng(0).normal(10, 1, 50))
    low, high = mean_interval(values)
    assert low < np.mean(values) < high
    assert mean_interval(values) == (low, high)
    assert mean_interval([3.0]) == (3.0, 3.0)


def test_scores_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(BitworthError, match="cannot be paired"):
        paired_recovery([1, 0], [1], min_recovery_pct=99)
    with pytest.raises(BitworthError, match="no answers"):
        paired_recovery([], [], min_recovery_pct=99)
    with pytest.raises(BitworthError, match="at least one task"):
        mean_recovery({}, min_recovery_pct=99)
