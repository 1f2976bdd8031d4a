"""A workload under a load on a running engine: warm-up, repeats, the check whether anything drifted meanwhile.

    run = run_load(generator, workload, Load(kind="poisson", rate=4), requests=100, repeats=3)
    run.metrics[0].first_token.at(95)

Before anything counts, `warmup` requests run alone. Under loads with several requests at once, a tenth more requests
(in closed loops a whole number for each stream) are sent at the start of each run and left out too: the first of them
meet an empty server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitworth.engines.generator import Driver, Generator, Progress, Replayer
from bitworth.engines.schedule import arrivals, loop_of, streams_of
from bitworth.errors import BitworthError, Unsupported
from bitworth.load import goodput
from bitworth.load.metrics import Metrics, metrics_of, succeeded
from bitworth.load.prompts import ANY_VOCABULARY, Prompts, unseen_seed
from bitworth.load.rates import few_batches, ramp_of
from bitworth.load.telemetry import GpuMeter
from bitworth.load.traces import Workload
from bitworth.types import EngineFacts, Limits, Load, Measurement, Request, Shape, Timing

#: Mean latencies of the first cell, at the beginning and at the end, that differ by more than this and by more than so
#: many standard errors: something drifted.
DRIFT, ERRORS = 0.05, 3.0
#: A sweep starts at this share of the rate at which requests would just follow one another.
START = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """What was measured: the timings and metrics of each repeat, of a sweep's best rate, and the sweep.

    `drift_pct` says by how much the mean latency of the first cell had changed when it was run again at the end (the
    last repeat, or a sweep's first rate with the same arrivals), None where it ran once; `notes` are doubts about the
    figures, in sentences.
    """

    workload: Workload
    load: Load
    timings: tuple[tuple[Timing, ...], ...]
    metrics: tuple[Metrics, ...]
    facts: EngineFacts
    sweep: goodput.Sweep | None = None
    drift_pct: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def measurement(self) -> Measurement:
        """What was measured, without its metrics and doubts."""
        rates = self.sweep.points if self.sweep is not None else ()
        return Measurement(runs=self.timings, facts=self.facts, rates=rates)


def run_load(
    generator: Generator | Driver,
    workload: Workload,
    load: Load,
    *,
    requests: int = 100,
    warmup: int = 1,
    repeats: int = 1,
    seed: int = 0,
    vocabulary: Sequence[int] = ANY_VOCABULARY,
    meter_gpu: bool = False,
    progress: Progress | None = None,
) -> LoadRun:
    """Measure; every repeat has prompts and arrival times of its own.

    Args:
        generator: the engine, running, or another client that drives one.
        workload: what is asked.
        load: how requests arrive.
        requests: how many count, a repeat and a rate.
        warmup: how many run alone before.
        repeats: how often all of it is measured; a sweep searches once.
        seed: of shapes and arrivals; prompts are new each time (see `prompts`).
        vocabulary: ids that prompts are drawn from.
        meter_gpu: whether the GPUs of this machine are the engine's.
        progress: called with (requests done, total) in each run.

    Raises:
        BitworthError: nothing to measure, or a sweep without limits.
        Unsupported: the engine cannot take this load or workload, or no rate keeps to the limits.
        WorkFailed: the engine died, or more than a tenth of the requests failed.
    """
    if requests < 1 or warmup < 0 or repeats < 1:
        raise BitworthError("A benchmark needs at least 1 request and 1 repeat, and no negative warm-up.")
    runner = _Runner(generator, workload, Prompts(vocabulary, seed=unseen_seed()), seed, progress)
    alone = runner.warm_up(warmup)
    if (load.kind == "trace") != bool(workload.trace):
        raise BitworthError("A trace is replayed at its own times, and only a trace can be.")
    if load.kind == "sweep":
        return _sweep(runner, load, requests, alone)
    timings, metrics = [], []
    for _ in range(repeats):
        with GpuMeter(on=meter_gpu) as meter:
            timings.append(runner.run(load, requests))
            meter.requests = runner.answered
        succeeded(timings[-1])
        metrics.append(metrics_of(timings[-1], streams=loop_of(load), gpu=meter.use))
    return LoadRun(
        workload=workload,
        load=load,
        timings=tuple(map(tuple, timings)),
        metrics=tuple(metrics),
        facts=generator.facts,
        drift_pct=_drift_pct(metrics[0], metrics[-1]) if repeats > 1 else None,
        notes=tuple(_notes(runner, metrics, (metrics[0], metrics[-1]), loop_of(load))),
    )


class _Runner:
    """Sends runs of requests, none of whose prompts or arrival times come twice."""

    def __init__(
        self, generator: Generator | Driver, workload: Workload, prompts: Prompts, seed: int, progress: Progress | None
    ) -> None:
        self.generator, self.workload = generator, workload
        self._prompts, self._seed, self._progress = prompts, seed, progress
        self.miscounted = self.runs = 0
        #: Of the last run's requests, those that do not count included.
        self.answered = 0

    def warm_up(self, count: int) -> list[Timing]:
        """Requests that run alone."""
        if not count:
            return []
        if isinstance(self.generator, Driver):
            return self._driven(Load(kind="synchronous"), count, self._seed)
        shapes = self.workload.shapes(count, seed=self._seed)[:count]
        return self._send([Shape(prompt_tokens=s.prompt_tokens, output_tokens=s.output_tokens) for s in shapes], 1)

    def run(self, load: Load, count: int, *, again: int | None = None) -> list[Timing]:
        """A run under the load; only the requests that count come back.

        `again` is the number of an earlier run whose shapes and arrivals to take; prompts are new all the same.
        """
        seed = self._seed + (self.runs if again is None else again)
        self.runs += again is None
        several = load.kind != "synchronous" and isinstance(self.generator, Replayer | Driver)
        ramp = ramp_of(count, loop_of(load)) if several else 0
        if isinstance(self.generator, Driver):
            timings = self._driven(load, ramp + count, seed)
            self.answered = _answered(timings)
            return timings[ramp:]
        ramp = 0 if self.workload.trace else ramp
        shapes = self.workload.trace or self._shapes(load, ramp + count, seed)
        timings = self._send(shapes, streams_of(load), self._progress)
        self.answered = _answered(timings)
        return self._counted(timings[ramp:], shapes[ramp:])

    def _shapes(self, load: Load, count: int, seed: int) -> Sequence[Shape]:
        """Requests of the workload at the load's times, where it has any."""
        shapes = self.workload.shapes(count, seed=seed)
        if load.rate is None:
            return shapes
        times = arrivals(load, len(shapes), seed)
        return [
            Shape(prompt_tokens=shape.prompt_tokens, output_tokens=shape.output_tokens, at_s=at)
            for shape, at in zip(shapes, times, strict=True)
        ]

    def _driven(self, load: Load, count: int, seed: int) -> list[Timing]:
        if len(self.workload.parts) != 1 or not isinstance(self.generator, Driver):
            raise Unsupported("GuideLLM is driven through one use case here, not a mix or a trace.")
        return self.generator.drive(self.workload.use_case, load, count, seed)

    def _send(self, shapes: Sequence[Shape], streams: int, progress: Progress | None = None) -> list[Timing]:
        requests = [
            Request(prompt=self._prompts.draw(s.prompt_tokens), output_tokens=s.output_tokens, at_s=s.at_s)
            for s in shapes
        ]
        assert not isinstance(self.generator, Driver)
        if isinstance(self.generator, Replayer):
            return self.generator.replay(requests, streams, progress)
        lengths = {(s.prompt_tokens, s.output_tokens) for s in shapes}
        if len(lengths) > 1 or any(s.at_s is not None for s in shapes):
            raise Unsupported(
                f"The engine {self.generator.facts.engine} runs requests of one length, alone or in batches, not a "
                "rate, a mix or a trace; use --engine vllm or the URL of a server."
            )
        load = Load(kind="throughput", streams=streams) if streams > 1 else Load(kind="synchronous")
        return self.generator.run([request.prompt for request in requests], shapes[0].output_tokens, load, progress)

    def _counted(self, timings: list[Timing], shapes: Sequence[Shape]) -> list[Timing]:
        """Take note of prompts that the server counts otherwise."""
        pairs = zip(timings, shapes, strict=True)
        self.miscounted += sum(t.error is None and t.prompt_tokens != s.prompt_tokens for t, s in pairs)
        return timings


def _sweep(runner: _Runner, load: Load, requests: int, alone: Sequence[Timing]) -> LoadRun:
    limits = load.limits or Limits()
    goodput.check(limits)
    alone = succeeded(alone or runner.warm_up(1))
    start = START * len(alone) / sum(timing.latency_s for timing in alone)
    count = max(requests, goodput.requests_for(limits))

    def run(rate: float) -> list[Timing]:
        return runner.run(Load(kind="poisson", rate=rate), count)

    found = goodput.sweep(run, limits, start_rate=start)
    best = found.best
    if best is None or best.metrics is None:
        least = min(found.trials, key=lambda trial: trial.rate)
        why = "; ".join(least.broken) or least.void
        raise Unsupported(f"No rate keeps to the limits; even at {least.rate:.3g} requests a second {why}.")
    last = metrics_of(succeeded(runner.run(Load(kind="poisson", rate=start), count, again=0)))
    first = found.trials[0].metrics or last
    return LoadRun(
        workload=runner.workload,
        load=load,
        timings=(best.timings,),
        metrics=(best.metrics,),
        facts=runner.generator.facts,
        sweep=found,
        drift_pct=_drift_pct(first, last),
        notes=(*_notes(runner, [best.metrics], (first, last)), *_sweep_notes(found)),
    )


def _sweep_notes(found: goodput.Sweep) -> list[str]:
    late = [trial for trial in found.trials if trial.void]
    if found.best is not None and late and min(trial.rate for trial in late) < 2 * found.best.rate:
        return [f"At {late[0].rate:.3g} requests a second {late[0].void}: the client, not the server, set the limit."]
    if all(trial.passes for trial in found.trials):
        return ["No rate that was tried broke the limits: the server may take more."]
    return []


def _notes(
    runner: _Runner, metrics: Sequence[Metrics], ends: tuple[Metrics, Metrics], loop: int | None = None
) -> list[str]:
    """Doubts about the figures."""
    notes = []
    late = [row.late.at(99) for row in metrics if row.client_was_late and row.late is not None]
    if late:
        notes.append(
            f"The client was late: in {len(late)} of {len(metrics)} runs one request in a hundred left "
            f"{1000 * max(late):.0f} ms or more after its time."
        )
    unsteady = sum(row.steady is False for row in metrics)
    if unsteady:
        notes.append(
            f"Not steady: in {unsteady} of {len(metrics)} runs the latency rose or fell all the way; with a longer "
            "run the figures would be others."
        )
    if few := few_batches(sum(row.requests for row in metrics), loop):
        notes.append(f"{few}.")
    if _drifted(*ends):
        notes.append(f"Drift: at the end the first cell's mean latency had changed by {_drift_pct(*ends):+.0f} %.")
    if runner.miscounted:
        notes.append(f"The server counted other prompt lengths than were sent in {runner.miscounted} requests.")
    failed = sum(row.failed for row in metrics)
    if failed:
        notes.append(f"{failed} requests failed and are left out of the figures.")
    return notes


def _answered(timings: Sequence[Timing]) -> int:
    return sum(timing.error is None for timing in timings)


def _drift_pct(first: Metrics, last: Metrics) -> float:
    return 100 * (last.latency.mean_s / first.latency.mean_s - 1)


def _drifted(first: Metrics, last: Metrics) -> bool:
    """Whether the mean latency changed beyond noise; too few requests to know the noise are all noise."""
    if first.latency_error_s is None or last.latency_error_s is None:
        return False
    change = abs(last.latency.mean_s - first.latency.mean_s)
    error = math.hypot(first.latency_error_s, last.latency_error_s)
    return change > ERRORS * error and change > DRIFT * first.latency.mean_s
