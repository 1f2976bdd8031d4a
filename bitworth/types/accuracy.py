"""Tasks, answers, and what is kept of the baseline's accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bitworth.types.serving import Figure, Source

Verdict = Literal["holds", "loses", "undecided"]
Estimand = Literal["task", "questions"]

AVERAGE = "average"
"""The task name of a recovery over the plain mean of tasks (paper, section 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task as a study asks for it: its name, how many questions (None: all), the seed that picks them, the shots.

    Of a task answered in writing, `samples` is how many completions a question gets, `temperature` how freely they are
    drawn, and `chat` whether the prompts are conversations. None is the task's own choice in all of these. `repeats` is
    how often all of it is asked, to measure how much the engine's answers differ by themselves (None: once).
    """

    name: str
    limit: int | None = None
    seed: int = 0
    shots: int | None = None
    samples: int | None = None
    temperature: float | None = None
    chat: bool | None = None
    repeats: int | None = None


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

    @property
    def written(self) -> tuple[str, ...]:
        """All that is kept of what was written: the programs, or the text (an empty one where choices were scored)."""
        return tuple(sample.text for sample in self.samples) or (self.text,)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPair:
    """A question that two models answered differently: what each said, and how far apart that is, in [0, 1].

    Between given choices the distance is half the sum of the changes of their probabilities; between texts, the share
    of words that they have not in common, in order.
    """

    task: str
    format: str
    item: str
    baseline: str
    quantized: str
    baseline_score: float
    quantized_score: float
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How alike a format's written answers are to the baseline's: quantiles over questions, in [0, 1].

    `measure` is one of `bitworth.similarity.MEASURES`; the mean of `identical` is a share.
    """

    task: str
    format: str
    measure: str
    mean: float
    p10: float
    median: float
    p90: float
    questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """100 x quantized / baseline over the same questions, its 95 % interval, and whether it reaches the least allowed.

    `task` is a task's name, a suite's, or `average` for the plain mean over tasks (paper, section 4); of a mean,
    `columns` names its tasks. `p_value` is two-sided, of "recovery equals the least allowed"; `p_holm` is the same
    adjusted for the other rows it was reported with. Of a task whose answers are right or wrong, `lost` counts the
    questions that only the baseline answers right, `won` those that only the format does, and `mcnemar_p` is the exact
    test of "either way alike" (another question than that of `p_value`: it is about 100 %), which clusters rule out.
    `groups_ci95_pct` is the wider interval that holds if the task's subjects or languages are themselves a sample of
    others. A predicted recovery has no questions behind it.
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
    columns: tuple[str, ...] = ()
    groups_ci95_pct: tuple[float, float] | None = None
    lost: int | None = None
    won: int | None = None
    mcnemar_p: float | None = None

    @property
    def figure(self) -> Figure:
        """In percent, with its 95 % interval."""
        low, high = self.ci95_pct
        return Figure(value=self.recovery_pct, low=low, high=high, origin=self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How much a format's answers to a task differ when the same engine is asked the same again.

    `scores_pct` is the mean score of each run. `answers_differ_pct` and `scores_differ_pct` are the shares of questions
    with another answer, or another score, in the mean over pairs of runs. `score_sd_pct` is the standard deviation of
    the mean score of one run, in percentage points, from the differences question by question.
    """

    task: str
    format: str
    questions: int
    scores_pct: tuple[float, ...]
    answers_differ_pct: float
    scores_differ_pct: float
    score_sd_pct: float


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
