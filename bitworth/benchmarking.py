"""Benchmark: synthetic requests through an engine, one Timing each, and what those cost on a hardware row (section 5).

measurement = measure(Path("w4a16"), use_case("rag"), Load(kind="synchronous"), engine="vllm")
cost_of("w4a16", measurement, use_case("rag"), Load(kind="synchronous"), hardware("A6000"))
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bitworth.engines import open_generator
from bitworth.engines.generator import Generator, Progress
from bitworth.engines.schedule import loop_of
from bitworth.errors import BitworthError, Unsupported
from bitworth.hardware import is_this_machine
from bitworth.load.metrics import succeeded
from bitworth.load.percentiles import latency_figures
from bitworth.load.prompts import ANY_VOCABULARY, ordinary_tokens
from bitworth.load.rates import SHARED, answered, batches, pace
from bitworth.load.run import run_load
from bitworth.load.traces import Workload
from bitworth.statistics import mean_factor
from bitworth.types import Hardware, Load, Measurement, QueryCost, Timing, UseCase


def benchmark(
    checkpoint: Path,
    use_case: UseCase,
    load: Load,
    *,
    hardware: Hardware,
    engine: str = "torch",
    requests: int = 8,
    warmup: int = 1,
    format: str = "checkpoint",
    seed: int = 0,
    progress: Progress | None = None,
) -> QueryCost:
    """Measure a checkpoint here and price it as `hardware`; see `measure` and `cost_of`.

    A format that the engine cannot run here gives a QueryCost that says so.

    Raises:
        BitworthError: `hardware` is another machine than this one, or see `measure`.
    """
    check_hardware(hardware, engine)
    try:
        measurement = measure(
            checkpoint, use_case, load, engine=engine, requests=requests, warmup=warmup, seed=seed, progress=progress
        )
    except Unsupported as reason:
        return cost_of(format, None, use_case, load, hardware, unsupported=str(reason))
    return cost_of(format, measurement, use_case, load, hardware)


def check_hardware(hardware: Hardware, engine: str) -> None:
    """Refuse to price as `hardware` what runs on another machine; where a server at a URL runs is the user's to say.

    Raises:
        BitworthError: see above.
    """
    if not engine.startswith(("http://", "https://")) and not is_this_machine(hardware):
        raise BitworthError(
            f"This machine is not {hardware.count} x {hardware.name}, so its figures cannot be measured here; "
            "run there, or use hardware `local` with your own price."
        )


def measure(
    checkpoint: Path | Generator,
    asked: UseCase | Workload,
    load: Load,
    *,
    engine: str = "torch",
    requests: int = 8,
    warmup: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Time synthetic requests; see `run_load`, which says what comes first and is left out.

    A sweep gives the requests of the highest rate that keeps to its limits.

    Args:
        checkpoint: a model folder, or an engine that is running already.
        asked: prompt and output tokens of every request, or a mix or a trace.
        load: how requests arrive.
        engine: see `engines.open_generator`.
        requests: how many count.
        warmup: how many come before, one at a time.
        seed: of shapes and arrivals; prompts are new each time.
        progress: called with (requests done, total).

    Raises:
        BitworthError: nothing to measure, a folder without a vocabulary, or no such engine.
        Unsupported: the engine cannot run the format or the load here.
        WorkFailed: the engine died, or more than a tenth of the requests failed.
    """
    if requests < 1 or warmup < 0:
        raise BitworthError(
            f"A benchmark needs at least 1 request and no negative warm-up, not {requests} and {warmup}."
        )
    vocabulary = ordinary_tokens(checkpoint) if isinstance(checkpoint, Path) else ANY_VOCABULARY
    workload = asked if isinstance(asked, Workload) else Workload(name=asked.name, parts=((asked, 1.0),))
    with ExitStack() as stack:
        generator = (
            stack.enter_context(open_generator(engine, checkpoint, context_tokens=workload.context_tokens))
            if isinstance(checkpoint, Path)
            else checkpoint
        )
        run = run_load(
            generator, workload, load, requests=requests, warmup=warmup, seed=seed, vocabulary=vocabulary,
            progress=progress,
        )  # fmt: skip
        return run.measurement


