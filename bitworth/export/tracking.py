"""A study in MLflow: a run a format, whose parameters say what it is and whose metrics what it keeps and costs.

Figures that were predicted are under `predicted/`. A run carries a digest of what it holds: exporting the same results
again finds it and adds nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import bitworth
from bitworth.assembly import assemble
from bitworth.errors import BitworthError, WorkFailed
from bitworth.ledger import canonical, write_atomic
from bitworth.report import CARD, result_as_json
from bitworth.report.card import render_card
from bitworth.report.document import as_text, plain
from bitworth.report.figures import counterpart, hardware_name, times, usd_per_1k
from bitworth.report.origin import read_origin
from bitworth.report.page import render_page
from bitworth.report.recipes import calibration_words, recipe_rows
from bitworth.report.words import scenario_title
from bitworth.types import BASELINE, EngineFacts, QueryCost, Recovery, StudyResult

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_DIGEST = "bitworth.digest"
_MOST_CHARACTERS = 6000
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_BATCH = 100
"""Parameters MLflow takes at once; of metrics it takes more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A format's run, and whether it was there already."""

    format: str
    run_id: str
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatRun:
    """What is said of one format."""

    format: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def log_study(root: Path, *, tracking_uri: str | None = None, experiment: str | None = None) -> list[Logged]:
    """Log each format of the results under `root` as a run of `experiment` (the study's name unless given).

    Args:
        root: the results folder.
        tracking_uri: where MLflow keeps runs; its own environment variable counts where this is None.
        experiment: the experiment's name; made where there is none.

    Raises:
        BitworthError: MLflow is not installed, nothing says where it keeps runs, or `root` holds no study.
        WorkFailed: MLflow refuses or does not answer; a run begun is deleted.
    """
    client, refusals = _client(tracking_uri)
    result = assemble(root)
    try:
        place = _experiment(client, experiment or result.name)
        with tempfile.TemporaryDirectory(prefix="bitworth-") as scratch:
            folder = Path(scratch)
            write_atomic(folder / "report.html", render_page(result))
            write_atomic(folder / "recommendation.json", as_text(result_as_json(result)))
            return [_log(client, place, run, result, root, folder) for run in runs_of(result, root)]
    except refusals as error:
        raise WorkFailed(f"MLflow did not take the study: {_first_line(error)}.") from error


def runs_of(result: StudyResult, root: Path) -> list[FormatRun]:
    """What is said of each format, the baseline first as the study has it."""
    return [
        FormatRun(
            format=format,
            parameters=_parameters(result, format, root),
            metrics=_metrics(result, format),
            tags=_tags(result, format),
        )
        for format in result.formats
    ]


# --- what is said -------------------------------------------------------------------------------------------------


def _parameters(result: StudyResult, format: str, root: Path) -> dict[str, str]:
    origin = read_origin(root / result.checkpoints[format].path) if format in result.checkpoints else None
    said = {"model": result.model, "study": result.name, "format": format}
    if origin is not None and origin.recipe is not None:
        said |= {f"recipe/{what}": how for what, how in recipe_rows(origin.recipe)}
    if origin is not None and origin.calibration is not None:
        said["calibration"] = calibration_words(origin.calibration)
    said |= _facts("accuracy", result.evaluated_with.get(format))
    timed = [cost for cost in result.costs if cost.format == format]
    said |= _facts("speed", next((cost.facts for cost in timed if cost.facts is not None), None))
    said["hardware"] = ", ".join(dict.fromkeys(hardware_name(cost) for cost in timed))
    said |= {f"machine/{name}": str(value) for name, value in result.machine.items()}
    said |= {f"settings/{name}": value for name, value in result.settings.items()}
    said["bitworth"] = bitworth.__version__
    return {_key(name): value[:_MOST_CHARACTERS] for name, value in said.items() if value}


