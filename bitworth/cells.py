"""The cells of a study, a kind a function: what their keys hold, and what a worker reads back from them.

A cell's key hashes everything that could change its result and nothing else, so a changed tolerance or price runs
nothing again, and a changed calibration runs only what rests on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bitworth import fingerprint, sources, tasks
from bitworth.engines import is_url
from bitworth.errors import BitworthError
from bitworth.hardware import machine
from bitworth.ledger import key_of, revive
from bitworth.load.rates import RAMP
from bitworth.load.traces import Workload, read_trace
from bitworth.sources import Note, silent
from bitworth.study import Study
from bitworth.types import (
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
from bitworth.versions import NONE, VLLM, served, versions_of

RATED = ("throughput", "constant", "poisson")
"""Loads of several requests at once, other than sweeps and traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint to measure: the format's name, the identity of its weights, where it lies, the cell that makes it.

    `path` is absolute, or relative to the results folder where a cell makes it.
    """

    format: str
    identity: str
    path: str
    needs: tuple[str, ...] = ()


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
    cell = on_device(study.device, cell)
    return replace(cell, where={**where, "out": f"checkpoints/{recipe.name}-{key_of(cell)[:8]}"})


def on_device(device: str | None, cell: Cell) -> Cell:
    """The cell on a device that the study names; where it names none, the key is what it always was."""
    return cell if device is None else replace(cell, inputs={**cell.inputs, "device": device})


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
    study's hardware the machine is there for, and what it calls as `versions.VLLM` does is the vLLM that it has.
    """
    inputs: dict[str, Any] = {
        "checkpoint": subject.identity,
        "use_case": asdict(workload.use_case),
        # A load without limits has the key that it had before there were any.
        "load": {name: value for name, value in asdict(load).items() if name != "limits" or value is not None},
        "engine": engine,
        "requests": requests,
        "machine": {name: told for name, told in (place or machine()).items() if name not in VLLM},
        "versions": versions_of("torch", "transformers"),
    }
    if engine == "vllm":
        inputs["versions"] |= _server_of(served() if place is None else place)
    where = {"checkpoint": subject.path}
    if trace is not None:
        inputs["trace"] = fingerprint.of_file(trace)
        where["trace"] = str(trace.resolve())
    elif len(workload.parts) > 1:
        inputs["mix"] = [{"use_case": asdict(case), "weight": weight} for case, weight in workload.parts]
    if trace is None and engine != "torch":
        if load.kind == "throughput":
            inputs["ramp"] = [RAMP, "whole rounds"]  # once it was a tenth, whatever the streams
        elif load.kind in RATED and len(workload.parts) == 1:
            inputs["ramp"] = RAMP  # once it was not sent; mixes and sweeps always had it, and keep their keys
    title = f"{workload.name}, {load.name}, {subject.format}"
    if place is not None and "hardware" in place:
        title += f" on {place['hardware']}"
    return Cell(kind="benchmark", title=title, format=subject.format, inputs=inputs, where=where, needs=subject.needs)


def _server_of(place: Mapping[str, str]) -> dict[str, str]:
    """The vLLM that serves on a machine; where there is none its worker says so, and what to do."""
    return {name: place[name] for name in VLLM if name in place} or {VLLM[0]: NONE}


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
