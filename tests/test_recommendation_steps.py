"""What to measure next: the spread of questions against brute force, and the requests that tell costs apart."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_recommendation import cost, recovery
from test_recommendation_decision import candidate, timed

from bitworth.recommendation import Effort, recommend
from bitworth.recommendation.steps import Task, duration, requests_to_tell_apart, spread_questions
from bitworth.statistics import mean_recovery
from bitworth.types import Constraint, Recovery

tasks = st.lists(
    st.builds(
        Task,
        name=st.uuids().map(str),
        half_pct=st.floats(0.2, 2),
        questions=st.integers(5, 40),
        seconds=st.floats(0.5, 4),
    ),
    min_size=1,
    max_size=3,
)


def half_after(asked: list[Task], more: dict[str, int]) -> float:
    """Each task's variance falls as 1/n."""
    return math.sqrt(sum(t.half_pct**2 * t.questions / (t.questions + more.get(t.name, 0)) for t in asked))


@given(tasks, st.floats(0.3, 0.95))
def test_questions_are_spread_as_the_cheapest_way_is(asked: list[Task], share: float) -> None:
    now = half_after(asked, {})
    more = spread_questions(asked, share * now)
    assert more is not None
    assert half_after(asked, more) <= share * now * (1 + 1e-9)
    spent = sum(more.get(task.name, 0) * task.seconds for task in asked)
    slack = sum(task.seconds for task in asked)  # each count is rounded up to a whole question
    rounds = [sorted({0, *np.linspace(0, 40 * task.questions, 60).astype(int)}) for task in asked[:2]]
    for counts in itertools.product(*rounds) if len(asked) <= 2 else ():
        other = {task.name: int(count) for task, count in zip(asked, counts, strict=True)}
        if half_after(asked, other) <= share * now:
            assert spent <= sum(other[task.name] * task.seconds for task in asked) + slack


def test_the_spread_settles_what_it_says() -> None:
    """Answers asked again in the advised numbers move the interval off the least recovery, about so far as foreseen."""
    random = np.random.default_rng(3)

    def answers(n: int, flips: float) -> tuple[list[float], list[float]]:
        b = (random.random(n) < 0.7).astype(float)
        moved = random.random(n) < flips
        return b.tolist(), np.where(moved, 1 - b, b).tolist()

    first = {"noisy": answers(300, 0.16), "calm": answers(300, 0.01)}
    found = mean_recovery(first, min_recovery_pct=95)
    rows = [_row(name, {name: scores}, 95) for name, scores in [*first.items()]]
    whole = replace(_row("average", first, 95))
    assert whole.verdict == "undecided"
    (told,) = recommend([timed("baseline", 1.0), timed("w4", 2.0)], [*rows, whole], Constraint(min_recovery_pct=95))
    (step, *_) = told.steps
    assert step.kind == "questions"
    assert step.count.keys() == {"noisy"}  # the calm task's share of the error is small
    total = found.questions_needed
    assert total is not None
    assert step.count["noisy"] < total  # cheaper than asking all tasks alike


def _row(task: str, scores: dict[str, tuple[list[float], list[float]]], least: float) -> Recovery:
    found = mean_recovery(scores, min_recovery_pct=least)
    means = [float(np.mean([np.mean(pair[side]) for pair in scores.values()])) for side in (0, 1)]
    return Recovery(
        task=task,
        format="w4",
        baseline=means[0],
        quantized=means[1],
        recovery_pct=found.recovery_pct,
        ci95_pct=found.ci95_pct,
        questions=sum(len(pair[0]) for pair in scores.values()),
        min_recovery_pct=least,
        verdict=found.verdict,
        questions_needed=found.questions_needed,
    )


def test_a_step_names_task_time_and_dollars() -> None:
    rows = [timed("baseline", 1.0), timed("a", 1.5), timed("c", 2.0)]
    known = [
        recovery("a", 100, 99.5, 100.5),
        recovery("c", 99.4, 98.4, 100.4, needed=710),
        recovery("c", 99.4, 98.0, 100.8, task="hellaswag"),
        recovery("c", 99.4, 98.0, 100.8, task="arc"),
    ]
    effort = Effort(seconds_per_question={("c", "hellaswag"): 0.5, ("c", "arc"): 2.0}, usd_per_hour=3.6)
    (found,) = recommend(rows, known, Constraint(), effort=effort)
    (step, *_) = found.steps
    assert step.count.keys() == {"hellaswag", "arc"}
    # variance must fall to (0.4 / 1.0)² of what it is; with seconds s, n is as √(1/s): n_h = 2 n_a
    halves = 400 / (400 + step.count["hellaswag"]) + 400 / (400 + step.count["arc"])
    assert halves / 2 == pytest.approx(0.16, rel=2e-3)
    assert 400 + step.count["hellaswag"] == pytest.approx(2 * (400 + step.count["arc"]), rel=2e-3)
    seconds = 0.5 * step.count["hellaswag"] + 2 * step.count["arc"]
    assert step.seconds == pytest.approx(seconds)
    assert step.usd == pytest.approx(seconds / 1000)
    assert found.next_step == step.says
    assert step.says.startswith("Put about 4,820 more questions to c (400 so far; best 3,350 of hellaswag and 1,480 of")
    assert "minutes, USD 4.6" in step.says


def test_requests_that_tell_costs_apart() -> None:
    one = candidate(cost("a", 104.0, ci95_queries_per_usd=(100.0, 108.2), requests=20), 100)
    other = candidate(cost("b", 100.0, ci95_queries_per_usd=(96.0, 104.2), requests=20), 100)
    more = requests_to_tell_apart(one, other)
    assert more is not None
    shrink = math.sqrt(20 / (20 + more))
    down = math.hypot(math.log(104 / 100.0), math.log(104.2 / 100)) * shrink
    assert down == pytest.approx(math.log(1.04), rel=0.03)
    assert requests_to_tell_apart(other, one) is None
    (found,) = recommend(
        [one.cost, other.cost], [recovery("a", 100, 99.5, 100.5), recovery("b", 100, 99.5, 100.5)], Constraint()
    )
    assert found.steps[0].kind == "requests"
    assert found.steps[0].says.startswith(f"Time about {more} more requests of a and of b, to tell their costs apart.")


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 40, 100, 4000, 9000)] == [
        "about 1.0 seconds",
        "about 40 seconds",
        "about 1.7 minutes",
        "about 67 minutes",
        "about 2.5 hours",
    ]


def test_the_contender_that_is_most_worth_asking_comes_first() -> None:
    """The cheapest one is hopeless and would take long to settle; the next is likely and nearly settled."""
    rows = [timed("sure", 1.0), timed("hopeless", 3.0), timed("likely", 2.0)]
    known = [
        recovery("sure", 100, 99.5, 100.5),
        recovery("hopeless", 97.9, 96.7, 99.1, needed=900),
        recovery("likely", 99.4, 98.9, 99.9, needed=300),
    ]
    (found,) = recommend(rows, known, Constraint())
    assert found.contender is not None
    assert found.contender.format == "hopeless"
    assert [step.format for step in found.steps] == ["likely", "hopeless"]
    both = [*rows, *(timed(format, speed, "A100") for format, speed in (("hopeless", 3.0), ("likely", 2.0)))]
    found = recommend(both, known, Constraint())[0]
    assert [step.format for step in found.steps] == ["likely", "hopeless"]  # a format's answers serve all devices
