"""What `bitworth evaluate` takes and gives for tasks whose answers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitworth import tasks as registry
from bitworth.engines import is_url
from bitworth.types import TaskSpec

if TYPE_CHECKING:
    from bitworth.cells import Subject

HOW = ("prompt", "samples", "temperature", "top_p", "max_tokens", "isolation")
"""Facts of a written task that go with its figures."""


def sampled(specs: Sequence[TaskSpec], written: Mapping[str, Any]) -> list[TaskSpec]:
    """The specs with what was said of written answers, which goes to tasks that have such, where there are any."""
    given = {name: value for name, value in written.items() if value is not None}
    open_ones = {spec.name for spec in specs if registry.get(spec.name).kind == "generated"}
    return [replace(spec, **given) if spec.name in open_ones or not open_ones else spec for spec in specs]


def written_figures(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How a task's answers were made."""
    return {name: facts[name] for name in HOW if name in facts}


def check_compared(engine: str, subject: Subject, baseline: Subject | None) -> None:
    """Refuse to compare two models by a server that cannot tell them apart, before it is asked anything.

    Raises:
        BitworthError: it lacks one of them.
        WorkFailed: it does not answer.
    """
    if baseline is None or not is_url(engine):
        return
    from bitworth.engines.http_text import check_served

    apart = "evaluate each alone, with --out, and compare the two folders with `bitworth diff`"
    check_served(engine, Path(baseline.path), Path(subject.path), apart)


def served_words(rows: Sequence[Mapping[str, Any]], engine: str) -> list[str]:
    """A warning where a server's model has another name than the checkpoint, a line a name."""
    names = dict.fromkeys(row["served"] for row in rows if row["served"])
    return [
        f"warning: {engine} serves {name}, which is not called as the checkpoint's folder; its answers are taken for "
        "the checkpoint's."
        for name in names
    ]
