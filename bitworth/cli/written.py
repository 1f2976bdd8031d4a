"""What `bitworth evaluate` takes and gives for tasks whose answers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bitworth import tasks as registry
from bitworth.types import TaskSpec

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
