"""Every noun of bitworth, as frozen values that import only the standard library.

A study is planned into cells; a cell quantizes, evaluates or benchmarks; its result is kept in the ledger;
recoveries and costs are computed from results, and a recommendation from those.

>>> W4 = Grid(bits=4, granularity="group", group_size=128)
>>> W4.levels
(-8, 7)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["int", "float"]
Granularity = Literal["tensor", "channel", "group", "token"]
ScaleKind = Literal["float", "e4m3", "e8m0"]
Ordering = Literal["none", "weight", "group"]
Verdict = Literal["holds", "loses", "undecided"]
Source = Literal["measured", "predicted"]
Quantity = Literal["latency", "first_token", "inter_token"]
Statistic = Literal["mean", "p50", "p90", "p95", "p99"]
CellKind = Literal["quantize", "evaluate", "diverge", "benchmark"]
StreamKind = Literal["own", "shared"]
Rule = Literal["auto", "always", "never"]
Estimand = Literal["task", "questions"]

BASELINE = "baseline"
"""The format of the model as it came, which everything is compared with."""
AVERAGE = "average"
"""The task name of a recovery over the plain mean of tasks (paper, section 4)."""
RANDOM_TOKENS, OWN_TEXT = "random", "self"
"""Calibration sources that are no text of the user's: uniform tokens of the vocabulary, and what the model writes."""


# --- number formats -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The numbers a tensor may take: a code times a scale that a tensor, channel, group or token shares.

    `scales` says what a scale may be: a `float` of the model's dtype, an `e4m3` number under a float32 scale of the
    whole tensor (NVFP4), or a power of two, `e8m0` (the microscaling formats).
    """

    bits: int
    kind: Kind = "int"
    granularity: Granularity = "channel"
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False
    scales: ScaleKind = "float"

    @property
    def levels(self) -> tuple[float, float]:
        """Least and greatest code: two's complement for integers, the finite range of E4M3 or E2M1 for floats."""
        if self.kind == "float":
            return (-448.0, 448.0) if self.bits == 8 else (-6.0, 6.0)
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Which grid weights, activations and the key-value cache live on, and which modules stay as they are."""

    name: str
    weight: Grid | None = None
    activation: Grid | None = None
    kv_cache: Grid | None = None
    ignore: tuple[str, ...] = ("lm_head",)

    @property
    def has_static_scales(self) -> bool:
        """True when the checkpoint holds scales of activations, keys or values, which only data can give."""
        activation = self.activation
        stored = activation is not None and (activation.scales == "e4m3" or not activation.dynamic)
        return self.kv_cache is not None or stored

    @property
    def title(self) -> str:
        """The name, and what was done to the key-value cache."""
        return self.name if self.kv_cache is None else f"{self.name}+kv-fp8"


# --- recipes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """MSE-optimal clipping: shrink each scale by p = 1 - i/steps, i < shrink*steps, least sum |q - w|**norm wins."""

    norm: float = 2.4
    shrink: float = 0.80
    steps: int = 100
    hessian_weighted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rtn:
    """Round to nearest."""

    clip: Clip | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq:
    """GPTQ (arXiv 2210.17323): round column by column, spreading each error over the columns still to come.

    Afterwards `sweeps` times the best scales for the codes, then the best codes for the scales (`quantizers.refine`).
    """

    clip: Clip | None = None
    damping: float = 0.01
    block_size: int = 128
    ordering: Ordering = "none"
    sweeps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothQuant:
    """SmoothQuant (arXiv 2211.10438): move scale from activations into weights, s = max|x|**a / max|w|**(1-a)."""

    strength: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq:
    """AWQ (arXiv 2306.00978): search the per-channel scale s = mean|x|**r that loses least at the layer's output."""

    steps: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSource:
    """One source of a mix: a file, `random` or `self`; its share of the samples is its weight over all weights.

    `name` is what reports call it, where that is not the source itself.
    """

    source: str
    weight: float = 1.0
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a data-driven recipe sees: `samples` sequences of `length` tokens from `source`, or from a mix of `sources`.

    `chat_template`: auto renders conversations, always wraps plain text as a user's turn too, never joins the bare
    messages. `bos`: auto starts each sequence with BOS where the tokenizer itself starts texts so. `stream`: GPTQ reads
    at each block what its `own` quantized blocks give, as published, or what those of the unquantized model give, which
    all recipes of a study have `shared`.
    """

    source: str | None = None
    sources: tuple[CalibrationSource, ...] = ()
    samples: int = 256
    length: int = 512
    seed: int = 0
    chat_template: Rule = "auto"
    bos: Rule = "auto"
    stream: StreamKind = "own"

    @property
    def mix(self) -> tuple[CalibrationSource, ...]:
        """The sources, one or several."""
        return self.sources if self.source is None else (CalibrationSource(source=self.source), *self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A scheme, the transforms that prepare the weights, and the rounding that puts them on the grid."""

    name: str
    scheme: Scheme
    rounding: Rtn | Gptq = field(default_factory=Rtn)
    transforms: tuple[SmoothQuant | Awq, ...] = ()

    @property
    def needs_calibration(self) -> bool:
        """True when any step reads activations."""
        return isinstance(self.rounding, Gptq) or bool(self.transforms) or self.scheme.has_static_scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model folder that the loaders read, and how it came to be; `recipe` is None for an unquantized model."""

    path: Path
    format: str = BASELINE
    recipe: Recipe | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure, its 95 % interval, and whether it was measured or predicted; an unknown bound is infinite."""

    value: float
    low: float
    high: float
    origin: Source = "measured"


