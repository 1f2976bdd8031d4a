"""The parts of a study file, a class a key: what each may hold, and the object that it stands for."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from bitworth import hardware as catalogue
from bitworth import recipes, workloads
from bitworth import tasks as task_registry
from bitworth.errors import BitworthError
from bitworth.load.traces import Workload, read_trace
from bitworth.types import (
    AVERAGE,
    BASELINE,
    Awq,
    CalibrationSource,
    Clip,
    Gptq,
    GptqScale,
    Hardware,
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
    Transform,
)

DEMO_CALIBRATION = "demo:calibration"


def named(value: Any) -> Any:
    """Let a bare name stand for the mapping that holds only it."""
    return {"name": value} if isinstance(value, str) else value


def sourced(value: Any) -> Any:
    """Let bare text stand for the mapping of a source."""
    return {"source": value} if isinstance(value, str) else value


def of_kind(value: Any) -> Any:
    """Let a bare word stand for the load of that kind."""
    return {"kind": value} if isinstance(value, str) else value


Count = Annotated[int, Field(gt=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Part(BaseModel):
    """A mapping of the study file, which knows all of its keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FormatEntry(Part):
    """A number format: a preset's name, or a preset (`base`) with some of its steps changed under a name of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)
    base: str | None = None
    group_size: Count | None = None
    clip: Literal["none", "mse", "mse-hessian"] | None = None
    damping: float | None = Field(None, gt=0, lt=1)
    ordering: Ordering | None = None
    sweeps: int | None = Field(None, ge=0, le=100)
    awq_steps: int | None = Field(None, gt=0, le=1000)
    tuning_steps: int | None = Field(None, gt=0, le=100_000)

    def recipe(self, group_size: int | None) -> Recipe | None:
        """The recipe, or None for the baseline."""
        if self.name == BASELINE and self.base is None:
            return None
        recipe = recipes.recipe(self.base or self.name, group_size=self.group_size or group_size)
        transforms = tuple(self._transform(step) for step in recipe.transforms)
        changed = replace(recipe, name=self.name, rounding=self._rounding(recipe.rounding), transforms=transforms)
        if changed.tuning is not None and self.tuning_steps is not None:
            return replace(changed, tuning=replace(changed.tuning, steps=self.tuning_steps))
        return changed

    def _rounding(self, rounding: Rtn | Gptq) -> Rtn | Gptq:
        if self.clip is not None:
            clip = None if self.clip == "none" else Clip(hessian_weighted=self.clip == "mse-hessian")
            rounding = replace(rounding, clip=clip)
        if isinstance(rounding, Gptq):
            rounding = replace(rounding, **self._given("damping", "ordering", "sweeps"))
        return rounding

    def _transform(self, step: Transform) -> Transform:
        if isinstance(step, Awq) and self.awq_steps is not None:
            return replace(step, steps=self.awq_steps)
        if isinstance(step, GptqScale):  # it foresees the rounding, so it is damped alike
            return replace(step, **self._given("damping"))
        return step

    def _given(self, *names: str) -> dict[str, Any]:
        """What was asked for among these."""
        return self.model_dump(include=set(names), exclude_none=True)

    @model_validator(mode="after")
    def _known(self) -> FormatEntry:
        known = [BASELINE, *recipes.NAMES]
        wanted = self.base or self.name
        if BASELINE in (self.name, wanted):
            if self.model_dump(exclude={"name"}, exclude_none=True):
                raise ValueError(f"`{BASELINE}` is the model as it came; it has no steps to change")
        elif not recipes.known(wanted):
            raise ValueError(unknown("format", wanted, known))
        return self

    @model_validator(mode="after")
    def _takes_effect(self) -> FormatEntry:
        """Refuse a step that the recipe does not have, rather than let it change nothing."""
        recipe = self.recipe(None)
        if recipe is None:
            return self
        name = self.base or self.name
        if not isinstance(recipe.rounding, Gptq) and (odd := self._given("damping", "ordering", "sweeps")):
            raise ValueError(f"`{next(iter(odd))}` is a setting of GPTQ, and {name} rounds without it")
        if self.awq_steps is not None and not any(isinstance(step, Awq) for step in recipe.transforms):
            raise ValueError(f"`awq_steps` is a setting of AWQ, and {name} scales nothing by it")
        if self.tuning_steps is not None and recipe.tuning is None:
            raise ValueError(f"`tuning_steps` is a setting of recipes that learn on, and {name} stays as it is rounded")
        if self.clip == "mse-hessian" and not recipe.needs_calibration:
            raise ValueError(f"clip `mse-hessian` weighs errors by calibration data, and {name} sees none; take `mse`")
        return self


class SourceEntry(Part):
    """One source of a calibration mix: a file, hub:organization/name, demo:calibration, `random` or `self`."""

    source: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)


class CalibrationEntry(Part):
    """What data-driven recipes see: one `source`, or several `sources` mixed by weight."""

    source: str | None = Field(None, min_length=1)
    sources: list[Annotated[SourceEntry, BeforeValidator(sourced)]] = []
    samples: Count = 128
    length: int = Field(512, gt=1, le=10**9)
    seed: Seed = 0
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


class TaskEntry(Part):
    """A task or a suite, how many of its questions (of each task), their seed, how answers are drawn, how often."""

    name: str
    limit: Count | None = None
    seed: Seed = 0
    shots: int | None = Field(None, ge=0, le=1000)
    samples: Count | None = None
    temperature: float | None = Field(None, ge=0)
    chat: bool | None = None
    repeats: int | None = Field(None, gt=1, le=1000)

    @model_validator(mode="after")
    def _known(self) -> TaskEntry:
        known = (*task_registry.NAMES, *task_registry.SUITES)
        if self.name not in known:
            raise ValueError(unknown("task", self.name, known))
        if self.name in task_registry.NAMES:
            try:
                task_registry.check_written(self.spec())
            except BitworthError as error:
                raise ValueError(str(error)) from error
        return self

    def spec(self) -> TaskSpec:
        """The task or suite as a value."""
        return TaskSpec(**self.model_dump())


class DivergenceEntry(Part):
    """Text on which perplexity, KL and flips are measured."""

    text: str = "demo:heldout"
    window: int = Field(512, gt=1, le=10**9)
    windows: Count | None = None


class UseCaseEntry(Part):
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


class LoadEntry(Part):
    """How requests arrive; `sweep` finds the highest rate whose percentile keeps to the limits.

    `requests` is how many count under this load, the study's number where it is not given.
    """

    kind: Literal["synchronous", "throughput", "constant", "poisson", "sweep"]
    rate: float | None = Field(None, gt=0)
    streams: Count | None = None
    requests: Count | None = None
    max_first_token_s: float | None = Field(None, gt=0)
    max_inter_token_s: float | None = Field(None, gt=0)
    max_latency_s: float | None = Field(None, gt=0)
    percentile: float = Field(95.0, ge=1, lt=100)

    @model_validator(mode="after")
    def _rated(self) -> LoadEntry:
        if (self.kind in ("constant", "poisson")) != (self.rate is not None):
            raise ValueError(f"load `{self.kind}` {'takes no' if self.rate else 'needs a'} rate (requests a second)")
        limited = any(most is not None for most in (self.max_first_token_s, self.max_inter_token_s, self.max_latency_s))
        if (self.kind == "sweep") != limited:
            need = "needs a limit" if self.kind == "sweep" else "takes no limits"
            raise ValueError(f"load `{self.kind}` {need} (max_first_token_s, max_inter_token_s, max_latency_s)")
        if self.streams is not None and self.kind != "throughput":
            raise ValueError(f"load `{self.kind}` takes no streams; requests at once are those of `throughput`")
        return self

    def load(self) -> Load:
        """The load as a value."""
        fields = self.model_dump(exclude={"requests"})
        limits = {name: fields.pop(name) for name in Limits.__dataclass_fields__}
        return Load(**fields, limits=Limits(**limits) if self.kind == "sweep" else None)


class HardwareEntry(Part):
    """A row of the catalogue by name, with the count and price to use; figures replace the catalogue's.

    A device that the catalogue lacks is one that gives its memory and its price itself.
    """

    name: str
    count: int = Field(1, gt=0, le=10**5)
    usd_per_hour: float | None = Field(None, gt=0)
    memory_gib: float | None = Field(None, gt=0)
    bandwidth_gb_s: float | None = Field(None, gt=0)
    tera_ops: dict[Literal["bf16", "int8", "fp8"], Annotated[float, Field(gt=0)]] | None = None
    processors: Count | None = None
    clock_ghz: float | None = Field(None, gt=0)
    link_gb_s: float | None = Field(None, gt=0)
    capability: str | None = Field(None, pattern=r"^\d+\.\d$|^gfx\d{2,3}[0-9a-f]$")

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


class LatencyEntry(Part):
    """Most seconds of a statistic: `{of: first_token, at: p95, most_s: 0.5}`."""

    of: Quantity
    at: Statistic
    most_s: float = Field(gt=0)


class ConstraintEntry(Part):
    """What a deployment must meet; `recovery_of` names the task or suite that counts, the average of all otherwise."""

    min_recovery_pct: float = Field(99.0, ge=1)
    recovery_of: str = AVERAGE
    confidence_pct: float = Field(95.0, ge=1, lt=100)
    max_latency_s: float | None = Field(None, gt=0)
    max_first_token_s: float | None = Field(None, gt=0)
    limits: list[LatencyEntry] = []
    max_usd_per_1k_queries: float | None = Field(None, gt=0)
    max_usd_per_month: float | None = Field(None, gt=0)
    queries_per_second: float | None = Field(None, gt=0)
    available: dict[str, Annotated[int, Field(ge=0, le=10**9)]] = {}


def unknown(what: str, name: str, known: Any) -> str:
    """`unknown format 'x'; did you mean 'y'? known: ...`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {what} '{name}'; {hint}known: {', '.join(sorted(known))}"
