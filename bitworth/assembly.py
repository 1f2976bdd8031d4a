"""From a ledger to everything a study says; needs the results folder alone, and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitworth.benchmarking import cost_of
from bitworth.errors import WorkFailed
from bitworth.evaluation import compare, compare_groups, unfit_because
from bitworth.hardware import LOCAL
from bitworth.ledger import Ledger, revive
from bitworth.recommendation import recommend
from bitworth.study import Study, parse_study
from bitworth.types import (
    AVERAGE,
    BASELINE,
    Answer,
    Cell,
    Divergence,
    EngineFacts,
    Hardware,
    Load,
    Measurement,
    Missing,
    QuantizeResult,
    QueryCost,
    Recovery,
    StudyResult,
    Timing,
    UseCase,
)

Results = Sequence[tuple[Cell, Mapping[str, Any] | None]]


def assemble(root: Path, changed: Mapping[str, float] | None = None) -> StudyResult:
    """What the results under `root` say; `changed` replaces fields of the study's constraint.

    Raises:
        BitworthError: the folder holds no study.
    """
    ledger = Ledger(root)
    study = parse_study(ledger.read_study(), where=f"{root}/study.json")
    cells = ledger.read_plan()
    results = [(cell, ledger.get(cell)) for cell in cells]
    least = replace(study.constraint(), **(changed or {}))
    recoveries, unfit = recoveries_of(results, least.min_recovery_pct)
    costs = costs_of(results, study.hardware_values())
    return StudyResult(
        name=study.name,
        model=study.model,
        formats=tuple(entry.name for entry in study.formats),
        constraint=least,
        checkpoints={c.format: revive(QuantizeResult, _noun(QuantizeResult, r)) for c, r in _done(results, "quantize")},
        recoveries=recoveries,
        divergences={c.format: revive(Divergence, r["divergence"]) for c, r in _done(results, "diverge")},
        costs=costs,
        recommendations=recommend(costs, recoveries, least, baseline=BASELINE),
        missing=(*missing_of(ledger, results), *unfit),
        evaluated_with={c.format: revive(EngineFacts, r["facts"]) for c, r in _done(results, "evaluate")},
        hardware=tuple(study.hardware_values()),
        machine=next((dict(r["machine"]) for c, r in reversed(results) if r is not None), {}),
        settings=settings_of(study),
        finished=ledger.finished(cells),
        groups=groups_of(results, least.min_recovery_pct),
    )


def recoveries_of(results: Results, least_pct: float) -> tuple[tuple[Recovery, ...], list[Missing]]:
    """Recoveries of every format against the baseline, and the tasks that allow none.

    A format that lacks a task the baseline has gets no `average`: it would be over other tasks than the rest.
    """
    answers = _answers(results)
    baseline = answers.pop(BASELINE, {})
    causes = {task: unfit_because(rows) for task, rows in baseline.items()}
    unfit = [Missing(title=f"recovery on {task}", cause=cause) for task, cause in causes.items() if cause is not None]
    usable = {task: rows for task, rows in baseline.items() if causes[task] is None}
    found: list[Recovery] = []
    for format, tasks in answers.items():
        common = [task for task in usable if task in tasks]
        if common:
            pairs = [[answer for task in common for answer in side[task]] for side in (usable, tasks)]
            compared = compare(*pairs, min_recovery_pct=least_pct, format=format)
            whole = len(common) == len(usable)
            found += [row for row in compared if whole or row.task != AVERAGE]
    return tuple(found), unfit


def groups_of(results: Results, least_pct: float) -> tuple[Recovery, ...]:
    """Recoveries of every subject or language of the tasks that tell them apart, by format, then in order of names."""
    answers = _answers(results)
    baseline = answers.pop(BASELINE, {})
    found: list[Recovery] = []
    for format, tasks in answers.items():
        common = [task for task in baseline if task in tasks]
        if common:
            pairs = [[answer for task in common for answer in side[task]] for side in (baseline, tasks)]
            found += compare_groups(*pairs, min_recovery_pct=least_pct, format=format)
    return tuple(found)


def costs_of(results: Results, hardware: Sequence[Hardware]) -> tuple[QueryCost, ...]:
    """Every timing at the price of every hardware row; a row that was not timed says so."""
    costs = []
    for cell, result in _done(results, "benchmark"):
        use_case, load = revive(UseCase, cell.inputs["use_case"]), revive(Load, cell.inputs["load"])
        measurement, reason = None, result["unsupported"]
        if reason is None:
            timings = tuple(revive(Timing, row) for row in result["timings"])
            measurement = Measurement(timings=timings, facts=revive(EngineFacts, result["facts"]))
        for row in hardware:
            elsewhere = measurement is not None and not _timed_on(row, measurement.facts)
            why = f"not timed on {row.name}; run the study there" if elsewhere else reason
            costs.append(_cost(cell.format, None if why else measurement, use_case, load, row, why))
    return tuple(costs)


def missing_of(ledger: Ledger, results: Results) -> list[Missing]:
    """The cells without a result, and why."""
    return [
        Missing(title=cell.title, cause=ledger.failure(cell) or "It has not been run.")
        for cell, result in results
        if result is None
    ]


def settings_of(study: Study) -> dict[str, str]:
    """What the study asked for, in words."""
    tasks = [f"{t.name} ({t.limit or 'all'} questions, seed {t.seed})" for t in study.task_specs()]
    calibration = study.calibration
    settings = {
        "tasks": ", ".join(tasks) or "none",
        "calibration": f"{calibration.samples} x {calibration.length} tokens of {calibration.words()}, "
        f"seed {calibration.seed}",
        "engine for speed": study.engine,
        "requests": f"{study.requests} a use case and load, after a warm-up",
    }
    if study.divergence is not None:
        windows = study.divergence.windows or "all"
        settings["divergence"] = f"{study.divergence.text}, {windows} windows of {study.divergence.window} tokens"
    return settings


def _cost(
    format: str, measurement: Measurement | None, use_case: UseCase, load: Load, row: Hardware, why: str | None
) -> QueryCost:
    try:
        return cost_of(format, measurement, use_case, load, row, unsupported=why)
    except WorkFailed as error:  # too many of its requests failed
        return cost_of(format, None, use_case, load, row, unsupported=str(error))


def _timed_on(row: Hardware, facts: EngineFacts) -> bool:
    return row.name == LOCAL or row.name.lower() in facts.device.lower()


def _answers(results: Results) -> dict[str, dict[str, list[Answer]]]:
    """Format to task to answers."""
    answers: dict[str, dict[str, list[Answer]]] = {}
    for cell, result in _done(results, "evaluate"):
        rows = [revive(Answer, row) for row in result["answers"]]
        answers.setdefault(cell.format, {})[cell.inputs["task"]["name"]] = rows
    return answers


def _done(results: Results, kind: str) -> list[tuple[Cell, Mapping[str, Any]]]:
    return [(cell, result) for cell, result in results if cell.kind == kind and result is not None]


def _noun(kind: type[Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that is the noun's; an older ledger may lack what the noun has a default for."""
    return {name: result[name] for name in kind.__dataclass_fields__ if name in result}
