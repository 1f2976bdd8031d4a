"""Loads on engines whose behaviour is computed: what counts, what is repeated, what is doubted."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitworth.benchmarking import cost_of
from bitworth.engines.fake import FakeGenerator
from bitworth.engines.generator import Progress
from bitworth.errors import BitworthError, Unsupported, WorkFailed
from bitworth.hardware import hardware
from bitworth.load.document import load_as_json
from bitworth.load.rates import ramp_of
from bitworth.load.run import run_load
from bitworth.load.traces import Workload
from bitworth.types import EngineFacts, Limits, Load, Request, Shape, Timing, UseCase
from bitworth.workloads import use_case

SMALL = UseCase(name="32/4", prompt_tokens=32, output_tokens=4)
ONE = Workload(name="32/4", parts=((SMALL, 1.0),))
SYNCHRONOUS = Load(kind="synchronous")
POISSON = Load(kind="poisson", rate=10.0)
#: 10 ms a request, one at a time.
QUEUE = FakeGenerator(prefill_s=0.0, decode_s=0.0025, servers=1)


class Recorder:
    """A fake that keeps what it was asked, and changes the timings it gives."""

    def __init__(self, change=lambda call, index, timing: timing, engine: FakeGenerator = QUEUE) -> None:  # type: ignore[no-untyped-def]
        self.calls: list[tuple[Sequence[Request], int]] = []
        self._change, self._engine = change, engine

    @property
    def facts(self) -> EngineFacts:
        return self._engine.facts

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        raise AssertionError("requests of their own are replayed")

    def replay(self, requests: Sequence[Request], streams: int, progress: Progress | None = None) -> list[Timing]:
        self.calls.append((requests, streams))
        timings = self._engine.replay(requests, streams, progress)
        return [self._change(len(self.calls) - 1, index, timing) for index, timing in enumerate(timings)]


class Batches:
    """An engine that runs requests of one length only, as the one in this process does."""

    facts = EngineFacts(engine="torch", kernel="k", device="d")

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        return FakeGenerator().run(prompts, output_tokens, load, progress)


class Guide:
    """Another client."""

    facts = EngineFacts(engine="http://x/v1", kernel="k", device="d")

    def __init__(self) -> None:
        self.asked: list[tuple[UseCase, str, int, int]] = []

    def drive(self, use_case: UseCase, load: Load, count: int, seed: int) -> list[Timing]:
        self.asked.append((use_case, load.name, count, seed))
        return FakeGenerator().run([[1] * use_case.prompt_tokens] * count, use_case.output_tokens, load)


def test_warm_up_and_the_first_tenth_are_left_out() -> None:
    engine, seen = Recorder(), []
    run = run_load(engine, ONE, POISSON, requests=50, warmup=3, progress=lambda *at: seen.append(at))
    (warm, streams), (sent, _) = engine.calls
    assert (len(warm), streams, len(sent)) == (3, 1, 55)
    assert [request.at_s for request in warm] == [None] * 3
    assert len(run.timings[0]) == run.metrics[0].requests == 50
    assert min(t.start_s for t in run.timings[0]) > 0
    assert seen[-1] == (55, 55)
    assert len(seen) == 55


@given(requests=st.integers(1, 2000), streams=st.integers(2, 300))
def test_what_comes_first_is_a_tenth_and_in_loops_whole_rounds(requests: int, streams: int) -> None:
    assert ramp_of(requests, None) == math.ceil(requests / 10)
    rounds, over = divmod(ramp_of(requests, streams), streams)
    assert over == 0
    assert (rounds - 1) * streams < requests / 10 <= rounds * streams


def test_a_loop_in_step_counts_whole_rounds() -> None:
    engine = Recorder()
    run = run_load(engine, ONE, Load(kind="throughput", streams=8), requests=48, warmup=0)
    ((sent, _),) = engine.calls
    assert (len(sent), len(run.timings[0])) == (56, 48)


def test_requests_alone_need_no_ramp() -> None:
    engine = Recorder()
    run_load(engine, ONE, SYNCHRONOUS, requests=8, warmup=0)
    ((sent, streams),) = engine.calls
    assert (len(sent), streams) == (8, 1)


def test_every_prompt_is_new_and_as_long_as_asked() -> None:
    engine = Recorder()
    run_load(engine, ONE, POISSON, requests=20, warmup=2, repeats=3)
    run_load(engine, ONE, POISSON, requests=20, warmup=2, repeats=3)
    prompts = [tuple(request.prompt) for requests, _ in engine.calls for request in requests]
    assert len(set(prompts)) == len(prompts) == 2 * (2 + 3 * 22)
    assert {len(prompt) for prompt in prompts} == {32}


def test_repeats_have_arrivals_of_their_own_and_a_seed_brings_them_back() -> None:
    def arrivals(seed: int) -> list[list[float | None]]:
        engine = Recorder()
        run_load(engine, ONE, POISSON, requests=10, repeats=2, warmup=0, seed=seed)
        return [[request.at_s for request in requests] for requests, _ in engine.calls]

    first, second = arrivals(5)
    assert first != second
    assert arrivals(5) == [first, second]


class Streams:
    """An engine whose requests take ten seconds, more or less, however many run."""

    facts = EngineFacts(engine="test", kernel="k", device="d")

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        raise AssertionError("requests of their own are replayed")

    def replay(self, requests: Sequence[Request], streams: int, progress: Progress | None = None) -> list[Timing]:
        free, timings = [0.0] * streams, []
        for request in requests:
            start = heapq.heappop(free)
            end = start + self._random.gamma(16, 10 / 16)
            heapq.heappush(free, end)
            timings.append(
                Timing(
                    start_s=start,
                    first_token_s=None,
                    end_s=end,
                    prompt_tokens=len(request.prompt),
                    output_tokens=request.output_tokens,
                )
            )
        return timings


def test_a_rate_is_the_same_however_often_it_is_measured() -> None:
    """64 streams of ten seconds a request are 6.4 a second; what drains between repeats is no part of it."""
    load, row = Load(kind="throughput", streams=64), replace(hardware("local"), usd_per_hour=2.0)
    for repeats in (1, 3, 10):
        run = run_load(Streams(repeats), ONE, load, requests=320, warmup=0, repeats=repeats)
        cost = cost_of("f", run.measurement, SMALL, load, row)
        assert cost.queries_per_second == pytest.approx(6.4, rel=0.04)
        document = load_as_json(run, row.usd_per_hour)
        assert cost.queries_per_usd == pytest.approx(document["metrics"]["queries_per_usd"])
        # Student's, of five batches a repeat.
        ordered = [sorted(timings, key=lambda timing: timing.start_s) for timings in run.timings]
        means = [np.mean([t.latency_s for t in part[at : at + 64]]) for part in ordered for at in range(0, 320, 64)]
        reach = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means) / np.mean(means)
        assert len(means) == 5 * repeats
        for low, high in (
            cost.ci95_queries_per_usd,
            (cost.figures["latency_mean"].low, cost.figures["latency_mean"].high),
        ):
            assert math.log(high / low) / 2 == pytest.approx(reach)
        assert cost.requests == 320 * repeats


def test_throughput_keeps_its_streams_busy() -> None:
    run = run_load(QUEUE, ONE, Load(kind="throughput", streams=5), requests=50)
    assert run.metrics[0].queries_per_second == pytest.approx(5 / 0.01, rel=0.05)


def test_a_mix_sends_its_shapes() -> None:
    engine = Recorder()
    mix = Workload(name="mix", parts=((use_case("8/2"), 1.0), (use_case("16/4"), 3.0)))
    run = run_load(engine, mix, POISSON, requests=400, warmup=4)
    sent = engine.calls[1][0]
    long = [request for request in sent if len(request.prompt) == 16]
    assert {(len(r.prompt), r.output_tokens) for r in sent} == {(8, 2), (16, 4)}
    assert len(long) / len(sent) == pytest.approx(0.75, abs=0.06)
    assert run.metrics[0].output_tokens_per_second == pytest.approx(10 * 3.5, rel=0.15)


def test_a_trace_keeps_its_times_and_all_its_requests() -> None:
    engine = Recorder()
    trace = tuple(Shape(prompt_tokens=n, output_tokens=2, at_s=n / 8) for n in range(1, 31))
    run = run_load(engine, Workload(name="day", trace=trace), Load(kind="trace"), requests=5, warmup=2)
    warm, sent = (requests for requests, _ in engine.calls)
    assert [request.at_s for request in warm] == [None] * 2
    assert [(len(r.prompt), r.at_s) for r in sent] == [(shape.prompt_tokens, shape.at_s) for shape in trace]
    assert run.metrics[0].requests == 30
    for load, workload in ((Load(kind="trace"), ONE), (POISSON, Workload(name="day", trace=trace))):
        with pytest.raises(BitworthError, match="replayed at its own times"):
            run_load(engine, workload, load, warmup=0)


def test_an_engine_that_batches_takes_one_length_and_no_rate() -> None:
    assert run_load(Batches(), ONE, Load(kind="throughput", streams=4), requests=8).metrics[0].requests == 8
    mix = Workload(name="mix", parts=((use_case("8/2"), 1.0), (use_case("16/4"), 1.0)))
    with pytest.raises(Unsupported, match="torch runs requests of one length"):
        run_load(Batches(), mix, SYNCHRONOUS, requests=20)
    with pytest.raises(Unsupported, match="torch runs requests of one length"):
        run_load(Batches(), ONE, POISSON)


def test_another_client_is_asked_the_same() -> None:
    guide = Guide()
    run = run_load(guide, ONE, POISSON, requests=20, warmup=2, repeats=2, seed=7)
    assert guide.asked == [
        (SMALL, "synchronous", 2, 7),
        (SMALL, "poisson@10", 22, 7),
        (SMALL, "poisson@10", 22, 8),
    ]
    assert [len(timings) for timings in run.timings] == [20, 20]
    mix = Workload(name="mix", parts=((SMALL, 1.0), (use_case("16/4"), 1.0)))
    with pytest.raises(Unsupported, match="one use case here"):
        run_load(guide, mix, POISSON, warmup=0)


@pytest.mark.parametrize("settings", [{"requests": 0}, {"warmup": -1}, {"repeats": 0}])
def test_nothing_to_measure(settings: dict[str, int]) -> None:
    with pytest.raises(BitworthError, match="needs at least 1 request"):
        run_load(QUEUE, ONE, SYNCHRONOUS, **settings)


def test_a_run_that_fails_says_so() -> None:
    engine = Recorder(lambda call, _, timing: replace(timing, error="HTTP 500") if call == 1 else timing)
    with pytest.raises(WorkFailed, match="20 of 20 requests failed: HTTP 500"):
        run_load(engine, ONE, SYNCHRONOUS, requests=20)


def slower(timing: Timing, factor: float) -> Timing:
    return replace(timing, end_s=timing.start_s + factor * timing.latency_s)


def test_drift_is_the_change_from_the_first_cell() -> None:
    generator = np.random.default_rng(0)

    def drifting(call: int, _: int, timing: Timing) -> Timing:
        return slower(timing, (1.0, 1.0, 1.1, 1.25)[call] * generator.normal(1, 0.02))

    run = run_load(Recorder(drifting), ONE, SYNCHRONOUS, requests=60, repeats=3)
    assert run.drift_pct == pytest.approx(25, abs=2)
    assert "Drift: at the end the first cell's mean latency had changed by +25 %." in run.notes


def test_noise_is_no_drift() -> None:
    generator = np.random.default_rng(1)
    noisy = Recorder(lambda _call, _index, timing: slower(timing, generator.gamma(4, 0.25)))
    doubted = 0
    for seed in range(40):
        run = run_load(noisy, ONE, SYNCHRONOUS, requests=40, repeats=2, seed=seed)
        doubted += any(note.startswith("Drift") for note in run.notes)
    assert doubted <= 2
    assert run_load(noisy, ONE, SYNCHRONOUS, requests=5).drift_pct is None


def test_a_queue_that_builds_up_a_late_client_and_other_counts_are_noted() -> None:
    run = run_load(QUEUE, ONE, Load(kind="poisson", rate=150.0), requests=300)
    assert any(note.startswith("Not steady: in 1 of 1 runs") for note in run.notes)
    late = Recorder(lambda _call, _index, timing: replace(timing, due_s=(timing.due_s or 0) - 0.03))
    (note,) = run_load(late, ONE, POISSON, requests=30).notes
    assert note.startswith("The client was late: in 1 of 1 runs one request in a hundred left 30 ms")
    other = Recorder(lambda _call, _index, timing: replace(timing, prompt_tokens=33))
    assert run_load(other, ONE, POISSON, requests=30).notes == (
        "The server counted other prompt lengths than were sent in 30 requests.",
    )
    one = Recorder(lambda call, index, timing: replace(timing, error="gone") if (call, index) == (1, 9) else timing)
    assert run_load(one, ONE, POISSON, requests=30).notes == ("1 requests failed and are left out of the figures.",)


def test_a_sweep_finds_the_rate_and_runs_its_first_again() -> None:
    engine = Recorder()
    load = Load(kind="sweep", limits=Limits(max_latency_s=0.02, percentile=90))
    run = run_load(engine, ONE, load, requests=400)
    assert run.sweep is not None
    best = run.sweep.best
    assert best is not None
    # One server at 10 ms: waits stay below 10 ms for nine in ten up to a load of some 0.4, and all rates are below 100.
    assert 30 < best.rate < 60
    assert run.timings == (best.timings,)
    assert run.sweep.trials[0].rate == pytest.approx(0.5 / 0.01)
    first, last = engine.calls[1][0], engine.calls[-1][0]
    assert [request.at_s for request in first] == [request.at_s for request in last]
    assert [request.prompt for request in first] != [request.prompt for request in last]
    assert run.drift_pct == pytest.approx(0, abs=1e-6)


def test_a_sweep_that_nothing_passes_is_a_fact_with_its_reason() -> None:
    load = Load(kind="sweep", limits=Limits(max_latency_s=0.005))
    with pytest.raises(Unsupported, match=r"No rate keeps to the limits; even at .* p95 of the latency is 0\.01 s"):
        run_load(QUEUE, ONE, load, requests=20)
    with pytest.raises(BitworthError, match="needs a limit"):
        run_load(QUEUE, ONE, Load(kind="sweep"))


def test_a_sweep_that_the_client_ends_says_so() -> None:
    def held_up(call: int, _: int, timing: Timing) -> Timing:
        busy = timing.due_s is not None and call in (2, 3)  # the second and third rate
        return replace(timing, due_s=timing.start_s - 0.05) if busy else timing

    load = Load(kind="sweep", limits=Limits(max_latency_s=10.0))
    run = run_load(Recorder(held_up, FakeGenerator(decode_s=0.0025)), ONE, load, requests=20)
    assert any("the client, not the server, set the limit" in note for note in run.notes)
    free = run_load(FakeGenerator(decode_s=0.0025), ONE, load, requests=20)
    assert "No rate that was tried broke the limits: the server may take more." in free.notes
