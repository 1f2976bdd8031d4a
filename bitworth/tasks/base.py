"""What a task is (a row) and what a question is: prompts to score or to go on with, and how to grade what comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bitworth.types import Answer, Completion, Prompt, Sampling


class Score(NamedTuple):
    """A continuation's natural-log probability given its context, and whether greedy decoding would write it."""

    logprob: float
    greedy: bool


Request = tuple[str, str]
"""(context, continuation), as lm-eval passes them to a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """A benchmark's name and where its rows may lie.

    Attributes:
        dataset: the hub's id, for messages; `folders` are the ids under which local folders hold it.
        config: the hub's configuration name, None where the dataset has one only.
        flat, prefixes: folder and file name prefixes of the JSON Lines layout.
        stems: whole file names of that layout, for published files that name no split.
        subsets: configurations that make up the task (MMLU's subjects), each a dataset config of its own.
        item_key: the row's own id, where it has one; otherwise its index in the split is used.
        questions: how many the evaluated split has.
        tokens: what a question costs an engine, about, prompts that it shares counted once.
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
    item_key: str | None = None
    splits: tuple[str, ...] = ("test", "validation")
    pool: str = "train"

    def configs(self) -> tuple[str | None, ...]:
        """The dataset configurations to read: the subsets, or the only one."""
        return self.subsets or (self.config,)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDef(RowSource):
    """A multiple-choice benchmark as lm-eval defines it.

    Attributes:
        yaml: lm-eval's definition, relative to its tasks folder; `{subset}` stands for one of `subsets`.
        metric: the figure of lm-eval's `process_results` that is the score of a question.
        shots: few-shot examples when a study names none.
        chat: prompts are conversations where the model has a chat template.
        samples, answer_tokens: completions of a question that is answered in writing, and about how long they are.
        tokens: with SmolLM2's tokenizer and default shots.
    """

    yaml: str
    shots: int = 0
    chat: bool = False
    samples: int = 1
    answer_tokens: int = 0


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
    """A written task's chosen questions, how their answers are generated, and what they were read from."""

    task: str
    questions: tuple[OpenQuestion, ...]
    sampling: Sampling
    facts: Mapping[str, str | int | float]