def _facts(what: str, facts: EngineFacts | None) -> dict[str, str]:
    """What made the figures of one kind, with its versions."""
    if facts is None:
        return {}
    named = {f"{what}/{name}": getattr(facts, name) for name in ("engine", "kernel", "device")}
    return {**named, **{f"{what}/version {name}": version for name, version in facts.versions.items()}}


def _metrics(result: StudyResult, format: str) -> dict[str, float]:
    """By name; an unknown or infinite figure has none."""
    rows = [*_accuracy(result, format), *_divergence(result, format), *_made(result, format)]
    for cost in result.costs:
        if cost.format == format and cost.unsupported is None:
            rows += _cost(cost, result)
    found: dict[str, float] = {}
    for name, value in rows:
        if value is not None and math.isfinite(value):
            found[_free(_key(name), found)] = float(value)
    return found


Figures = Iterator[tuple[str, float | None]]


def _accuracy(result: StudyResult, format: str) -> Figures:
    rows = [*result.recoveries, *result.groups]
    if format == BASELINE:
        yield from {f"score/{_part(row.task)}": row.baseline for row in rows}.items()
    for row in rows:
        if row.format == format:
            yield from _recovery(row)


def _recovery(row: Recovery) -> Figures:
    start, end = "predicted/" if row.source == "predicted" else "", f"/{_part(row.task)}"
    yield f"{start}score{end}", row.quantized
    yield f"{start}recovery_pct{end}", row.recovery_pct
    yield f"{start}recovery_ci95_low_pct{end}", row.ci95_pct[0]
    yield f"{start}recovery_ci95_high_pct{end}", row.ci95_pct[1]
    yield f"{start}questions{end}", row.questions


def _divergence(result: StudyResult, format: str) -> Figures:
    found = result.divergences.get(format)
    if found is not None:
        yield from (
            ("perplexity", found.perplexity),
            ("kl_nats", found.kl_nats),
            ("top1_flip_pct", found.top1_flip_pct),
        )


def _made(result: StudyResult, format: str) -> Figures:
    found = result.checkpoints.get(format)
    if found is not None:
        yield from (
            ("size_mib", found.size_mib),
            ("bits_per_weight", found.bits_per_weight),
            ("quantize_s", found.seconds),
        )


def _cost(cost: QueryCost, result: StudyResult) -> Figures:
    start = "predicted/" if cost.source == "predicted" else ""
    end = "/" + "/".join(_part(part) for part in (cost.use_case.name, cost.load, hardware_name(cost)))
    ratio = times(cost, counterpart(cost, result.costs)) if cost.format != BASELINE else None
    low, high = cost.ci95_queries_per_usd or (None, None)
    figures = {
        "queries_per_usd": cost.queries_per_usd,
        "queries_per_usd_ci95_low": low,
        "queries_per_usd_ci95_high": high,
        "times_baseline": ratio[0] if ratio else None,
        "usd_per_1k_queries": usd_per_1k(cost),
        "latency_mean_s": cost.latency_s,
        "latency_p90_s": cost.latency_p90_s,
        "first_token_mean_s": cost.first_token_s,
        "queries_per_second": cost.queries_per_second,
    }
    yield from ((f"{start}{name}{end}", value) for name, value in figures.items())


def _tags(result: StudyResult, format: str) -> dict[str, str]:
    chosen = [row for row in result.recommendations if row.choice is not None and row.choice.format == format]
    tags = {"bitworth.study": result.name, "bitworth.model": result.model, "bitworth.format": format}
    if chosen:
        tags["bitworth.chosen_for"] = "; ".join(scenario_title(row.use_case, row.load) for row in chosen)
    return {name: value[:_MOST_CHARACTERS] for name, value in tags.items()}


def _part(name: str) -> str:
    """A name within a metric's: MLflow takes letters, digits and `_-. /`, of which `/` parts our own names."""
    return re.sub(r"[^\w\-. ]+", "_", name.replace("@", " at ").replace("×", "x"), flags=re.ASCII).strip("_ ")


