"""Benchmarks by name: lm-eval's own definitions, and programming; importing this loads neither torch nor lm-eval.

>>> get("mmlu").shots
5
"""

from __future__ import annotations

import difflib
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.tasks.base import Loaded, LoadedOpen, OpenQuestion, Question, Request, RowSource, Score, TaskDef
from bitworth.tasks.code import CODE, CodeDef, load_problems
from bitworth.tasks.leaderboard import TASKS
from bitworth.types import TaskSpec

_BY_NAME: dict[str, TaskDef | CodeDef] = {task.name: task for task in TASKS} | dict(CODE)
NAMES: tuple[str, ...] = tuple(_BY_NAME)

__all__ = [
    "NAMES",
    "CodeDef",
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


def get(name: str) -> TaskDef | CodeDef:
    """The task called `name`.

    Raises:
        BitworthError: there is none.
    """
    if name not in _BY_NAME:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise BitworthError(f"Unknown task '{name}'; {hint}known: {', '.join(sorted(NAMES))}.")
    return _BY_NAME[name]


def load(spec: TaskSpec, data: Path | None = None, *, chat: bool = False, unsafe: bool = False) -> Loaded | LoadedOpen:
    """The questions a spec asks for, prompts rendered; rows come from the folder `data`, or from the hub.

    The first `limit` questions of a seeded shuffle are taken, so a larger limit only adds questions. `chat` says that
    the model has a chat template: tasks that are asked in conversations then are, and in plain text otherwise. `unsafe`
    lets the programs that a model writes run where they cannot be isolated.

    Raises:
        BitworthError: unknown task, rows that cannot be had (the sentence names the ways to get them), or programs that
            cannot be isolated here.
    """
    task = get(spec.name)
    if isinstance(task, CodeDef):
        return load_problems(task, spec, data, chat=chat, unsafe=unsafe)
    if (spec.samples, spec.temperature, spec.chat) != (None, None, None):
        raise BitworthError(
            f"Task {task.name} scores given answers; samples, temperature and chat are for tasks answered in writing."
        )
    from bitworth.tasks.harness import load_questions

    return load_questions(task, spec, data)


def data_fingerprint(name: str, data: Path | None = None) -> str:
    """sha256 (hex) of the rows that the task reads, for a cell's key.

    Local files are hashed as bytes; rows from the hub as canonical JSON.

    Raises:
        BitworthError: unknown task, or rows that cannot be had.
    """
    from bitworth.tasks.rows import fingerprint

    return fingerprint(get(name), data)
