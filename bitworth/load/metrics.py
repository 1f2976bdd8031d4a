"""From timings to serving metrics: latencies by percentile, rates, what they cost, and whether the run can be trusted.

Definitions, with t0 the moment a request went out, t1 ... tn the moments its n tokens came (docs/load.md):

    latency                 tn - t0
    time to first token     t1 - t0
    inter-token latency     the gap of a chunk over its tokens, once a token: all tokens after the first chunk, pooled
    time per output token   (tn - t1) / (n - 1), once a request
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitworth.errors import WorkFailed
from bitworth.load.chunks import token_gaps, unpack
from bitworth.load.rates import answered
from bitworth.load.telemetry import GpuUse
from bitworth.types import Limits, Timing

Floats = NDArray[np.float64]

#: Failed requests are left out of the figures, up to this share of them.
MOST_FAILED = 0.1
PERCENTILES = (50, 90, 95, 99)
#: A request of an open load that leaves later than this was held up by the client, at the 99th percentile.
LATE_S = 0.010
#: Batches of requests whose mean latencies are compared in order; fewer requests a batch than this say nothing.
BATCHES, LEAST_BATCH = 10, 2
#: Spearman's rank correlation of 10 values that chance exceeds once in 100, either way (the next possible value above,
#: 0.7818, is reached with probability 0.0098).
TREND = 0.78
#: A trend is worth a word when the last third of the requests is slower or faster by so much.
UNSTEADY = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A quantity over requests or tokens: its mean and percentiles, in seconds."""

    mean_s: float
    percentiles_s: Mapping[int, float]
    count: int

    def at(self, percentile: float) -> float:
        """One of the percentiles that are kept."""
        return self.percentiles_s[int(percentile)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a run of requests says. Failed requests count in `failed` and nowhere else.

    Spreads are None where nothing tells: one token has no gaps, an engine may give no times of single tokens.
    `late` is how much later than its time a request left, of loads with times; `steady` is None where the requests are
    too few to tell. Seconds run from the first request's start to the last one's end.
    """

    requests: int
    failed: int
    seconds: float
    latency: Spread
    first_token: Spread | None
    inter_token: Spread | None
    per_output_token: Spread | None
    late: Spread | None
    tokens_per_chunk: float | None
    queries_per_second: float
    prompt_tokens_per_second: float
    output_tokens_per_second: float
    steady: bool | None
    latency_error_s: float | None
    gpu: GpuUse | None = None

    @property
    def client_was_late(self) -> bool:
        """Whether the client held requests up, so that the load was not the one asked for."""
        return self.late is not None and self.late.at(99) > LATE_S


def succeeded(timings: Sequence[Timing]) -> list[Timing]:
    """Those without an error.

    Raises:
        WorkFailed: there are too few; names the first cause.
    """
    good = [timing for timing in timings if timing.error is None]
    if not good or len(timings) - len(good) > MOST_FAILED * len(timings):
        cause = next((timing.error for timing in timings if timing.error is not None), "none was sent")
        raise WorkFailed(f"{len(timings) - len(good)} of {len(timings)} requests failed: {cause}.")
    return good


def metrics_of(
    timings: Sequence[Timing], *, streams: int | None = None, gpu: GpuUse | None = None, whole: bool = False
) -> Metrics:
    """The metrics of requests sent in one run, of which at least one succeeded.

    Args:
        timings: of the requests that count, warm-up left out.
        streams: of a closed loop, None for requests at times of their own; `rates` says how each is counted.
        gpu: what the GPUs took meanwhile.
        whole: count rates from the first start to the last end, whatever the load was, as GuideLLM does.

    Raises:
        ValueError: none succeeded.
    """
    good = [timing for timing in timings if timing.error is None]
    latency = spread([timing.latency_s for timing in good])
    if latency is None:
        raise ValueError("metrics need at least one request that succeeded")
    seconds = max(t.end_s for t in good) - min(t.start_s for t in good)
    gaps, sizes = [token_gaps(t.chunks) for t in good], [unpack(t.chunks)[1] for t in good]
    chunks = np.concatenate(sizes)
    part, under_load = (np.ones(len(good)), seconds) if whole else answered(timings, streams)
    return Metrics(
        requests=len(good),
        failed=len(timings) - len(good),
        seconds=seconds,
        latency=latency,
        first_token=spread(first_tokens(good)),
        inter_token=spread(np.concatenate(gaps)),
        per_output_token=spread(per_output_tokens(good)),
        late=spread([max(0.0, t.start_s - t.due_s) for t in timings if t.due_s is not None]),
        tokens_per_chunk=float(chunks.mean()) if chunks.size else None,
        queries_per_second=_rate(float(part.sum()), under_load),
        prompt_tokens_per_second=_rate(float(part @ [t.prompt_tokens for t in good]), under_load),
        output_tokens_per_second=_rate(float(part @ [t.output_tokens for t in good]), under_load),
        steady=steady(good),
        latency_error_s=_error(good),
        gpu=gpu,
    )


def spread(values: ArrayLike) -> Spread | None:
    """Mean and percentiles (linear between order statistics, as numpy's); None of nothing."""
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        return None
    found = np.percentile(data, PERCENTILES)
    kept = {percent: float(value) for percent, value in zip(PERCENTILES, found, strict=True)}
    return Spread(mean_s=float(data.mean()), percentiles_s=kept, count=data.size)


def per_output_token(timing: Timing) -> float | None:
    """Seconds a token after the first, of one request; None where it has only one."""
    if timing.first_token_s is None or timing.output_tokens < 2:
        return None
    return (timing.end_s - timing.first_token_s) / (timing.output_tokens - 1)


def first_tokens(timings: Sequence[Timing]) -> list[float]:
    """Seconds to the first token, of the requests that tell."""
    return [timing.first_token_s - timing.start_s for timing in timings if timing.first_token_s is not None]


def per_output_tokens(timings: Sequence[Timing]) -> list[float]:
    """Seconds a token after the first, of the requests that have several."""
    return [found for timing in timings if (found := per_output_token(timing)) is not None]


def keeps_to(timing: Timing, limits: Limits) -> bool:
    """Whether one request keeps to every limit; a failed one does not."""
    if timing.error is not None:
        return False
    first = math.inf if timing.first_token_s is None else timing.first_token_s - timing.start_s
    found = (timing.latency_s, first, per_output_token(timing) or 0.0)
    most = (limits.max_latency_s, limits.max_first_token_s, limits.max_inter_token_s)
    return all(limit is None or value <= limit for value, limit in zip(found, most, strict=True))


def steady(timings: Sequence[Timing]) -> bool | None:
    """Whether latency neither rises nor falls over the run, as it does while a queue builds up or a server warms up.

    The requests, in order of their start, are cut into ten batches. A run is unsteady when the batches' mean latencies
    follow their order (Spearman's rank correlation beyond chance at 1 %) and the last third of the requests is slower
    or faster than the first by a tenth. None: too few requests.
    """
    means = _batches(timings)
    if means is None:
        return None
    ranks = np.argsort(np.argsort(means))
    trend = float(np.corrcoef(ranks, np.arange(BATCHES))[0, 1])
    first, last = thirds(timings)
    return not (abs(trend) > TREND and abs(last / first - 1) > UNSTEADY)


def thirds(timings: Sequence[Timing]) -> tuple[float, float]:
    """Mean latency of the first and of the last third of the requests, in order of their start."""
    first, *_, last = np.array_split(_ordered(timings), 3)
    return float(first.mean()), float(last.mean())


def _ordered(timings: Sequence[Timing]) -> Floats:
    return np.array([t.latency_s for t in sorted(timings, key=lambda timing: timing.start_s)])


def _batches(timings: Sequence[Timing]) -> Floats | None:
    """Mean latencies of ten batches of requests, in order of their start."""
    if len(timings) < BATCHES * LEAST_BATCH:
        return None
    return np.array([part.mean() for part in np.array_split(_ordered(timings), BATCHES)])


def _error(timings: Sequence[Timing]) -> float | None:
    means = _batches(timings)
    return None if means is None else float(means.std(ddof=1)) / math.sqrt(BATCHES)


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else math.inf
