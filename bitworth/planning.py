"""From a study to its cells: what there is to do, in the order in which it is done.

A cell's key hashes everything that could change its result and nothing else, so a changed tolerance or price runs
nothing again, and a changed calibration runs only what rests on it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitworth import fingerprint, sources, tasks
from bitworth.errors import BitworthError
from bitworth.hardware import machine
from bitworth.ledger import key_of
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint to measure: the format's name, the identity of its weights, where it lies, the cell that makes it.

    `path` is absolute, or relative to the results folder where a cell makes it.
    """

    format: str
    identity: str
    path: str
    needs: tuple[str, ...] = ()


def plan_cells(study: Study, *, note: Note = silent) -> tuple[Cell, ...]:
    """The study's cells: each format's quantization, answers and divergence together, then all timings.

    Sources that names stand for are fetched first, since what they hold is part of the keys.

    Raises:
        BitworthError: the model, a text or benchmark rows cannot be had.
    """
    model = sources.resolve_model(study.model, note=note)
    identity = fingerprint.of_model(model, sources.cache_folder())
    baseline = Subject(format=BASELINE, identity=identity, path=str(model.resolve()))
    made = [quantize_cell(baseline, recipe, study, note=note) for recipe in study.recipes().values() if recipe]
    subjects = [baseline, *(subject_of(cell) for cell in made)]
    by_format = {cell.format: cell for cell in made}
    asked = evaluation_inputs(study.task_specs(), study.data, note=note)
    cells: list[Cell] = []
    for subject in subjects:
        if subject.format in by_format:
            cells.append(by_format[subject.format])
        unsafe = study.unsafe_code_execution
        cells += [evaluate_cell(subject, spec, data, found, unsafe=unsafe) for spec, data, found in asked]
        if study.divergence is not None:
            text = sources.resolve_file(study.divergence.text, "divergence text", note=note)
            entry = study.divergence
            cells.append(diverge_cell(subject, baseline, text, entry.window, entry.windows))
    for use_case in study.use_case_values():
        for load in study.load_values():
            for subject in subjects:
                cells.append(benchmark_cell(subject, use_case, load, study.engine, study.requests))
    return tuple(cells)


def subject_of(cell: Cell) -> Subject:
    """The checkpoint that a quantize cell makes."""
    return Subject(format=cell.format, identity=key_of(cell), path=cell.where["out"], needs=(key_of(cell),))


def quantize_cell(baseline: Subject, recipe: Recipe, study: Study, *, note: Note = silent) -> Cell:
    """One recipe over the study's model."""
    inputs: dict[str, Any] = {
        "model": baseline.identity,
        "recipe": asdict(recipe),
        "calibration": None,
        "allow_group_fallback": study.allow_group_fallback,
        "versions": _versions("torch", "transformers"),
    }
    where = {"model": baseline.path}
    if recipe.needs_calibration:
        inputs["calibration"], places = calibration_inputs(study.calibration_spec(), baseline.identity, note=note)
        where |= places
    cell = Cell(kind="quantize", title=f"quantize {recipe.name}", format=recipe.name, inputs=inputs, where=where)
    return Cell(**{**_fields(cell), "where": {**where, "out": f"checkpoints/{recipe.name}-{key_of(cell)[:8]}"}})


