"""A device's own constants, from a few loads that were timed on it, so that loads that were not can be foretold there.

The paper's constants know three GPUs. On any other device, timings of two loads or more of a format fix the four
constants that matter on a single one: the share of the bandwidth, a block's own time, the share of the arithmetic rate
and the server's work for each running sequence. Shares are then of whatever the device's row says, and may exceed 1.

    constants = calibrated(deployment, [observed(alone, case, ALONE), observed(eight, case, EIGHT_STREAMS)])
    simulate(Fleet(deployment=deployment.with_constants(constants)), case, Load(kind="poisson", rate=2), requests=200)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import config_of
from bitworth.prediction.constants import Constants
from bitworth.prediction.roofline import Deployment
from bitworth.prediction.serving import Fleet
from bitworth.prediction.simulation import simulate
from bitworth.types import Hardware, Load, Timing, UseCase

#: Constants that are fitted; the last stands for the shares of both arithmetics, alone and in batches.
_FITTED = ("bandwidth_share", "block_kilocycles", "host_s", "compute16_share")
_SHARES = ("compute16_share", "compute8_share", "serving16_share", "serving8_share")
_KINDS = "synchronous and throughput loads"
#: Each constant is looked for within this factor of where it starts.
_REACH = 1e3
#: Factors of the constants at which a search starts.
_STARTS = ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.05), (0.2, 1.0, 1.0, 1.0), (0.2, 10.0, 10.0, 0.2))
#: Requests a stream of a closed loop that are simulated; the first of each fills the queue and does not count.
_WAVES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Mean seconds of a load's requests; without `first_token_s` where the engine does not say."""

    case: UseCase
    load: Load
    latency_s: float
    first_token_s: float | None = None

    @property
    def figures(self) -> tuple[float, ...]:
        """What is known of it: the latency, then the time to the first token."""
        return (self.latency_s,) if self.first_token_s is None else (self.latency_s, self.first_token_s)


def observed(timings: Sequence[Timing], case: UseCase, load: Load) -> Observation:
    """The means of requests that succeeded."""
    good = [timing for timing in timings if timing.error is None]
    firsts = [timing.first_token_s - timing.start_s for timing in good if timing.first_token_s is not None]
    return Observation(
        case=case,
        load=load,
        latency_s=fmean(timing.latency_s for timing in good),
        first_token_s=fmean(firsts) if len(firsts) == len(good) else None,
    )


def read_observation(folder: Path) -> Observation:
    """What `bitworth benchmark --out FOLDER` wrote.

    Raises:
        BitworthError: the folder holds no such figures, or those of a load that fixes no constants.
    """
    try:
        row = config_of((folder / "benchmark.json").read_bytes())
        if row["streams"] is None:
            raise BitworthError(f"{folder} holds a {row['load']} load; constants are fitted on {_KINDS}.")
        kind: Any = str(row["load"]).partition(" ")[0]  # a load's name may say its streams
        return Observation(
            case=UseCase(
                name=str(row["use_case"]),
                prompt_tokens=int(row["prompt_tokens"]),
                output_tokens=int(row["output_tokens"]),
            ),
            load=Load(kind=kind, streams=int(row["streams"])),
            latency_s=_seconds(row["latency_s"]),
            first_token_s=None if row["first_token_s"] is None else _seconds(row["first_token_s"]),
        )
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError) as error:
        raise BitworthError(
            f"{folder} holds no figures to fit constants on; name a folder that `bitworth benchmark --out` wrote."
        ) from error


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{seconds} seconds cannot be")
    return seconds


def calibrated(deployment: Deployment, observations: Sequence[Observation]) -> Constants:
    """The constants under which the model's latencies and first tokens are nearest to what was timed, in logarithms.

    Raises:
        BitworthError: loads without a closed loop, or fewer figures than constants.
    """
    from scipy.optimize import least_squares

    for row in observations:
        if row.load.kind not in ("synchronous", "throughput"):
            raise BitworthError(f"Constants are fitted on {_KINDS}, not on {row.load.name}.")
    figures = [figure for row in observations for figure in row.figures]
    if len(figures) < len(_FITTED):
        raise BitworthError(
            f"{len(figures)} timed figures do not fix {len(_FITTED)} constants; time one more load or use case, with "
            "an engine that says when the first token came."
        )

    def residuals(logs: Sequence[float]) -> list[float]:
        tried = deployment.with_constants(_constants(deployment.constants, logs))
        told = [figure for row in observations for figure in foretold(tried, row.case, row.load)[: len(row.figures)]]
        return [math.log(guess / figure) for guess, figure in zip(told, figures, strict=True)]

    first, reach = [math.log(getattr(deployment.constants, name)) for name in _FITTED], math.log(_REACH)
    bounds = [value - reach for value in first], [value + reach for value in first]
    # Where memory bounds every pass, the arithmetic's share has no slope, and the other way round.
    starts = [[value + math.log(factor) for value, factor in zip(first, way, strict=True)] for way in _STARTS]
    fits = [least_squares(residuals, start, bounds=bounds, diff_step=1e-3, max_nfev=60) for start in starts]
    return _constants(deployment.constants, min(fits, key=lambda fit: fit.cost).x)


def foretold(deployment: Deployment, case: UseCase, load: Load) -> tuple[float, float]:
    """Mean latency and mean time to the first token, seconds, of a simulated closed loop on one copy."""
    streams = 1 if load.kind == "synchronous" else load.streams or 1
    timings = simulate(Fleet(deployment=deployment), case, load, requests=_WAVES * streams)[streams:]
    return fmean(timing.latency_s for timing in timings), fmean(_first(timing) for timing in timings)


def nominal(row: Hardware, arithmetic: str) -> Hardware:
    """The row, with its 16-bit rate for an arithmetic whose own it does not say: a fitted share takes up the rest."""
    missing = {} if arithmetic in row.tera_ops else {arithmetic: row.tera_ops["bf16"]}
    return replace(row, tera_ops={**row.tera_ops, **missing})


def _first(timing: Timing) -> float:
    assert timing.first_token_s is not None
    return timing.first_token_s - timing.start_s


def _constants(start: Constants, logs: Sequence[float]) -> Constants:
    found = dict(zip(_FITTED, map(math.exp, logs), strict=True))
    return replace(start, **found | dict.fromkeys(_SHARES, found["compute16_share"]))
