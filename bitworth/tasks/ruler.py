"""RULER (arXiv 2404.06654): what a model still finds, follows and counts in 4k to 128k tokens, written from a seed.

A question is as long as its task's name says, in tokens of the model that is asked, its answer's room included. Eleven
of RULER's thirteen kinds (`ruler_text`), so many questions each; the score of a question is the share of its answers
that the reply holds, RULER's `string_match_all`.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Literal

from bitworth.tasks.base import Benchmark, LoadedOpen, OpenQuestion
from bitworth.tasks.rows import RowsAbsent
from bitworth.tasks.ruler_text import FAMILIES, Hidden, Write
from bitworth.types import Answer, Completion, Message, Prompt, Sampling, TaskSpec

EACH = 500
"""Questions a kind, RULER's number."""
MAX_TOKENS = 128
"""Of a reply to any kind; RULER gives some kinds fewer."""
MARGIN = 64
"""Tokens kept for a chat template, and for texts that come out longer than the one that was measured."""
WRITTEN = "1"
"""Raised when the same seed gives other texts."""

Measure = Callable[[str], int]
"""Tokens of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulerDef(Benchmark):
    """RULER at one length in tokens."""

    length: int
    kind: Literal["generated"] = "generated"
    chat: bool = True
    macro: bool = True
    answer_tokens: int = 60


def _length(tokens: int) -> RulerDef:
    return RulerDef(
        name=f"ruler_{tokens // 1024}k",
        length=tokens,
        metric="string_match_all",
        dataset="RULER, written from a seed around essays",
        folders=("ruler",),
        flat="ruler",
        subsets=tuple(FAMILIES),
        questions=EACH * len(FAMILIES),
        tokens=tokens,
        pool="",
    )


TASKS = tuple(_length(1024 * thousands) for thousands in (4, 8, 16, 32, 64, 128))


def load_ruler(
    task: RulerDef,
    spec: TaskSpec,
    data: Path | None,
    batch: tuple[int, int] | None = None,
    *,
    chat: bool = False,
    measure: Measure | None = None,
) -> LoadedOpen:
    """The spec's questions, by kind; `measure` counts a text's tokens (four characters each unless given).

    Raises:
        RowsAbsent: there are no essays to hide things in.
    """
    from bitworth.tasks.harness import choose, shuffled

    sentences = essay_sentences(task, data)
    sizes = [EACH] * len(FAMILIES)
    drawn = None if batch is None else shuffled(sizes, spec.seed)[slice(*batch)]
    places = drawn or [
        (which, at) for which, chosen in enumerate(choose(sizes, spec.limit, spec.seed)) for at in chosen
    ]
    names, units = list(FAMILIES), {}
    for which in sorted({which for which, _ in places}):
        units[which] = fitting_units(names[which], task.length, sentences, measure or (lambda text: len(text) // 4))
    questions = [_question(task, names[which], at, units[which], sentences, chat=chat) for which, at in places]
    facts: dict[str, str | int] = {
        "dataset": task.dataset,
        "source": str(data),
        "split": "test",
        "rows": sum(sizes),
        "questions": len(questions),
        "shots": 0,
        "metric": task.metric,
        "prompt": "conversation" if chat else "text",
        "samples": 1,
    }
    sampling = Sampling(max_tokens=MAX_TOKENS)
    return LoadedOpen(task=task.name, questions=tuple(questions), sampling=sampling, facts=facts)


def essay_sentences(task: RulerDef, data: Path | None) -> tuple[str, ...]:
    """The sentences of the text files in DATA/ruler and below, files in the order of their names.

    Raises:
        RowsAbsent: there are none.
    """
    text = "\n".join(path.read_text(encoding="utf-8") for path in _essays(task, data))
    found = tuple(part for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if part)
    if not found:
        raise RowsAbsent(
            f"Task {task.name} hides things in essays, which are not in {data or 'the hub'}; put plain text (.txt, "
            "RULER takes Paul Graham's essays) in a folder's ruler/ and point --data at that folder."
        )
    return found


def ruler_fingerprint(task: RulerDef, data: Path | None) -> str:
    """sha256 (hex) of how questions are written and of the essays.

    Raises:
        RowsAbsent: there are none.
    """
    sentences = essay_sentences(task, data)
    return hashlib.sha256("\n".join([WRITTEN, *sentences]).encode()).hexdigest()


def has_essays(task: RulerDef, data: Path | None) -> bool:
    """Whether there is a text file in DATA/ruler or below."""
    return bool(_essays(task, data))


def _essays(task: RulerDef, data: Path | None) -> list[Path]:
    return [] if data is None else sorted((data / task.flat).rglob("*.txt"))


def fitting_units(family: str, length: int, sentences: Sequence[str], measure: Measure) -> int:
    """The most filler with which a kind's question, the beginning of its reply and its answer fit the length."""
    room = length - MAX_TOKENS - MARGIN

    def fits(units: int) -> bool:
        question = _write(family, 0, units, sentences)
        return measure(f"{question.text} {question.lead}") <= room

    low, high = 0, 16
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 100):  # the last percent is not worth reading the text again
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * 99 // 100  # other questions of the kind are a little longer


def _write(family: str, at: int, units: int, sentences: Sequence[str]) -> Hidden:
    """Question `at` of a kind: luck depends on the kind and the number, so every length hides the same things."""
    write: Write = FAMILIES[family].write
    return write(random.Random(f"{WRITTEN}/{family}/{at}"), units, sentences)


def _question(
    task: RulerDef, family: str, at: int, units: int, sentences: Sequence[str], *, chat: bool
) -> OpenQuestion:
    hidden = _write(family, at, units, sentences)
    item = f"{family}/{at}"
    prompt: Prompt = f"{hidden.text}\n\nAnswer: {hidden.lead}"
    if chat:
        prompt = (Message(role="user", content=hidden.text), Message(role="assistant", content=hidden.lead))
    grade = partial(_grade, task.name, item, family, hidden.answers)
    return OpenQuestion(task=task.name, item=item, prompt=prompt, grade=grade)


def _grade(task: str, item: str, family: str, answers: Sequence[str], completions: Sequence[Completion]) -> Answer:
    text = completions[0].text
    score = fmean(answer.lower() in text.lower() for answer in answers)
    return Answer(task=task, item=item, prediction=text[:200], score=score, group=family, text=text)
