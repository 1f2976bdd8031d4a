"""From a study to its cells: what there is to do, in the order in which it is done; `cells` says what each one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bitworth import fingerprint, sources, tasks
from bitworth.cells import Subject, benchmark_cell, diverge_cell, on_device, quantize_cell, repeated_cells, subject_of
from bitworth.engines import NAMES as ENGINES
from bitworth.engines.schedule import loop_of
from bitworth.errors import BitworthError
from bitworth.load.rates import few_batches
from bitworth.sources import Note, silent
from bitworth.study import Study
from bitworth.types import BASELINE, Cell, Load, TaskSpec

ABSENT = "absent"
"""In place of the fingerprint of rows that cannot be had."""


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
    Timings are taken on each of `machines`, in words as `execute.placement.machines` gives them, else on this one.

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
    places: Sequence[Mapping[str, str] | None] = machines or (None,)
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
        cells += [on_device(study.device, cell) for cell in answering]
    for load, requests in study.timed_loads() if study.use_cases else []:
        if (doubt := few_batches(requests, loop_of(load))) is not None:
            note(f"{load.name}: {doubt}")
    for asked_for, workload in zip(study.use_cases, study.workload_values(), strict=True):
        trace = Path(asked_for.trace) if asked_for.trace is not None else None
        for load, requests in study.timed_loads() if trace is None else [(Load(kind="trace"), study.requests)]:
            for subject in subjects:
                cells += [
                    benchmark_cell(subject, workload, load, study.engine, requests, trace, place=place)
                    for place in places
                ]
    return tuple(cells)


def _named(model: str) -> Subject:
    """A model of the hub that is not here, by its name."""
    return Subject(format=BASELINE, identity=f"not fetched: {model}", path=model)


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
