"""Metrics against numpy's percentiles, scipy's distributions and formulas written out as loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.errors import WorkFailed
from bitworth.load.chunks import pack
from bitworth.load.metrics import (
    BATCHES,
    TREND,
    keeps_to,
    metrics_of,
    per_output_token,
    spread,
    steady,
    succeeded,
)
from bitworth.load.rates import batches, busy, few_batches
from bitworth.types import Limits, Timing


def request(
    start_s: float, token_times_s: Sequence[float], *, due_s: float | None = None, error: str | None = None
) -> Timing:
    """A request whose tokens came one by one, at so many seconds after its start."""
    return Timing(
        start_s=start_s,
        first_token_s=start_s + token_times_s[0],
        end_s=start_s + token_times_s[-1],
        prompt_tokens=10,
        output_tokens=len(token_times_s),
        due_s=due_s,
        error=error,
        chunks=pack(token_times_s, range(1, len(token_times_s) + 1)),
    )


def latencies(values: Sequence[float], *, every_s: float = 1.0) -> list[Timing]:
    return [request(index * every_s, [value]) for index, value in enumerate(values)]


GAPS = st.lists(st.lists(st.integers(1, 3_000_000), min_size=1, max_size=20), min_size=1, max_size=20)


@settings(max_examples=60)
@given(GAPS)
def test_every_figure_is_the_naive_one(micros: list[list[int]]) -> None:
    answers = [np.cumsum(gaps) / 1e6 for gaps in micros]
    timings = [request(0.25 * index, times.tolist()) for index, times in enumerate(answers)]
    found = metrics_of(timings)

    latency = [times[-1] for times in answers]
    assert found.latency.mean_s == pytest.approx(sum(latency) / len(latency))
    for percent in (50, 90, 95, 99):
        assert found.latency.at(percent) == pytest.approx(np.percentile(latency, percent))
        assert found.first_token is not None
        assert found.first_token.at(percent) == pytest.approx(np.percentile([t[0] for t in answers], percent))

    gaps = [later - earlier for times in answers for earlier, later in pairwise(times)]
    assert (found.inter_token is None) == (not gaps)
    if found.inter_token is not None:
        assert found.inter_token.count == len(gaps)
        assert found.inter_token.mean_s == pytest.approx(sum(gaps) / len(gaps), abs=1e-6)
        assert found.inter_token.at(95) == pytest.approx(np.percentile(gaps, 95), abs=2e-6)
    shares = [(times[-1] - times[0]) / (len(times) - 1) for times in answers if len(times) > 1]
    if shares:
        assert found.per_output_token is not None
        assert found.per_output_token.at(90) == pytest.approx(np.percentile(shares, 90), abs=1e-9)

    seconds = max(0.25 * index + times[-1] for index, times in enumerate(answers))
    assert found.seconds == pytest.approx(seconds)
    each = naive_pace([0.25 * index for index in range(len(answers))], latency)
    rate = len(answers) / seconds if each is None else 1 / each
    assert found.queries_per_second == pytest.approx(rate)
    assert found.output_tokens_per_second == pytest.approx(rate * sum(map(len, answers)) / len(answers))
    assert found.prompt_tokens_per_second == pytest.approx(10 * rate)


def naive_pace(starts: Sequence[float], latency: Sequence[float]) -> float | None:
    """Seconds a request from tenth to tenth, or from one to the next of fewer than ten; the first tenths are larger."""
    count, tenths, ends = len(starts), min(10, len(starts)), [s + lat for s, lat in zip(starts, latency, strict=True)]
    if len(set(ends)) < 2:
        return None
    came, left, at, before = [], [], 0, None
    for number in range(tenths):
        size = count // tenths + (number < count % tenths)
        middle = at + (size - 1) / 2
        now = middle, sum(starts[at : at + size]) / size, sum(ends[at : at + size]) / size
        if before is not None:
            came.append((now[1] - before[1]) / (now[0] - before[0]))
            left.append((now[2] - before[2]) / (now[0] - before[0]))
        at, before = at + size, now
    return max(sum(came), sum(left)) / len(came)


def closed_loop(durations: Sequence[float], streams: int) -> list[Timing]:
    """Requests of these durations, each sent when the first of the streams is free."""
    free, timings = [0.0] * streams, []
    for duration in durations:
        start = min(free)
        free[free.index(start)] = start + duration
        timings.append(request(start, [duration]))
    return timings


@given(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**32))
def test_a_loops_rate_is_that_of_busy_streams(streams: int, rounds: int, seed: int) -> None:
    """Oracle: a grid of moments, at each the share of every request that is answered in it."""
    durations = np.random.default_rng(seed).uniform(0.5, 2.0, streams * rounds)
    timings = closed_loop(durations.tolist(), streams)
    last = max(timing.start_s for timing in timings)
    began, ended = busy(timings, streams)
    assert began == 0
    assert ended == min(timing.end_s for timing in timings if timing.end_s > last)
    at = np.linspace(began, ended, 4001)
    middles = (at[1:] + at[:-1]) / 2
    counted = sum(((t.start_s <= middles) & (middles < t.end_s)) / t.latency_s for t in timings)
    found = metrics_of(timings, streams=streams)
    assert found.queries_per_second == pytest.approx(float(np.mean(counted)), rel=0.02)
    assert found.output_tokens_per_second == pytest.approx(found.queries_per_second)


def test_a_loop_that_runs_dry_answers_no_less() -> None:
    """Streams out of step, each request a second: so many a second, however few there are."""
    firsts = [0.25, 0.5, 0.75, 1.0]
    timings = closed_loop([*firsts, *[1.0] * 9], 4)
    assert metrics_of(timings, streams=4).queries_per_second == pytest.approx(len(timings[4:]) / 2.25, rel=0.3)
    steady_rounds = timings[4:]
    assert metrics_of(steady_rounds, streams=4).queries_per_second == pytest.approx(4.0)
    assert len(steady_rounds) / (steady_rounds[-1].end_s - steady_rounds[0].start_s) < 3.2


def test_a_loop_of_fewer_requests_than_streams_counts_whole() -> None:
    timings = [request(0.0, [1.0]), request(0.0, [2.0])]
    assert metrics_of(timings, streams=4).queries_per_second == metrics_of(timings).queries_per_second == 1.0


def test_failed_requests_keep_a_stream_busy() -> None:
    timings = closed_loop([1.0] * 8, 2)
    timings[4] = replace(timings[4], error="HTTP 500")
    assert metrics_of(timings, streams=2).queries_per_second == pytest.approx(7 / 4)


def test_chunks_of_several_tokens_share_their_gap() -> None:
    timing = replace(request(0, [0.1, 0.4]), output_tokens=5, chunks=pack([0.1, 0.4], [2, 5]))
    found = metrics_of([timing])
    assert found.inter_token is not None
    assert (found.inter_token.count, found.tokens_per_chunk) == (3, 2.5)
    assert found.inter_token.at(99) == pytest.approx(0.1)
    assert per_output_token(timing) == pytest.approx(0.3 / 4)


def test_failed_requests_count_as_failed_and_nowhere_else() -> None:
    good = latencies([1.0] * 9)
    found = metrics_of([*good, request(0, [500.0], error="HTTP 500")])
    assert (found.requests, found.failed, found.latency.mean_s) == (9, 1, pytest.approx(1.0))
    assert found.seconds == pytest.approx(9.0)


def test_what_an_engine_does_not_tell_is_none() -> None:
    bare = Timing(start_s=0, first_token_s=None, end_s=2, prompt_tokens=3, output_tokens=4)
    found = metrics_of([bare])
    assert (found.first_token, found.inter_token, found.per_output_token, found.late) == (None,) * 4
    assert found.tokens_per_chunk is None
    assert spread([]) is None
    with pytest.raises(ValueError, match="at least one"):
        metrics_of([replace(bare, error="gone")])


def test_lateness_is_the_start_after_its_time() -> None:
    timings = [request(index + (0.02 if index % 2 else -1e-6), [0.1], due_s=float(index)) for index in range(20)]
    found = metrics_of(timings)
    assert found.late is not None
    assert found.late.mean_s == pytest.approx(0.01)
    assert found.late.at(99) == pytest.approx(0.02)
    assert found.client_was_late
    on_time = metrics_of([replace(timing, due_s=timing.start_s) for timing in timings])
    assert not on_time.client_was_late


@given(st.integers(1, 30), st.integers(0, 30))
def test_a_tenth_may_fail(good: int, bad: int) -> None:
    timings = [*latencies([1.0] * good), *(request(0, [1.0], error="HTTP 500") for _ in range(bad))]
    if 10 * bad <= good + bad:
        assert succeeded(timings) == timings[:good]
    else:
        with pytest.raises(WorkFailed, match=f"^{bad} of {good + bad} requests failed: HTTP 500"):
            succeeded(timings)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(max_latency_s=1.0), True),
        (Limits(max_latency_s=0.99), False),
        (Limits(max_first_token_s=0.4, max_inter_token_s=0.3), True),
        (Limits(max_first_token_s=0.39), False),
        (Limits(max_inter_token_s=0.29), False),
        (Limits(), True),
    ],
)
def test_a_request_keeps_to_every_limit_or_not(limits: Limits, kept: bool) -> None:
    timing = request(0.0, [0.40, 0.70, 1.00 - 1e-9])
    assert keeps_to(timing, limits) is kept
    assert not keeps_to(replace(timing, error="late"), limits)


def test_one_token_has_no_gap_to_limit() -> None:
    assert keeps_to(request(0, [0.1]), Limits(max_inter_token_s=1e-9))


def test_a_queue_that_builds_up_is_not_steady() -> None:
    noise = np.random.default_rng(1).normal(0, 0.02, 200)
    flat, rising = 1 + noise, np.linspace(1, 2, 200) + noise
    assert steady(latencies(flat.tolist())) is True
    assert steady(latencies(rising.tolist())) is False
    assert steady(latencies(rising[::-1].tolist())) is False
    assert steady(latencies([1.0] * 19)) is None
    # A trend that is certain but small is not worth a word.
    assert steady(latencies(np.linspace(1, 1.05, 200).tolist())) is True


def test_steady_runs_are_seldom_called_unsteady() -> None:
    generator = np.random.default_rng(2)
    wrong = sum(steady(latencies(generator.gamma(4, 0.25, 60).tolist())) is False for _ in range(500))
    assert wrong <= 0.02 * 500  # the test's level is 1 %, and the change must be large besides


def test_the_trends_threshold_is_the_permutations() -> None:
    generator, order = np.random.default_rng(3), np.arange(BATCHES)
    shuffled = generator.permuted(np.tile(order, (20_000, 1)), axis=1)
    middle = order - order.mean()
    found = (shuffled - order.mean()) @ middle / (middle @ middle)  # of permutations, which vary alike
    assert np.mean(np.abs(found) > TREND) == pytest.approx(0.01, abs=0.003)


def test_the_order_of_starts_counts_not_that_of_the_list() -> None:
    rising = latencies(np.linspace(1, 2, 100).tolist())
    shuffled = [rising[index] for index in np.random.default_rng(0).permutation(100)]
    assert steady(shuffled) is False


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.one_of(st.none(), st.integers(1, 20)))
def test_batches_hold_each_request_once_in_order_and_as_many_as_the_streams_and_a_tenth(
    starts: list[float], streams: int | None
) -> None:
    timings = [Timing(start_s=at, first_token_s=None, end_s=at + 1, prompt_tokens=1, output_tokens=1) for at in starts]
    found = batches(timings, streams)
    assert [timing.start_s for batch in found for timing in batch] == sorted(starts)
    sizes = {len(batch) for batch in found}
    assert max(sizes) - min(sizes) <= 1
    alone = len(starts) if streams == 1 else min(10, len(starts) // (streams or 2))
    assert len(found) == max(1, alone)


def test_few_batches_are_called_so() -> None:
    assert (
        few_batches(8, 64) == "8 requests in 64 streams are one batch, so costs have no interval; 320 requests would do"
    )
    assert (
        few_batches(39, 8)
        == "39 requests in 8 streams are 4 batches, so costs have wide intervals; 40 requests would do"
    )
    assert few_batches(40, 8) is few_batches(2, 1) is few_batches(2, None) is None
