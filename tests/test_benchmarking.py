"""Costs against the paper's formulas by hand, intervals against simulated runs, prompts against their promises."""

from __future__ import annotations

import heapq
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bitworth.benchmarking import benchmark, cost_of, measure, ordinary_tokens
from bitworth.engines.fake import FakeGenerator
from bitworth.engines.generator import Progress
from bitworth.engines.schedule import loop_of, streams_of
from bitworth.errors import BitworthError, Unsupported, WorkFailed
from bitworth.hardware import hardware
from bitworth.load.run import run_load
from bitworth.load.traces import Workload
from bitworth.types import EngineFacts, Load, Measurement, Request, Timing, UseCase

SHAPE = UseCase(name="32/4", prompt_tokens=32, output_tokens=4)
SYNCHRONOUS = Load(kind="synchronous")
THROUGHPUT = Load(kind="throughput", streams=4)
FACTS = EngineFacts(engine="test", kernel="k", device="d")
LOCAL = replace(hardware("local"), usd_per_hour=2.0)


def timed(*spans: tuple[float, float], first_s: float = 0.1) -> Measurement:
    """A measurement of requests that start and end at these times."""
    timings = (
        Timing(start_s=start, first_token_s=start + first_s, end_s=end, prompt_tokens=32, output_tokens=4)
        for start, end in spans
    )
    return Measurement(runs=(tuple(timings),), facts=FACTS)


def failed(measurement: Measurement, *indices: int) -> Measurement:
    """The same with some requests failed."""
    timings = (
        replace(timing, error="HTTP 500") if index in indices else timing
        for index, timing in enumerate(measurement.timings)
    )
    return replace(measurement, runs=(tuple(timings),))


def test_one_at_a_time_costs_what_the_paper_says() -> None:
    cost = cost_of("f", timed((0, 2), (2, 3), (3, 6)), SHAPE, SYNCHRONOUS, LOCAL)
    assert cost.latency_s == pytest.approx(2)
    assert cost.latency_p90_s == pytest.approx(2.8)
    assert cost.first_token_s == pytest.approx(0.1)
    assert cost.queries_per_second == pytest.approx(0.5)
    assert cost.queries_per_usd == pytest.approx(3600 / (2 * 2.0))
    assert (cost.requests, cost.source, cost.facts, cost.load) == (3, "measured", FACTS, "synchronous")


def test_throughput_counts_completions_from_first_start_to_last_end() -> None:
    cost = cost_of("f", timed((1, 4), (1, 5), (4, 6), (5, 11)), SHAPE, THROUGHPUT, LOCAL)
    assert cost.queries_per_second == pytest.approx(4 / 10)
    assert cost.queries_per_usd == pytest.approx(3600 * 0.4 / 2.0)
    assert cost.latency_s == pytest.approx((3 + 4 + 2 + 6) / 4)


def test_a_price_for_several_devices_is_for_all_of_them() -> None:
    row = hardware("H100", 8)
    cost = cost_of("f", timed((0, 1)), SHAPE, SYNCHRONOUS, row)
    assert (cost.hardware, cost.count) == ("H100", 8)
    assert cost.queries_per_usd == pytest.approx(3600 / 23.92)


def test_few_failures_are_left_out_and_many_are_a_failure() -> None:
    spans = [(float(index), index + 0.5) for index in range(20)]
    cost = cost_of("f", failed(timed(*spans), 3, 4), SHAPE, SYNCHRONOUS, LOCAL)
    assert cost.requests == 18
    with pytest.raises(WorkFailed, match=r"^3 of 20 requests failed: HTTP 500\.$"):
        cost_of("f", failed(timed(*spans), 3, 4, 5), SHAPE, SYNCHRONOUS, LOCAL)
    with pytest.raises(WorkFailed, match="0 of 0 requests failed: none was sent"):
        cost_of("f", timed(), SHAPE, SYNCHRONOUS, LOCAL)


def test_no_measurement_says_why_and_free_hardware_is_refused() -> None:
    cost = cost_of("f", None, SHAPE, SYNCHRONOUS, LOCAL, unsupported="no kernel")
    assert (cost.unsupported, cost.queries_per_usd, cost.requests) == ("no kernel", None, 0)
    with pytest.raises(BitworthError, match="a price above 0"):
        cost_of("f", timed((0, 1)), SHAPE, SYNCHRONOUS, replace(LOCAL, usd_per_hour=0.0))