def cost_of(
    format: str,
    measurement: Measurement | None,
    use_case: UseCase,
    load: Load,
    hardware: Hardware,
    *,
    unsupported: str | None = None,
) -> QueryCost:
    """Latencies, queries a second and queries a dollar, with its 95 % interval.

    As in the paper, one request at a time gives 3600 / (latency x USD an hour), and any other load 3600 x queries a
    second / USD an hour, where queries a second are those answered while all streams of a closed loop were busy, or
    the pace at which requests at times of their own were answered (`load.rates`); of several runs, the mean of theirs.
    The interval says how far the mean would move with other requests in the same runs (`_spread`), whose batches are
    taken together; requests that all ran together have none.

    Args:
        format: the checkpoint's name in the result.
        measurement: what was measured; None gives a row that only says why.
        use_case: what was asked.
        load: how.
        hardware: whose price counts; the figures must be its own.
        unsupported: why there is no measurement.

    Raises:
        BitworthError: the hardware costs nothing.
        WorkFailed: more than a tenth of the requests failed, or there are none.
    """
    named: dict[str, Any] = {
        "format": format,
        "use_case": use_case,
        "load": load.name,
        "hardware": hardware.name,
        "count": hardware.count,
        "usd_per_hour": hardware.usd_per_hour,
    }
    if hardware.usd_per_hour <= 0:
        raise BitworthError(f"{hardware.name} needs a price above 0 USD an hour.")
    if measurement is None:
        return QueryCost(**named, unsupported=unsupported or "It was not measured.")
    timings = succeeded(measurement.timings)
    runs = [[timing for timing in run if timing.error is None] for run in measurement.runs]
    latencies = [timing.latency_s for timing in timings]
    firsts = [timing.first_token_s - timing.start_s for timing in timings if timing.first_token_s is not None]
    alone = load.kind == "synchronous"
    rate = 1 / float(np.mean(latencies)) if alone else _answered_per_second(measurement, load)
    per_usd = 3600 * rate / hardware.usd_per_hour
    spread = _spread(runs, load)
    return QueryCost(
        **named,
        latency_s=float(np.mean(latencies)),
        latency_p90_s=float(np.quantile(latencies, 0.9)),
        first_token_s=float(np.mean(firsts)) if firsts else None,
        queries_per_second=rate,
        queries_per_usd=per_usd,
        ci95_queries_per_usd=None if spread is None else (per_usd / spread, per_usd * spread),
        requests=len(timings),
        facts=measurement.facts,
        figures=latency_figures(runs, loop_of(load)),
        rates=measurement.rates,
    )


def _answered_per_second(measurement: Measurement, load: Load) -> float:
    """The mean over the runs, each by itself: between two of them the server drains and is empty."""
    found = [answered(run, loop_of(load)) for run in measurement.runs]
    return fmean(float(part.sum()) / seconds for part, seconds in found)


def _spread(runs: Sequence[Sequence[Timing]], load: Load) -> float | None:
    """The factor by which the rate may be lower or higher, at 95 %: that of a mean time which makes the rate.

    - One at a time, a rate is the inverse of the mean latency.
    - With n streams in a closed loop it is n over the mean latency (Little's law). Requests that run together are
      slow together, so it is batches of n that are averaged, and a single batch says nothing.
    - Other loads' is the inverse of the mean pace, from one tenth of the requests to the next.
    """
    streams = loop_of(load)
    if streams is None:
        return mean_factor(np.concatenate([pace(run) for run in runs]).tolist(), inflation=SHARED)
    found = [batch for run in runs for batch in batches(run, streams)]
    return mean_factor([float(np.mean([timing.latency_s for timing in batch])) for batch in found])
