"""A study file: names become objects here, once; below this module only objects travel.

model: demo:smollm2            # hub id, folder, or the demo's model
formats: [baseline, w8a8-fp, w8a8-int-gptq, w4a16-int-gptq]
group_size: 64
device: cuda                   # where checkpoints are made and answers computed; the GPU where there is one
devices: 4                     # that make a checkpoint together
calibration: {source: demo:calibration, samples: 32, length: 512}  # or sources: [{source: FILE, weight: 2}, random]
tasks: [{name: arc_challenge, limit: 100}]
use_cases: [{name: rag, scale: 0.1}]  # or {name: office, mix: {rag: 2, docstring: 1}}, {name: day, trace: FILE.jsonl}
loads: [synchronous, {kind: throughput, streams: 8}]  # or {kind: sweep, max_first_token_s: 0.5, percentile: 95}
hardware: [{name: local, usd_per_hour: 0.10}]
constraints: {min_recovery_pct: 99}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from bitworth import hardware as catalogue
from bitworth import tasks as task_registry
from bitworth.errors import BitworthError
from bitworth.guard.documents import yaml_of
from bitworth.load.traces import Workload
from bitworth.study.entries import (
    CalibrationEntry,
    ConstraintEntry,
    Count,
    DivergenceEntry,
    FormatEntry,
    HardwareEntry,
    LatencyEntry,
    LoadEntry,
    Part,
    SourceEntry,
    TaskEntry,
    UseCaseEntry,
    named,
    of_kind,
    sourced,
    unknown,
)
from bitworth.types import (
    AVERAGE,
    BASELINE,
    Calibration,
    Constraint,
    Hardware,
    LatencyLimit,
    Load,
    Recipe,
    TaskSpec,
)

_Whole = TypeVar("_Whole", bound=Part)


class Study(Part):
    """Everything a study asks for; `devices` of the kind `device` make a checkpoint, one computes the answers."""

    name: str = "study"
    model: str
    formats: list[Annotated[FormatEntry, BeforeValidator(named)]] = Field(min_length=1)
    group_size: Count | None = None
    allow_group_fallback: bool = False
    calibration: Annotated[CalibrationEntry, BeforeValidator(sourced)] = CalibrationEntry()
    data: str | None = None
    tasks: list[Annotated[TaskEntry, BeforeValidator(named)]] = Field([])
    divergence: DivergenceEntry | None = None
    use_cases: list[Annotated[UseCaseEntry, BeforeValidator(named)]] = Field([])
    loads: list[Annotated[LoadEntry, BeforeValidator(of_kind)]] = Field([LoadEntry(kind="synchronous")])
    hardware: list[Annotated[HardwareEntry, BeforeValidator(named)]] = Field([HardwareEntry(name="local")])
    engine: str = "torch"
    requests: Count = 8
    device: str | None = Field(None, pattern=r"^(cpu|cuda(:\d+)?)$")
    devices: int = Field(1, gt=0, le=1024)
    unsafe_code_execution: bool = False
    constraints: ConstraintEntry = ConstraintEntry()
    traffic: dict[str, Annotated[float, Field(gt=0)]] = Field({})

    @model_validator(mode="after")
    def _one_kind_of_device(self) -> Study:
        if self.devices > 1 and self.device is not None and ":" in self.device:
            raise ValueError(
                f"devices: {self.devices} and device: {self.device} exclude each other; name the kind alone"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        for what, names in (
            ("format", [f.name for f in self.formats]),
            ("task", [t.name for t in self.tasks]),
            ("use case", [u.name for u in self.use_cases]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} `{twice[0]}` is listed twice; give each its own name")
        if BASELINE not in [f.name for f in self.formats]:
            raise ValueError(f"formats must include `{BASELINE}`: every recovery and saving is against it")
        loads = [entry.load().name for entry in self.loads]  # by which all rows are told apart
        again = next((name for name in loads if loads.count(name) > 1), None)
        if again is not None:
            raise ValueError(f"load `{again}` is listed twice")
        self.check_counted(self.constraints.recovery_of)
        self.check_available(self.constraints.available)
        odd = next((name for name in self.traffic if name not in [u.name for u in self.use_cases]), None)
        if odd is not None:
            raise ValueError(f"traffic names use case `{odd}`, which is not among the study's use_cases")
        return self

    def recipes(self) -> dict[str, Recipe | None]:
        """Format name to recipe, None for the baseline."""
        return {entry.name: entry.recipe(self.group_size) for entry in self.formats}

    def calibration_spec(self) -> Calibration:
        """The calibration as a value."""
        entry = self.calibration
        rest = entry.model_dump(exclude={"source", "sources"})
        return Calibration(sources=entry.mix(), **rest)

    def task_specs(self) -> list[TaskSpec]:
        """The tasks as values, suites expanded."""
        return task_registry.expand([entry.spec() for entry in self.tasks])

    def suites(self) -> tuple[str, ...]:
        """The suites that are asked for by name."""
        return tuple(entry.name for entry in self.tasks if entry.name in task_registry.SUITES)

    def check_counted(self, name: str) -> None:
        """Refuse a constraint on the recovery of a task or suite that is not asked for.

        Raises:
            ValueError: it is not.
        """
        counted = [AVERAGE, *(spec.name for spec in self.task_specs()), *self.suites()]
        if name not in counted:
            raise ValueError(unknown("task or suite for `recovery_of`", name, counted))

    def check_available(self, names: Iterable[str]) -> None:
        """Refuse a limit on devices that neither the study nor the catalogue has.

        Raises:
            ValueError: there is none of that name.
        """
        known = [entry.name for entry in self.hardware] + [*catalogue.NAMES]
        for name in names:
            if name not in known:
                raise ValueError(unknown("device in `available`", name, known))

    def workload_values(self) -> list[Workload]:
        """The use cases, scaled, mixes and traces.

        Raises:
            BitworthError: a trace cannot be read.
        """
        return [entry.workload() for entry in self.use_cases]

    def timed_loads(self) -> list[tuple[Load, int]]:
        """The loads, each with how many requests count."""
        return [(entry.load(), entry.requests or self.requests) for entry in self.loads]

    def hardware_values(self) -> list[Hardware]:
        """The hardware rows with the study's own prices."""
        return [entry.row() for entry in self.hardware]

    def constraint(self) -> Constraint:
        """The constraint as a value."""
        limits = tuple(LatencyLimit(**entry.model_dump()) for entry in self.constraints.limits)
        return Constraint(**{**self.constraints.model_dump(), "limits": limits})


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        BitworthError: missing, not YAML, or something in it is unknown or of the wrong type; one sentence that
            names the place and what would have been right.
    """
    try:
        raw = yaml_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BitworthError(f"The study {path} cannot be read: {reason}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BitworthError(
            f"The study {path} is not valid YAML{where}: {getattr(error, 'problem', error)}."
        ) from error
    except ValueError as error:
        raise BitworthError(f"The study {path} cannot be read: {error}.") from error
    return parse_study(raw, where=str(path))


def parse_study(raw: Any, *, where: str = "the study") -> Study:
    """Check a study given as a mapping; see `load_study` for what it raises."""
    if not isinstance(raw, dict):
        raise BitworthError(f"{where} must be a mapping with keys such as {', '.join(list(Study.model_fields)[:5])}.")
    return _checked(Study, raw, where)


def parse_format(raw: Any, *, where: str) -> FormatEntry:
    """Check one entry of a study's `formats`, given as a mapping; see `load_study` for what it raises."""
    return _checked(FormatEntry, raw, where)


