"""A large task in parts: stretches of its questions, answered anywhere, joined to what one worker would have given.

A part is a cell whose `where` says which of how many; its questions are a stretch of the task's own order, so the parts
one after another are the task. Scores of choices are computed in rows packed with other neighbours, so their last
digits can differ from those of the task in one piece; items, their order and what they are asked do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from bitworth import tasks
from bitworth.types import Cell

Item = TypeVar("Item")
QUESTIONS = 2000
"""Questions of a part, about; a worker answers for minutes, and loading the model again takes seconds."""


def split(cell: Cell, questions: int) -> list[Cell]:
    """The cell's parts of about so many questions, or the cell alone where it is no larger or no task."""
    if cell.kind != "evaluate" or "task" not in cell.inputs or "batch" in cell.inputs:
        return [cell]
    spec = cell.inputs["task"]
    task = tasks.get(spec["name"])
    count = -(-min(spec["limit"] or task.questions, task.questions) // questions)
    if count < 2:
        return [cell]
    return [
        replace(cell, title=f"{cell.title}, part {at + 1} of {count}", where={**cell.where, "part": f"{at}/{count}"})
        for at in range(count)
    ]


def of_part(items: Sequence[Item], part: str | None) -> Sequence[Item]:
    """The items of the part called `at/count`; all of them for None.

    >>> [of_part("abcdefg", f"{at}/3") for at in range(3)]
    ['ab', 'cd', 'efg']
    """
    if part is None:
        return items
    at, count = map(int, part.split("/"))
    return items[at * len(items) // count : (at + 1) * len(items) // count]


def join(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result from those of all parts, in their order; each part's machine and questions stay with it."""
    return {
        **results[0],
        "answers": [answer for result in results for answer in result["answers"]],
        "peak_rss_mib": max(result["peak_rss_mib"] for result in results),
        "parts": [{"questions": len(result["answers"]), "machine": result["machine"]} for result in results],
    }
