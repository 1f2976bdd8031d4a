"""From a study to its cells: what there is to do, in the order in which it is done.

A cell's key hashes everything that could change its result and nothing else, so a changed tolerance or price runs
nothing again, and a changed calibration runs only what rests on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bitworth import fingerprint, sources, tasks
from bitworth.engines import NAMES as ENGINES
from bitworth.engines import is_url
from bitworth.engines.schedule import loop_of
from bitworth.errors import BitworthError
from bitworth.hardware import machine
from bitworth.ledger import key_of, revive
from bitworth.load.rates import few_batches
from bitworth.load.run import RAMP
from bitworth.load.traces import Workload, read_trace
from bitworth.sources import Note, silent
from bitworth.study import Study
from bitworth.types import (
    BASELINE,
    OWN_TEXT,
    RANDOM_TOKENS,
    Calibration,
    CalibrationSource,
    Cell,
    Load,
    Recipe,
    TaskSpec,
    UseCase,
)
from bitworth.versions import versions_of

RATED = ("throughput", "constant", "poisson")
"""Loads of several requests at once, other than sweeps and traces."""
ABSENT = "absent"
"""In place of the fingerprint of rows that cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint to measure: the format's name, the identity of its weights, where it lies, the cell that makes it.

    `path` is absolute, or relative to the results folder where a cell makes it.
    """

    format: str
    identity: str
    path: str
    needs: tuple[str, ...] = ()


def plan_cells(
    study: Study,
    *,
    by_name: bool = False,
    note: Note = silent,
    machines: Sequence[Mapping[str, str]] = (),
) -> tuple[Cell, ...]:
    """The study's cells: each format's quantization, answers and divergence together, then all timings.

    Sources that names stand for are fetched first, since what they hold is part of the keys; `by_name` puts the hub's
    names in their place and fetches nothing from it, for a list of cells whose keys nothing will be kept under.
    Timings are taken on each of `machines`, in words as `hardware.machine` gives them; on this one unless given.

    Raises:
        BitworthError: the model, a text or benchmark rows cannot be had.
    """
    baseline = _named(study.model) if by_name else checkpoint_subject(study.model, BASELINE, note=note)
    made = [
        quantize_cell(baseline, recipe, study, by_name=by_name, note=note)
        for recipe in study.recipes().values()
        if recipe
    ]
    subjects = [baseline, *(subject_of(cell) for cell in made)]
    by_format = {cell.format: cell for cell in made}
    asked = evaluation_inputs(study.task_specs(), study.data, by_name=by_name, note=note, partly=True)
    cells: list[Cell] = []
    for subject in subjects:
        if subject.format in by_format:
            cells.append(by_format[subject.format])
        unsafe = study.unsafe_code_execution
        answering = [cell for entry in asked for cell in repeated_cells(subject, *entry, unsafe=unsafe)]
        if study.divergence is not None:
            text = sources.resolve_file(study.divergence.text, "divergence text", note=note)
            entry = study.divergence
            answering.append(diverge_cell(subject, baseline, text, entry.window, entry.windows))
        cells += [_on(study.device, cell) for cell in answering]
    for load, requests in study.timed_loads() if study.use_cases else []:
        if (doubt := few_batches(requests, loop_of(load))) is not None:
            note(f"{load.name}: {doubt}")
    for asked_for, workload in zip(study.use_cases, study.workload_values(), strict=True):
        trace = Path(asked_for.trace) if asked_for.trace is not None else None
        for load, requests in study.timed_loads() if trace is None else [(Load(kind="trace"), study.requests)]:
            for subject in subjects:
                cells += [
                    benchmark_cell(subject, workload, load, study.engine, requests, trace, place=place)
                    for place in machines or [machine()]
                ]
    return tuple(cells)


def _on(device: str | None, cell: Cell) -> Cell:
    """The cell on a device that the study names; where it names none, the key is what it always was."""
    return cell if device is None else replace(cell, inputs={**cell.inputs, "device": device})


def _named(model: str) -> Subject:
    """A model of the hub that is not here, by its name."""
    return Subject(format=BASELINE, identity=f"not fetched: {model}", path=model)


def subject_of(cell: Cell) -> Subject:
    """The checkpoint that a quantize cell makes."""
    return Subject(format=cell.format, identity=key_of(cell), path=cell.where["out"], needs=(key_of(cell),))


def quantize_cell(
    baseline: Subject, recipe: Recipe, study: Study, *, by_name: bool = False, note: Note = silent
) -> Cell:
    """One recipe over the study's model."""
    inputs: dict[str, Any] = {
        "model": baseline.identity,
        "recipe": asdict(recipe),
        "calibration": None,
        "allow_group_fallback": study.allow_group_fallback,
        "versions": versions_of("torch", "transformers"),
    }
    where = {"model": baseline.path}
    if recipe.needs_calibration:
        spec = study.calibration_spec()
        inputs["calibration"], places = calibration_inputs(spec, baseline.identity, by_name=by_name, note=note)
        where |= places
    if study.devices > 1:  # sums in another order, which is no other checkpoint
        where["devices"] = str(study.devices)
    cell = Cell(kind="quantize", title=f"quantize {recipe.name}", format=recipe.name, inputs=inputs, where=where)
    cell = _on(study.device, cell)
    return replace(cell, where={**where, "out": f"checkpoints/{recipe.name}-{key_of(cell)[:8]}"})