def _checked(whole: type[_Whole], raw: Any, where: str) -> _Whole:
    try:
        return whole.model_validate(raw)
    except ValidationError as error:
        raise BitworthError(f"{where}: {_sentence(error, whole)}") from error
    except UnicodeError as error:
        raise BitworthError(
            f"{where} holds half a surrogate pair, which is no text; write the character out."
        ) from error


def _sentence(error: ValidationError, whole: type[Part]) -> str:
    """The first thing wrong, where it is, and how many more there are."""
    first, *rest = error.errors()
    place = ".".join(str(part) for part in first["loc"]) or ("the study" if whole is Study else "the format")
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = unknown("key", str(first["loc"][-1]), _keys_at(first["loc"][:-1], whole))
    elif kind == "missing":
        message = "this key is required"
    elif kind != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {json.dumps(first['input'], default=str)[:60]}"
    more = f" ({len(rest)} more after this one)" if rest else ""
    return " ".join(f"{place}: {message}{more}.".split())  # a key may hold line breaks


def _keys_at(loc: tuple[int | str, ...], whole: type[Part]) -> list[str]:
    """The keys that the part at `loc` of a study, or of another whole, may have."""
    parts: dict[str, type[Part]] = {
        "formats": FormatEntry,
        "calibration": CalibrationEntry,
        "tasks": TaskEntry,
        "divergence": DivergenceEntry,
        "use_cases": UseCaseEntry,
        "loads": LoadEntry,
        "hardware": HardwareEntry,
        "constraints": ConstraintEntry,
    }
    part = parts.get(str(loc[0]), whole) if loc else whole
    if "sources" in loc:
        part = SourceEntry
    if "limits" in loc:
        part = LatencyEntry
    return list(part.model_fields)
