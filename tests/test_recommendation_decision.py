"""The decision over formats, devices, counts, traffic and limits: brute force, frontier, flip points, draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recommendation import CASE, OTHER, cost, recovery

from bitworth.errors import BitworthError
from bitworth.recommendation import mix_costs, predicted_cost, predicted_figure, recommend
from bitworth.recommendation.candidates import Candidate, faster, ordered, repriced
from bitworth.recommendation.deciding import decide, frontier
from bitworth.recommendation.draws import chance_of
from bitworth.recommendation.flips import RANGE, Point, flips_of, with_limit
from bitworth.types import Constraint, Figure, Hardware, LatencyLimit, QueryCost

P95 = LatencyLimit(of="first_token", at="p95", most_s=0.5)
PRICES = {"A100": 1.79, "H100": 3.29, "local": 0.1}


def timed(format: str, per_second: float, hardware: str = "H100", count: int = 1, **changes: Any) -> QueryCost:
    """A row whose price follows from its rate; the interval is 5 % wide each way."""
    price = PRICES[hardware] * count
    rate = 3600 * per_second / price
    seconds = 1 / per_second
    named = {
        "hardware": hardware,
        "count": count,
        "usd_per_hour": price,
        "queries_per_second": per_second,
        "latency_s": seconds,
        "first_token_s": seconds / 4,
        "ci95_queries_per_usd": (0.95 * rate, 1.05 * rate),
        "figures": {P95.name: Figure(value=seconds / 3, low=seconds / 4, high=seconds / 2)},
    }
    return cost(format, rate, **{**named, **changes})


def candidate(row: QueryCost, pct: float, half: float = 0.5, **changes: Any) -> Candidate:
    figure = Figure(value=pct, low=pct - half, high=pct + half)
    return replace(Candidate(cost=row, recovery=figure), **changes)


rates = st.integers(1, 40).map(lambda n: n / 8)
places = st.tuples(st.sampled_from(list(PRICES)), st.sampled_from([1, 2]))


@st.composite
def candidate_sets(draw: st.DrawFn) -> tuple[Candidate, ...]:
    found = []
    for at in range(draw(st.integers(1, 6))):
        hardware, count = draw(places)
        pct = 90 + draw(st.integers(0, 24)) / 2
        found.append(candidate(timed(f"f{at}", draw(rates), hardware, count), pct, half=0.25))
    return ordered(found)


maybe = st.one_of(st.none(), st.integers(1, 40).map(lambda n: n / 4))
constraints = st.builds(
    Constraint,
    min_recovery_pct=st.integers(360, 404).map(lambda n: n / 4),
    max_latency_s=maybe,
    max_usd_per_1k_queries=st.one_of(st.none(), st.integers(1, 40).map(lambda n: n / 20)),
    max_usd_per_month=st.one_of(st.none(), st.sampled_from([100.0, 1500.0, 3000.0, 10_000.0])),
    queries_per_second=st.one_of(st.none(), st.integers(1, 80).map(lambda n: n / 7)),
    limits=st.sampled_from([(), (P95,)]),
    available=st.sampled_from([{}, {"H100": 2}, {"A100": 4, "local": 20}]),
)


def naive(candidates: Sequence[Candidate], constraint: Constraint) -> int | None:
    """The rules as docs/recommendation.md reads, in dollars."""
    best: tuple[float, int] | None = None
    for found in candidates:
        row, demand = found.cost, constraint.queries_per_second
        assert row.queries_per_second is not None
        assert found.recovery is not None
        many = 1 if demand is None else math.ceil(demand / row.queries_per_second)
        an_hour = many * row.usd_per_hour
        per_1k = 1000 * an_hour / 3600 / (row.queries_per_second if demand is None else demand)
        limits = [
            (row.latency_s, constraint.max_latency_s),
            (per_1k, constraint.max_usd_per_1k_queries),
            (730 * an_hour, constraint.max_usd_per_month),
            (many * row.count, constraint.available.get(row.hardware)),
            *((row.figures[asked.name].value, asked.most_s) for asked in constraint.limits),
        ]
        if found.recovery.low < constraint.min_recovery_pct:
            continue
        if any(most is not None and (value or 0) > most * (1 + 1e-12) for value, most in limits):
            continue
        if (
            best is None
            or per_1k < best[0] * (1 - 1e-12)
            or (per_1k <= best[0] * (1 + 1e-12) and found.place < best[1])
        ):
            best = (per_1k, found.place)
    return None if best is None else best[1]


def place(found: Candidate | None) -> int | None:
    return None if found is None else found.place


@given(candidate_sets(), constraints)
def test_the_choice_is_that_of_brute_force(candidates: tuple[Candidate, ...], constraint: Constraint) -> None:
    assert place(decide(candidates, constraint)) == naive(candidates, constraint)


@given(candidate_sets(), constraints)
def test_the_frontier_is_that_of_brute_force(candidates: tuple[Candidate, ...], constraint: Constraint) -> None:
    from bitworth.recommendation.candidates import rate_of

    def point(found: Candidate) -> tuple[float, float, float]:
        assert found.recovery is not None
        assert found.cost.latency_s is not None
        return rate_of(found.cost, constraint), found.recovery.value, -found.cost.latency_s

    def beaten(found: Candidate) -> bool:
        mine = point(found)
        theirs = [point(other) for other in candidates]
        return any(other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for other in theirs)

    assert {found.place for found in frontier(candidates, constraint)} == {
        found.place for found in candidates if not beaten(found)
    }


@given(candidate_sets(), constraints, constraints)
def test_tightening_never_makes_the_choice_cheaper(
    candidates: tuple[Candidate, ...], one: Constraint, other: Constraint
) -> None:
    def least(a: float | None, b: float | None) -> float | None:
        return min((value for value in (a, b) if value is not None), default=None)

    tight = replace(
        one,
        min_recovery_pct=max(one.min_recovery_pct, other.min_recovery_pct),
        max_latency_s=least(one.max_latency_s, other.max_latency_s),
        max_usd_per_1k_queries=least(one.max_usd_per_1k_queries, other.max_usd_per_1k_queries),
        max_usd_per_month=least(one.max_usd_per_month, other.max_usd_per_month),
        limits=one.limits or other.limits,
        available=one.available or other.available,
    )
    before, after = decide(candidates, one), decide(candidates, tight)
    if after is not None:
        from bitworth.recommendation.candidates import rate_of

        assert before is not None
        assert rate_of(after.cost, one) <= rate_of(before.cost, one)


@given(candidate_sets(), constraints, st.integers(0, 5), st.floats(0.5, 1))
def test_a_dominated_option_changes_nothing(
    candidates: tuple[Candidate, ...], constraint: Constraint, at: int, worse: float
) -> None:
    like = candidates[at % len(candidates)]
    assert like.recovery is not None
    slower = faster(like, worse)
    row = replace(slower.cost, format="z")
    lower = Figure(value=like.recovery.value - 1, low=like.recovery.low - 1, high=like.recovery.high - 1)
    more = ordered([*candidates, Candidate(cost=row, recovery=lower)])
    before, after = decide(candidates, constraint), decide(more, constraint)
    assert (before and before.cost) == (after and after.cost)


# --- flip points --------------------------------------------------------------------------------------------------


def chosen_at(point: Point, value: float, candidates: Sequence[Candidate], constraint: Constraint) -> int | None:
    """What brute force chooses with one thing changed."""
    what = point.what
    if what in ("min_recovery_pct", "queries_per_second"):
        changed: dict[str, Any] = {what: value}
        return place(decide(candidates, replace(constraint, **changed)))
    if what.startswith("usd_per_hour of "):
        name = what.removeprefix("usd_per_hour of ")
        moved = [repriced(c, value / point.now) if c.cost.hardware == name else c for c in candidates]
        return place(decide(moved, constraint))
    if what.startswith("speed of "):
        one = int(what.removeprefix("speed of "))
        return place(decide([faster(c, value) if c.place == one else c for c in candidates], constraint))
    return place(decide(candidates, with_limit(constraint, what, value)))


@settings(deadline=None)
@given(candidate_sets(), constraints)
def test_the_choice_flips_at_its_flip_points_and_not_before(
    candidates: tuple[Candidate, ...], constraint: Constraint
) -> None:
    now = naive(candidates, constraint)
    for point in flips_of(candidates, constraint):
        beyond = math.nextafter(point.at, math.inf if point.up else -math.inf)
        assert chosen_at(point, point.at, candidates, constraint) == now
        assert chosen_at(point, beyond, candidates, constraint) == place(point.to) != now
        between = np.linspace(point.now, point.at, 9)[:-1]
        assert {chosen_at(point, float(value), candidates, constraint) for value in between} == {now}


@settings(deadline=None)
@given(candidate_sets(), constraints, st.floats(1, RANGE), st.booleans())
def test_where_no_flip_is_named_there_is_none(
    candidates: tuple[Candidate, ...], constraint: Constraint, factor: float, up: bool
) -> None:
    choice = decide(candidates, constraint)
    points = flips_of(candidates, constraint)
    named = {(point.what, point.up) for point in points}
    values = {
        "min_recovery_pct": constraint.min_recovery_pct * (factor if up else 1 / factor),
        "max_latency_s": constraint.max_latency_s and constraint.max_latency_s * (factor if up else 1 / factor),
        # nearer than the jumps that are looked at reach
        "queries_per_second": constraint.queries_per_second
        and constraint.queries_per_second * (min(factor, 1.5) if up else 1 / min(factor, 1.5)),
    }
    for what, value in values.items():
        if value is not None and (what, up) not in named:
            changed: dict[str, Any] = {what: value}
            assert place(decide(candidates, replace(constraint, **changed))) == place(choice)
    if choice is not None and not any(what == f"usd_per_hour of {choice.cost.hardware}" for what, _ in named):
        dearer = [repriced(c, factor) if c.cost.hardware == choice.cost.hardware else c for c in candidates]
        assert place(decide(dearer, constraint)) == choice.place


def test_flip_points_are_those_that_one_computes_by_hand() -> None:
    rows = [timed("slow", 1.0, "A100"), timed("fast", 2.0, "H100")]
    recoveries = [recovery("slow", 99.9, 99.6, 100.2), recovery("fast", 99.5, 99.25, 99.75)]
    (found,) = recommend(rows, recoveries, Constraint(max_latency_s=2.0))
    assert found.choice is not None
    assert found.choice.format == "fast"
    flips = {(flip.what, flip.up): flip for flip in found.flips}
    assert {key: (pytest.approx(flip.at), flip.to) for key, flip in flips.items()} == {
        ("min_recovery_pct", True): (99.25, "slow on A100"),
        ("max_latency_s", False): (0.5, None),
        ("usd_per_hour of H100", True): (2 * 1.79, "slow on A100"),
        ("usd_per_hour of A100", False): (3.29 / 2, "slow on A100"),
        ("speed of fast on H100", False): (3.29 / 3.58, "slow on A100"),
        ("speed of slow on A100", True): (3.58 / 3.29, "slow on A100"),
    }
    assert found.flips[0].says == "With a least recovery above 99.25 %, the choice is slow on A100."
    assert flips["usd_per_hour of H100", True].says == (
        "With H100 above USD 3.580 an hour each (now 3.29), the choice is slow on A100."
    )
    assert flips["speed of fast on H100", False].says == (
        "With fast on H100 more than 8.1 % slower, the choice is slow on A100."
    )


def test_traffic_is_served_by_whole_deployments() -> None:
    """A small device wins where one of it is enough, a large one where its rate is filled."""
    rows = [timed("a", 1.0, "A100"), timed("a", 2.5, "H100")]
    recoveries = [recovery("a", 100.0, 99.5, 100.5)]
    (small,) = recommend(rows, recoveries, Constraint(queries_per_second=0.9))
    assert small.choice is not None
    assert (small.choice.hardware, small.choice.deployments) == ("A100", 1)
    assert small.choice.usd_per_1k_queries == pytest.approx(1000 * 1.79 / 3600 / 0.9)
    assert "one deployment of it serves, at USD 1,310 a month" in small.why
    (flip,) = [flip for flip in small.flips if flip.what == "queries_per_second" and flip.up]
    assert (flip.now, flip.at, flip.to) == (0.9, 1.0, "a on H100")
    (large,) = recommend(rows, recoveries, Constraint(queries_per_second=7.5))
    assert large.choice is not None
    assert (large.choice.hardware, large.choice.deployments) == ("H100", 3)
    (few,) = recommend(rows, recoveries, Constraint(queries_per_second=7.5, available={"H100": 2}))
    assert few.choice is not None
    assert (few.choice.hardware, few.choice.deployments) == ("A100", 8)
    assert "needs 3 × H100 for 3 of it, of which 2 can be had" in few.why
    (poor,) = recommend(rows, recoveries, Constraint(queries_per_second=7.5, max_usd_per_month=5000))
    assert poor.choice is None
    assert "costs USD 7,210 a month for 3 of it, over the budget of USD 5,000 a month" in poor.why


# --- limits of percentiles, confidence ----------------------------------------------------------------------------


def test_percentiles_are_limited_and_what_was_not_measured_is_said() -> None:
    rows = [timed("a", 1.0), timed("b", 0.5), timed("c", 2.0, figures={})]
    known = [recovery(name, 100.0, 99.5, 100.5) for name in ("a", "b", "c")]
    (found,) = recommend(rows, known, Constraint(limits=(P95,)))
    assert found.choice is not None
    assert found.choice.format == "a"
    said = {option.format: option.rejected for option in found.options}
    assert said["b"] == ("p95 time to the first token 0.667 s is over the limit of 0.5 s",)
    assert said["c"] == (
        "p95 time to the first token was not measured, so nothing shows that it keeps the limit of 0.5 s",
    )
    assert [step.says for step in found.steps] == [
        "Time about 62 more requests of a: 10 do not bound the p95 of a limit. "
        "That takes about 62 seconds and USD 0.0567."
    ]


def test_requests_that_wait_for_one_another_are_timed_as_often_again() -> None:
    """A hundred and more of them bound a p95 where they are independent; here the figure says that they are not."""
    open_above = {P95.name: Figure(value=0.4, low=0.3, high=math.inf, origin="measured")}
    known = [recovery("a", 100.0, 99.5, 100.5)]
    said = []
    for figures in (open_above, {P95.name: replace(open_above[P95.name], high=0.45)}):
        row = replace(timed("a", 1.0, figures=figures), requests=300)
        (found,) = recommend([row], known, Constraint(limits=(P95,)))
        said.append([step.says.partition(".")[0] for step in found.steps])
    assert said == [["Time about 300 more requests of a: 300 do not bound the p95 of a limit"], []]


def test_another_confidence_moves_the_bound_as_a_normals() -> None:
    """One standard error is 1: at 90 % the lower bound is 1.645 below, at 95 % 1.96 below."""
    half = 1.959964
    rows = [recovery("a", 100.7, 100.7 - half, 100.7 + half)]
    assert recommend([timed("a", 1.0)], rows, Constraint())[0].choice is None
    (found,) = recommend([timed("a", 1.0)], rows, Constraint(confidence_pct=90))
    assert found.choice is not None
    assert "(90 % interval 99.1 to 102.3)" in found.why


# --- draws --------------------------------------------------------------------------------------------------------


def chance(candidates: Sequence[Candidate], constraint: Constraint, **options: Any) -> Any:
    placed = ordered(candidates)
    return chance_of(placed, decide(placed, constraint), constraint, lambda found: found.cost.format, **options)


@settings(deadline=None, max_examples=25)
@given(st.floats(90, 110), st.floats(0.5, 15), st.floats(0.5, 15))
def test_the_chance_of_two_gaussians_is_the_closed_form(rate: float, one: float, other: float) -> None:
    z = 1.959963984540054
    rows = [
        cost(name, value, ci95_queries_per_usd=(value - z * sd, value + z * sd))
        for name, value, sd in (("a", 100.0, one), ("b", rate, other))
    ]
    found = chance([candidate(row, 100) for row in rows], Constraint(min_recovery_pct=90), draws=40_000)
    exact = NormalDist().cdf(abs(100 - rate) / math.hypot(one, other))
    assert found.probability == pytest.approx(exact, abs=4 * 0.5 / 200)
    assert sum(found.by_option.values()) == pytest.approx(1)


def test_the_chance_of_accuracy_is_the_closed_form() -> None:
    """A cheaper option that is not settled is right as often as it truly holds; the choice, in the rest."""
    sure = candidate(timed("sure", 1.0, ci95_queries_per_usd=(1094.2, 1094.3)), 105, half=1)
    open_ = candidate(timed("open", 2.0, ci95_queries_per_usd=(2188.4, 2188.5)), 99.5, half=1.959964)
    found = chance([sure, open_], Constraint(), draws=100_000)
    holds = 1 - NormalDist(99.5, 1).cdf(99)
    assert found.of == "sure"
    assert found.probability == pytest.approx(1 - holds, abs=0.006)
    assert found.by_option["open"] == pytest.approx(holds, abs=0.006)
    assert found.meets == pytest.approx(1.0)


def test_a_format_recovers_the_same_on_all_devices() -> None:
    """With recovery shared, the dearer of two devices is never right for want of the other's accuracy."""
    rows = [
        candidate(timed("a", 2.0, "H100", ci95_queries_per_usd=(2188.0, 2188.6)), 100),
        candidate(timed("a", 1.0, "A100", ci95_queries_per_usd=(2010.0, 2012.0)), 100),
    ]
    found = chance(rows, Constraint(min_recovery_pct=100))
    assert found.by_option.keys() == {"nothing", "a"}
    assert found.by_option["nothing"] == pytest.approx(0.5, abs=0.02)


