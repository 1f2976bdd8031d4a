"""What a task is (a row) and what a question is: prompts to score or to go on with, and how to grade what comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from bitworth.errors import BitworthError
from bitworth.tasks.passages import Sharing
from bitworth.types import Answer, Completion, Prompt, Sampling


class Score(NamedTuple):
    """A continuation's natural-log probability given its context, and whether greedy decoding would write it."""

    logprob: float
    greedy: bool


Request = tuple[Prompt, str]
"""(context, continuation), as lm-eval passes them to a model; engines put a conversation through its template."""


MATH_PACKAGES = ("math-verify", "antlr4-python3-runtime", "sympy")
"""What tells whether two formulas are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """A benchmark's name and where its rows may lie.

    Attributes:
        dataset: the hub's id, for messages; `folders` are the ids under which local folders hold it.
        config: the hub's configuration name, None where the dataset has one only.
        flat, prefixes: folder and file name prefixes of the JSON Lines layout.
        stems: whole file names of that layout, for published files that name no split; `{subset}` stands for a subset.
        subsets: configurations that make up the task (MMLU's subjects), each a dataset config of its own.
        subset_splits: the subsets are splits of the one configuration.
        names: what file names call a subset, where that is not its name.
        item_key: the row's own id, where it has one; otherwise its index in the split is used.
        sharing: what a question shares with others (`passages`), where questions do.
        gated: the hub gives it only to those who accepted its terms.
        in_demo: the demo's wheel ships its rows.
        questions: how many are asked.
        pool: the split of few-shot examples; "" where there is none.
        tokens: what a question's prompt costs an engine, about, prompts that it shares counted once.
    """

    name: str
    metric: str
    dataset: str
    folders: tuple[str, ...]
    flat: str
    questions: int
    tokens: int
    config: str | None = None
    prefixes: tuple[str, ...] = ("",)
    stems: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    subset_key: str | None = None
    subset_splits: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    item_key: str | None = None
    sharing: Sharing | None = None
    gated: bool = False
    in_demo: bool = False
    splits: tuple[str, ...] = ("test", "validation")
    pool: str = "train"

    def configs(self) -> tuple[str | None, ...]:
        """The dataset configurations to read: the subsets, or the only one."""
        return self.subsets or (self.config,)

    def place(self, config: str | None, split: str) -> tuple[str | None, str]:
        """The dataset's configuration and split that hold a subset's rows."""
        return (self.config, config) if self.subset_splits and config is not None else (config, split)

    def called(self, subset: str | None) -> str | None:
        """What file names call a subset."""
        return None if subset is None else self.names.get(subset, subset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark(RowSource):
    """What every benchmark says of how it is asked and counted.

    Attributes:
        kind: whether given choices are scored, or answers are written.
        shots: few-shot examples when a study names none.
        chat: prompts are conversations where the model has a chat template.
        chance: the score of guessing, of the task or of each subset, that the leaderboard's normalization subtracts.
        macro: the leaderboard takes the mean over subsets, not over questions.
        packages: those besides lm-eval whose version can change a score, `python` among them where programs run.
        samples, answer_tokens: completions of a question that is answered in writing, and about how long they are.
    """

    kind: Literal["choices", "generated"] = "choices"
    shots: int = 0
    chat: bool = False
    chance: float | Mapping[str, float] = 0.0
    macro: bool = False
    packages: tuple[str, ...] = ()
    samples: int = 1
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDef(Benchmark):
    """A benchmark as lm-eval defines it.

    Attributes:
        yaml: lm-eval's definition, relative to its tasks folder; `{subset}` stands for one of `subsets`.
        metric: the figure of lm-eval's `process_results` that is the score of a question.
        multiturn: few-shot examples are turns of the conversation.
        filter: of lm-eval's filters, the one whose score counts; the first one unless named.
        prepared: the definition drops or shuffles rows, so that all are prepared before any are picked.
        overrides: what replaces keys of lm-eval's definition.
        temperature, top_p: how written answers are sampled; greedily unless named.
        max_tokens: of an answer whose definition names no length, where lm-eval's 256 would cut it.
        needs: modules that only this task's definition imports, and the data NLTK must have for it.
        tokens: with SmolLM2's tokenizer and default shots.
    """

    yaml: str
    multiturn: bool = False
    filter: str | None = None
    prepared: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    needs: tuple[str, ...] = ()


def drawn(task: str, sampling: Sampling, samples: int | None) -> Sampling:
    """The sampling, at temperature 0 with the one completion that there is then.

    Raises:
        BitworthError: `samples`, which the spec asks for, are several at temperature 0.
    """
    if sampling.temperature:
        return sampling
    if (samples or 1) > 1:
        raise BitworthError(
            f"Task {task}: {samples} samples at temperature 0 are all alike; ask for one, or a temperature."
        )
    return replace(sampling, top_p=1.0, n=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question: the continuations to score and the grader that turns their scores into an Answer."""

    task: str
    item: str
    requests: tuple[Request, ...]
    grade: Callable[[Sequence[Score]], Answer] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A task's chosen questions, and what they were read from (split, rows in it, source, shots, metric)."""

    task: str
    questions: tuple[Question, ...]
    facts: Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenQuestion:
    """One question answered in writing: its prompt, and the grader that turns the completions into an Answer.

    Graders are called from several threads at once.
    """

    task: str
    item: str
    prompt: Prompt
    grade: Callable[[Sequence[Completion]], Answer] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedOpen:
    """A written task's chosen questions, how their answers are generated, and what they were read from.

    Graders that only the main thread may call (math-verify sets alarms) are called one after another.
    """

    task: str
    questions: tuple[OpenQuestion, ...]
    sampling: Sampling
    facts: Mapping[str, str | int | float]
    one_by_one: bool = False