@settings(max_examples=50)
@given(
    spans=st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 10)), min_size=1, max_size=40),
    load=st.sampled_from([SYNCHRONOUS, THROUGHPUT, Load(kind="throughput"), Load(kind="poisson", rate=2.0)]),
    factor=st.floats(0.1, 10),
)
def test_costs_are_ordered_and_scale(spans: list[tuple[float, float]], load: Load, factor: float) -> None:
    measurement = timed(*((start, start + length) for start, length in spans))
    cost = cost_of("f", measurement, SHAPE, load, LOCAL)
    assert cost.queries_per_usd is not None
    dearer = cost_of("f", measurement, SHAPE, load, replace(LOCAL, usd_per_hour=2.0 * factor))
    assert dearer.queries_per_usd == pytest.approx(cost.queries_per_usd / factor)
    if cost.ci95_queries_per_usd is None:
        # One request, one batch, or completions without a gap.
        assert len(spans) < (2 * streams_of(load) if loop_of(load) else 3) or len({a + b for a, b in spans}) == 1
        return
    low, high = cost.ci95_queries_per_usd
    assert 0 <= low <= cost.queries_per_usd <= high
    assert dearer.ci95_queries_per_usd == pytest.approx((low / factor, high / factor))


def synchronous_run(generator: np.random.Generator) -> list[tuple[float, float]]:
    """Gamma latencies with mean 1."""
    ends = np.cumsum(generator.gamma(4, 0.25, 40))
    return list(zip([0.0, *ends[:-1]], ends, strict=True))


def batched_run(generator: np.random.Generator) -> list[tuple[float, float]]:
    """Four streams served in step: what slows one request of a batch slows the four."""
    ends = np.cumsum(generator.gamma(4, 0.25, 25))
    return [span for span in zip([0.0, *ends[:-1]], ends, strict=True) for _ in range(4)]


def open_run(generator: np.random.Generator) -> list[tuple[float, float]]:
    """Poisson arrivals at 1 a second, served in about a tenth."""
    starts = np.cumsum(generator.exponential(1, 60))
    return list(zip(starts, starts + generator.gamma(4, 0.025, 60), strict=True))


@pytest.mark.parametrize(
    ("run", "load", "rate"),
    [
        (synchronous_run, SYNCHRONOUS, 1.0),
        (batched_run, THROUGHPUT, 4.0),
        (open_run, Load(kind="poisson", rate=1.0), 1.0),
    ],
)
def test_the_interval_holds_the_true_rate_about_as_often_as_it_says(run, load, rate) -> None:  # type: ignore[no-untyped-def]
    truth = 3600 * rate / LOCAL.usd_per_hour
    held = 0
    for seed in range(200):
        cost = cost_of("f", timed(*run(np.random.default_rng(seed))), SHAPE, load, LOCAL)
        assert cost.ci95_queries_per_usd is not None
        held += cost.ci95_queries_per_usd[0] <= truth <= cost.ci95_queries_per_usd[1]
    assert 0.92 <= held / 200 <= 0.985


def served(starts: Sequence[float], seconds: Sequence[float], servers: int) -> list[tuple[float, float]]:
    """Requests that wait for the first free one of so many servers, in order; the first tenth is a ramp."""
    free, spans = [0.0] * servers, []
    for start, needed in zip(starts, seconds, strict=True):
        end = max(free[0], start) + needed
        heapq.heapreplace(free, end)
        spans.append((start, end))
    return spans[len(spans) // 11 :]


POISSON_4, CONSTANT_4 = Load(kind="poisson", rate=4.0), Load(kind="constant", rate=4.0)


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(POISSON_4, id="poisson"),
        pytest.param(CONSTANT_4, id="constant", marks=pytest.mark.slow(beside=True)),
    ],
)
@pytest.mark.parametrize(
    ("rate", "spread", "servers", "near"),
    [
        (4.0, lambda _: 20.0, 1000, 0.03),  # twenty seconds whatever comes
        (4.0, lambda random: random.gamma(16, 20 / 16), 1000, 0.08),
        (4.0, lambda random: random.exponential(0.2), 1, 0.04),  # a server at eight tenths of what it can
        (1.0, lambda _: 1.0, 1, 0.02),  # four times as many requests as can be answered
        (2.0, lambda random: random.exponential(10.0), 20, 0.04),
    ],
    ids=["delay", "varied", "busy", "overloaded", "overloaded servers"],
)
def test_the_rate_of_an_open_load_holds_no_latency(  # type: ignore[no-untyped-def]
    load: Load, rate: float, spread, servers: int, near: float
) -> None:
    """The long-run rate of a simulated server is the arrivals' or the server's own, whichever is lower."""
    rates, held = [], 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        gaps = random.exponential(0.25, 220) if load.kind == "poisson" else np.full(220, 0.25)
        cost = cost_of(
            "f", timed(*served(np.cumsum(gaps), [spread(random) for _ in gaps], servers)), SHAPE, load, LOCAL
        )
        low, high = cost.ci95_queries_per_usd or (math.nan, math.nan)
        held += low * (1 - 1e-9) <= 3600 * rate / LOCAL.usd_per_hour <= high * (1 + 1e-9)
        rates.append(cost.queries_per_second)
    assert np.mean(rates) == pytest.approx(rate, rel=near)
    assert held >= 0.9 * 200


