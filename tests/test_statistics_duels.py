"""Win rates against Bradley and Terry's likelihood, every resample of small sets, and the paper's own intervals."""

from __future__ import annotations

import csv
import itertools
import math
from importlib.resources import files
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit

from bitworth.errors import BitworthError
from bitworth.statistics.duels import Duel, Grade, win_rate

GRADES: tuple[Grade, ...] = get_args(Grade)
MIRROR: dict[Grade, Grade] = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}
PAIRS = st.lists(st.tuples(st.sampled_from(GRADES), st.sampled_from(GRADES)), min_size=1, max_size=12)


def duels(pairs: list[tuple[Grade, Grade]]) -> list[Duel]:
    return [Duel(item=str(at), model_first=one, model_second=two) for at, (one, two) in enumerate(pairs)]


def games(pairs: list[tuple[Grade, Grade]], strong: int) -> list[float]:
    """The model's score of every game, strong ones repeated, written out case by case."""
    rows: list[float] = []
    for one, two in pairs:
        for grade in (one, MIRROR[two]):
            score = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}[grade]
            rows += [score] * (strong if ">>" in grade else 1)
    return rows


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_the_rate_is_bradley_and_terrys_maximum(pairs: list[tuple[Grade, Grade]]) -> None:
    scores = np.array(games(pairs, 3))
    found = win_rate(duels(pairs), resamples=10)

    def loss(strength: float) -> float:
        return float(-(scores * np.log(expit(strength)) + (1 - scores) * np.log(expit(-strength))).sum())

    best = minimize_scalar(loss, bounds=(-20, 20), method="bounded", options={"xatol": 1e-9}).x
    assert found.rate_pct == pytest.approx(100 * expit(best), abs=1e-3)
    if found.elo is not None:
        assert found.elo == pytest.approx(400 / math.log(10) * best, abs=0.1)


@given(PAIRS)
@settings(max_examples=40, deadline=None)
def test_exchanging_the_models_mirrors_everything(pairs: list[tuple[Grade, Grade]]) -> None:
    ours = win_rate(duels(pairs), resamples=10)
    theirs = win_rate(duels([(two, one) for one, two in pairs]), resamples=10)
    assert ours.rate_pct + theirs.rate_pct == pytest.approx(100)
    assert (ours.won, ours.tied, ours.lost) == (theirs.lost, theirs.tied, theirs.won)
    assert ours.first_place_pct == pytest.approx(theirs.first_place_pct)


@pytest.mark.parametrize("grade", GRADES)
def test_a_judge_that_looks_at_places_only_finds_no_winner(grade: Grade) -> None:
    found = win_rate(duels([(grade, grade)] * 7))
    assert found.rate_pct == 50
    assert found.tied == 7
    assert found.contradicted == (0 if grade == "A=B" else 7)
    assert found.first_place_pct == {"A": 100, "B": 0}[grade[0]] if grade != "A=B" else 50


@pytest.mark.parametrize(
    "pairs",
    [
        [("A>>B", "B>A"), ("A>B", "A>B"), ("B>A", "A=B"), ("A=B", "A>>B")],
        [("A>B", "B>A"), ("B>A", "A>B"), ("A=B", "A=B"), ("B>>A", "A>B"), ("A>>B", "B>>A")],
    ],
)
def test_the_interval_is_that_of_all_resamples(pairs: list[tuple[Grade, Grade]]) -> None:
    n = len(pairs)
    means = sorted(
        np.mean([score for at in draw for score in games([pairs[at]], 3)])
        for draw in itertools.product(range(n), repeat=n)
    )
    low, high = win_rate(duels(pairs), resamples=40_000, seed=3).ci95_pct

    def share_below(value: float) -> tuple[float, float]:
        return np.mean(np.array(means) < value - 1e-9), np.mean(np.array(means) <= value + 1e-9)

    for end, level in ((low, 0.025), (high, 0.975)):
        under, upto = share_below(end / 100)
        assert under - 0.003 <= level <= upto + 0.003


def test_the_interval_depends_on_the_seed_alone() -> None:
    some = duels([("A>B", "B>A"), ("B>A", "A>B"), ("A=B", "A>B")] * 5)
    assert win_rate(some, seed=1) == win_rate(some, seed=1)


@pytest.mark.parametrize("n", [1, 5, 100])
def test_equal_questions_leave_room_for_unseen_others(n: int) -> None:
    won = win_rate(duels([("A>B", "B>A")] * n), strong_weight=1.0)
    unseen = 1 - 0.025 ** (1 / n)  # Clopper and Pearson's bound after n of n
    assert won.rate_pct == won.ci95_pct[1] == 100
    assert won.elo is None
    assert won.ci95_pct[0] == pytest.approx(100 * (1 - unseen))
    strong = win_rate(duels([("A>B", "B>A")] * n), strong_weight=3.0)
    assert strong.ci95_pct[0] < won.ci95_pct[0]
    low, high = win_rate(duels([("A=B", "A=B")] * n)).ci95_pct
    assert low + high == pytest.approx(100)


def test_coverage_where_the_truth_is_known() -> None:
    """Questions of three kinds drawn with known shares: about 95 % of intervals hold the true rate."""
    random = np.random.default_rng(0)
    kinds: list[tuple[Grade, Grade]] = [("A>>B", "B>>A"), ("A>B", "A=B"), ("B>A", "A>B")]
    shares = np.array([0.2, 0.3, 0.5])
    points, weights = np.array([6.0, 1.5, 0.0]), np.array([6.0, 2.0, 2.0])
    truth = 100 * (points @ shares) / (weights @ shares)
    held = 0
    for seed in range(200):
        drawn = [kinds[at] for at in random.choice(3, 150, p=shares)]
        low, high = win_rate(duels(drawn), seed=seed, resamples=500).ci95_pct
        held += low <= truth <= high
    assert 180 <= held <= 199


def test_whole_questions_are_drawn_where_the_paper_resamples_rows() -> None:
    """Table 7: p (1 - p) / se² is the number of independent rows that an interval takes for granted.

    500 questions in two orders are 1,000 rows, 3,000 if each verdict were strong; all twelve intervals lie between
    (ties narrow them as well). Ours takes the rows of one question together.
    """
    table = files("bitworth.paper") / "tables" / "table07_arena_hard_runs.csv"
    rows = list(csv.DictReader(line for line in table.read_text().splitlines() if not line.startswith("#")))
    believed = []
    for row in rows:
        p, width = float(row["average"]) / 100, (float(row["ci95_high"]) - float(row["ci95_low"])) / 100
        believed.append(p * (1 - p) / (width / (2 * 1.96)) ** 2)
    assert len(believed) == 12
    assert all(1000 < rows < 3000 for rows in believed)
    copies = [("A>>B", "B>>A")] * 125 + [("B>>A", "A>>B")] * 125
    low, high = win_rate(duels(copies)).ci95_pct  # whole questions: 250, not 1,500 rows
    assert high - low == pytest.approx(2 * 196 * math.sqrt(0.25 / 250), rel=0.1)


def test_refusals() -> None:
    with pytest.raises(BitworthError, match="no win rate"):
        win_rate([])
    with pytest.raises(BitworthError, match="positive"):
        win_rate(duels([("A=B", "A=B")]), strong_weight=0)
