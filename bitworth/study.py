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

import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bitworth import hardware as catalogue
from bitworth import recipes, workloads
from bitworth import tasks as task_registry
from bitworth.errors import BitworthError
from bitworth.guard.documents import yaml_of
from bitworth.load.traces import Workload, read_trace
from bitworth.types import (
    AVERAGE,
    BASELINE,
    Calibration,
    CalibrationSource,
    Clip,
    Constraint,
    Gptq,
    Hardware,
    LatencyLimit,
    Limits,
    Load,
    Ordering,
    Quantity,
    Recipe,
    Rtn,
    Rule,
    Statistic,
    StreamKind,
    TaskSpec,
)

DEMO_CALIBRATION = "demo:calibration"


def _named(value: Any) -> Any:
    """Let a bare name stand for the mapping that holds only it."""
    return {"name": value} if isinstance(value, str) else value


def _sourced(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


_Count = Annotated[int, Field(gt=0, le=10**9)]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FormatEntry(_Part):
    """A number format: a preset's name, or a preset (`base`) with some of its steps changed under a name of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)
    base: str | None = None
    group_size: _Count | None = None
    clip: Literal["none", "mse", "mse-hessian"] | None = None
    damping: float | None = Field(None, gt=0, lt=1)
    ordering: Ordering | None = None

    def recipe(self, group_size: int | None) -> Recipe | None:
        """The recipe, or None for the baseline."""
        if self.name == BASELINE and self.base is None:
            return None
        recipe = recipes.recipe(self.base or self.name, group_size=self.group_size or group_size)
        return replace(recipe, name=self.name, rounding=self._rounding(recipe.rounding))

    def _rounding(self, rounding: Rtn | Gptq) -> Rtn | Gptq:
        if self.clip is not None:
            clip = None if self.clip == "none" else Clip(hessian_weighted=self.clip == "mse-hessian")
            rounding = replace(rounding, clip=clip)
        if isinstance(rounding, Gptq):
            return replace(
                rounding, damping=self.damping or rounding.damping, ordering=self.ordering or rounding.ordering
            )
        return rounding

    @model_validator(mode="after")
    def _known(self) -> FormatEntry:
        known = [BASELINE, *recipes.NAMES]
        wanted = self.base or self.name
        if wanted != BASELINE and not recipes.known(wanted):
            raise ValueError(unknown("format", wanted, known))
        return self


class SourceEntry(_Part):
    """One source of a calibration mix: a file, hub:organization/name, demo:calibration, `random` or `self`."""

    source: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)


class CalibrationEntry(_Part):
    """What data-driven recipes see: one `source`, or several `sources` mixed by weight."""

    source: str | None = Field(None, min_length=1)
    sources: list[Annotated[SourceEntry, BeforeValidator(_sourced)]] = []
    samples: _Count = 128
    length: int = Field(512, gt=1, le=10**9)
    seed: _Seed = 0
    chat_template: Rule = "auto"
    bos: Rule = "auto"
    stream: StreamKind = "own"

    @model_validator(mode="after")
    def _one_way(self) -> CalibrationEntry:
        names = [entry.source for entry in self.sources]
        if self.source is not None and self.sources:
            raise ValueError("give `source` or `sources`, not both")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"source `{twice}` is listed twice; add up its weights instead")
        return self

    def mix(self) -> tuple[CalibrationSource, ...]:
        """The sources as values; the demo's text where none is named."""
        if self.sources:
            return tuple(CalibrationSource(**entry.model_dump()) for entry in self.sources)
        return (CalibrationSource(source=self.source or DEMO_CALIBRATION),)

    def words(self) -> str:
        """`chat.jsonl`, or `chat.jsonl (2), random (1)` with the weights."""
        first, *rest = self.mix()
        return ", ".join(f"{part.source} ({part.weight:g})" for part in (first, *rest)) if rest else first.source


class TaskEntry(_Part):
    """A task or a suite, how many of its questions (of each task), their seed, how answers are drawn, how often."""

    name: str
    limit: _Count | None = None
    seed: _Seed = 0
    shots: int | None = Field(None, ge=0, le=1000)
    samples: _Count | None = None
    temperature: float | None = Field(None, ge=0)
    chat: bool | None = None
    repeats: int | None = Field(None, gt=1, le=1000)

    @model_validator(mode="after")
    def _known(self) -> TaskEntry:
        known = (*task_registry.NAMES, *task_registry.SUITES)
        if self.name not in known:
            raise ValueError(unknown("task", self.name, known))
        return self


class DivergenceEntry(_Part):
    """Text on which perplexity, KL and flips are measured."""

    text: str = "demo:heldout"
    window: int = Field(512, gt=1, le=10**9)
    windows: _Count | None = None


class UseCaseEntry(_Part):
    """A use case of the paper, or `PROMPT/OUTPUT` tokens, scaled down where the machine is small.

    With `mix`, a name for several use cases by weight; with `trace`, one for a recorded trace, which has its own times.
    """

    name: str
    scale: float = Field(1.0, gt=0, le=1)
    mix: dict[str, Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1)
    trace: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _known(self) -> UseCaseEntry:
        if self.trace is not None and (self.mix is not None or self.scale != 1):
            raise ValueError("a trace is replayed as it is; give it neither `mix` nor `scale`")
        try:
            for name in [] if self.trace is not None else self.mix or [self.name]:
                workloads.use_case(name)
        except BitworthError as error:
            raise ValueError(str(error)) from error
        return self

    def workload(self) -> Workload:
        """What is asked, as a value; a trace is read.

        Raises:
            BitworthError: the trace cannot be read.
        """
        if self.trace is not None:
            return Workload(name=self.name, trace=read_trace(Path(self.trace)))
        weights = self.mix or {self.name: 1.0}
        parts = tuple((workloads.use_case(name).scaled(self.scale), weight) for name, weight in weights.items())
        return Workload(name=self.name, parts=parts)


class LoadEntry(_Part):
    """How requests arrive; `sweep` finds the highest rate whose percentile keeps to the limits."""

    kind: Literal["synchronous", "throughput", "constant", "poisson", "sweep"]
    rate: float | None = Field(None, gt=0)
    streams: _Count | None = None
    max_first_token_s: float | None = Field(None, gt=0)
    max_inter_token_s: float | None = Field(None, gt=0)
    max_latency_s: float | None = Field(None, gt=0)
    percentile: float = Field(95.0, gt=0, lt=100)

    @model_validator(mode="after")
    def _rated(self) -> LoadEntry:
        if (self.kind in ("constant", "poisson")) != (self.rate is not None):
            raise ValueError(f"load `{self.kind}` {'takes no' if self.rate else 'needs a'} rate (requests a second)")
        limited = any(most is not None for most in (self.max_first_token_s, self.max_inter_token_s, self.max_latency_s))
        if (self.kind == "sweep") != limited:
            need = "needs a limit" if self.kind == "sweep" else "takes no limits"
            raise ValueError(f"load `{self.kind}` {need} (max_first_token_s, max_inter_token_s, max_latency_s)")
        return self

    def load(self) -> Load:
        """The load as a value."""
        fields = self.model_dump()
        limits = {name: fields.pop(name) for name in Limits.__dataclass_fields__}
        return Load(**fields, limits=Limits(**limits) if self.kind == "sweep" else None)


class HardwareEntry(_Part):
    """A row of the catalogue by name, with the count and price to use; figures replace the catalogue's.

    A device that the catalogue lacks is one that gives its memory and its price itself.
    """

    name: str
    count: int = Field(1, gt=0, le=10**5)
    usd_per_hour: float | None = Field(None, gt=0)
    memory_gib: float | None = Field(None, gt=0)
    bandwidth_gb_s: float | None = Field(None, gt=0)
    tera_ops: dict[Literal["bf16", "int8", "fp8"], Annotated[float, Field(gt=0)]] | None = None
    processors: _Count | None = None
    clock_ghz: float | None = Field(None, gt=0)
    link_gb_s: float | None = Field(None, gt=0)
    capability: str | None = Field(None, pattern=r"^\d+\.\d$|^gfx\d+$")

    @model_validator(mode="after")
    def _known(self) -> HardwareEntry:
        try:
            if self.row().usd_per_hour <= 0:
                raise BitworthError(f"{self.name} has no price in the catalogue; give usd_per_hour")
        except BitworthError as error:
            raise ValueError(str(error)) from error
        return self

    def row(self, count: int | None = None) -> Hardware:
        """The row as a value, of another count at the price in proportion.

        Raises:
            BitworthError: the catalogue lacks the device, and its memory or price is not given.
        """
        given = self.model_dump(exclude={"name", "count"}, exclude_none=True)
        devices = count or self.count
        if self.usd_per_hour is not None:
            given |= {"usd_per_hour": self.usd_per_hour * devices / self.count, "price_source": "the study file"}
        if self.name in catalogue.NAMES or self.memory_gib is None or self.usd_per_hour is None:
            return replace(catalogue.hardware(self.name, devices), **given)
        return Hardware(name=self.name, count=devices, **given)


class LatencyEntry(_Part):
    """Most seconds of a statistic: `{of: first_token, at: p95, most_s: 0.5}`."""

    of: Quantity
    at: Statistic
    most_s: float = Field(gt=0)


class ConstraintEntry(_Part):
    """What a deployment must meet; `recovery_of` names the task or suite that counts, the average of all otherwise."""

    min_recovery_pct: float = Field(99.0, gt=0)
    recovery_of: str = AVERAGE
    confidence_pct: float = Field(95.0, gt=0, lt=100)
    max_latency_s: float | None = Field(None, gt=0)
    max_first_token_s: float | None = Field(None, gt=0)
    limits: list[LatencyEntry] = []
    max_usd_per_1k_queries: float | None = Field(None, gt=0)
    max_usd_per_month: float | None = Field(None, gt=0)
    queries_per_second: float | None = Field(None, gt=0)
    available: dict[str, Annotated[int, Field(ge=0, le=10**9)]] = {}


class Study(_Part):
    """Everything a study asks for; `devices` of the kind `device` make a checkpoint, one computes the answers."""

    name: str = "study"
    model: str
    formats: list[Annotated[FormatEntry, BeforeValidator(_named)]] = Field(min_length=1)
    group_size: _Count | None = None
    allow_group_fallback: bool = False
    calibration: CalibrationEntry = CalibrationEntry()
    data: str | None = None
    tasks: list[Annotated[TaskEntry, BeforeValidator(_named)]] = []
    divergence: DivergenceEntry | None = None
    use_cases: list[Annotated[UseCaseEntry, BeforeValidator(_named)]] = []
    loads: list[Annotated[LoadEntry, BeforeValidator(_kind)]] = [LoadEntry(kind="synchronous")]
    hardware: list[Annotated[HardwareEntry, BeforeValidator(_named)]] = [HardwareEntry(name="local")]
    engine: str = "torch"
    requests: _Count = 8
    device: str | None = Field(None, pattern=r"^(cpu|cuda(:\d+)?)$")
    devices: int = Field(1, gt=0, le=1024)
    unsafe_code_execution: bool = False
    constraints: ConstraintEntry = ConstraintEntry()
    traffic: dict[str, Annotated[float, Field(gt=0)]] = {}

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
        self.check_counted(self.constraints.recovery_of)
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
        return task_registry.expand([TaskSpec(**entry.model_dump()) for entry in self.tasks])

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

    def workload_values(self) -> list[Workload]:
        """The use cases, scaled, mixes and traces.

        Raises:
            BitworthError: a trace cannot be read.
        """
        return [entry.workload() for entry in self.use_cases]

    def load_values(self) -> list[Load]:
        """The loads as values."""
        return [entry.load() for entry in self.loads]

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
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise BitworthError(f"{where}: {_sentence(error)}") from error
    except UnicodeError as error:
        raise BitworthError(
            f"{where} holds half a surrogate pair, which is no text; write the character out."
        ) from error


def unknown(what: str, name: str, known: Any) -> str:
    """`unknown format 'x'; did you mean 'y'? known: ...`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {what} '{name}'; {hint}known: {', '.join(sorted(known))}"


def _sentence(error: ValidationError) -> str:
    """The first thing wrong, where it is, and how many more there are."""
    first, *rest = error.errors()
    place = ".".join(str(part) for part in first["loc"]) or "the study"
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = unknown("key", str(first["loc"][-1]), _keys_at(first["loc"][:-1]))
    elif kind == "missing":
        message = "this key is required"
    elif kind != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {json.dumps(first['input'], default=str)[:60]}"
    more = f" ({len(rest)} more after this one)" if rest else ""
    return " ".join(f"{place}: {message}{more}.".split())  # a key may hold line breaks


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the part of the study at `loc` may have."""
    parts: dict[str, type[_Part]] = {
        "formats": FormatEntry,
        "calibration": CalibrationEntry,
        "tasks": TaskEntry,
        "divergence": DivergenceEntry,
        "use_cases": UseCaseEntry,
        "loads": LoadEntry,
        "hardware": HardwareEntry,
        "constraints": ConstraintEntry,
    }
    part = parts.get(str(loc[0]), Study) if loc else Study
    if "sources" in loc:
        part = SourceEntry
    if "limits" in loc:
        part = LatencyEntry
    return list(part.model_fields)
