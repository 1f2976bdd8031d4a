"""Which questions of a task share a text, so that their errors are not independent (`Answer.cluster`).

A rule reads a row and its place in its split, and gives what the row shares with others; None for a question that
stands alone. Subjects and subtasks are not shared texts: a benchmark has all of them, not a sample
(docs/statistics.md).

>>> column("narrative")({"narrative": "A story."}, 0)
'A story.'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Sharing = Callable[[Mapping[str, Any], int], str | None]
"""(row, place in its split) to what it shares."""

_INTRODUCTION = "This question refers to the following information."


def column(name: str) -> Sharing:
    """Questions with the same value of a column: a story, a source, a question that is in several subsets."""

    def shared(row: Mapping[str, Any], _place: int) -> str | None:
        return str(row[name]) if name in row else None

    return shared


def place(_row: Mapping[str, Any], at: int) -> str:
    """Questions at the same place of every subset: the same problem in other languages."""
    return str(at)


def introduced(row: Mapping[str, Any], _place: int) -> str | None:
    """The source that MMLU's questions of history quote before the last line, which asks."""
    text = str(row["question"])
    return text.rpartition("\n")[0] if text.startswith(_INTRODUCTION) else None


def choices(row: Mapping[str, Any], _place: int) -> str:
    """Winogrande's twins: two sentences alike but for a word that turns the answer around, with the same two options.

    Some sentences share their options by chance. That makes clusters larger than need be, which is on the safe side.
    """
    return "/".join(sorted((str(row["option1"]), str(row["option2"]))))
