"""What a format and its baseline answered to the questions of one task, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bitworth.ledger import Ledger, revive
from bitworth.readback import check_cell, check_record
from bitworth.types import BASELINE, Answer, Cell

PER_PAGE = 50
_MOST_CHARACTERS = 4000

Which = Literal["changed", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One model's answer to a question: what it chose or wrote, and its score in [0, 1]."""

    words: str
    score: float
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question: the baseline's answer and the format's, None where one has none."""

    item: str
    group: str
    baseline: Said | None
    quantized: Said | None

    @property
    def changed(self) -> bool:
        """Whether the score is another."""
        scores = [said.score for said in (self.baseline, self.quantized) if said is not None]
        return len(scores) == 2 and scores[0] != scores[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPage:
    """A page of questions; `changed` of `answered` have another score, `lost` of them a lower one."""

    questions: tuple[Question, ...]
    page: int
    pages: int
    answered: int
    changed: int
    lost: int


def answered(plan: Sequence[Cell]) -> dict[str, list[str]]:
    """Tasks of a plan to the formats that it asks them of, the baseline left out.

    Raises:
        BitworthError: a cell of the plan is of another shape than its kind has.
    """
    found: dict[str, list[str]] = {}
    for cell in plan:
        if cell.kind == "evaluate" and not cell.is_repeat:
            check_cell(cell)
            formats = found.setdefault(cell.inputs["task"]["name"], [])
            if cell.format != BASELINE:
                formats.append(cell.format)
    return found


def answer_page(ledger: Ledger, task: str, format: str, *, which: Which = "changed", page: int = 1) -> AnswerPage:
    """The questions of a task whose score is another than the baseline's, or all of them; pages count from 1.

    Raises:
        BitworthError: the folder holds no study, or the answers are of another shape than an evaluation's.
    """
    before, after = (_answers(ledger, task, name) for name in (BASELINE, format))
    both = [_question(item, before.get(item), after.get(item)) for item in dict.fromkeys((*before, *after))]
    changed = [row for row in both if row.changed]
    rows = changed if which == "changed" else both
    pages = max(1, -(-len(rows) // PER_PAGE))
    page = min(max(1, page), pages)
    return AnswerPage(
        questions=tuple(rows[(page - 1) * PER_PAGE : page * PER_PAGE]),
        page=page,
        pages=pages,
        answered=sum(row.baseline is not None and row.quantized is not None for row in both),
        changed=len(changed),
        lost=sum(_score(row.quantized) < _score(row.baseline) for row in changed),
    )


def _answers(ledger: Ledger, task: str, format: str) -> dict[str, Answer]:
    """Item to stored answer."""
    for cell in ledger.read_plan():
        if (
            cell.kind == "evaluate"
            and not cell.is_repeat
            and cell.format == format
            and cell.inputs["task"]["name"] == task
        ):
            record = ledger.record(cell)
            if record is None:
                return {}
            check_record(cell, record)
            return {answer.item: answer for answer in revive(list[Answer], record["result"]["answers"])}
    return {}


def _question(item: str, before: Answer | None, after: Answer | None) -> Question:
    group = next((answer.group for answer in (before, after) if answer is not None), None)
    return Question(item=item, group=group or "", baseline=_said(before), quantized=_said(after))


def _said(answer: Answer | None) -> Said | None:
    if answer is None:
        return None
    words = answer.text or answer.prediction
    return Said(words=words[:_MOST_CHARACTERS], score=answer.score, cut=len(words) > _MOST_CHARACTERS)


def _score(said: Said | None) -> float:
    assert said is not None  # a question that changed has both
    return said.score
