"""From a ledger to everything a study says; needs the results folder alone, and no torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bitworth.apart import differing, likenesses
from bitworth.benchmarking import cost_of
from bitworth.columns import recover_suites
from bitworth.errors import BitworthError, WorkFailed
from bitworth.evaluation import compare, compare_groups, unfit_because
from bitworth.hardware import LOCAL, is_this_machine
from bitworth.ledger import Ledger, revive
from bitworth.predicted_rows import PredictedRows
from bitworth.readback import check_answers, check_cell, check_record
from bitworth.recommendation import Effort, mix_costs, recommend
from bitworth.statistics import noise_of
from bitworth.study import Study, parse_study
from bitworth.types import (
    BASELINE,
    Answer,
    Cell,
    Divergence,
    EngineFacts,
    Hardware,
    Load,
    Measurement,
    Missing,
    Noise,
    QuantizeResult,
    QueryCost,
    RatePoint,
    Recommendation,
    Recovery,
    StudyResult,
    Timing,
    UseCase,
)

Results = Sequence[tuple[Cell, Mapping[str, Any] | None]]
Answers = dict[str, dict[str, list[Answer]]]
"""Format to task to answers."""


def assemble(root: Path, changed: Mapping[str, Any] | None = None, *, ledger: Ledger | None = None) -> StudyResult:
    """What the results under `root` say; `changed` replaces fields of the study's constraint.

    `ledger` reads them, where that is to be another than the plain one.

    Raises:
        BitworthError: the folder holds no study, or it asks for no such task or suite as `recovery_of` names.
    """
    with _unswept():
        return _assemble(ledger or Ledger(root), root, changed)


def _assemble(ledger: Ledger, root: Path, changed: Mapping[str, Any] | None) -> StudyResult:
    study = parse_study(ledger.read_study(), where=f"{root}/study.json")
    records = [(cell, _light(cell, ledger.record(cell))) for cell in ledger.read_plan()]
    results = [(cell, None if record is None else record["result"]) for cell, record in records]
    least = replace(study.constraint(), **(changed or {}))
    try:
        study.check_counted(least.recovery_of)
        study.check_available(least.available)
    except ValueError as error:
        raise BitworthError(f"{root}: {error}.") from error
    answers = answers_of(results)
    recoveries, unfit = recoveries_of(answers, least.min_recovery_pct)
    suites, partial_suites = suites_of(answers, study.suites(), least.min_recovery_pct)
    recoveries = (*recoveries, *suites)
    costs = costs_of(
        results, study.hardware_values(), PredictedRows(config=ledger.read_config(), recipes=study.recipes())
    )
    decide = partial(recommend, recoveries=recoveries, constraint=least, effort=effort_of(records, study))
    return StudyResult(
        name=study.name,
        model=study.model,
        formats=tuple(entry.name for entry in study.formats),
        constraint=least,
        checkpoints={c.format: revive(QuantizeResult, _noun(QuantizeResult, r)) for c, r in _done(results, "quantize")},
        recoveries=recoveries,
        divergences={c.format: revive(Divergence, r["divergence"]) for c, r in _done(results, "diverge")},
        costs=costs,
        recommendations=decide(costs),
        missing=(*missing_of(ledger, results), *unfit, *partial_suites),
        evaluated_with={c.format: revive(EngineFacts, r["facts"]) for c, r in _done(results, "evaluate")},
        hardware=tuple(study.hardware_values()),
        machine=next((dict(r.get("machine", {})) for c, r in reversed(results) if r is not None), {}),
        settings=settings_of(study),
        finished=max((str(record["finished"]) for _, record in records if record is not None), default=None),
        groups=groups_of(answers, least.min_recovery_pct),
        noise=noise_rows(results),
        deployments=deployments_of(costs, study, decide),
        apart=tuple(pair for *side, format in _sides(answers) for pair in differing(*side, format=format)),
        likenesses=tuple(row for *side, format in _sides(answers) for row in likenesses(*side, format=format)),
    )


@contextmanager
def _unswept() -> Iterator[None]:
    """No garbage collection: of half a million answers none is garbage, and sweeping them takes a third of the time."""
    swept = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if swept:
            gc.enable()


def deployments_of(
    costs: Sequence[QueryCost], study: Study, decide: Callable[..., tuple[Recommendation, ...]]
) -> tuple[Recommendation, ...]:
    """The choice across loads where there are several, and for the study's mix of use cases where it gives one."""
    found: tuple[Recommendation, ...] = ()
    if study.traffic:
        found = decide(mix_costs(costs, study.traffic), across_loads=True)
    if len({cost.load for cost in costs}) > 1:
        found = (*found, *decide(costs, across_loads=True))
    return found