def calibration_inputs(
    spec: Calibration, model_identity: str, *, note: Note = silent
) -> tuple[dict[str, Any], dict[str, str]]:
    """A calibration's part of a cell's inputs, and of its `where`: everything that could change its tokens.

    A file stands in the inputs by its content and whether it is JSON Lines, the hub's by its name and revision too,
    `self` by the model's identity; where the files lie and what they are called does not count.

    Raises:
        BitworthError: a source cannot be had.
    """
    rows, where = [], {}
    for index, (asked, found) in enumerate(
        zip(spec.mix, sources.resolve_calibration(spec, note=note).mix, strict=True)
    ):
        where[f"calibration.{index}"] = found.source
        where[f"calibration.{index}.name"] = found.name or asked.source
        if asked.source == RANDOM_TOKENS:
            content = RANDOM_TOKENS
        elif asked.source == OWN_TEXT:
            content = f"{OWN_TEXT} {model_identity}"
        else:
            path = Path(found.source)
            content = f"{fingerprint.of_file(path)}{path.suffix if path.suffix == '.jsonl' else ''}"
        hub = asked.source if asked.source.startswith("hub:") else None
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
    specs: list[TaskSpec], data: str | None, *, note: Note = silent
) -> list[tuple[TaskSpec, Path | None, str]]:
    """Each task with the folder of its rows (None: the hub) and their fingerprint."""
    if not specs:
        return []
    folder = sources.resolve_data(data, note=note)
    return [(spec, folder, tasks.data_fingerprint(spec.name, folder)) for spec in specs]


def evaluate_cell(
    subject: Subject, spec: TaskSpec, data: Path | None, found: str, *, engine: str = "torch", unsafe: bool = False
) -> Cell:
    """One task's questions put to one checkpoint; with `unsafe`, programs it writes run even where nothing isolates."""
    exact = engine == "torch"
    inputs = {
        "checkpoint": subject.identity,
        "task": asdict(spec),
        "data": found,
        "engine": "torch, exact arithmetic" if exact else engine,
        "versions": _versions("torch", "transformers", "lm_eval"),
    }
    where = {"checkpoint": subject.path} | ({"data": str(data.resolve())} if data else {})
    where |= ({"unsafe": "yes"} if unsafe else {}) | ({} if exact else {"engine": engine})
    title = f"{spec.name} on {subject.format}"
    return Cell(kind="evaluate", title=title, format=subject.format, inputs=inputs, where=where, needs=subject.needs)


def diverge_cell(subject: Subject, baseline: Subject | None, text: Path, window: int, windows: int | None) -> Cell:
    """One checkpoint against its baseline on a text; the baseline itself gives perplexity alone."""
    reference = baseline if baseline is not None and baseline.identity != subject.identity else None
    inputs = {
        "checkpoint": subject.identity,
        "baseline": reference.identity if reference else None,
        "text": fingerprint.of_file(text),
        "window": window,
        "windows": windows,
        "versions": _versions("torch", "transformers"),
    }
    where = {"checkpoint": subject.path, "text": str(text.resolve())}
    if reference is not None:
        where["baseline"] = reference.path
    needs = (*subject.needs, *(reference.needs if reference else ()))
    title = f"divergence of {subject.format}" if reference else f"perplexity of {subject.format}"
    return Cell(kind="diverge", title=title, format=subject.format, inputs=inputs, where=where, needs=needs)


def benchmark_cell(subject: Subject, use_case: UseCase, load: Load, engine: str, requests: int) -> Cell:
    """One checkpoint's requests under one load, on this machine."""
    inputs = {
        "checkpoint": subject.identity,
        "use_case": asdict(use_case),
        "load": asdict(load),
        "engine": engine,
        "requests": requests,
        "machine": machine(),
        "versions": _versions("torch", "transformers"),
    }
    title = f"{use_case.name}, {load.name}, {subject.format}"
    where = {"checkpoint": subject.path}
    return Cell(kind="benchmark", title=title, format=subject.format, inputs=inputs, where=where, needs=subject.needs)


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
    asked = evaluation_inputs(specs, data, note=note)
    both = [baseline, subject] if baseline is not None else [subject]
    cells = [evaluate_cell(who, *entry, engine=engine, unsafe=unsafe) for who in both for entry in asked]
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
    if study.engine not in ("torch", "vllm", "fake"):
        raise BitworthError(
            f"engine '{study.engine}': a study runs torch or vllm, which load each format in turn; time a server that "
            "is running already with `bitworth benchmark CHECKPOINT --engine URL`."
        )


def _versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in ("bitworth", *packages)}


def _fields(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell, name) for name in Cell.__dataclass_fields__}
