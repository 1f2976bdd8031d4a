"""The recommendation against a brute-force reading of its rules, and what its sentences say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bitworth.errors import BitworthError
from bitworth.recommendation import recommend
from bitworth.types import Constraint, QueryCost, Recommendation, Recovery, UseCase

CASE = UseCase(name="rag", prompt_tokens=1024, output_tokens=128)
OTHER = UseCase(name="docstring", prompt_tokens=768, output_tokens=128)
FORMATS = ("baseline", "a", "b", "c", "d")


def cost(format: str, rate: float | None = 100.0, **changes: Any) -> QueryCost:
    row = QueryCost(
        format=format,
        use_case=CASE,
        load="synchronous",
        hardware="H100",
        count=1,
        usd_per_hour=3.29,
        latency_s=1.0,
        first_token_s=0.1,
        queries_per_second=None if rate is None else rate * 3.29 / 3600,
        queries_per_usd=rate,
        ci95_queries_per_usd=None if rate is None else (0.95 * rate, 1.05 * rate),
        requests=10,
    )
    return replace(row, **changes)


def recovery(
    format: str, pct: float, low: float, high: float, *, needed: int | None = None, task: str = "average"
) -> Recovery:
    verdict = "holds" if low >= 99 else "loses" if high < 99 else "undecided"
    return Recovery(
        task=task,
        format=format,
        baseline=0.5,
        quantized=0.5 * pct / 100,
        recovery_pct=pct,
        ci95_pct=(low, high),
        questions=400,
        min_recovery_pct=99,
        verdict=verdict,
        questions_needed=needed,
    )


def only(costs: Sequence[QueryCost], recoveries: Sequence[Recovery], constraint: Constraint | None = None) -> Any:
    (found,) = recommend(costs, recoveries, constraint or Constraint())
    return found


def reasons(found: Recommendation, format: str) -> tuple[str, ...]:
    return next(option.rejected for option in found.options if option.format == format)


# --- rules, against brute force -----------------------------------------------------------------------------------

rates = st.one_of(st.none(), st.sampled_from([10.0, 20.0, 50.0]), st.floats(1, 1000))
seconds = st.one_of(st.none(), st.floats(0.01, 10))


@st.composite
def costs_of(draw: st.DrawFn) -> list[QueryCost]:
    rows = []
    for format in FORMATS:
        for hardware in draw(st.sets(st.sampled_from(["A100", "H100"]))):
            row = cost(format, draw(rates), hardware=hardware, latency_s=draw(seconds), first_token_s=draw(seconds))
            rows.append(replace(row, unsupported=draw(st.sampled_from([None, None, None, "has no kernel"]))))
    return draw(st.permutations(rows))


@st.composite
def recoveries_of(draw: st.DrawFn) -> list[Recovery]:
    rows = []
    for format in FORMATS[1:]:
        if draw(st.booleans()) or draw(st.booleans()):
            low, pct, high = sorted(draw(st.tuples(*[st.floats(80, 110)] * 3)))
            rows.append(recovery(format, pct, low, high))
            rows.append(recovery(format, pct, low, high, task="hellaswag"))
    return rows


constraints = st.builds(
    Constraint,
    min_recovery_pct=st.floats(85, 101),
    max_latency_s=seconds,
    max_first_token_s=seconds,
    max_usd_per_1k_queries=st.one_of(st.none(), st.floats(1, 200)),
)


def meets(row: QueryCost, rows: Sequence[Recovery], least: Constraint, *, accuracy: bool = True) -> bool:
    """The constraint as its docstring reads, written another way."""
    if row.unsupported is not None or row.queries_per_usd is None:
        return False
    limits = (
        (row.latency_s, least.max_latency_s),
        (row.first_token_s, least.max_first_token_s),
        (1000 / row.queries_per_usd, least.max_usd_per_1k_queries),
    )
    if any(most is not None and (value is None or value > most) for value, most in limits):
        return False
    if not accuracy:
        return True
    if row.format == "baseline":
        return least.min_recovery_pct <= 100
    if not rows:
        return True
    bounds = [r.ci95_pct for r in rows if r.format == row.format and r.task == "average"]
    return bool(bounds) and bounds[0][0] >= least.min_recovery_pct


def missed(row: QueryCost, rows: Sequence[Recovery], least: Constraint) -> bool:
    """Whether the recovery is known to miss the least (the contender's is not)."""
    if row.format == "baseline":
        return True
    bounds = [r.ci95_pct for r in rows if r.format == row.format and r.task == "average"]
    return bool(bounds) and bounds[0][1] < least.min_recovery_pct


@given(costs_of(), recoveries_of(), constraints)
def test_choice_runner_up_and_contender_match_brute_force(
    costs: list[QueryCost], recoveries: list[Recovery], constraint: Constraint
) -> None:
    for found in recommend(costs, recoveries, constraint):
        able = sorted((row.queries_per_usd or 0 for row in costs if meets(row, recoveries, constraint)), reverse=True)
        chosen = [o.cost.queries_per_usd if o else None for o in (found.choice, found.runner_up)]
        assert chosen == [*able[:2], None, None][:2]
        for option in found.options:
            assert bool(option.rejected) != meets(option.cost, recoveries, constraint)
        least = able[0] if able else 0
        open_ones = [
            row.queries_per_usd
            for row in costs
            if row.queries_per_usd is not None
            and row.queries_per_usd > least
            and meets(row, recoveries, constraint, accuracy=False)
            and not meets(row, recoveries, constraint)
            and not missed(row, recoveries, constraint)
        ]
        assert (found.contender.cost.queries_per_usd if found.contender else None) == max(open_ones, default=None)
        assert (found.contender is not None) == any(step.kind in ("questions", "accuracy") for step in found.steps)
        assert found.next_step == (found.steps[0].says if found.steps else None)
        assert found.why.endswith(".")
        assert "nan" not in found.why.split()


@given(costs_of(), recoveries_of(), constraints, st.randoms(use_true_random=False))
def test_permuting_the_inputs_changes_nothing(
    costs: list[QueryCost], recoveries: list[Recovery], constraint: Constraint, chance: Any
) -> None:
    costs = [*costs, *[replace(row, use_case=OTHER) for row in costs[:3]]]
    before = {row.use_case: repr(row) for row in recommend(costs, recoveries, constraint)}
    chance.shuffle(costs)
    chance.shuffle(recoveries)
    assert {row.use_case: repr(row) for row in recommend(costs, recoveries, constraint)} == before


@given(costs_of(), recoveries_of(), constraints, constraints)
def test_a_tighter_constraint_never_makes_the_choice_cheaper(
    costs: list[QueryCost], recoveries: list[Recovery], one: Constraint, other: Constraint
) -> None:
    def tighter(a: float | None, b: float | None) -> float | None:
        return min((value for value in (a, b) if value is not None), default=None)

    both = Constraint(
        min_recovery_pct=max(one.min_recovery_pct, other.min_recovery_pct),
        max_latency_s=tighter(one.max_latency_s, other.max_latency_s),
        max_first_token_s=tighter(one.max_first_token_s, other.max_first_token_s),
        max_usd_per_1k_queries=tighter(one.max_usd_per_1k_queries, other.max_usd_per_1k_queries),
    )
    for loose, tight in zip(recommend(costs, recoveries, one), recommend(costs, recoveries, both), strict=True):
        if tight.choice is not None:
            assert loose.choice is not None
            assert (tight.choice.cost.queries_per_usd or 0) <= (loose.choice.cost.queries_per_usd or 0)


@given(costs_of(), recoveries_of(), constraints, st.floats(0.01, 1), st.booleans())
def test_an_added_option_that_is_dominated_or_rejected_leaves_the_choice(
    costs: list[QueryCost], recoveries: list[Recovery], constraint: Constraint, worse: float, rejected: bool
) -> None:
    assume(recoveries)
    least = constraint.min_recovery_pct
    for before in recommend(costs, recoveries, constraint):
        assume(rejected or before.choice is not None)
        if rejected:
            rate, pct = 1e6, least - 1
        else:
            rate, pct = worse * before.choice.cost.queries_per_usd, least
        (after,) = recommend([*costs, cost("z", rate)], [*recoveries, recovery("z", pct, pct, pct)], constraint)
        assert repr(after.choice) == repr(before.choice)


# --- order and ties -----------------------------------------------------------------------------------------------


def test_scenarios_come_in_the_order_of_the_costs() -> None:
    rows = [cost("a", load="throughput"), cost("a", use_case=OTHER), cost("b", load="throughput"), cost("a")]
    found = recommend(rows, [], Constraint())
    assert [(row.use_case.name, row.load) for row in found] == [
        ("rag", "throughput"),
        ("docstring", "synchronous"),
        ("rag", "synchronous"),
    ]
    assert [option.format for option in found[0].options] == ["a", "b"]


def test_ties_go_to_the_higher_recovery_then_to_the_name() -> None:
    rows = [recovery("a", 99.5, 99.2, 99.8), recovery("b", 99.9, 99.5, 100.4), recovery("c", 99.9, 99.5, 100.4)]
    found = only([cost("c"), cost("b"), cost("a")], rows)
    assert [option.format for option in found.options] == ["b", "c", "a"]
    assert found.runner_up.format == "c"


def test_two_averages_of_one_format_are_refused() -> None:
    with pytest.raises(BitworthError, match="two `average` rows of format a"):
        recommend([cost("a")], [recovery("a", 99, 98, 100), recovery("a", 98, 97, 99)], Constraint())


def test_nothing_in_nothing_out() -> None:
    assert recommend([], [], Constraint()) == ()


# --- reasons ------------------------------------------------------------------------------------------------------


def test_each_reason_is_said_with_its_figures() -> None:
    constraint = Constraint(max_latency_s=2, max_first_token_s=0.5, max_usd_per_1k_queries=20)
    rows = [
        cost("loses"),
        cost("open"),
        cost("slow", latency_s=2.004),
        cost("late", first_token_s=0.75),
        cost("dear", 40.0),
        cost("odd", unsupported="This processor has no FP8 arithmetic."),
        cost("silent", None),
        cost("untimed", latency_s=None),
        cost("unknown"),
        cost("partly"),
    ]
    known = {row.format: recovery(row.format, 100, 99.5, 100.5) for row in rows[2:8]}
    recoveries = [
        recovery("loses", 93.14, 91.0, 95.2),
        recovery("open", 99.2, 97.0, 101.3, needed=1204),
        *known.values(),
        recovery("partly", 100, 99.5, 100.5, task="hellaswag"),
    ]
    found = only(rows, recoveries, constraint)
    assert {option.format: option.rejected for option in found.options} == {
        "loses": ("recovers 93.1 % (91.0 to 95.2), less than 99 %",),
        "open": ("recovery 99.2 % (97.0 to 101.3) is not settled against 99 %; about 1,200 more questions would",),
        "slow": ("mean latency 2.004 s is over the limit of 2 s",),
        "late": ("mean time to the first token 0.750 s is over the limit of 0.5 s",),
        "dear": ("costs USD 25.0 per 1,000 queries, over the budget of USD 20",),
        "odd": ("This processor has no FP8 arithmetic.",),
        "silent": ("has no cost figure",),
        "untimed": ("mean latency was not measured, so nothing shows that it keeps the limit of 2 s",),
        "unknown": ("its accuracy was not measured",),
        "partly": ("its accuracy was not measured on every task",),
    }
    assert found.choice is None
    assert found.why.startswith("No option meets the constraint: ")
    assert "And 6 more." in found.why


def test_rounding_never_hides_the_side_of_the_limit() -> None:
    found = only([cost("a")], [recovery("a", 98.96, 98.5, 98.999)])
    assert reasons(found, "a")[0].startswith("recovers 98.96 % (")


def test_the_interval_is_judged_by_the_constraint_not_by_the_row() -> None:
    row = recovery("a", 98.5, 97.5, 99.5, needed=700)
    assert only([cost("a")], [row], Constraint(min_recovery_pct=97)).choice.format == "a"
    asked = only([cost("a")], [row], Constraint(min_recovery_pct=98))
    assert asked.choice is None
    assert "more questions are needed" in reasons(asked, "a")[0]
    assert "700" not in (asked.next_step or "")


# --- sentences ----------------------------------------------------------------------------------------------------

MEASURED = [
    recovery("a", 99.8, 99.2, 100.4),
    recovery("b", 93.1, 91.0, 95.2),
    recovery("c", 99.4, 97.9, 100.9, needed=1234),
]


def test_why_tells_saving_recovery_rejected_and_runner_up() -> None:
    found = only([cost("baseline", 100.0), cost("a", 160.0), cost("b", 200.0), cost("c", 190.0)], MEASURED)
    assert found.choice.format == "a"
    assert found.runner_up.format == "baseline"
    assert found.contender.format == "c"
    assert found.why == (
        "Deploy a: it answers 160 queries per dollar, 1.60 times as many as the baseline (1.49 to 1.72). "
        "It recovers 99.8 % of the baseline's accuracy (95 % interval 99.2 to 100.4), where 99 % is asked for. "
        "Cheaper, but out: b at 200 queries per dollar – recovers 93.1 % (91.0 to 95.2), less than 99 %. "
        "c at 190 queries per dollar – recovery 99.4 % (97.9 to 100.9) is not settled against 99 %; "
        "about 1,230 more questions would. "
        "The runner-up, the baseline, answers 100 queries per dollar (37.5 % fewer); the cost intervals do not overlap."
        " By these intervals it meets the constraint with a probability of 99.6 %, and it is the cheapest that does "
        "with 30.0 %; c is with 69.8 %."
    )
    assert found.next_step == (
        "Put about 1,230 more questions to c (400 so far): if it is shown to recover 99 %, it replaces a and answers "
        "1.19 times as many queries per dollar."
    )


def test_a_close_runner_up_is_not_told_apart() -> None:
    found = only([cost("baseline", 97.0), cost("a", 100.0)], MEASURED)
    assert (
        "(3.0 % fewer); the cost intervals overlap, so the two are not told apart by these measurements." in found.why
    )
    bare = only([cost("baseline", 97.0, ci95_queries_per_usd=None), cost("a", 100.0)], MEASURED)
    assert "1.03 times as many as the baseline." in bare.why
    assert "without cost intervals nothing says" in bare.why


def test_the_baseline_may_be_the_choice() -> None:
    found = only([cost("baseline", 100.0), cost("a", 90.0), cost("b", 200.0)], MEASURED)
    assert found.why.startswith("Stay with the baseline: it answers 100 queries per dollar")
    assert "b at 200" in found.why
    assert "The runner-up, a, answers 90.0 queries per dollar (10.0 % fewer)" in found.why


def test_without_any_accuracy_the_cheapest_wins_and_says_so() -> None:
    found = only([cost("baseline", 100.0), cost("b", 200.0)], [])
    assert found.choice.format == "b"
    assert math.isnan(found.choice.recovery_pct)
    assert found.choice.recovery_verdict == "undecided"
    assert found.contender is None
    assert "Accuracy was not measured, so this rests on cost alone." in found.why


def test_predicted_figures_are_called_predicted() -> None:
    found = only([cost("baseline", 100.0), cost("a", 160.0, source="predicted")], MEASURED)
    assert found.why.endswith("The cost of a is predicted, not measured.")
    none = only([cost("b", 160.0, source="predicted")], MEASURED)
    assert none.why.endswith("The cost of b is predicted, not measured.")


def test_several_devices_are_named() -> None:
    rows = [cost("baseline", 100.0), cost("a", 90.0, hardware="A100"), cost("a", 160.0, count=2)]
    found = only(rows, MEASURED)
    assert found.why.startswith(
        "Deploy a on 2 × H100: it answers 160 queries per dollar, 1.60 times as many as the baseline on H100 ("
    )
    assert "The runner-up, the baseline on H100," in found.why


def test_a_baseline_on_other_devices_is_not_compared() -> None:
    rows = [cost("baseline", 100.0), cost("a", 160.0, hardware="A100")]
    assert only(rows, MEASURED).why.startswith(
        "Deploy a on A100: it answers 160 queries per dollar; the baseline has no figure there"
    )


def test_nothing_feasible_but_a_contender() -> None:
    found = only([cost("b", 200.0), cost("c", 150.0), cost("new", 120.0)], MEASURED)
    assert found.choice is None
    assert found.contender.format == "c"
    assert found.next_step == (
        "Put about 1,230 more questions to c (400 so far): if it is shown to recover 99 %, it is the choice."
    )
    unmeasured = only([cost("new", 120.0)], MEASURED)
    assert unmeasured.next_step.startswith("Measure the accuracy of new: ")


def test_another_name_for_the_baseline() -> None:
    (found,) = recommend([cost("bf16", 100.0), cost("a", 160.0)], MEASURED, Constraint(), baseline="bf16")
    assert found.runner_up is not None
    assert found.runner_up.recovery_pct == 100
    assert "1.60 times as many as the baseline" in found.why
