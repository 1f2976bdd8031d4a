"""The JSON of a load against formulas by hand: what queries and tokens cost, means and intervals of repeats."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_telemetry import Nvml

from bitworth.engines.fake import FakeGenerator
from bitworth.load import telemetry
from bitworth.load.document import load_as_json, metrics_as_json, spread_as_json
from bitworth.load.metrics import metrics_of
from bitworth.load.run import run_load
from bitworth.load.telemetry import GpuUse
from bitworth.load.traces import Workload
from bitworth.report.document import plain
from bitworth.types import Limits, Load, Request, Timing, UseCase

ONE = Workload(name="32/4", parts=((UseCase(name="32/4", prompt_tokens=32, output_tokens=4), 1.0),))
QUEUE = FakeGenerator(prefill_s=0.0, decode_s=0.0025, servers=1)


def alone(count: int, seconds: float, *, prompt: int = 100, output: int = 20) -> list[Timing]:
    """Requests one after another."""
    return [
        Timing(
            start_s=index * seconds,
            first_token_s=index * seconds + seconds / 2,
            end_s=(index + 1) * seconds,
            prompt_tokens=prompt,
            output_tokens=output,
        )
        for index in range(count)
    ]


@settings(deadline=None)
@given(
    count=st.integers(1, 50),
    seconds=st.floats(0.01, 10),
    prompt=st.integers(1, 5000),
    output=st.integers(1, 5000),
    price=st.floats(0.01, 100),
)
def test_costs_are_the_hours_price_over_what_an_hour_gives(
    count: int, seconds: float, prompt: int, output: int, price: float
) -> None:
    found = metrics_as_json(metrics_of(alone(count, seconds, prompt=prompt, output=output)), price)
    queries_an_hour = 3600 / seconds
    assert found["queries_per_usd"] == pytest.approx(queries_an_hour / price)
    assert found["usd_per_million_output_tokens"] == pytest.approx(1e6 * price / (queries_an_hour * output))
    assert found["usd_per_million_prompt_tokens"] == pytest.approx(1e6 * price / (queries_an_hour * prompt))
    assert found["usd_per_million_tokens"] == pytest.approx(1e6 * price / (queries_an_hour * (prompt + output)))


def test_energy_is_a_query_s_share() -> None:
    use = GpuUse(devices=2, memory_mib=512.0, energy_j=500.0, requests=11)
    found = metrics_as_json(metrics_of(alone(10, 1.0), gpu=use))
    assert (found["gpu_memory_mib"], found["gpu_energy_j"], found["gpu_energy_j_per_query"]) == (512.0, 500.0, 500 / 11)
    for unknown in (replace(use, energy_j=None), replace(use, requests=0)):
        assert metrics_as_json(metrics_of(alone(10, 1.0), gpu=unknown))["gpu_energy_j_per_query"] is None


@pytest.mark.parametrize(
    "load", [Load(kind="synchronous"), Load(kind="poisson", rate=10.0)], ids=lambda load: load.kind
)
def test_requests_that_come_before_share_the_energy(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    """GPUs that take five joules a request, whether it counts or not."""
    sent = 0

    def answer(self: FakeGenerator, requests: Sequence[Request], *rest: Any) -> list[Timing]:
        nonlocal sent
        sent += len(requests)
        return replay(self, requests, *rest)

    replay = FakeGenerator.replay
    monkeypatch.setattr(FakeGenerator, "replay", answer)
    nvml = Nvml()
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", lambda _: 2500 * sent)  # millijoules, two devices
    monkeypatch.setattr(telemetry, "_installed", lambda: nvml)
    metrics = load_as_json(run_load(QUEUE, ONE, load, requests=50, meter_gpu=True), 2.0)["metrics"]
    assert metrics["gpu_energy_j_per_query"] == pytest.approx(5.0)
    assert metrics["gpu_energy_j"] == 5 * (50 if load.kind == "synchronous" else 55)


def test_what_is_not_known_is_null() -> None:
    found = metrics_as_json(metrics_of(alone(5, 1.0)))
    for name in ("queries_per_usd", "usd_per_million_tokens", "gpu_memory_mib", "gpu_energy_j", "client_late_s"):
        assert found[name] is None
    assert spread_as_json(None) is None
    json.dumps(plain(found), allow_nan=False)


def test_repeats_give_means_and_students_intervals() -> None:
    stats = pytest.importorskip("scipy.stats")
    run = run_load(QUEUE, ONE, Load(kind="poisson", rate=60.0), requests=50, repeats=4)
    document = load_as_json(run, 2.0)
    p95 = [metrics.latency.at(95) for metrics in run.metrics]
    assert document["metrics"]["latency_s"]["p95"] == pytest.approx(fmean(p95))
    half = stats.t.ppf(0.975, 3) * np.std(p95, ddof=1) / math.sqrt(4)
    assert document["metrics_ci95"]["latency_s"]["p95"] == pytest.approx(
        (fmean(p95) - half, fmean(p95) + half), rel=1e-3
    )
    assert (document["repeats"], len(document["runs"])) == (4, 4)
    assert document["runs"][2]["latency_s"]["p95"] == p95[2]
    assert document["sweep"] is None


def test_one_run_has_no_interval() -> None:
    document = load_as_json(run_load(QUEUE, ONE, Load(kind="synchronous"), requests=30), 2.0)
    assert (document["metrics_ci95"], document["drift_pct"]) == (None, None)
    assert document["metrics"] == document["runs"][0]


def test_a_truth_of_the_repeats_is_that_of_every_one() -> None:
    document = load_as_json(run_load(QUEUE, ONE, Load(kind="poisson", rate=150.0), requests=300, repeats=2), 2.0)
    assert [row["steady"] for row in document["runs"]] == [False, False]
    assert document["metrics"]["steady"] is False
    assert document["metrics_ci95"]["steady"] is None


def test_a_sweep_shows_every_rate() -> None:
    limits = Limits(max_latency_s=0.02, percentile=90)
    run = run_load(QUEUE, ONE, Load(kind="sweep", limits=limits), requests=100)
    assert run.sweep is not None
    assert run.sweep.best is not None
    document = load_as_json(run, 2.0)["sweep"]
    assert document["best_rate_per_second"] == run.sweep.best.rate
    assert document["goodput_per_second"] == run.sweep.best.goodput_per_second
    assert (document["percentile"], document["max_latency_s"], document["max_first_token_s"]) == (90, 0.02, None)
    assert [row["rate_per_second"] for row in document["rates"]] == [trial.rate for trial in run.sweep.trials]
    for row in document["rates"]:
        assert row["passes"] == (not row["broken"])
    json.dumps(plain(document), allow_nan=False)