# --- accuracy -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task as a study asks for it: its name, how many questions (None: all), the seed that picks them, the shots.

    Of a task answered in writing, `samples` is how many completions a question gets, `temperature` how freely they are
    drawn, and `chat` whether the prompts are conversations. None is the task's own choice in all of these.
    """

    name: str
    limit: int | None = None
    seed: int = 0
    shots: int | None = None
    samples: int | None = None
    temperature: float | None = None
    chat: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How text is generated: `n` completions a prompt, each of at most `max_tokens` and cut before any of `stop`.

    Temperature 0 is greedy decoding. `top_p` keeps the likeliest tokens that together reach that probability.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; a last turn of the assistant is one that the model goes on with."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | tuple[Message, ...]
"""Text that the model goes on with, or a conversation that goes through its chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Text generated for a prompt. `finish` is `stop` for an end token or a stop string, `length` for no room left.

    `tokens` counts what was generated, an end token included; None where a server does not say.
    """

    text: str
    finish: Literal["stop", "length"]
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One of the programs written for a question, whether it passes the tests, and why not."""

    text: str
    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question answered: the score is in [0, 1]; `logprobs` are natural-log sums, one a choice.

    `measures` are further figures of the question by name, in [0, 1] too, of which reports give the mean. `group` is
    the subject or language it belongs to, which reports may tell apart; questions of one `cluster` share a passage, so
    that their errors are not independent. `text` is what was written, of several completions the first; `samples` are
    the programs written for a question of code.
    """

    task: str
    item: str
    prediction: str
    score: float
    logprobs: tuple[float, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)
    group: str | None = None
    cluster: str | None = None
    text: str = ""
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """100 x quantized / baseline over the same questions, its 95 % interval, and whether it reaches the least allowed.

    `task` is a task's name, or `average` for the plain mean over tasks (paper, section 4). `p_value` is two-sided, of
    "recovery equals the least allowed"; `p_holm` is the same adjusted for the other rows it was reported with. A
    predicted recovery has no questions behind it.
    """

    task: str
    format: str
    baseline: float
    quantized: float
    recovery_pct: float
    ci95_pct: tuple[float, float]
    questions: int
    min_recovery_pct: float
    verdict: Verdict
    questions_needed: int | None = None
    p_value: float | None = None
    p_holm: float | None = None
    source: Source = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class KlSpan:
    """Mean KL (nats) where the model has read from `first` to `last` tokens of its window."""

    first: int
    last: int
    kl_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far a model's next-token distribution is from its baseline's on the same text (means over positions).

    `kl_by_position` tells whether what is lost grows with what was read: spans of doubling length.
    """

    perplexity: float
    baseline_perplexity: float | None
    kl_nats: float | None
    top1_flip_pct: float | None
    tokens: int
    kl_by_position: tuple[KlSpan, ...] = ()