def effort_of(records: Sequence[tuple[Cell, Mapping[str, Any] | None]], study: Study) -> Effort:
    """What a further question took on the machine that asked, to the format and to the baseline."""
    taken: dict[tuple[str, str], float] = {}
    for cell, record in records:
        if cell.kind == "evaluate" and not cell.is_repeat and record is not None and record["result"]["answers"]:
            questions = len(record["result"]["answers"])
            taken[cell.format, cell.inputs["task"]["name"]] = float(record.get("seconds", 0.0)) / questions
    both = {(format, task): own + taken.get((BASELINE, task), 0.0) for (format, task), own in taken.items() if own}
    here = next((row for row in study.hardware_values() if is_this_machine(row)), None)
    return Effort(seconds_per_question=both, usd_per_hour=here.usd_per_hour if here else None)


def recoveries_of(answers: Answers, least_pct: float) -> tuple[tuple[Recovery, ...], list[Missing]]:
    """Recoveries of every format against the baseline, and the tasks that allow none.

    A format that lacks a task the baseline has gets no `average`: it would be over other tasks than the rest.
    """
    baseline, answers = _split(answers)
    causes = {task: unfit_because(rows) for task, rows in baseline.items()}
    unfit = [Missing(title=f"recovery on {task}", cause=cause) for task, cause in causes.items() if cause is not None]
    usable = {task: rows for task, rows in baseline.items() if causes[task] is None}
    found: list[Recovery] = []
    for format, tasks in answers.items():
        own = {task: tasks[task] for task in usable if task in tasks}
        if own:
            sides = [[answer for rows in side.values() for answer in rows] for side in (usable, own)]
            found += compare(*sides, min_recovery_pct=least_pct, format=format)
    return tuple(found), unfit


def suites_of(answers: Answers, suites: Sequence[str], least_pct: float) -> tuple[tuple[Recovery, ...], list[Missing]]:
    """Recovery of every suite that the study names, by format; and the averages that cannot be had, and why."""
    baseline, answers = _split(answers)
    found: list[Recovery] = []
    lacking: list[Missing] = []
    for format, tasks in answers.items():
        rows, causes = recover_suites(suites, baseline, tasks, min_recovery_pct=least_pct, format=format)
        found += rows
        lacking += [Missing(title=f"recovery of {format} on {suite}", cause=cause) for suite, cause in causes.items()]
    return tuple(sorted(found, key=lambda row: suites.index(row.task))), lacking


def noise_rows(results: Results) -> tuple[Noise, ...]:
    """The engine's noise on every task that was asked several times, by format."""
    runs: dict[tuple[str, str], list[list[Answer]]] = {}
    for cell, result in _done(results, "evaluate"):
        asked = runs.setdefault((cell.format, cell.inputs["task"]["name"]), [])
        asked.append(revive(list[Answer], result["answers"]))
    return tuple(noise_of(task, format, found) for (format, task), found in runs.items() if len(found) > 1)


def groups_of(answers: Answers, least_pct: float) -> tuple[Recovery, ...]:
    """Recoveries of every subject or language of the tasks that tell them apart, by format, then in order of names."""
    baseline, answers = _split(answers)
    found: list[Recovery] = []
    for format, tasks in answers.items():
        common = [task for task in baseline if task in tasks]
        if common:
            pairs = [[answer for task in common for answer in side[task]] for side in (baseline, tasks)]
            found += compare_groups(*pairs, min_recovery_pct=least_pct, format=format)
    return tuple(found)


