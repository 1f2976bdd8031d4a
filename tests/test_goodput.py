"""The sweep against engines whose capacity is known, and its judgement against rules written out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.engines.fake import FakeGenerator
from bitworth.engines.schedule import arrivals
from bitworth.errors import BitworthError
from bitworth.load.goodput import CLOSE, MOST_RATES, check, judge, requests_for, sweep
from bitworth.types import Limits, Load, Request, Timing

LATENCY = Limits(max_latency_s=1.0, percentile=95)


def latencies(values: Sequence[float], *, error: str | None = None) -> list[Timing]:
    """Requests a second apart with one token each."""
    return [
        Timing(start_s=at, first_token_s=at + v, end_s=at + v, prompt_tokens=1, output_tokens=1, error=error)
        for at, v in enumerate(values)
    ]


def cliff(capacity: float, seen: list[float]):  # type: ignore[no-untyped-def]
    """An engine that is fast up to its capacity and slow beyond."""

    def run(rate: float) -> list[Timing]:
        seen.append(rate)
        return latencies([0.5 if rate <= capacity else 1.5] * 20)

    return run


@settings(max_examples=50, deadline=None)
@given(capacity=st.floats(-6, 6), start=st.floats(-3, 3))
def test_finds_the_capacity_to_a_twentieth(capacity: float, start: float) -> None:
    seen: list[float] = []
    found = sweep(cliff(10**capacity, seen), LATENCY, start_rate=10**start)
    assert len(seen) <= MOST_RATES
    assert [trial.rate for trial in found.trials] == seen
    passing = [rate for rate in seen if rate <= 10**capacity]
    assert (found.best.rate if found.best else None) == max(passing, default=None)
    if passing and len(passing) < len(seen):
        assert 10**capacity / CLOSE < max(passing) <= 10**capacity
    else:  # more than ten octaves away
        assert abs(capacity - start) > 3


@pytest.mark.parametrize("servers", [1, pytest.param(4, marks=pytest.mark.slow(beside=True))])
def test_a_queues_goodput_is_the_theorys(servers: int) -> None:
    """p95 of the latency below twice the service time, against the M/D/c queue simulated by its recursion."""
    service = 0.01
    engine = FakeGenerator(prefill_s=0.0, decode_s=service, servers=servers)
    limits = Limits(max_latency_s=2 * service, percentile=95)

    def run(rate: float) -> Sequence[Timing]:
        times = arrivals(Load(kind="poisson", rate=rate), 2000, seed=round(rate * 1000))
        return engine.replay([Request(prompt=[1], output_tokens=1, at_s=at) for at in times], 1)

    best = sweep(run, limits, start_rate=10.0).best
    assert best is not None
    low, high = 0.0, servers / service
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if p95_of_md_c(middle, servers, service) <= 2 * service else (low, middle)
    assert best.rate == pytest.approx(low, rel=0.1)
    assert best.goodput_per_second == pytest.approx(0.955 * best.rate, rel=0.06)


def p95_of_md_c(rate: float, servers: int, service: float) -> float:
    """Kiefer and Wolfowitz's recursion: the waits of c servers, sorted, step by step."""
    waits, latency = [0.0] * servers, []
    for gap in np.random.default_rng(7).exponential(1 / rate, 10_000).tolist():
        latency.append(waits[0] + service)
        waits[0] += service
        waits = sorted(max(wait - gap, 0.0) for wait in waits)
    return float(np.percentile(latency, 95))


def test_the_search_stops_where_nothing_fails_or_nothing_passes() -> None:
    everything = sweep(lambda _: latencies([0.1] * 100), LATENCY, start_rate=1.0)
    assert everything.best is not None
    assert everything.best.rate == 1024
    nothing = sweep(lambda _: latencies([9.0] * 100), LATENCY, start_rate=1.0)
    assert nothing.best is None
    assert nothing.trials[-1].rate == 1 / 1024


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=19),
    failures=st.integers(0, 3),
    percentile=st.sampled_from([50.0, 90.0, 95.0, 99.0]),
)
def test_a_percentile_is_that_of_all_requests_failed_ones_last(
    values: list[float], failures: int, percentile: float
) -> None:
    limits = Limits(max_latency_s=1.0, percentile=percentile)
    trial = judge(1.0, [*latencies(values), *latencies([0.1] * failures, error="HTTP 500")], limits)
    count = len(values) + failures
    ordered = sorted(values) + [math.inf] * failures
    at = ordered[math.ceil((count - 1) * percentile / 100 - 1e-9)]
    # An end is start + value: the limit itself may round either way.
    if not math.isclose(at, 1.0, rel_tol=1e-9):
        assert any("of the latency" in words for words in trial.broken) == (at > 1.0)
    assert any("requests failed" in words for words in trial.broken) == (failures > (1 - percentile / 100) * count)


def test_each_limit_is_named_with_what_was_found() -> None:
    timings = [
        Timing(start_s=at, first_token_s=at + 0.5, end_s=at + 2.5, prompt_tokens=1, output_tokens=5) for at in range(10)
    ]
    limits = Limits(max_first_token_s=0.4, max_inter_token_s=0.3, max_latency_s=2.0)
    assert judge(1.0, timings, limits).broken == (
        "p95 of the time to first token is 0.5 s, over 0.4 s",
        "p95 of the inter-token latency is 0.5 s, over 0.3 s",
        "p95 of the latency is 2.5 s, over 2 s",
    )
    assert judge(1.0, timings, Limits(max_latency_s=3.0)).passes


def test_goodput_counts_requests_that_kept_to_the_limits() -> None:
    trial = judge(1.0, latencies([0.5] * 5 + [1.5] + [0.5] * 4), LATENCY)
    assert trial.goodput_per_second == pytest.approx(9 / 10)  # of one a second
    assert not trial.passes


def test_a_growing_queue_fails_even_below_the_limit() -> None:
    trial = judge(1.0, latencies(np.linspace(0.1, 0.9, 100).tolist()), LATENCY)
    assert trial.broken == ("the latency keeps rising: a queue builds up",)
    falling = judge(1.0, latencies(np.linspace(0.9, 0.1, 100).tolist()), LATENCY)
    assert falling.passes


def test_all_failed_is_a_trial_without_figures() -> None:
    trial = judge(1.0, latencies([0.1] * 5, error="HTTP 500"), LATENCY)
    assert trial.metrics is None
    assert trial.broken == (
        "p95 of the latency is not reached, over 1 s",
        "5 of 5 requests failed (HTTP 500)",
    )


def test_a_late_client_says_nothing_of_the_server() -> None:
    timings = [replace(timing, due_s=timing.start_s - 0.05) for timing in latencies([0.1] * 50)]
    trial = judge(1.0, timings, LATENCY)
    assert trial.void == "the client itself was 50 ms late"
    assert not trial.passes


@pytest.mark.parametrize(
    "limits",
    [None, Limits(), Limits(max_latency_s=0.0), Limits(max_latency_s=-1.0), Limits(max_latency_s=1, percentile=100)],
)
def test_limits_that_limit_nothing(limits: Limits | None) -> None:
    with pytest.raises(BitworthError, match="sweep"):
        check(limits)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_sweep_starts_somewhere(rate: float) -> None:
    with pytest.raises(BitworthError, match="must start at a rate above 0"):
        sweep(lambda _: latencies([0.1]), LATENCY, start_rate=rate)


def test_enough_requests_for_the_percentile() -> None:
    assert [requests_for(Limits(max_latency_s=1, percentile=p)) for p in (50, 95, 99)] == [10, 100, 500]
