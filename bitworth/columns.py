"""A task's column in its leaderboard's table, and the suites that average columns.

The plain mean of columns, MMLU and MMLU-CoT each counted, as the paper averages (section 4); the columns of the second
leaderboard are what is above guessing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from bitworth import tasks as registry
from bitworth.errors import BitworthError
from bitworth.evaluation import adjusted, compare_suites
from bitworth.tasks.leaderboard_v2 import above_chance, normalized_pct
from bitworth.types import Answer, Recovery

ByTask = Mapping[str, Sequence[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteAverage:
    """One checkpoint's mean of a suite's columns, None where it lacks one; all in percent."""

    suite: str
    checkpoint: str
    average_pct: float | None
    columns_pct: Mapping[str, float]
    missing: tuple[str, ...]


def column_pct(task: str, answers: Sequence[Answer]) -> float:
    """A task's figure in its leaderboard's table."""
    definition = registry.get(task)
    return normalized_pct(definition, answers) if definition.chance else 100 * fmean(one.score for one in answers)


def column_answers(task: str, answers: Sequence[Answer]) -> Sequence[Answer]:
    """A task's answers with scores whose mean is the leaderboard's figure / 100."""
    definition = registry.get(task)
    return above_chance(definition, answers) if definition.chance else answers


def tasks_of_suite(suite: str) -> tuple[str, ...]:
    """The names of its columns."""
    return tuple(spec.name for spec in registry.SUITES[suite])


def average_suite(suite: str, checkpoint: str, answers: ByTask) -> SuiteAverage:
    """The plain mean of columns; a suite that lacks a task has none."""
    wanted = tasks_of_suite(suite)
    columns = {name: column_pct(name, answers[name]) for name in wanted if answers.get(name)}
    return SuiteAverage(
        suite=suite,
        checkpoint=checkpoint,
        average_pct=fmean(columns.values()) if len(columns) == len(wanted) else None,
        columns_pct=columns,
        missing=tuple(name for name in wanted if name not in columns),
    )


def recover_suites(
    suites: Sequence[str], baseline: ByTask, quantized: ByTask, *, min_recovery_pct: float, format: str
) -> tuple[list[Recovery], dict[str, str]]:
    """Recovery of every suite that has one, p-values adjusted over these, and by suite why the others have none."""
    rows: list[Recovery] = []
    causes: dict[str, str] = {}
    for suite in suites:
        try:
            rows.append(recover_suite(suite, baseline, quantized, min_recovery_pct=min_recovery_pct, format=format))
        except BitworthError as error:
            causes[suite] = str(error)
    return adjusted(rows), causes


def recover_suite(suite: str, baseline: ByTask, quantized: ByTask, *, min_recovery_pct: float, format: str) -> Recovery:
    """Recovery of a suite's average by itself, its columns' errors added up as those of independent samples.

    Raises:
        BitworthError: a task that one of the two did not answer, or a baseline that is no better than guessing.
    """
    wanted = tasks_of_suite(suite)
    absent = [name for name in wanted if not (baseline.get(name) and quantized.get(name))]
    if absent:
        raise BitworthError(
            f"It has no average without {', '.join(absent)}, which {format} and the baseline did not both answer."
        )
    before, after = (
        [one for name in wanted for one in column_answers(name, side[name])] for side in (baseline, quantized)
    )
    (row,) = compare_suites(before, after, {suite: wanted}, min_recovery_pct=min_recovery_pct, format=format)
    return row


def as_row(average: SuiteAverage) -> dict[str, Any]:
    """For JSON documents."""
    return {**asdict(average), "missing": list(average.missing)}
