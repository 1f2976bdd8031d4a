"""What `bitworth evaluate` takes and gives for tasks whose answers are programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bitworth import tasks as registry
from bitworth.types import Answer, TaskSpec

HOW = ("prompt", "samples", "temperature", "top_p", "max_tokens", "isolation")
"""Facts of a written task that go with its figures."""


def task_specs(names: Sequence[str], fields: Mapping[str, Any], written: Mapping[str, Any]) -> list[TaskSpec]:
    """A spec for each name, once; `written` only goes to tasks whose answers are written, when there are any.

    Raises:
        BitworthError: an unknown task.
    """
    chosen = dict.fromkeys(names)
    open_ones = {name for name in chosen if isinstance(registry.get(name), registry.CodeDef)}
    return [TaskSpec(name=name, **fields, **(written if name in open_ones or not open_ones else {})) for name in chosen]


def written_figures(answers: Sequence[Answer], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Further figures of a task (`pass@10`), means over its questions, and how its answers were made."""
    found: dict[str, Any] = {name: facts[name] for name in HOW if name in facts}
    if answers and answers[0].measures:
        found["measures"] = {name: fmean(answer.measures[name] for answer in answers) for name in answers[0].measures}
    return found