def test_an_added_option_moves_no_others_draws() -> None:
    two = [candidate(timed("a", 1.0), 100), candidate(timed("b", 0.99), 100)]
    never = candidate(timed("c", 0.1), 100)
    constraint = Constraint(min_recovery_pct=98)
    assert chance([*two, never], constraint).by_option == chance(two, constraint).by_option


def test_what_cannot_be_drawn_is_said() -> None:
    bare = candidate(timed("a", 2.0, ci95_queries_per_usd=None), 100)
    endless = candidate(timed("c", 0.5), 100)
    endless = replace(endless, recovery=Figure(value=100, low=0, high=math.inf))
    found = chance([bare, endless], Constraint())
    assert math.isnan(found.probability)
    assert found.left_out == (
        "a: its cost has no interval",
        "c: its recovery is not bounded",
    )
    (told,) = recommend([bare.cost], [recovery("a", 100, 99.5, 100.5)], Constraint())
    assert "How likely that is right cannot be said: a: its cost has no interval." in told.why


# --- predictions --------------------------------------------------------------------------------------------------


def test_predicted_recoveries_are_used_where_nothing_was_measured_and_called_so() -> None:
    rows = [timed("baseline", 0.5), timed("a", 1.0), timed("b", 2.0)]
    foretold = {"a": Figure(value=99.9, low=99.5, high=100.3, origin="predicted")}
    measured = [recovery("b", 99.8, 98.5, 101.1)]
    (found,) = recommend(rows, measured, Constraint(), predicted=foretold)
    assert found.choice is not None
    assert (found.choice.format, found.choice.recovery_source) == ("a", "predicted")
    assert "It is predicted to recover 99.9 %" in found.why
    assert found.why.endswith("The recovery of a is predicted, not measured.")
    assert any(step.says == "Measure the accuracy of a: it is the choice by a prediction." for step in found.steps)
    both = {**foretold, "b": Figure(value=90, low=89, high=91, origin="predicted")}
    (same,) = recommend(rows, measured, Constraint(), predicted=both)
    assert next(o for o in same.options if o.format == "b").recovery_pct == 99.8


