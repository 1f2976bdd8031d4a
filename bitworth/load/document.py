"""A load's figures as a JSON document: plain names with units, figures that are not known left out as null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bitworth.engines.schedule import loop_of
from bitworth.load.goodput import Sweep, Trial
from bitworth.load.metrics import PERCENTILES, Metrics, Spread
from bitworth.load.run import LoadRun
from bitworth.statistics import mean_interval

Json = dict[str, Any]


def load_as_json(run: LoadRun, usd_per_hour: float) -> Json:
    """Means over the repeats with Student's 95 % intervals, each repeat, each rate of a sweep, and the doubts."""
    runs = [metrics_as_json(metrics, usd_per_hour) for metrics in run.metrics]
    together = _combined(runs, fmean) | {"client_was_late": any(row["client_was_late"] for row in runs)}
    return {
        "streams": loop_of(run.load),
        "repeats": len(runs),
        "metrics": together,
        "metrics_ci95": _combined(runs, mean_interval) if len(runs) > 1 else None,
        "runs": runs,
        "sweep": None if run.sweep is None else _sweep(run.sweep),
        "drift_pct": run.drift_pct,
        "notes": list(run.notes),
    }


def metrics_as_json(metrics: Metrics, usd_per_hour: float | None = None) -> Json:
    """One run's metrics; with a price, what they cost.

    Dollars a million tokens put the whole cost on the prompt's tokens, on the output's, or on both alike.
    """
    prompt, output = metrics.prompt_tokens_per_second, metrics.output_tokens_per_second
    gpu = metrics.gpu
    return {
        "requests": metrics.requests,
        "failed_requests": metrics.failed,
        "duration_s": metrics.seconds,
        "latency_s": spread_as_json(metrics.latency),
        "first_token_s": spread_as_json(metrics.first_token),
        "inter_token_s": spread_as_json(metrics.inter_token),
        "per_output_token_s": spread_as_json(metrics.per_output_token),
        "tokens_per_chunk": metrics.tokens_per_chunk,
        "queries_per_second": metrics.queries_per_second,
        "prompt_tokens_per_second": prompt,
        "output_tokens_per_second": output,
        "queries_per_usd": 3600 * metrics.queries_per_second / usd_per_hour if usd_per_hour else None,
        "usd_per_million_prompt_tokens": _usd_per_million(usd_per_hour, prompt),
        "usd_per_million_output_tokens": _usd_per_million(usd_per_hour, output),
        "usd_per_million_tokens": _usd_per_million(usd_per_hour, prompt + output),
        "gpu_memory_mib": gpu.memory_mib if gpu else None,
        "gpu_energy_j": gpu.energy_j if gpu else None,
        "gpu_energy_j_per_query": gpu.energy_j_per_request if gpu else None,
        "client_late_s": spread_as_json(metrics.late),
        "client_was_late": metrics.client_was_late,
        "steady": metrics.steady,
    }


def spread_as_json(spread: Spread | None) -> Json | None:
    """Mean and percentiles by name."""
    if spread is None:
        return None
    return {"mean": spread.mean_s, **{f"p{percent}": spread.at(percent) for percent in PERCENTILES}}


def _sweep(sweep: Sweep) -> Json:
    best = sweep.best
    limits = sweep.limits
    return {
        "percentile": limits.percentile,
        "max_first_token_s": limits.max_first_token_s,
        "max_inter_token_s": limits.max_inter_token_s,
        "max_latency_s": limits.max_latency_s,
        "best_rate_per_second": best.rate if best else None,
        "goodput_per_second": best.goodput_per_second if best else None,
        "rates": [_trial(trial) for trial in sweep.trials],
    }


def _trial(trial: Trial) -> Json:
    return {
        "rate_per_second": trial.rate,
        "passes": trial.passes,
        "goodput_per_second": trial.goodput_per_second,
        "broken": list(trial.broken),
        "void": trial.void,
        "metrics": metrics_as_json(trial.metrics) if trial.metrics is not None else None,
    }


def _usd_per_million(usd_per_hour: float | None, tokens_per_second: float) -> float | None:
    return 1e6 * usd_per_hour / 3600 / tokens_per_second if usd_per_hour and tokens_per_second > 0 else None


def _combined(runs: Sequence[Any], combine: Any) -> Any:
    """The runs' numbers, leaf by leaf; a truth is one when it is of every run, what one run lacks is null."""
    first = runs[0]
    if any(run is None for run in runs):
        return None
    if isinstance(first, Mapping):
        return {name: _combined([run[name] for run in runs], combine) for name in first}
    if isinstance(first, bool):
        return all(runs) if combine is fmean else None
    return combine([float(run) for run in runs])
