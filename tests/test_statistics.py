from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from bitworth.errors import BitworthError
from bitworth.statistics import (
    bootstrap_recovery,
    holm,
    mcnemar_exact,
    mean_factor,
    mean_interval,
    mean_recovery,
    paired_recovery,
    ratio_interval,
    verdict_of,
)

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
@pytest.mark.parametrize("questions", [60, pytest.param(400, marks=pytest.mark.slow(beside=True))])
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


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_a_means_interval_is_students(values: list[float]) -> None:
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    assert mean_interval(values) == pytest.approx((mean - half, mean + half), rel=2e-3, abs=2e-3 * half + 1e-9)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
def test_a_means_factor_is_students_on_the_logarithm(values: list[float]) -> None:
    factor = mean_factor(values)
    assert factor is not None
    relative = np.std(values, ddof=1) / math.sqrt(len(values)) / np.mean(values)
    assert math.log(factor) == pytest.approx(stats.t.ppf(0.975, len(values) - 1) * relative, rel=1e-3, abs=1e-12)


def test_what_is_too_little_has_no_interval() -> None:
    assert mean_interval([]) is mean_interval([1.0]) is None
    assert mean_factor([]) is mean_factor([3.0]) is mean_factor([0.0, 0.0]) is None
    assert mean_factor([3.0, 3.0]) == 1
    assert mean_factor([0.0] * 40 + [1.0]) == pytest.approx(math.exp(stats.t.ppf(0.975, 40)), rel=1e-3)


def test_scores_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(BitworthError, match="cannot be paired"):
        paired_recovery([1, 0], [1], min_recovery_pct=99)
    with pytest.raises(BitworthError, match="no answers"):
        paired_recovery([], [], min_recovery_pct=99)
    with pytest.raises(BitworthError, match="at least one task"):
        mean_recovery({}, min_recovery_pct=99)


# --- clusters, families, a second opinion -----------------------------------------------------------------------------


def naive_interval(b: np.ndarray, q: np.ndarray, labels: list[int] | None) -> tuple[float, float]:
    """Bounds between which |mean(q - r·b)| stays below the quantile × its standard error, found by scanning r.

    The variance is summed over all pairs of questions of a cluster, and the two imagined clusters are written out.
    """
    marks = list(range(len(b))) if labels is None else labels
    size = len(b) / len(set(marks))
    weight = np.append(np.ones(len(b)), [size, size])
    moved = [sum(q[i] - b[i] for i in range(len(b)) if marks[i] == mark) / size for mark in set(marks)]
    moved = [1, *(change for change in moved if change)]
    part = min(1, math.sqrt(sum(change**2 for change in moved) / len(moved)))
    b, q = np.append(b, [(1 + part) / 2, (1 - part) / 2]), np.append(q, [(1 - part) / 2, (1 + part) / 2])
    marks = [*marks, "lost", "won"]
    n, count = weight.sum(), len(set(marks))
    quantile = 1.959964 if labels is None else stats.t.ppf(0.975, count - 1)

    def keeps(ratio: float) -> bool:
        d = q - ratio * b
        mean = (weight * d).sum() / n
        error = weight * (d - mean)
        together = sum(error[i] * error[j] for i in range(len(d)) for j in range(len(d)) if marks[i] == marks[j])
        scale = 1 if labels is None else count / (count - 1)
        return bool(mean**2 <= quantile**2 * scale * together / n**2)

    inside = [ratio for ratio in np.linspace(0, 3, 1201) if keeps(ratio)]
    return inside[0], inside[-1]


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_interval_is_the_inverted_test_written_out(clustered: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    b = (random.random(36) < 0.7).astype(float)
    q = np.where(random.random(36) < 0.15, 1 - b, b)
    labels = list(random.integers(0, 9, 36)) if clustered else None
    found = paired_recovery(b, q, min_recovery_pct=99, clusters=labels).ci95_pct
    assert found == pytest.approx([100 * bound for bound in naive_interval(b, q, labels)], abs=0.5)


def test_clusters_of_one_question_change_little_and_copies_count_once() -> None:
    random = np.random.default_rng(4)
    b = (random.random(300) < 0.6).astype(float)
    q = np.where(random.random(300) < 0.06, 1 - b, b)
    plain = paired_recovery(b, q, min_recovery_pct=99)
    single = paired_recovery(b, q, min_recovery_pct=99, clusters=list(range(300)))
    assert single.ci95_pct == pytest.approx(plain.ci95_pct, abs=0.05)
    copies = paired_recovery(
        np.repeat(b, 5), np.repeat(q, 5), min_recovery_pct=99, clusters=[i // 5 for i in range(1500)]
    )
    assert copies.ci95_pct == pytest.approx(single.ci95_pct)
    assert copies.p_value == pytest.approx(single.p_value)


@pytest.mark.parametrize("freedom", [3, 5, 10, 30, 200])
def test_students_quantile_and_its_inverse(freedom: int) -> None:
    from bitworth.statistics.paired import _normal, _student

    assert _student(1.959964, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.015)
    assert _normal(_student(1.3, freedom), freedom) == pytest.approx(1.3)


@given(PAIRS, st.floats(80, 110))
def test_p_value_and_interval_are_one_test(pair: tuple[np.ndarray, np.ndarray], least_pct: float) -> None:
    if not pair[0].any():
        return
    found = paired_recovery(*pair, min_recovery_pct=least_pct)
    if found.verdict == "undecided":
        assert found.p_value >= 0.05 - 1e-9
    else:
        assert found.p_value <= 0.05 + 1e-9


@given(PAIRS, st.floats(80, 110), st.floats(0, 10))
def test_a_stricter_margin_is_never_held_more(pair: tuple[np.ndarray, np.ndarray], least: float, more: float) -> None:
    if not pair[0].any():
        return
    order = ["loses", "undecided", "holds"]
    lax, strict = (paired_recovery(*pair, min_recovery_pct=pct).verdict for pct in (least, least + more))
    assert order.index(strict) <= order.index(lax)


@pytest.mark.parametrize(("right", "lost", "won"), [(0.6, 0.1, 0.05), (0.8, 0.15, 0.1), (0.5, 0.06, 0.06)])
def test_coverage_of_thirty_questions_by_enumeration(right: float, lost: float, won: float) -> None:
    """Every outcome of thirty questions, weighted by its probability: at least 94.5 % of it is covered."""
    n, true = 30, 100 * (right - lost + won) / right
    p = [right - lost, lost, won, 1 - right - won]
    covered = total = 0.0
    for lose, win, both in ((a, b, c) for a in range(n + 1) for b in range(n + 1 - a) for c in range(n + 1 - a - b)):
        chance = stats.multinomial.pmf([both, lose, win, n - both - lose - win], n, p)
        if chance < 1e-6 or not both + lose:
            continue
        b = np.repeat([1.0, 1.0, 0.0, 0.0], [both, lose, win, n - both - lose - win])
        q = np.repeat([1.0, 0.0, 1.0, 0.0], [both, lose, win, n - both - lose - win])
        low, high = paired_recovery(b, q, min_recovery_pct=99).ci95_pct
        total += chance
        covered += chance * (low <= true <= high)
    assert total > 0.99
    assert covered / total >= 0.945


@given(st.integers(0, 30), st.integers(0, 30))
def test_mid_p_counts_half_of_what_was_observed(lost: int, won: int) -> None:
    b = np.repeat([1.0, 0.0, 1.0], [lost, won, 1])
    q = np.repeat([0.0, 1.0, 1.0], [lost, won, 1])
    binomial = stats.binom(lost + won, 0.5)
    fewer = min(lost, won)
    assert mcnemar_exact(b, q, mid_p=True) == pytest.approx(
        min(1.0, 2 * (binomial.cdf(fewer) - 0.5 * binomial.pmf(fewer)))
    )
    assert mcnemar_exact(b, q, mid_p=True) <= mcnemar_exact(b, q)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], level: float) -> None:
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] * (len(p_values) - rank) > level:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(p_values)) if p <= level} == rejected


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_is_scipys(method: str) -> None:
    random = np.random.default_rng(6)
    b = (random.random(300) < 0.6).astype(float)
    q = np.where(random.random(300) < 0.12, 1 - b, b)
    theirs = stats.bootstrap(
        (b, q),
        lambda one, other, axis: 100 * other.mean(axis) / one.mean(axis),
        paired=True,
        n_resamples=8000,
        method=method,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = bootstrap_recovery(b, q, method=method, resamples=8000)
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.4)
    assert bootstrap_recovery(b, q, method=method, resamples=8000) == found