def test_requests_of_a_mix_that_overtake_one_another_spread_no_rate_out() -> None:
    random = np.random.default_rng(0)
    starts = np.arange(400) / 4
    spans = list(zip(starts, starts + random.choice([2.0, 60.0], 400), strict=True))
    cost = cost_of("f", timed(*spans), SHAPE, CONSTANT_4, LOCAL)
    assert cost.queries_per_second == pytest.approx(4.0, rel=0.15)  # 2.5 from the first to the last end


@pytest.mark.parametrize(
    "batches", [2, *(pytest.param(number, marks=pytest.mark.slow(beside=True)) for number in (3, 6))]
)
def test_few_batches_that_ran_in_step_are_as_unsure_as_they_are_few(batches: int) -> None:
    """What one batch's requests share is not learned twice: thirty-two requests in two batches are two values."""
    held, widths = 0, []
    for seed in range(400):
        ends = np.cumsum(np.random.default_rng(seed).gamma(100, 0.01, batches))
        spans = [span for span in zip([0.0, *ends[:-1]], ends, strict=True) for _ in range(16)]
        cost = cost_of("f", timed(*spans), SHAPE, Load(kind="throughput", streams=16), LOCAL)
        assert cost.ci95_queries_per_usd is not None
        low, high = cost.ci95_queries_per_usd
        held += low <= 3600 * 16 / LOCAL.usd_per_hour <= high
        widths.append(math.log(high / low) / 2)
        mean = cost.figures["latency_mean"]
        assert (mean.high / mean.value, mean.value / mean.low) == pytest.approx((math.sqrt(high / low),) * 2)
    assert 0.92 <= held / 400 <= 0.98
    # Student's quantile over the root of the batches times their spread, 10 %.
    expected = stats.t.ppf(0.975, batches - 1) * 0.1 / math.sqrt(batches)
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(expected, rel=0.1)


def test_requests_that_all_ran_together_have_no_interval() -> None:
    together = Load(kind="throughput", streams=16)
    cost = cost_of("f", timed(*[(0.0, 1 + i / 100) for i in range(31)]), SHAPE, together, LOCAL)
    assert cost.ci95_queries_per_usd is None
    assert (cost.figures["latency_mean"].low, cost.figures["latency_mean"].high) == (0, math.inf)


