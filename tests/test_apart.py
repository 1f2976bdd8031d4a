"""Answers that differ most, and the likeness of what was written, against definitions worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitworth.apart import MEASURED, differing, likenesses
from bitworth.types import Answer


def chosen(item: str, prediction: str, score: float, *probabilities: float) -> Answer:
    logprobs = tuple(math.log(value) - 3 for value in probabilities)  # sums are not normalized
    return Answer(task="arc", item=item, prediction=prediction, score=score, logprobs=logprobs)


def written(item: str, text: str, score: float = 1.0) -> Answer:
    return Answer(task="gsm8k", item=item, prediction="7", score=score, text=text)


def test_between_choices_the_distance_is_that_of_their_probabilities() -> None:
    before = [chosen("1", "A", 1, 0.6, 0.3, 0.1), chosen("2", "B", 0, 0.2, 0.8)]
    after = [chosen("1", "B", 0, 0.1, 0.5, 0.4), chosen("2", "B", 0, 0.4, 0.6)]
    (pair,) = differing(before, after, format="w4")
    assert (pair.item, pair.baseline, pair.quantized, pair.format, pair.task) == ("1", "A", "B", "w4", "arc")
    assert pair.distance == pytest.approx((0.5 + 0.2 + 0.3) / 2)


def test_a_changed_score_comes_first_then_the_distance() -> None:
    before = [written("a", "one two three four"), written("b", "one two three four"), written("c", "one two")]
    after = [written("a", "five six seven eight"), written("b", "one two three five", 0.0), written("c", "one two")]
    pairs = differing(before, after, format="w4")
    assert [pair.item for pair in pairs] == ["b", "a"]
    assert [pair.distance for pair in pairs] == pytest.approx([1 - 2 * 3 / 8, 1.0])
    assert [pair.item for pair in differing(before, after, format="w4", most=1)] == ["b"]


def test_only_questions_that_both_answered_count() -> None:
    assert differing([written("a", "x")], [written("b", "y")], format="w4") == []


def test_likeness_of_written_answers() -> None:
    before = [written(str(n), "the cat sat on the mat") for n in range(10)]
    after = [written(str(n), "the cat sat on the mat" if n < 4 else "the dog sat on the mat") for n in range(10)]
    rows = {row.measure: row for row in likenesses(before, after, format="w4")}
    assert rows["identical"].mean == pytest.approx(0.4)
    assert rows["rouge1"].median == pytest.approx(5 / 6)  # five of six words in common, both ways
    assert rows["rouge1"].p90 == 1.0
    assert rows["rougeL"].questions == 10


def test_an_answer_that_only_one_of_them_wrote_is_unlike() -> None:
    for before, after in ((["", "a b"], ["a", "a b"]), (["a", "a b"], ["", "a b"])):
        sides = [[written(str(n), text) for n, text in enumerate(texts)] for texts in (before, after)]
        rows = {row.measure: row for row in likenesses(*sides, format="w4")}
        assert rows["identical"].mean == 0.5
    assert likenesses([written("1", "")], [written("1", "")], format="w4") == []


def test_choices_have_no_likeness() -> None:
    assert likenesses([chosen("1", "A", 1, 0.5, 0.5)], [chosen("1", "B", 0, 0.4, 0.6)], format="w4") == []


def test_of_very_many_answers_some_are_measured_evenly() -> None:
    many = [written(str(n), "same" if n % 2 else "other") for n in range(2 * MEASURED + 1)]
    row = likenesses(many, [written(str(n), "same") for n in range(2 * MEASURED + 1)], format="w4")[0]
    assert MEASURED / 2 <= row.questions <= MEASURED


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=8))
def test_whatever_was_written_distances_and_likenesses_are_shares(texts: list[tuple[str, str]]) -> None:
    before = [written(str(n), ours) for n, (ours, _) in enumerate(texts)]
    after = [written(str(n), theirs) for n, (_, theirs) in enumerate(texts)]
    pairs = differing(before, after, format="w4", most=99)
    assert all(0 <= pair.distance <= 1 for pair in pairs)
    for row in likenesses(before, after, format="w4"):
        assert 0 <= row.p10 <= row.median <= row.p90 <= 1
