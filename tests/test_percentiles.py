from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitworth.load.percentiles import latency_figures, percentile, requests_for
from bitworth.types import Timing


@given(st.integers(1, 400), st.sampled_from([50, 90, 95, 99]), st.integers(0, 9))
def test_bounds_are_scipys(n: int, percent: int, seed: int) -> None:
    ordered = np.sort(np.random.default_rng(seed).exponential(size=n))
    found = percentile(ordered, percent)
    bounds = stats.quantile_test(ordered, p=percent / 100).confidence_interval(0.95)
    assert found.value == np.quantile(ordered, percent / 100)
    assert found.low == min(found.value, 0.0 if math.isnan(bounds.low) else bounds.low)
    assert found.high == max(found.value, math.inf if math.isnan(bounds.high) else bounds.high)


def test_many_requests_and_the_normal_stand_in() -> None:
    ordered = np.arange(1.0, 40_001.0)
    found = percentile(ordered, 95)
    bounds = stats.quantile_test(ordered, p=0.95).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), abs=2)


@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_fewest_requests_that_bound_a_percentile(percent: int) -> None:
    n = requests_for(percent)
    assert math.isfinite(percentile(np.arange(float(n)), percent).high)
    assert math.isinf(percentile(np.arange(float(n - 1)), percent).high)


def test_figures_of_timings() -> None:
    timings = [
        Timing(start_s=at, first_token_s=at + 0.2, end_s=at + 0.2 + 0.1 * at, prompt_tokens=3, output_tokens=5)
        for at in (1.0, 2.0, 3.0)
    ]
    found = latency_figures([timings])
    assert found["latency_mean"].value == pytest.approx(0.4)
    assert found["first_token_p50"].value == pytest.approx(0.2)
    assert found["per_output_token_p50"].value == pytest.approx(0.05)
    assert found["latency_p99"].high == math.inf
    assert all(row.origin == "measured" and row.low <= row.value <= row.high for row in found.values())
    bare = [Timing(start_s=0.0, first_token_s=None, end_s=1.0, prompt_tokens=1, output_tokens=1)]
    assert set(latency_figures([bare])) == {f"latency_{name}" for name in ("mean", "p50", "p90", "p95", "p99")}


def queued(random: np.random.Generator, load: float, count: int, *, same: bool) -> list[Timing]:
    """Poisson arrivals at one server that takes a second, or a second on average; a tenth more comes before."""
    ramp, free, timings = count // 10, 0.0, []
    starts = np.cumsum(random.exponential(1 / load, ramp + count))
    for start in starts.tolist():
        free = max(free, start) + (1.0 if same else random.exponential())
        timings.append(Timing(start_s=start, first_token_s=None, end_s=free, prompt_tokens=1, output_tokens=1))
    return timings[ramp:]


@pytest.mark.parametrize(
    ("load", "requests", "least"),
    [
        (0.5, 100, 0.8),
        pytest.param(0.5, 300, 0.85, marks=pytest.mark.slow(beside=True)),
        (0.8, 300, 0.7),
        pytest.param(0.8, 1000, 0.8, marks=pytest.mark.slow(beside=True)),
    ],
)
def test_a_queues_mean_latency_lies_in_its_interval(load: float, requests: int, least: float) -> None:
    """Pollaczek and Khinchine's mean of M/D/1. Requests taken as independent held 19 of 100 at a load of 0.8."""
    truth, random, held = 1 + load / (2 * (1 - load)), np.random.default_rng(0), 0
    for _ in range(200):
        found = latency_figures([queued(random, load, requests, same=True)])["latency_mean"]
        held += found.low <= truth <= found.high
    assert least <= held / 200 <= 0.98


@pytest.mark.parametrize(
    ("name", "share"), [pytest.param("p50", 0.5, marks=pytest.mark.slow(beside=True)), ("p90", 0.9)]
)
def test_a_queues_percentiles_lie_in_their_intervals(name: str, share: float) -> None:
    """Latencies of M/M/1 are exponential. Requests taken as independent held 32 and 16 of 100."""
    truth, random, held = -math.log(1 - share) / (1 - 0.8), np.random.default_rng(0), 0
    for _ in range(100):
        found = latency_figures([queued(random, 0.8, 1000, same=False)])[f"latency_{name}"]
        held += found.low <= truth <= found.high
    assert held / 100 >= 0.75


def test_independent_requests_have_the_intervals_of_independent_requests() -> None:
    random, median, held, held_median, widened = np.random.default_rng(0), 1 + math.log(2), 0, 0, 0
    for _ in range(300):
        starts, took = np.arange(300.0), 1 + random.exponential(size=300)
        spans = zip(starts.tolist(), (starts + took).tolist(), strict=True)
        timings = [Timing(start_s=a, first_token_s=None, end_s=b, prompt_tokens=1, output_tokens=1) for a, b in spans]
        found = latency_figures([timings])
        held += found["latency_mean"].low <= 2 <= found["latency_mean"].high
        alone = stats.quantile_test(took, p=0.5).confidence_interval(0.95)
        widened += (found["latency_p50"].low, found["latency_p50"].high) != pytest.approx((alone.low, alone.high))
        held_median += found["latency_p50"].low <= median <= found["latency_p50"].high
    assert 0.92 <= held / 300 <= 0.98
    assert 0.92 <= held_median / 300 <= 0.99
    assert widened / 300 <= 0.08
