from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bitworth.errors import BitworthError
from bitworth.statistics import settle
from bitworth.statistics.settling import log_wealth, rounds_of, verdicts

OUTCOMES = np.array([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])  # (baseline, quantized)
PAIRS = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[npst.arrays(float, n, elements=st.sampled_from([0.0, 1.0]))] * 2)
)


def draw(
    random: np.random.Generator, runs: int, rounds: int, base: float, lost: float, won: float
) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong answers, shape (runs, rounds), of pairs with these probabilities."""
    kind = random.choice(4, (runs, rounds), p=[base - lost, lost, won, 1 - base - won])
    return OUTCOMES[kind][..., 0], OUTCOMES[kind][..., 1]


def pools(
    random: np.random.Generator, runs: int, both: int, lost: int, won: int, neither: int
) -> tuple[np.ndarray, np.ndarray]:
    """Orders in which a task of so many questions may be asked."""
    kinds = np.repeat(np.arange(4), [both, lost, won, neither])
    order = random.permuted(np.tile(kinds, (runs, 1)), axis=1)
    return OUTCOMES[order][..., 0], OUTCOMES[order][..., 1]


# --- the bettors' money, by enumeration -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, -1])
def test_money_is_fair_over_all_sequences_of_an_endless_supply(side: int) -> None:
    """At the boundary of the hypothesis the expected money is exactly 1 after every round, and it falls inside."""
    base, lost, won = 0.6, 0.2, 0.14
    margin = (base - lost + won) / base
    p = np.array([base - lost, lost, won, 1 - base - won])
    kinds = np.array(list(itertools.product(range(4), repeat=7)))
    weights = p[kinds].prod(axis=1)
    rounds = rounds_of([(OUTCOMES[kinds][..., 0], OUTCOMES[kinds][..., 1])], [math.inf])
    expected = weights @ np.exp(log_wealth(rounds, margin, 0.9, 0.05, side))
    np.testing.assert_allclose(expected, 1.0, rtol=1e-10)
    inside = weights @ np.exp(log_wealth(rounds, margin + side * 0.05, 0.9, 0.05, side))
    assert (np.diff(inside) < 0).all()


@pytest.mark.parametrize("side", [1, -1])
def test_money_is_fair_over_all_orders_of_a_pool(side: int) -> None:
    kinds = [0, 0, 0, 1, 1, 2, 3]
    orders = OUTCOMES[np.array(sorted(set(itertools.permutations(kinds))))]
    true = orders[0, :, 1].sum() / orders[0, :, 0].sum()
    rounds = rounds_of([(orders[..., 0], orders[..., 1])], [len(kinds)])
    # a hair inside the hypothesis, so that the last answers do not leave it without doubt
    money = np.exp(log_wealth(rounds, true + side * 1e-9, true, 0.05, side))
    np.testing.assert_allclose(money.mean(axis=0), 1.0, rtol=1e-6)


def test_money_is_fair_over_all_orders_of_two_pools_of_different_sizes() -> None:
    small = np.array(sorted(set(itertools.permutations([0, 1, 3]))))
    large = np.array(sorted(set(itertools.permutations([0, 0, 2, 1, 3]))))
    both = [(s, l) for s in small for l in large]
    tasks = [(OUTCOMES[np.array(side)][..., 0], OUTCOMES[np.array(side)][..., 1]) for side in zip(*both, strict=True)]
    true = np.mean([q[0].mean() for _, q in tasks]) / np.mean([b[0].mean() for b, _ in tasks])
    rounds = rounds_of(tasks, [3, 5])
    for side in (1, -1):
        money = np.exp(log_wealth(rounds, true + side * 1e-9, true, 0.05, side))
        np.testing.assert_allclose(money.mean(axis=0), 1.0, rtol=1e-6)


# --- errors by simulation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "lost", "won"), [(0.6, 0.06, 0.06), (0.9, 0.02, 0.02), (0.3, 0.1, 0.1)])
def test_at_the_boundary_either_verdict_is_as_rare_as_promised(base: float, lost: float, won: float) -> None:
    """Recovery equal to the least allowed, watched after every one of 2,000 questions."""
    margin = 0.97
    lost += base * (1 - margin) / 2
    won -= base * (1 - margin) / 2
    rounds = rounds_of([draw(np.random.default_rng(5), 600, 2000, base, lost, won)], [math.inf])
    found, _ = verdicts(rounds, margin, 0.05)
    # each of the two is promised at most 0.05; three standard errors of 600 runs are 0.027
    assert (found < 0).mean() <= 0.077
    assert (found > 0).mean() <= 0.077


def test_a_pool_just_below_the_margin_rarely_holds_and_is_always_settled_in_the_end() -> None:
    # 600 of 1000 right; 594 + 0 needed at 99 %: 593 fall short by one question
    rounds = rounds_of([pools(np.random.default_rng(1), 600, 560, 40, 33, 367)], [1000])
    found, fell = verdicts(rounds, 0.99, 0.05)
    assert (found != 0).all()
    assert (found > 0).mean() <= 0.077
    assert fell.max() <= 1000


def test_several_tasks_settle_their_mean() -> None:
    """One task loses what the other wins; pools of different sizes, the plain mean recovers exactly 100 %."""
    random = np.random.default_rng(2)
    tasks = [pools(random, 200, 300, 30, 10, 160), pools(random, 200, 600, 60, 100, 240)]
    means = [np.mean([columns[side].mean() for columns in tasks]) for side in (0, 1)]
    assert means[1] / means[0] == pytest.approx(1.0)
    found, fell = verdicts(rounds_of(tasks, [500, 1000]), 0.96, 0.05)
    assert (found > 0).mean() >= 0.95
    assert fell.mean() < 600


@pytest.mark.slow(beside=True)
def test_bounds_hold_at_all_times() -> None:
    random = np.random.default_rng(3)
    b, q = draw(random, 120, 600, 0.6, 0.08, 0.05)
    true, missed = 100 * 0.57 / 0.6, 0
    for one_b, one_q in zip(b, q, strict=True):
        low, high = settle({"t": (one_b, one_q)}, min_recovery_pct=98).bounds_pct
        missed += not low <= true <= high
    assert missed / 120 <= 0.14  # two bounds at 5 %, each met at all 600 looks at once


# --- what a settlement says -----------------------------------------------------------------------------------------


@given(PAIRS, st.floats(80, 120))
def test_a_whole_task_is_settled_exactly(pair: tuple[np.ndarray, np.ndarray], least_pct: float) -> None:
    b, q = pair
    if not b.any():
        return
    found = settle({"t": pair}, min_recovery_pct=least_pct, sizes={"t": len(b)})
    assert found.exhausted
    assert found.verdict != "undecided"
    assert found.bounds_pct == pytest.approx((found.recovery_pct, found.recovery_pct))
    if found.settled_after == len(b):
        assert (found.verdict == "holds") == (q.sum() - least_pct / 100 * b.sum() >= -1e-9)


@given(PAIRS, st.integers(0, 40))
def test_bounds_narrow_as_answers_come_and_agree_with_the_verdict(
    pair: tuple[np.ndarray, np.ndarray], more: int
) -> None:
    b, q = pair
    cut = max(1, len(b) // 2)
    sizes = {"t": len(b) + more}
    if not b[:cut].any():
        return
    early = settle({"t": (b[:cut], q[:cut])}, min_recovery_pct=99, sizes=sizes)
    late = settle({"t": pair}, min_recovery_pct=99, sizes=sizes)
    if not late.exhausted:
        assert early.bounds_pct[0] <= late.bounds_pct[0] + 1e-6
        assert late.bounds_pct[1] <= early.bounds_pct[1] + 1e-6
        if late.verdict == "holds":
            assert late.bounds_pct[0] >= 99 - 1e-6
        if late.verdict == "loses":
            assert late.bounds_pct[1] <= 99 + 1e-6
    if early.verdict != "undecided":
        assert (late.verdict, late.settled_after) == (early.verdict, early.settled_after)


@given(PAIRS)
def test_money_falls_with_the_ratio_it_bets_against(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """So the ratios that are not refuted are an interval."""
    b, q = pair
    for pool in (math.inf, len(b) + 5):
        rounds = rounds_of([(b, q)], [pool])
        ratios = np.linspace(0.84, 1.18, 9)
        for side in (1, -1):
            money = np.stack([log_wealth(rounds, ratio, 1.0, 0.05, side) for ratio in ratios])
            money = np.nan_to_num(side * money, posinf=1e9, neginf=-1e9)
            assert (np.diff(money, axis=0) <= 1e-9).all()


@pytest.mark.slow(beside=True)
@given(st.floats(90, 99), st.floats(0.1, 5))
def test_a_laxer_margin_holds_no_later(least_pct: float, laxer: float) -> None:
    same = np.tile([1.0, 0.0, 1.0, 1.0], 200)
    strict = settle({"t": (same, same)}, min_recovery_pct=least_pct)
    lax = settle({"t": (same, same)}, min_recovery_pct=least_pct - laxer)
    assert (strict.settled_after or math.inf) >= (lax.settled_after or math.inf)


def test_degenerate_answers() -> None:
    ones, zeros = np.ones(400), np.zeros(400)
    assert settle({"t": (ones, ones)}, min_recovery_pct=95).verdict == "holds"
    assert settle({"t": (ones, zeros)}, min_recovery_pct=95).verdict == "loses"
    nothing = settle({"t": (zeros, ones)}, min_recovery_pct=95)
    assert (nothing.verdict, nothing.bounds_pct) == ("undecided", (0.0, math.inf))
    assert math.isnan(nothing.recovery_pct)
    one = settle({"t": ([1.0], [1.0])}, min_recovery_pct=99, sizes={"t": 100})
    assert (one.verdict, one.questions, one.pool) == ("undecided", 1, 100)


def test_what_cannot_be_settled_is_refused() -> None:
    with pytest.raises(BitworthError, match="cannot be paired"):
        settle({"t": ([1, 0], [1])}, min_recovery_pct=99)
    with pytest.raises(BitworthError, match=r"outside \[0, 1\]"):
        settle({"t": ([1, 0], [2, 0])}, min_recovery_pct=99)
    with pytest.raises(BitworthError, match="more than its 1 questions"):
        settle({"t": ([1, 0], [1, 0])}, min_recovery_pct=99, sizes={"t": 1})
    with pytest.raises(BitworthError, match="equal rounds"):
        settle({"t": ([1, 0], [1, 0]), "u": ([1], [1])}, min_recovery_pct=99)
    with pytest.raises(BitworthError, match="between 0 and 1"):
        settle({"t": ([1], [1])}, min_recovery_pct=99, error=0)
    with pytest.raises(BitworthError, match="at least one task"):
        settle({}, min_recovery_pct=99)
