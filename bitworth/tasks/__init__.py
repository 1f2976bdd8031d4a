"""Benchmarks by name, through lm-eval's own definitions; importing this loads neither torch nor lm-eval.

>>> get("mmlu").shots
5
"""

from __future__ import annotations

import difflib
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.tasks.base import Loaded, LoadedOpen, OpenQuestion, Question, Request, RowSource, Score, TaskDef
from bitworth.tasks.leaderboard import TASKS
from bitworth.types import TaskSpec

_BY_NAME = {task.name: task for task in TASKS}
NAMES: tuple[str, ...] = tuple(_BY_NAME)

__all__ = [
    "NAMES",
    "Loaded",
    "LoadedOpen",
    "OpenQuestion",
    "Question",
    "Request",
    "RowSource",
    "Score",
    "TaskDef",
    "data_fingerprint",
    "get",
    "load",
]


def get(name: str) -> TaskDef:
    """The task called `name`.

    Raises:
        BitworthError: there is none.
    """
    if name not in _BY_NAME:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise BitworthError(f"Unknown task '{name}'; {hint}known: {', '.join(sorted(NAMES))}.")
    return _BY_NAME[name]


def load(spec: TaskSpec, data: Path | None = None, *, batch: tuple[int, int] | None = None) -> Loaded:
    """The questions a spec asks for, prompts rendered; rows come from the folder `data`, or from the hub.

    The first `limit` questions of a seeded shuffle are taken, so a larger limit only adds questions. `batch`
    (start, stop) takes that stretch of the same shuffle instead, in its order, whatever the limit.

    Raises:
        BitworthError: unknown task, or rows that cannot be had (the sentence names the ways to get them).
    """
    from bitworth.tasks.harness import load_questions

    return load_questions(get(spec.name), spec, data, batch)


def data_fingerprint(name: str, data: Path | None = None) -> str:
    """sha256 (hex) of the rows that the task reads, for a cell's key.

    Local files are hashed as bytes; rows from the hub as canonical JSON.

    Raises:
        BitworthError: unknown task, or rows that cannot be had.
    """
    from bitworth.tasks.rows import fingerprint

    return fingerprint(get(name), data)
