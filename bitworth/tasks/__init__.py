"""Benchmarks by name: lm-eval's own definitions, and programming; importing this loads neither torch nor lm-eval.

>>> get("mmlu").shots
5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.tasks import leaderboard, leaderboard_v2, multilingual, reasoning, ruler, suites
from bitworth.tasks.base import Loaded, LoadedOpen, OpenQuestion, Question, Request, RowSource, Score, TaskDef
from bitworth.tasks.code import CODE, CodeDef, load_problems
from bitworth.tasks.rows import RowsAbsent
from bitworth.tasks.ruler import Measure, RulerDef
from bitworth.types import TaskSpec

_LM_EVAL = (*leaderboard.TASKS, *leaderboard_v2.TASKS, *reasoning.TASKS, *multilingual.TASKS)
_TASKS: tuple[TaskDef | CodeDef | RulerDef, ...] = (*_LM_EVAL, *ruler.TASKS, *CODE.values())
_BY_NAME = {task.name: task for task in _TASKS}
NAMES: tuple[str, ...] = tuple(_BY_NAME)
SUITES = suites.suites(NAMES)

__all__ = [
    "NAMES",
    "SUITES",
    "CodeDef",
    "Loaded",
    "LoadedOpen",
    "OpenQuestion",
    "Question",
    "Request",
    "RowSource",
    "RowsAbsent",
    "Score",
    "TaskDef",
    "check_written",
    "data_fingerprint",
    "expand",
    "get",
    "is_here",
    "load",
    "packages_of",
    "runs_programs",
]


def get(name: str) -> TaskDef | CodeDef | RulerDef:
    """The task called `name`.

    Raises:
        BitworthError: there is none.
    """
    if name not in _BY_NAME:
        raise BitworthError(suites.unknown_task(name, NAMES))
    return _BY_NAME[name]


def expand(asked: Sequence[TaskSpec]) -> list[TaskSpec]:
    """Tasks and suites to tasks, each once; see `suites.expand`.

    How a suite's answers are written concerns those of its tasks that are answered in writing.

    Raises:
        BitworthError: a name that is neither a task's nor a suite's.
    """
    own = {spec.name for spec in asked}
    return [
        spec if spec.name in own or is_written(spec.name) else replace(spec, samples=None, temperature=None, chat=None)
        for spec in suites.expand(asked, NAMES)
    ]


def is_written(name: str) -> bool:
    """Whether a task is answered in writing, not by the likelihood of given answers.

    Raises:
        BitworthError: unknown task.
    """
    return get(name).kind != "choices"


def check_written(spec: TaskSpec) -> None:
    """Refuse to say how answers are written of a task that has none.

    Raises:
        BitworthError: unknown task, or one that scores given answers.
    """
    if (spec.samples, spec.temperature, spec.chat) != (None, None, None) and not is_written(spec.name):
        raise BitworthError(
            f"Task {spec.name} scores given answers; samples, temperature and chat are for tasks answered in writing."
        )


def packages_of(name: str) -> tuple[str, ...]:
    """Packages whose version can change a task's scores; none of an unknown task, which its loading refuses."""
    return _BY_NAME[name].packages if name in _BY_NAME else ()


def runs_programs(name: str) -> bool:
    """Whether answers to a task are programs, which are run."""
    return name in CODE


def load(
    spec: TaskSpec,
    data: Path | None = None,
    *,
    batch: tuple[int, int] | None = None,
    chat: bool = False,
    unsafe: bool = False,
    measure: Measure | None = None,
) -> Loaded | LoadedOpen:
    """The questions a spec asks for, prompts rendered; rows come from the folder `data`, or from the hub.

    The first `limit` questions of a seeded shuffle are taken, so a larger limit only adds questions. `batch`
    (start, stop) takes that stretch of the same shuffle instead, in its order, whatever the limit. `chat` says that
    the model has a chat template: tasks that are asked in conversations then are, and in plain text otherwise. `unsafe`
    lets the programs that a model writes run where they cannot be isolated. `measure` counts the tokens of a text, for
    prompts that are written to a length.

    Raises:
        BitworthError: unknown task, rows that cannot be had (the sentence names the ways to get them), or programs that
            cannot be isolated here.
    """
    task = get(spec.name)
    if isinstance(task, CodeDef):
        return load_problems(task, spec, data, batch, chat=chat, unsafe=unsafe)
    check_written(spec)
    from bitworth.tasks.harness import load_questions

    if isinstance(task, RulerDef):
        return ruler.load_ruler(task, spec, data, batch, chat=chat, measure=measure)
    return load_questions(task, spec, data, batch, chat=chat)


def is_here(name: str, data: Path | None = None) -> bool:
    """Whether a task's rows lie in the folder, or in the hub's cache on this machine.

    Raises:
        BitworthError: unknown task.
    """
    from bitworth.tasks import rows

    task = get(name)
    return ruler.has_essays(task, data) if isinstance(task, RulerDef) else rows.is_here(task, data)


def data_fingerprint(name: str, data: Path | None = None) -> str:
    """sha256 (hex) of the rows that the task reads, for a cell's key.

    Local files are hashed as bytes; rows from the hub as canonical JSON.

    Raises:
        BitworthError: unknown task, or rows that cannot be had.
    """
    from bitworth.tasks.rows import fingerprint

    task = get(name)
    return ruler.ruler_fingerprint(task, data) if isinstance(task, RulerDef) else fingerprint(task, data)