# --- cost ---------------------------------------------------------------------------------------------------------


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
        """`synchronous`, `throughput`, `constant@4`, `poisson@4`, `sweep (p95 of first token <= 0.5 s)`, `trace`."""
        if self.limits is not None:
            return f"{self.kind} ({self.limits.words})"
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
    by `bitworth.chunks`; it is empty where only the first and the last are known.
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
    greatest clock, `link_gb_s` what one device sends to its neighbours in one direction.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What produced a figure; it travels with the figure to the page the user reads."""

    engine: str
    kernel: str
    device: str
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What an engine did under a load: one Timing a request (warm-up left out), and what produced them."""

    timings: tuple[Timing, ...]
    facts: EngineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryCost:
    """One format under one use case and load on one hardware row; `unsupported` says why there is no figure.

    Latencies are means (seconds) unless named otherwise; the interval is 95 %. `figures` holds seconds with their
    intervals by name, such as `latency_mean`, `first_token_p95`, `inter_token_p99` (`quantity_statistic`).
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


# --- the decision -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyLimit:
    """Most seconds that a statistic of a quantity may take, such as the 95th percentile of the first token."""

    of: Quantity
    at: Statistic
    most_s: float

    @property
    def name(self) -> str:
        """As `QueryCost.figures` names it: `first_token_p95`."""
        return f"{self.of}_{self.at}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What a deployment must meet; None means no limit.

    `max_latency_s` and `max_first_token_s` are of means; `limits` takes any statistic. `confidence_pct` is that of the
    two-sided interval of recovery whose lower end must reach the least. With `queries_per_second`, the traffic to be
    served, costs are those of as many whole deployments as it takes, and the budget of a month is theirs; without it,
    they are those of a deployment that is never idle. `available` is the most devices that can be had, by name.
    """

    min_recovery_pct: float = 99.0
    max_latency_s: float | None = None
    max_first_token_s: float | None = None
    max_usd_per_1k_queries: float | None = None
    confidence_pct: float = 95.0
    limits: tuple[LatencyLimit, ...] = ()
    max_usd_per_month: float | None = None
    queries_per_second: float | None = None
    available: Mapping[str, int] = field(default_factory=dict)

    @property
    def latency_limits(self) -> tuple[LatencyLimit, ...]:
        """All limits of seconds, those of means first."""
        means: tuple[tuple[Quantity, float | None], ...] = (
            ("latency", self.max_latency_s),
            ("first_token", self.max_first_token_s),
        )
        found = (LatencyLimit(of=of, at="mean", most_s=most) for of, most in means if most is not None)
        return (*found, *self.limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One deployable way (format on hardware) in one scenario, and the reasons why it falls out, if it does.

    `usd_per_1k_queries` is what it costs under the constraint's traffic, with `deployments` of it side by side.
    """

    format: str
    hardware: str
    recovery_pct: float
    recovery_ci95_pct: tuple[float, float]
    recovery_verdict: Verdict
    cost: QueryCost
    rejected: tuple[str, ...] = ()
    recovery_source: Source = "measured"
    usd_per_1k_queries: float | None = None
    deployments: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Where the choice changes when one thing alone does: `now` is its value, `at` the last one at which it stands.

    `what` is a field of the constraint, a statistic of its limits (`first_token_p95`), `usd_per_hour of NAME` (each
    device of that name) or `speed of NAME` (a factor). Beyond `at`, in the
    direction of `at` from `now`, the choice is `to`, or nothing.
    """

    what: str
    now: float
    at: float
    up: bool
    to: str | None
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """How likely the choice is the best option, by draws from the intervals of accuracy, cost and latency.

    `of` is the choice's name, `probability` that it is the cheapest that meets the constraint, `meets` that it does.
    `by_option` has the options that are best in some draw, by name, and `nothing` where none meets the constraint.
    `left_out` names options whose figures have no interval to draw from, and why.
    """

    of: str
    probability: float
    meets: float
    draws: int
    seed: int
    by_option: Mapping[str, float]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A measurement that would settle something: what of, how much more of it, and what that takes.

    `count` is further questions by task, or further requests under `requests`. Seconds and dollars are None where
    nothing was timed or priced.
    """

    kind: Literal["questions", "requests", "accuracy"]
    format: str
    hardware: str | None
    count: Mapping[str, int]
    seconds: float | None
    usd: float | None
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The choice for one use case under one load: the cheapest option that meets the constraint, with the rows behind.

    `contender` is a cheaper option that falls out only because its recovery is undecided; `next_step` says what
    measurement would settle it. `frontier` are the options that none beats in recovery, cost and latency at once.
    """

    use_case: UseCase
    load: str
    choice: Option | None
    runner_up: Option | None
    contender: Option | None
    options: tuple[Option, ...]
    why: str
    next_step: str | None = None
    frontier: tuple[Option, ...] = ()
    flips: tuple[Flip, ...] = ()
    chance: Chance | None = None
    steps: tuple[Step, ...] = ()


# --- work ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The smallest piece of work worth keeping: `inputs` holds all that could change its result, JSON values only.

    `where` says where its inputs lie on this machine (paths do not change a result); `needs` are the keys of the
    cells whose results it reads.
    """

    kind: CellKind
    title: str
    format: str
    inputs: Mapping[str, Any]
    where: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShare:
    """How many of the calibration's sequences one source gave."""

    source: str
    weight: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAudit:
    """What the calibration's sequences hold; shares are in [0, 1].

    `scripts` are shares of the letters by Unicode script, not languages. `chat_share` is that of the sequences with a
    marker of the model's chat template, None where it has none; `duplicates` counts sequences that repeat another.
    """

    tokens: int
    samples: int
    length: int
    sources: tuple[SourceShare, ...]
    scripts: Mapping[str, float]
    chat_markers: tuple[str, ...]
    chat_share: float | None
    bos_token: str | None
    tokenizer_adds_bos: bool
    bos_share: float
    special_share: float
    vocabulary_share: float
    duplicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAudit:
    """The inputs of layers that read one tensor; see `bitworth.audit` for the definitions.

    `outliers` counts the outlier columns, `outlier_columns` lists the largest of them. None where there was too little
    data for a figure.
    """

    layers: tuple[str, ...]
    tokens: int
    outlier_ratio: float | None = None
    outliers: int = 0
    outlier_columns: tuple[int, ...] = ()
    top_overlap: float | None = None
    rank_correlation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAudit:
    """Calibration tokens that each expert of one mixture saw, by its number, and the experts that saw none."""

    module: str
    tokens: Mapping[int, int]
    unreached: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What calibration data was, what it did inside the model, and what that puts in doubt, in sentences."""

    text: TextAudit
    stages: tuple[StageAudit, ...]
    experts: tuple[ExpertAudit, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """One checkpoint made, and what it took."""

    format: str
    path: Path
    seconds: float
    peak_rss_mib: float
    size_mib: float
    bits_per_weight: float
    notes: tuple[str, ...] = ()
    audit: Audit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A piece of a study that has no result, and the sentence that says why."""

    title: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """Everything a finished study says: a function of its ledger and its study file alone.

    `recoveries` has a row a task and format, then one a format with task `average`; `groups` one a subject or language
    of a task (`task/group`) and format; `evaluated_with` gives the engine behind each format's answers; `finished` is
    the ISO time of the newest result; `machine` and `settings` are printable provenance. `deployments` decide across
    loads, and for the study's mix of use cases.
    """

    name: str
    model: str
    formats: tuple[str, ...]
    constraint: Constraint
    checkpoints: Mapping[str, QuantizeResult]
    recoveries: tuple[Recovery, ...]
    divergences: Mapping[str, Divergence]
    costs: tuple[QueryCost, ...]
    recommendations: tuple[Recommendation, ...]
    missing: tuple[Missing, ...]
    evaluated_with: Mapping[str, EngineFacts]
    hardware: tuple[Hardware, ...]
    machine: Mapping[str, str]
    settings: Mapping[str, str]
    finished: str | None
    groups: tuple[Recovery, ...] = ()
    deployments: tuple[Recommendation, ...] = ()