def _key(name: str) -> str:
    return re.sub(r"[^\w\-. /]+", "_", name, flags=re.ASCII)


def _free(name: str, taken: Mapping[str, float]) -> str:
    """The name, numbered where another figure has it already."""
    return next(free for free in (name, *(f"{name}-{at}" for at in range(2, 10**6))) if free not in taken)


# --- MLflow -------------------------------------------------------------------------------------------------------


def _client(tracking_uri: str | None) -> tuple[MlflowClient, tuple[type[Exception], ...]]:
    """MLflow's client, and the exceptions by which it refuses."""
    uri = tracking_uri or os.environ.get(URI_VARIABLE)
    if not uri:
        raise BitworthError(f"Nothing says where MLflow keeps its runs; give --tracking-uri, or set {URI_VARIABLE}.")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own seven keep a user waiting for minutes
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise BitworthError("MLflow is not installed; `pip install 'bitworth[mlflow]'` brings its client.") from error
    if uri.split(":", 1)[0].split("+")[0] in _DATABASES and importlib.util.find_spec("sqlalchemy") is None:
        raise BitworthError(f"MLflow's client alone does not open {uri}; `pip install mlflow` brings the whole of it.")
    refusals = (MlflowException, OSError, ImportError)
    try:
        return MlflowClient(tracking_uri=uri), refusals
    except refusals as error:
        raise BitworthError(f"MLflow cannot use {uri}: {_first_line(error)}.") from error


def _first_line(error: BaseException) -> str:
    """What it says, in a line without a final stop; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    place: str = found.experiment_id if found is not None else client.create_experiment(name)
    return place


def _log(client: MlflowClient, place: str, run: FormatRun, result: StudyResult, root: Path, folder: Path) -> Logged:
    """One format's run: found by its digest, or made; a run that cannot be finished is deleted."""
    digest = _digest(run, result)
    for found in client.search_runs([place], filter_string=f"tags.`{_DIGEST}` = '{digest}'", max_results=1):
        return Logged(format=run.format, run_id=found.info.run_id, kept=True)
    at = _milliseconds(result.finished)
    tags = {**run.tags, _DIGEST: digest}
    made = client.create_run(place, start_time=at, tags=tags, run_name=run.format).info.run_id
    try:
        _fill(client, made, run, at)
        for artifact in _artifacts(result, run.format, root, folder):
            client.log_artifact(made, str(artifact))
        client.set_terminated(made, "FINISHED", end_time=at)
    except BaseException:
        with suppress(Exception):  # the first fault is the one to tell
            client.delete_run(made)
        raise
    return Logged(format=run.format, run_id=made, kept=False)


def _fill(client: MlflowClient, made: str, run: FormatRun, at: int) -> None:
    from mlflow.entities import Metric, Param

    parameters = [Param(name, value) for name, value in run.parameters.items()]
    metrics = [Metric(name, value, at, 0) for name, value in run.metrics.items()]
    for start in range(0, max(len(parameters), len(metrics)), _BATCH):
        piece = slice(start, start + _BATCH)
        client.log_batch(made, params=parameters[piece], metrics=metrics[piece])


def _artifacts(result: StudyResult, format: str, root: Path, folder: Path) -> Iterator[Path]:
    """The report, the document, and where the format has a checkpoint, its card."""
    yield folder / "report.html"
    yield folder / "recommendation.json"
    if format in result.checkpoints:
        card = folder / format / CARD
        write_atomic(card, render_card(result, format, root))
        yield card


def _digest(run: FormatRun, result: StudyResult) -> str:
    """What the run holds, artifacts included: equal results give equal digests."""
    held = {"run": plain(asdict(run)), "result": result_as_json(result)}
    return hashlib.sha256(canonical(held).encode()).hexdigest()


def _milliseconds(finished: str | None) -> int:
    """When the newest result was finished, since 1970."""
    return int(1000 * datetime.fromisoformat(finished).timestamp()) if finished else 0