def test_predicted_costs_stand_beside_measured_ones() -> None:
    z90, z95 = 1.6448536, 1.9599640
    wide = predicted_figure(2.0, 2.0 * math.exp(-z90 * 0.1), 2.0 * math.exp(z90 * 0.1), confidence_pct=90)
    assert (wide.low, wide.high) == pytest.approx((2.0 * math.exp(-z95 * 0.1), 2.0 * math.exp(z95 * 0.1)))
    device = Hardware(name="H100", count=2, usd_per_hour=6.38, memory_gib=80)
    seconds = {"latency_mean": predicted_figure(0.5, 0.4, 0.6)}
    row = predicted_cost("a", CASE, "synchronous", device, wide, seconds)
    assert row.queries_per_usd == pytest.approx(3600 * 2.0 / 6.38)
    assert (row.source, row.latency_s, row.count) == ("predicted", 0.5, 2)
    known = [recovery("a", 100, 99.5, 100.5), recovery("b", 100, 99.5, 100.5)]
    (found,) = recommend([row, timed("b", 0.5)], known, Constraint(max_latency_s=2.5))
    assert found.choice is not None
    assert found.choice.format == "a"
    assert found.chance is not None
    assert found.chance.probability > 0.99
    assert found.why.endswith("The cost of a on 2 × H100 is predicted, not measured.")
    assert found.steps[0].says == "Time a on 2 × H100: its cost is predicted."
    for wrong in ((1.0, 2.0, 3.0), (1.0, -1.0, 3.0), (4.0, 1.0, 3.0)):
        with pytest.raises(BitworthError, match="A prediction needs"):
            predicted_figure(*wrong)


