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
