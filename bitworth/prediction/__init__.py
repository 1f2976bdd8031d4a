"""Speed and cost where there is no hardware: a roofline with fitted constants, and a simulated serving loop.

>>> from bitworth.hardware import hardware
>>> from bitworth.prediction.evidence import MODELS
>>> from bitworth.types import Load
>>> from bitworth.workloads import use_case
>>> found = predict(MODELS["8B"], "w4a16-int", hardware("A6000"), use_case("rag"), Load(kind="synchronous"))
>>> 1.2 < found.latency_s.value < 1.6  # the paper measured 1.4 s
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bitworth.errors import BitworthError
from bitworth.hardware import HOURS_A_MONTH, LOCAL
from bitworth.prediction.architecture import Architecture, read_architecture
from bitworth.prediction.constants import FITTED, SPREADS, Constants
from bitworth.prediction.formats import NAMES, kernel
from bitworth.prediction.roofline import Deployment
from bitworth.prediction.serving import Fleet, needed_tokens, too_big
from bitworth.prediction.simulation import most, simulated
from bitworth.types import Hardware, Load, Source, UseCase

__all__ = [
    "NAMES",
    "Architecture",
    "Constants",
    "Prediction",
    "Range",
    "Scale",
    "alternatives",
    "beyond_context",
    "curve",
    "predict",
    "read_architecture",
    "scale",
]
_SIMULATED = 400  # requests that count, after as many that fill the queue
_CALIBRATED = "The constants are the device's own, fitted on loads that were timed there; the range is judged."
_FITTED_ON = {"A6000", "A100", "H100"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A predicted figure, and what 90 % of such predictions were within on the paper's held-out cells.

    Wider by judgement where the prediction has notes.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one format would do; never measured (`source`). The price is that of all devices.

    `copies` of `devices_a_copy` devices each answer; `saturation` is the share of the most queries a second that a
    load at a rate asks for, None for other loads.
    """

    format: str
    use_case: UseCase
    load: str
    hardware: Hardware
    copies: int
    devices_a_copy: int
    latency_s: Range
    first_token_s: Range
    latency_p90_s: Range
    queries_per_second: Range
    queries_per_usd: Range
    saturation: float | None = None
    notes: tuple[str, ...] = ()
    source: Source = "predicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Devices for a target: `replicas` of a row answer `target_rate` queries a second with the headroom left over.

    Each answers `replica_rate` of them under `load`: with its streams, or at its most.
    """

    format: str
    target_rate: float
    headroom: float
    load: str
    replica_rate: float
    replicas: int
    devices: int
    usd_per_month: float
    usd_per_month_low: float
    usd_per_month_high: float


def predict(
    architecture: Architecture,
    format: str,
    hardware: Hardware,
    use_case: UseCase,
    load: Load,
    *,
    group_size: int | None = None,
    constants: Constants = FITTED,
) -> Prediction:
    """Latency, queries a second and queries a dollar.

    Synchronous load uses all devices as one copy (paper, table 5); other loads the split into copies that answers most
    queries a second (table 6). Throughput is that of the load's `streams`, and without them the most there is.

    Raises:
        BitworthError: the format or the device cannot be predicted, the price is unknown, the model does not fit (with
            what would), or the asked rate is beyond what the devices answer.
    """
    if hardware.usd_per_hour <= 0:
        raise BitworthError(f"{hardware.name} has no price; give one above 0 with --usd-per-hour.")
    deployment = Deployment(
        architecture=architecture, kernel=kernel(format, group_size=group_size), hardware=hardware, constants=constants
    )
    notes = _notes(architecture, hardware) if constants == FITTED else (_CALIBRATED,)
    if load.kind == "synchronous":
        return _alone(deployment, use_case, notes)
    if load.rate is None:
        found = most(deployment, use_case, load.streams)
        times = found.latency_s, found.latency_p90_s, found.first_token_s
        return _prediction(found.fleet, hardware, use_case, load, times, found.rate, notes)
    full = most(deployment, use_case)
    if load.rate >= full.rate:
        raise BitworthError(
            f"{hardware.count} x {hardware.name} answer{'s' if hardware.count == 1 else ''} about {full.rate:.3g} "
            f"queries a second of this kind in {format}, less than the {load.rate:g} asked for; add devices or a lower "
            "rate."
        )
    times = _at_rate(full.fleet, use_case, load)
    return _prediction(full.fleet, hardware, use_case, load, times, load.rate, notes, saturation=load.rate / full.rate)


def scale(prediction: Prediction, target_rate: float, *, headroom: float = 0.2) -> Scale:
    """How many rows of the predicted hardware answer `target_rate` queries a second, with `headroom` (a share) left.

    A row answers what it is predicted to: with so many streams of its own, or at its most.

    Raises:
        BitworthError: the target is not positive, the headroom not in [0, 1), or the prediction not of throughput.
    """
    if not (target_rate > 0 and math.isfinite(target_rate) and 0 <= headroom < 1):
        raise BitworthError("A target rate must be above 0 queries a second, and a headroom at least 0 and below 1.")
    if not prediction.load.startswith("throughput"):
        raise BitworthError("Devices for a target follow from throughput; predict under load `throughput`.")
    row, rates = prediction.hardware, prediction.queries_per_second

    def needed(rate: float) -> int:
        return math.ceil(target_rate / (rate * (1 - headroom)))

    replicas, monthly = needed(rates.value), row.usd_per_hour * HOURS_A_MONTH
    return Scale(
        format=prediction.format,
        target_rate=target_rate,
        headroom=headroom,
        load=prediction.load,
        replica_rate=rates.value,
        replicas=replicas,
        devices=replicas * row.count,
        usd_per_month=replicas * monthly,
        usd_per_month_low=needed(rates.high) * monthly,
        usd_per_month_high=needed(rates.low) * monthly,
    )


def _alone(deployment: Deployment, case: UseCase, notes: tuple[str, ...]) -> Prediction:
    """One request at a time."""
    if deployment.cache_tokens < needed_tokens(deployment, case):
        raise BitworthError(too_big(deployment, case))
    uneven = deployment.architecture.unsplittable(deployment.tensor)
    if uneven is not None:
        raise BitworthError(f"{uneven}; give a count that divides them.")
    seconds = deployment.latency_seconds(case)
    fleet, load = Fleet(deployment=deployment), Load(kind="synchronous")
    times = seconds, seconds, deployment.prefill_seconds(case.prompt_tokens)
    return _prediction(fleet, deployment.hardware, case, load, times, 1 / seconds, notes)


def _at_rate(fleet: Fleet, case: UseCase, load: Load) -> tuple[float, float, float]:
    """Mean and 90th percentile of latency, mean time to first token, of the second half of a simulation."""
    run = simulated(fleet, case, load, requests=2 * _SIMULATED)
    sent, first, ended = (times[_SIMULATED:] for times in run)
    return float(np.mean(ended - sent)), float(np.quantile(ended - sent, 0.9)), float(np.mean(first - sent))


def _prediction(
    fleet: Fleet,
    hardware: Hardware,
    case: UseCase,
    load: Load,
    times: tuple[float, float, float],
    rate: float,
    notes: tuple[str, ...],
    saturation: float | None = None,
) -> Prediction:
    """Figures with their ranges; a rate that was asked for is met exactly.

    Each note doubles the spread, in logarithms: a judgement, no measurement, for what the tables do not vouch for.
    """
    spread = SPREADS["synchronous" if load.kind == "synchronous" else "throughput"]
    factor = math.exp(spread * 2 ** len(notes))
    of_rate = factor if saturation is None else 1.0
    latency, p90, first = (_range(value, factor) for value in times)
    return Prediction(
        format=fleet.deployment.kernel.name,
        use_case=case,
        load=load.name,
        hardware=hardware,
        copies=fleet.copies,
        devices_a_copy=fleet.deployment.hardware.count,
        latency_s=latency,
        latency_p90_s=p90,
        first_token_s=first,
        queries_per_second=_range(rate, of_rate),
        queries_per_usd=_range(3600 * rate / hardware.usd_per_hour, of_rate),
        saturation=saturation,
        notes=(*notes, *beyond_context(fleet.deployment.architecture, case)),
    )


def beyond_context(architecture: Architecture, case: UseCase) -> tuple[str, ...]:
    """That the model does not read so much: a sentence, which makes its passes no less certain; or nothing."""
    needed, context = case.prompt_tokens + case.output_tokens, architecture.context
    if context is None or needed <= context:
        return ()
    return (
        f"The model reads at most {context:,} tokens (its config.json), and {case.name} needs {needed:,}: servers "
        "refuse such requests.",
    )


def _range(value: float, factor: float) -> Range:
    return Range(value=value, low=value / factor, high=value * factor)


def _notes(architecture: Architecture, hardware: Hardware) -> tuple[str, ...]:
    """What the paper's tables do not vouch for."""
    notes = []
    if hardware.name not in _FITTED_ON:
        notes.append(
            f"The constants were fitted on {', '.join(sorted(_FITTED_ON))}; {hardware.name} is not among them."
        )
    if architecture.mixtures:
        notes.append("The constants were fitted on dense models; this one is a mixture of experts.")
    if architecture.stored_weights < 3e9:
        notes.append("The constants were fitted on models of 8B weights and more; this one is smaller.")
    if hardware.name == LOCAL:
        notes.append("No prediction for a processor without a GPU was ever compared with a measurement.")
    return tuple(notes)


def curve(
    architecture: Architecture,
    format: str,
    hardware: Hardware,
    use_case: UseCase,
    *,
    group_size: int | None = None,
    constants: Constants = FITTED,
    points: int = 9,
) -> list[Prediction]:
    """Predictions at Poisson rates that rise in even steps towards the most queries a second.

    Raises:
        BitworthError: see `predict`.
    """
    full = predict(
        architecture, format, hardware, use_case, Load(kind="throughput"), group_size=group_size, constants=constants
    )
    rates = [full.queries_per_second.value * step / (points + 1) for step in range(1, points + 1)]
    loads = [Load(kind="poisson", rate=rate) for rate in rates]
    return [
        predict(architecture, format, hardware, use_case, load, group_size=group_size, constants=constants)
        for load in loads
    ]


def alternatives(
    architecture: Architecture, hardware: Hardware, use_case: UseCase, load: Load, *, group_size: int | None = None
) -> list[Prediction | tuple[str, str]]:
    """A prediction for each format, or (format, why there is none)."""
    rows: list[Prediction | tuple[str, str]] = []
    for name in NAMES:
        try:
            rows.append(predict(architecture, name, hardware, use_case, load, group_size=group_size))
        except BitworthError as error:
            rows.append((name, str(error)))
    return rows