def costs_of(
    results: Results, hardware: Sequence[Hardware], predicted: PredictedRows | None = None
) -> tuple[QueryCost, ...]:
    """Every timing at the price of every hardware row; a row that was not timed is predicted, or says so.

    Where machines of several rows were timed, each row has its own machine's figures.
    """
    costs: dict[tuple[Any, ...], QueryCost] = {}
    for cell, result in _done(results, "benchmark"):
        use_case, load = revive(UseCase, cell.inputs["use_case"]), revive(Load, cell.inputs["load"])
        measurement, reason = None, result["unsupported"]
        if reason is None:
            timings = tuple(revive(Timing, row) for row in result["timings"])
            rates = tuple(revive(RatePoint, row) for row in result.get("rates", ()))  # an older ledger has none
            measurement = Measurement(runs=(timings,), facts=revive(EngineFacts, result["facts"]), rates=rates)
        for at, row in enumerate(hardware):
            place = (cell.format, use_case, load, at)
            if _timed_on(row, cell, measurement):
                costs[place] = _cost(cell.format, measurement, use_case, load, row, reason)
            elif place in costs:
                continue
            elif predicted is not None:
                one_shape = not {"mix", "trace"} & cell.inputs.keys()
                costs[place] = predicted.cost(cell.format, use_case, load, row, one_shape=one_shape)
            else:
                why = f"not timed on {row.name}; run the study there"
                costs[place] = _cost(cell.format, None, use_case, load, row, why)
    return tuple(costs.values())


def missing_of(ledger: Ledger, results: Results) -> list[Missing]:
    """The cells without a result, and why."""
    return [
        Missing(title=cell.title, cause=ledger.failure(cell) or "It has not been run.")
        for cell, result in results
        if result is None
    ]


def settings_of(study: Study) -> dict[str, str]:
    """What the study asked for, in words."""
    tasks = [
        f"{t.name} ({t.limit or 'all'} questions, seed {t.seed}{f', asked {t.repeats} times' if t.repeats else ''})"
        for t in study.task_specs()
    ]
    calibration = study.calibration
    settings = {
        "tasks": ", ".join(tasks) or "none",
        "calibration": f"{calibration.samples} x {calibration.length} tokens of {calibration.words()}, "
        f"seed {calibration.seed}",
        "engine for speed": study.engine,
        "requests": f"{', '.join(_requests(study))} a use case, after a warm-up",
    }
    if study.divergence is not None:
        windows = study.divergence.windows or "all"
        settings["divergence"] = f"{study.divergence.text}, {windows} windows of {study.divergence.window} tokens"
    return settings


def _requests(study: Study) -> list[str]:
    return [f"{requests} under {load.name}" for load, requests in study.timed_loads()]


def _cost(
    format: str, measurement: Measurement | None, use_case: UseCase, load: Load, row: Hardware, why: str | None
) -> QueryCost:
    try:
        return cost_of(format, measurement, use_case, load, row, unsupported=why)
    except WorkFailed as error:  # too many of its requests failed
        return cost_of(format, None, use_case, load, row, unsupported=str(error))


def _timed_on(row: Hardware, cell: Cell, measurement: Measurement | None) -> bool:
    """Whether the cell's figures, or its reason why there are none, are that row's."""
    asked = cell.inputs.get("machine", {}).get("hardware")
    if asked is not None:
        return bool(asked == row.words)
    if measurement is None:
        return is_this_machine(row)
    return row.name == LOCAL or row.name.lower() in measurement.facts.device.lower()


def answers_of(results: Results) -> Answers:
    """What every format answered to every task."""
    answers: Answers = {}
    for cell, result in _done(results, "evaluate"):
        if cell.is_repeat:
            continue
        rows = revive(list[Answer], result["answers"])
        answers.setdefault(cell.format, {})[cell.inputs["task"]["name"]] = rows
    return answers


def _light(cell: Cell, record: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record, checked, with its answers as values, which take a third of the memory that their JSON takes."""
    check_cell(cell)
    if record is not None:
        check_record(cell, record)
    if record is not None and "answers" in record["result"]:
        record["result"]["answers"] = revive(list[Answer], record["result"]["answers"])
        check_answers(cell, record["result"]["answers"])
    return record


def _sides(answers: Answers) -> Iterator[tuple[list[Answer], list[Answer], str]]:
    """The baseline's answers and a format's, and its name, task by task of those that both answered."""
    baseline, others = _split(answers)
    for format, tasks in others.items():
        for task in (task for task in baseline if task in tasks):
            yield baseline[task], tasks[task], format


def _split(answers: Answers) -> tuple[dict[str, list[Answer]], Answers]:
    """The baseline's, and the others'."""
    return answers.get(BASELINE, {}), {format: tasks for format, tasks in answers.items() if format != BASELINE}


def _done(results: Results, kind: str) -> list[tuple[Cell, Mapping[str, Any]]]:
    return [(cell, result) for cell, result in results if cell.kind == kind and result is not None]


def _noun(kind: type[Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that is the noun's; an older ledger may lack what the noun has a default for."""
    return {name: result[name] for name in kind.__dataclass_fields__ if name in result}