def calibration_inputs(
    spec: Calibration, model_identity: str, *, by_name: bool = False, note: Note = silent
) -> tuple[dict[str, Any], dict[str, str]]:
    """A calibration's part of a cell's inputs, and of its `where`: everything that could change its tokens.

    A file stands in the inputs by its content and whether it is JSON Lines, the hub's by its name and revision too,
    `self` by the model's identity; where the files lie and what they are called does not count.

    Raises:
        BitworthError: a source cannot be had.
    """
    rows, where = [], {}
    for index, asked in enumerate(spec.mix):
        hub = asked.source if asked.source.startswith("hub:") else None
        if by_name and hub is not None:
            found = asked
        else:
            (found,) = sources.resolve_calibration(replace(spec, source=None, sources=(asked,)), note=note).mix
        where[f"calibration.{index}"] = found.source
        where[f"calibration.{index}.name"] = found.name or asked.source
        if asked.source == RANDOM_TOKENS:
            content = RANDOM_TOKENS
        elif asked.source == OWN_TEXT:
            content = f"{OWN_TEXT} {model_identity}"
        elif found is asked:
            content = f"not fetched: {hub}"
        else:
            path = Path(found.source)
            content = f"{fingerprint.of_file(path)}{path.suffix if path.suffix == '.jsonl' else ''}"
        rows.append({"content": content, "hub": hub, "weight": asked.weight})
    return {**asdict(replace(spec, source=None, sources=())), "sources": rows}, where


def calibration_of(cell: Cell) -> Calibration | None:
    """The calibration that a quantize cell's inputs stand for, on this machine; None where it needs none."""
    inputs = cell.inputs["calibration"]
    if inputs is None:
        return None
    parts = tuple(
        CalibrationSource(
            source=cell.where[f"calibration.{index}"],
            weight=row["weight"],
            name=cell.where[f"calibration.{index}.name"],
        )
        for index, row in enumerate(inputs["sources"])
    )
    return Calibration(**{**inputs, "sources": parts})


def evaluation_inputs(
    specs: list[TaskSpec],
    data: str | None,
    *,
    by_name: bool = False,
    note: Note = silent,
    partly: bool = False,
) -> list[tuple[TaskSpec, Path | None, str]]:
    """Each task with the folder of its rows (None: the hub) and their fingerprint.

    With `partly`, a task whose rows cannot be had holds up no other: it is planned, and its cell fails with the ways
    to get them, until they are here.

    Raises:
        BitworthError: rows that cannot be had; with `partly`, those of every task.
    """
    if not specs:
        return []
    if by_name and data is None:
        return [(spec, None, f"not fetched: {spec.name}") for spec in specs]
    folder = sources.resolve_data(data, note=note)
    found, first = [], None
    for spec in specs:
        try:
            found.append((spec, folder, tasks.data_fingerprint(spec.name, folder)))
        except tasks.RowsAbsent as error:
            first = first or error
            note(str(error))
            found.append((spec, folder, ABSENT))
    if first is not None and (not partly or all(mark == ABSENT for _, _, mark in found)):
        raise first
    return found


