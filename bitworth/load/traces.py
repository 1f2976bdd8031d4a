"""Requests of many shapes: a recorded trace, replayed at its own times, or a mix of use cases by weight.

A trace is JSON Lines, a request a line, in order of time or not:

    {"time_s": 0.31, "prompt_tokens": 1024, "output_tokens": 128}

The names of Mooncake's published traces (`timestamp` in milliseconds, `input_length`, `output_length`) do as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitworth.errors import BitworthError
from bitworth.guard.documents import json_of
from bitworth.types import Shape, UseCase

_MOST = 1e12
"""Of milliseconds and of tokens; a longer trace is a mistake."""


def read_trace(path: Path) -> tuple[Shape, ...]:
    """The requests of a trace in order of time, the first at 0.

    Raises:
        BitworthError: the file cannot be read, or a line is no request; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BitworthError(f"The trace {path} cannot be read: {reason}.") from error
    shapes = [_shape(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not shapes:
        raise BitworthError(f"The trace {path} has no requests.")
    began = min(at for at, _, _ in shapes)
    ordered = sorted(shapes, key=lambda row: row[0])
    return tuple(Shape(prompt_tokens=prompt, output_tokens=output, at_s=at - began) for at, prompt, output in ordered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked: use cases drawn by weight, or a trace, which brings its times along."""

    name: str
    parts: tuple[tuple[UseCase, float], ...] = ()
    trace: tuple[Shape, ...] = ()

    def shapes(self, count: int, *, seed: int) -> tuple[Shape, ...]:
        """`count` requests; a trace gives all of its own, whatever the count."""
        return self.trace or mixed(self.parts, count, seed=seed)

    @property
    def use_case(self) -> UseCase:
        """The one use case, or the mean of many as one."""
        if len(self.parts) == 1 and not self.trace:
            return replace(self.parts[0][0], name=self.name)
        rows = [(shape.prompt_tokens, shape.output_tokens, 1.0) for shape in self.trace]
        rows += [(case.prompt_tokens, case.output_tokens, weight) for case, weight in self.parts]
        prompt, output, weight = np.array(rows).T
        shares = weight / weight.max()  # weights times tokens may be more than a float holds
        means = (max(1, round(float(np.average(side, weights=shares)))) for side in (prompt, output))
        return UseCase(name=self.name, prompt_tokens=next(means), output_tokens=next(means))

    @property
    def context_tokens(self) -> int:
        """The longest prompt and answer together."""
        lengths = [shape.prompt_tokens + shape.output_tokens for shape in self.trace]
        return max(lengths + [case.prompt_tokens + case.output_tokens for case, _ in self.parts])


def mixed(parts: Sequence[tuple[UseCase, float]], count: int, *, seed: int) -> tuple[Shape, ...]:
    """`count` requests of use cases drawn by their weights.

    Raises:
        BitworthError: no use case, or a weight that is not above 0.
    """
    weights = np.array([weight for _, weight in parts], dtype=np.float64)
    if not len(weights) or not np.isfinite(weights).all() or (weights <= 0).any():
        raise BitworthError("A mix needs use cases with weights above 0.")
    shares = weights / weights.max()  # whose sum no weights make infinite
    drawn = np.random.default_rng(seed).choice(len(parts), count, p=shares / shares.sum())
    shapes = [Shape(prompt_tokens=case.prompt_tokens, output_tokens=case.output_tokens) for case, _ in parts]
    return tuple(shapes[index] for index in drawn)


def _shape(line: str, where: str) -> tuple[float, int, int]:
    """Time in seconds, prompt and output tokens."""
    try:
        fields = json_of(line)
    except ValueError as error:
        raise BitworthError(f"{where} is not JSON.") from error
    if not isinstance(fields, dict):
        raise BitworthError(f"{where} is not an object with time_s, prompt_tokens and output_tokens.")
    at = _number(fields, "time_s", where) if "timestamp" not in fields else _number(fields, "timestamp", where) / 1000
    sides = (("prompt_tokens", "input_length"), ("output_tokens", "output_length"))
    counts = [_number(fields, next((name for name in names if name in fields), names[0]), where) for names in sides]
    if at < 0 or any(count < 1 or count != int(count) for count in counts):
        raise BitworthError(f"{where}: the time must not be negative, and tokens must be whole numbers above 0.")
    return at, int(counts[0]), int(counts[1])


def _number(fields: Mapping[str, Any], name: str, where: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MOST < value < _MOST:
        raise BitworthError(f"{where}: {name} is {'missing' if value is None else 'not a number'}.")
    return float(value)
