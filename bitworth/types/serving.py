"""Use cases, loads, timings, devices, and what a query costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Source = Literal["measured", "predicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure, its 95 % interval, and whether it was measured or predicted; an unknown bound is infinite."""

    value: float
    low: float
    high: float
    origin: Source = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCase:
    """A request's shape in tokens. `scale` says how much smaller it is than the paper's; 1 means as published."""

    name: str
    prompt_tokens: int
    output_tokens: int
    scale: float = 1.0

    def scaled(self, factor: float) -> UseCase:
        """The same shape with both lengths times `factor`, rounded up to a whole token."""
        return UseCase(
            name=self.name,
            prompt_tokens=max(1, math.ceil(self.prompt_tokens * factor)),
            output_tokens=max(1, math.ceil(self.output_tokens * factor)),
            scale=self.scale * factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a percentile of the requests of a rate must keep to, in seconds; None means no limit."""

    max_first_token_s: float | None = None
    max_inter_token_s: float | None = None
    max_latency_s: float | None = None
    percentile: float = 95.0

    @property
    def words(self) -> str:
        """`p95 of first token <= 0.5 s`."""
        rows = (
            ("first token", self.max_first_token_s),
            ("inter-token", self.max_inter_token_s),
            ("latency", self.max_latency_s),
        )
        return f"p{self.percentile:g} of " + ", ".join(f"{name} <= {most:g} s" for name, most in rows if most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests arrive: one at a time, as many as `streams` at once, or at `rate` a second.

    `sweep` looks for the highest Poisson rate that keeps to `limits`; a `trace` has its own times.
    """

    kind: Literal["synchronous", "throughput", "constant", "poisson", "sweep", "trace"]
    rate: float | None = None
    streams: int | None = None
    limits: Limits | None = None

    @property
    def name(self) -> str:
        """`throughput (8 streams)`, `constant@4`, `sweep (p95 of first token <= 0.5 s)`, or the kind alone.

        Loads that ask for different things have different names: rows of a study are told apart by them.
        """
        if self.limits is not None:
            return f"{self.kind} ({self.limits.words})"
        if self.kind == "throughput" and self.streams is not None:
            return f"{self.kind} ({self.streams} stream{'s' if self.streams > 1 else ''})"
        return self.kind if self.rate is None else f"{self.kind}@{self.rate:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One request of a trace or a mix: its tokens, and when it comes, in seconds since the run began."""

    prompt_tokens: int
    output_tokens: int
    at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt (token ids) to send, how many tokens to ask for, and when; without a time it waits for a stream."""

    prompt: Sequence[int]
    output_tokens: int
    at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One request on the client's monotonic clock, in seconds since the run began.

    `due_s` is when it should have started, where a rate or a trace says so. `chunks` holds when its tokens came, packed
    by `bitworth.load.chunks`; it is empty where only the first and the last are known.
    """

    start_s: float
    first_token_s: float | None
    end_s: float
    prompt_tokens: int
    output_tokens: int
    error: str | None = None
    due_s: float | None = None
    chunks: str = ""

    @property
    def latency_s(self) -> float:
        """From sending to the last token."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A device and its price; rates are dense operations a second by number format ('bf16', 'fp8', 'int8').

    `processors` counts what share the work on a chip (streaming multiprocessors, compute units), `clock_ghz` is their
    greatest clock, `link_gb_s` what one device sends to its neighbours in one direction. `capability` is what kernels
    are built for: CUDA's compute capability (`8.6`), AMD's target (`gfx942`), or a processor's widest instruction set
    (`avx512f`, `avx512_vnni` where it also multiplies 8-bit integers without overflow).
    """

    name: str
    count: int = 1
    usd_per_hour: float
    memory_gib: float
    bandwidth_gb_s: float | None = None
    tera_ops: Mapping[str, float] = field(default_factory=dict)
    processors: int | None = None
    clock_ghz: float | None = None
    link_gb_s: float | None = None
    price_source: str = ""
    capability: str | None = None

    @property
    def words(self) -> str:
        """`2 x A100`."""
        return f"{self.count} x {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What produced a figure; it travels with the figure to the page the user reads.

    `served` is what a server calls the model that wrote, where that is not the name of the checkpoint's folder.
    """

    engine: str
    kernel: str
    device: str
    versions: Mapping[str, str] = field(default_factory=dict)
    served: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """What a sweep saw at one rate of requests a second, and whether that kept to the limits; seconds."""

    rate: float
    queries_per_second: float
    latency_p50_s: float
    latency_p95_s: float
    first_token_p95_s: float | None
    keeps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What an engine did under a load: one Timing a request (warm-up left out), and what produced them.

    Each repeat is a run with a clock of its own; most measurements have one. A sweep's run is that of its best rate,
    `rates` what it saw at each.
    """

    runs: tuple[tuple[Timing, ...], ...]
    facts: EngineFacts
    rates: tuple[RatePoint, ...] = ()

    @property
    def timings(self) -> tuple[Timing, ...]:
        """Those of all runs."""
        return tuple(timing for run in self.runs for timing in run)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryCost:
    """One format under one use case and load on one hardware row; `unsupported` says why there is no figure.

    Latencies are means (seconds) unless named otherwise; the interval is 95 %. `figures` holds seconds with their
    intervals by name, such as `latency_mean`, `first_token_p95`, `per_output_token_p99` (`quantity_statistic`);
    `rates` is what a sweep saw on its way.
    """

    format: str
    use_case: UseCase
    load: str
    hardware: str
    count: int
    usd_per_hour: float
    latency_s: float | None = None
    latency_p90_s: float | None = None
    first_token_s: float | None = None
    queries_per_second: float | None = None
    queries_per_usd: float | None = None
    ci95_queries_per_usd: tuple[float, float] | None = None
    requests: int = 0
    source: Source = "measured"
    facts: EngineFacts | None = None
    unsupported: str | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    rates: tuple[RatePoint, ...] = ()