def evaluate_cell(
    subject: Subject,
    spec: TaskSpec,
    data: Path | None,
    found: str,
    *,
    batch: tuple[int, int] | None = None,
    engine: str = "torch",
    unsafe: bool = False,
    compared: bool = False,
    repeat: int = 0,
) -> Cell:
    """One task's questions put to one checkpoint.

    With `batch` that stretch of their seeded order (`tasks.load`); with `unsafe` programs that the model writes run
    even where nothing isolates them. What is `compared` with another model's answers comes, at a URL, from the model
    of the folder's name alone. From `repeat` 1 on it is the same asked again, for the engine's noise.
    """
    if batch is not None:
        spec = replace(spec, limit=None)
    exact = engine == "torch"
    inputs: dict[str, Any] = {
        "checkpoint": subject.identity,
        # How often it is asked changes no answer; a task has the key that it had before it could be asked again.
        "task": {name: value for name, value in asdict(spec).items() if name != "repeats"},
        "data": found,
        "engine": "torch, exact arithmetic" if exact else engine,
        "versions": versions_of("torch", "transformers", "lm_eval", *tasks.packages_of(spec.name), engine=engine),
    }
    where = {"checkpoint": subject.path} | ({"data": str(data.resolve())} if data else {})
    where |= {} if exact else {"engine": engine}
    title = f"{spec.name} on {subject.format}"
    if batch is not None:
        inputs["batch"] = list(batch)
        title = f"{spec.name} from question {batch[0] + 1} on, {subject.format}"
    if unsafe and tasks.runs_programs(spec.name):
        inputs["unsafe"] = True  # such verdicts are no others' to use
    if compared and is_url(engine):
        inputs["by_name"] = True
    if repeat:
        inputs["repeat"] = repeat
        title = f"{title}, asked again ({repeat + 1})"
    return Cell(kind="evaluate", title=title, format=subject.format, inputs=inputs, where=where, needs=subject.needs)


def repeated_cells(
    subject: Subject,
    spec: TaskSpec,
    data: Path | None,
    found: str,
    *,
    engine: str = "torch",
    unsafe: bool = False,
    compared: bool = False,
) -> list[Cell]:
    """One task's questions put to one checkpoint as often as the spec says."""
    return [
        evaluate_cell(subject, spec, data, found, engine=engine, unsafe=unsafe, compared=compared, repeat=repeat)
        for repeat in range(spec.repeats or 1)
    ]


def diverge_cell(subject: Subject, baseline: Subject | None, text: Path, window: int, windows: int | None) -> Cell:
    """One checkpoint against its baseline on a text; the baseline itself gives perplexity alone."""
    reference = baseline if baseline is not None and baseline.identity != subject.identity else None
    inputs = {
        "checkpoint": subject.identity,
        "baseline": reference.identity if reference else None,
        "text": fingerprint.of_file(text),
        "window": window,
        "windows": windows,
        "versions": versions_of("torch", "transformers"),
    }
    where = {"checkpoint": subject.path, "text": str(text.resolve())}
    if reference is not None:
        where["baseline"] = reference.path
    needs = (*subject.needs, *(reference.needs if reference else ()))
    title = f"divergence of {subject.format}" if reference else f"perplexity of {subject.format}"
    return Cell(kind="diverge", title=title, format=subject.format, inputs=inputs, where=where, needs=needs)


