"""`bitworth gate`: the verb's options, what they are read as, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bitworth.cli import names
from bitworth.cli.console import Json, Terminal
from bitworth.errors import BitworthError
from bitworth.types import LatencyLimit, Quantity, Statistic

if TYPE_CHECKING:
    from bitworth.gating import Gate

_STYLES = {"passes": "green", "fails": "red", "undecided": "yellow"}


def gate(
    results: Annotated[Path, typer.Argument(help="A results folder, or a study file with --out.")],
    out: Annotated[Path | None, typer.Option("--out", help="The results folder of a study file.")] = None,
    format: Annotated[
        str | None,
        typer.Option(help="Whose release it is (the only quantized format).", autocompletion=names.study_formats),
    ] = None,
    min_recovery: Annotated[float | None, typer.Option(help="Least recovery in percent (the study's).", min=1)] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Confidence of recovery in percent (95).", min=1, max=99.99)
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="A task that must hold it on its own.", autocompletion=names.study_tasks),
    ] = None,
    max_usd_per_1k: Annotated[float | None, typer.Option(help="Most dollars a thousand queries.", min=0)] = None,
    max_usd_per_month: Annotated[float | None, typer.Option(help="Most dollars a month.", min=0)] = None,
    queries_per_second: Annotated[
        float | None,
        typer.Option(help="The traffic to be served; dollars are those of what it takes.", min=0),
    ] = None,
    max_latency_s: Annotated[float | None, typer.Option(help="Most seconds a request, on average.", min=0)] = None,
    max_first_token_s: Annotated[float | None, typer.Option(help="Most seconds to the first token.", min=0)] = None,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="Most seconds of a statistic, such as p95:first_token=0.5.")
    ] = None,
    use_case: Annotated[
        str | None, typer.Option(help="The use case that counts (all).", autocompletion=names.study_use_cases)
    ] = None,
    load: Annotated[str | None, typer.Option(help="The load that counts (all).")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="The device that counts (all).", autocompletion=names.devices)
    ] = None,
    accept_predicted: Annotated[
        bool, typer.Option("--accept-predicted", help="Judge predictions as if they were measured.")
    ] = False,
    json: Json = False,
) -> int:
    """Judge a format for release: exits 0 (passes), 1 (fails), 2 (undecided), 3 where nothing could be judged."""
    from bitworth.assembly import assemble
    from bitworth.gating import UNJUDGED, Where, judge_release

    try:
        asked: dict[str, Any] = {
            "min_recovery_pct": min_recovery,
            "confidence_pct": confidence,
            "max_usd_per_1k_queries": max_usd_per_1k,
            "max_usd_per_month": max_usd_per_month,
            "queries_per_second": queries_per_second or None,
            "max_latency_s": max_latency_s,
            "max_first_token_s": max_first_token_s,
            "limits": parse_limits(limit) if limit else None,
        }
        changed = {name: value for name, value in asked.items() if value is not None}
        result = assemble(results_folder(results, out), changed)
        where = Where(use_case=use_case, load=load and load.replace(":", "@", 1), hardware=hardware)
        found = judge_release(
            result, result.constraint, format=format, tasks=task or (), where=where, accept_predicted=accept_predicted
        )
    except Exception as error:
        vars(error)["exit_code"] = UNJUDGED  # whatever it was
        raise
    Terminal(as_json=json).answer(gate_document(found), lambda: _lines(found))
    return found.exit_code


def gate_document(found: Gate) -> dict[str, Any]:
    """The verb's document."""
    return {
        "format": found.format,
        "verdict": found.outcome,
        "exit_code": found.exit_code,
        "conditions": [asdict(condition) for condition in found.conditions],
    }


def _lines(found: Gate) -> RenderableType:
    lines = [Text(condition.says, style=_STYLES[condition.outcome]) for condition in found.conditions]
    return Group(*lines, Text(f"{found.format} {found.outcome}.", style="bold"))


def results_folder(place: Path, out: Path | None) -> Path:
    """The folder that is meant by a folder, or by a study file and the folder of its results.

    Raises:
        BitworthError: a study file without a folder, or a folder that holds the results of another study.
    """
    if not place.is_file():
        return place
    from bitworth.ledger import Ledger
    from bitworth.study import load_study, parse_study

    if out is None:
        raise BitworthError(
            f"{place} is a study file; name the folder of its results with --out, or that folder alone."
        )
    asked, kept = load_study(place), parse_study(Ledger(out).read_study(), where=f"{out}/study.json")
    decided_later = {"constraints", "hardware", "traffic", "name"}
    if asked.model_dump(exclude=decided_later) != kept.model_dump(exclude=decided_later):
        raise BitworthError(f"{out} holds the results of another study than {place}; run `bitworth run` on it first.")
    return out


def parse_limits(texts: Sequence[str]) -> tuple[LatencyLimit, ...]:
    """`p95:first_token=0.5` as a limit.

    Raises:
        BitworthError: another form, statistic or quantity, or seconds that are not positive.
    """
    return tuple(_limit(text) for text in texts)


def _limit(text: str) -> LatencyLimit:
    name, _, value = text.partition("=")
    at, _, of = name.partition(":")
    statistic = next((known for known in get_args(Statistic) if known == at), None)
    quantity = next((known for known in get_args(Quantity) if known == of), None)
    most = _number(value)
    if statistic is None or quantity is None or most is None or not most > 0:
        raise BitworthError(
            f"--limit '{text}' is not STATISTIC:QUANTITY=SECONDS, such as p95:first_token=0.5 (statistics "
            f"{', '.join(get_args(Statistic))}; quantities {', '.join(get_args(Quantity))})."
        )
    return LatencyLimit(of=quantity, at=statistic, most_s=most)


def parse_available(texts: Sequence[str]) -> dict[str, int]:
    """`H100=4` as the most devices by name.

    Raises:
        BitworthError: another form, or no whole number.
    """
    found = {}
    for text in texts:
        name, _, count = text.partition("=")
        if not name or not count.isdecimal():
            raise BitworthError(f"--available '{text}' is not NAME=COUNT, such as H100=4.")
        found[name] = int(count)
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