def test_bootstrap_draws_whole_clusters() -> None:
    """Five copies of each question tell no more than one of each."""
    random = np.random.default_rng(6)
    b, q = random.random(200), random.random(200)
    single = bootstrap_recovery(b, q)
    copies = bootstrap_recovery(np.repeat(b, 5), np.repeat(q, 5), clusters=[i // 5 for i in range(1000)])
    assert copies == pytest.approx(single, abs=0.01)


def test_ratio_of_figures_is_fiellers() -> None:
    """Written out from the textbook's formula, for seconds of paired requests."""
    random = np.random.default_rng(8)
    b = random.normal(10, 1, 50)
    q = 0.7 * b + random.normal(0, 0.3, 50)
    n, t = 50, 1.959963984540054
    g = t**2 * b.var(ddof=1) / n / b.mean() ** 2
    cov = float(np.cov(b, q)[0, 1])
    ratio = q.mean() / b.mean()
    spread = q.var(ddof=1) - 2 * ratio * cov + ratio**2 * b.var(ddof=1)
    spread -= g * (q.var(ddof=1) - cov**2 / b.var(ddof=1))
    half = t / b.mean() * math.sqrt(spread / n)
    middle = ratio - g * cov / b.var(ddof=1)
    expected = ((middle - half) / (1 - g), (middle + half) / (1 - g))
    assert ratio_interval(q, b) == pytest.approx(expected)
    assert ratio_interval([1.0, -1.0, 2.0], [1.0, -1.0, 0.1]) == (-math.inf, math.inf)


def test_degenerate_scores() -> None:
    ones, zeros = np.ones(50), np.zeros(50)
    assert paired_recovery(ones, ones, min_recovery_pct=90).verdict == "holds"
    assert paired_recovery(ones, zeros, min_recovery_pct=90).verdict == "loses"
    assert paired_recovery([1.0], [1.0], min_recovery_pct=99).verdict == "undecided"
    assert bootstrap_recovery(ones, ones) == (100.0, 100.0)
    assert mcnemar_exact(ones, ones, mid_p=True) == 1.0
    assert holm([]) == []
    for call in (
        lambda: bootstrap_recovery(zeros, ones),
        lambda: paired_recovery(ones, ones, min_recovery_pct=99, clusters=[0] * 50),
        lambda: paired_recovery(ones, ones, min_recovery_pct=99, clusters=[0, 1]),
        lambda: paired_recovery([1.0, math.nan], [1.0, 1.0], min_recovery_pct=99),
        lambda: ratio_interval([1.0], [1.0]),
        lambda: holm([1.5]),
    ):
        with pytest.raises(BitworthError):
            call()