def benchmark_cell(
    subject: Subject,
    workload: Workload,
    load: Load,
    engine: str,
    requests: int,
    trace: Path | None = None,
    *,
    place: Mapping[str, str] | None = None,
) -> Cell:
    """One checkpoint's requests under one load; a trace counts by what its file holds.

    `place` is the machine, in words; this one unless given. Its `hardware`, where it has one, is which row of the
    study's hardware the machine is there for.
    """
    inputs = {
        "checkpoint": subject.identity,
        "use_case": asdict(workload.use_case),
        # A load without limits has the key that it had before there were any.
        "load": {name: value for name, value in asdict(load).items() if name != "limits" or value is not None},
        "engine": engine,
        "requests": requests,
        "machine": dict(place or machine()),
        "versions": versions_of("torch", "transformers"),
    }
    where = {"checkpoint": subject.path}
    if trace is not None:
        inputs["trace"] = fingerprint.of_file(trace)
        where["trace"] = str(trace.resolve())
    elif len(workload.parts) > 1:
        inputs["mix"] = [{"use_case": asdict(case), "weight": weight} for case, weight in workload.parts]
    elif load.kind in RATED and engine != "torch":
        inputs["ramp"] = RAMP  # once it was not sent; mixes and sweeps always had it, and keep their keys
    title = f"{workload.name}, {load.name}, {subject.format}"
    if place is not None and "hardware" in place:
        title += f" on {place['hardware']}"
    return Cell(kind="benchmark", title=title, format=subject.format, inputs=inputs, where=where, needs=subject.needs)


def workload_of(cell: Cell) -> Workload:
    """What a benchmark cell asks.

    Raises:
        BitworthError: its trace is not where it was, or holds something else now.
    """
    use_case = revive(UseCase, cell.inputs["use_case"])
    if "trace" in cell.inputs:
        path = Path(cell.where["trace"])
        shapes = read_trace(path)
        if fingerprint.of_file(path) != cell.inputs["trace"]:
            raise BitworthError(f"The trace {path} has changed since the study was planned; run the study again.")
        return Workload(name=use_case.name, trace=shapes)
    rows = cell.inputs.get("mix") or [{"use_case": cell.inputs["use_case"], "weight": 1.0}]
    parts = tuple((revive(UseCase, row["use_case"]), float(row["weight"])) for row in rows)
    return Workload(name=use_case.name, parts=parts)


def evaluation_cells(
    subject: Subject,
    baseline: Subject | None,
    specs: list[TaskSpec],
    *,
    data: str | None,
    text: str | None,
    window: int,
    windows: int | None,
    engine: str = "torch",
    unsafe: bool = False,
    note: Note = silent,
) -> tuple[Cell, ...]:
    """The cells of one checkpoint's evaluation outside a study: the baseline's answers, its own, its divergence.

    Raises:
        BitworthError: rows or text cannot be had.
    """
    asked = evaluation_inputs(specs, data, note=note, partly=True)
    both = [baseline, subject] if baseline is not None else [subject]
    compared = baseline is not None
    cells = [
        cell
        for who in both
        for entry in asked
        for cell in repeated_cells(who, *entry, engine=engine, unsafe=unsafe, compared=compared)
    ]
    if text is not None:
        file = sources.resolve_file(text, "divergence text", note=note)
        cells.append(diverge_cell(subject, baseline, file, window, windows))
    return tuple(cells)


def checkpoint_subject(reference: str, name: str, *, note: Note = silent) -> Subject:
    """A model or checkpoint given by folder or hub id, outside a study.

    Raises:
        BitworthError: it cannot be had.
    """
    folder = sources.resolve_model(reference, note=note)
    identity = fingerprint.of_model(folder, sources.cache_folder())
    return Subject(format=name, identity=identity, path=str(folder.resolve()))


def check_engine(study: Study) -> None:
    """Refuse an engine that cannot serve every format of a study.

    Raises:
        BitworthError: a URL, which serves one model only.
    """
    if study.engine not in ENGINES:
        known = " or ".join(name for name in ENGINES if name != "fake")
        raise BitworthError(
            f"engine '{study.engine}': a study runs {known}, which load each format in turn; time a server that "
            "is running already with `bitworth benchmark CHECKPOINT --engine URL`."
        )