# --- mixes, loads -------------------------------------------------------------------------------------------------


def test_a_mix_costs_what_its_average_query_costs() -> None:
    rows = [timed("a", 2.0), timed("a", 0.5, use_case=OTHER), timed("b", 1.0), timed("c", 1.0, use_case=OTHER)]
    found = {row.format: row for row in mix_costs(rows, {"docstring": 1, "rag": 3})}
    usd = 0.75 * 3.29 / 3600 / 2.0 + 0.25 * 3.29 / 3600 / 0.5
    mixed = found["a"]
    assert mixed.queries_per_usd == pytest.approx(1 / usd)
    assert mixed.queries_per_second == pytest.approx(3.29 / 3600 / usd)
    assert mixed.latency_s == 2.0
    assert mixed.figures[P95.name].value == pytest.approx(2 / 3)
    assert mixed.use_case.name == "25 % docstring + 75 % rag"
    assert (mixed.use_case.prompt_tokens, mixed.use_case.output_tokens) == (960, 128)
    assert found["b"].unsupported == "docstring was not timed like this"
    assert found["b"].use_case == mixed.use_case
    with pytest.raises(BitworthError, match="'chat', which was not timed"):
        mix_costs(rows, {"chat": 1})


def test_the_interval_of_a_mix_is_that_of_drawn_parts() -> None:
    rows = [timed("a", 2.0), timed("a", 0.5, use_case=OTHER)]
    (mixed,) = mix_costs(rows, {"rag": 1, "docstring": 1})
    random = np.random.default_rng(0)
    usd = sum(0.5 / random.normal(row.queries_per_usd, 0.05 * row.queries_per_usd / 1.96, 200_000) for row in rows)
    assert mixed.ci95_queries_per_usd == pytest.approx(np.quantile(1 / usd, [0.025, 0.975]), rel=0.003)


def test_a_mix_of_one_is_that_one() -> None:
    (mixed,) = mix_costs([timed("a", 2.0)], {"rag": 5})
    assert mixed.queries_per_usd == pytest.approx(timed("a", 2.0).queries_per_usd)
    assert mixed.ci95_queries_per_usd == pytest.approx(timed("a", 2.0).ci95_queries_per_usd)


def test_across_loads_a_load_is_a_way_to_run_it() -> None:
    rows = [timed("a", 1.0), timed("a", 4.0, load="throughput", latency_s=3.0), timed("b", 1.5)]
    known = [recovery("a", 100, 99.5, 100.5), recovery("b", 100, 99.5, 100.5)]
    (free,) = recommend(rows, known, Constraint(), across_loads=True)
    assert free.load == "synchronous or throughput"
    assert free.choice is not None
    assert free.choice.cost.load == "throughput"
    assert free.why.startswith("Deploy a under throughput")
    (quick,) = recommend(rows, known, Constraint(max_latency_s=2.0), across_loads=True)
    assert quick.choice is not None
    assert (quick.choice.format, quick.choice.cost.load) == ("b", "synchronous")
    assert quick.use_case == CASE