class Recorder(FakeGenerator):
    """A fake that notes its calls."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "calls", [])
        object.__setattr__(self, "error", error)

    __slots__ = ("calls", "error")

    def replay(self, requests: Sequence[Request], streams: int, progress: Progress | None = None) -> list[Timing]:
        self.calls.append((requests, streams))
        timings = super().replay(requests, streams, progress)
        return [replace(t, error=self.error) for t in timings]


def test_measures_what_was_asked_after_a_warm_up() -> None:
    engine, seen = Recorder(), []
    found = measure(
        engine, SHAPE, THROUGHPUT, requests=5, warmup=2, progress=lambda done, total: seen.append((done, total))
    )
    (warm, one), (sent, several) = engine.calls
    assert (len(warm), one, len(sent), several) == (2, 1, 9, 4)  # a tenth more, rounded up to a round, comes first
    assert {request.output_tokens for request in [*warm, *sent]} == {4}
    assert len({tuple(request.prompt) for request in [*warm, *sent]}) == 11
    assert len(found.timings) == 5
    assert seen == [(done, 9) for done in range(1, 10)]
    assert found.facts.engine == "fake"


@pytest.mark.parametrize("load", [SYNCHRONOUS, THROUGHPUT, POISSON_4, CONSTANT_4], ids=lambda load: load.kind)
def test_a_study_sends_what_the_command_line_sends(load: Load) -> None:
    studied, commanded = Recorder(), Recorder()
    measure(studied, SHAPE, load, requests=100)
    run_load(commanded, Workload(name=SHAPE.name, parts=((SHAPE, 1.0),)), load, requests=100)
    sent, likewise = (
        [([(len(r.prompt), r.output_tokens, r.at_s) for r in requests], streams) for requests, streams in engine.calls]
        for engine in (studied, commanded)
    )
    assert sent == likewise
    counts = {"synchronous": 100, "throughput": 112}  # the loop has four streams
    assert [len(requests) for requests, _ in sent] == [1, counts.get(load.kind, 110)]


def test_measuring_fails_with_its_requests() -> None:
    with pytest.raises(WorkFailed, match="8 of 8 requests failed: boom"):
        measure(Recorder(error="boom"), SHAPE, SYNCHRONOUS)
    with pytest.raises(BitworthError, match="at least 1 request"):
        measure(FakeGenerator(), SHAPE, SYNCHRONOUS, requests=0)


def test_ordinary_tokens_leave_out_the_special(tiny_llama: Path) -> None:
    assert ordinary_tokens(tiny_llama) == list(range(256))


def test_ordinary_tokens_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="not a model folder"):
        ordinary_tokens(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 9, "eos_token_id": [1, 8]}}))
    assert ordinary_tokens(tmp_path) == [0, 2, 3, 4, 5, 6, 7]
    unigram = {"added_tokens": [{"id": 2}], "model": {"vocab": [["a", -1.0]] * 5}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert ordinary_tokens(tmp_path) == [0, 3, 4]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BitworthError, match="no vocab_size"):
        ordinary_tokens(tmp_path)


def test_benchmark_prices_this_machine_only(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = benchmark(tiny_llama, SHAPE, SYNCHRONOUS, hardware=LOCAL, engine="fake", requests=3, format="baseline")
    assert cost.latency_s == pytest.approx(32e-4 + 4e-3)
    assert (cost.format, cost.requests, cost.ci95_queries_per_usd) == (
        "baseline",
        3,
        pytest.approx((cost.queries_per_usd,) * 2),
    )
    with pytest.raises(BitworthError, match="This machine is not 8 x H100"):
        benchmark(tiny_llama, SHAPE, SYNCHRONOUS, hardware=hardware("H100", 8), engine="fake")

    def refuse(*_: object, **__: object) -> Measurement:
        raise Unsupported("no kernel here")

    monkeypatch.setattr(sys.modules[benchmark.__module__], "measure", refuse)
    assert benchmark(tiny_llama, SHAPE, SYNCHRONOUS, hardware=LOCAL).unsupported == "no kernel here"


def test_simultaneous_completions_have_no_spread() -> None:
    for spans in ([(0, 1), (0.5, 1)], [(0, 1), (0.5, 1), (1, 1)]):
        cost = cost_of("f", timed(*spans), SHAPE, Load(kind="constant", rate=2.0), LOCAL)
        assert cost.ci95_queries_per_usd is None
    cost = cost_of("f", timed((0, 1), (0.5, 1), (1, 2)), SHAPE, Load(kind="constant", rate=2.0), LOCAL)
    assert cost.ci95_queries_per_usd is not None
    assert cost.ci95_queries_per_usd[1] > 1e5 * (cost.queries_per_usd or 0)  # gaps of 0 and 1 tell nothing


def test_thousands_of_requests_have_the_interval_of_their_mean() -> None:
    """The normal one: a mean of 6,000 gamma latencies with mean 1 and variance 1/4."""
    ends = np.cumsum(np.random.default_rng(0).gamma(4, 0.25, 6000))
    cost = cost_of("f", timed(*zip([0.0, *ends[:-1]], ends, strict=True)), SHAPE, SYNCHRONOUS, LOCAL)
    assert cost.ci95_queries_per_usd is not None
    low, high = (bound * LOCAL.usd_per_hour / 3600 for bound in cost.ci95_queries_per_usd)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(6000), rel=0.1)
