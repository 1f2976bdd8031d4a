"""A study's result on a terminal: what to deploy, why, and what each format keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.report.document import summary_rows
from bitworth.report.figures import interval, number, percent
from bitworth.types import Recovery, StudyResult

_FLIPS = 3
"""Flip points that are shown, nearest first."""
_STYLES = {"holds": "green", "loses": "red", "undecided": "yellow"}


def terminal_summary(result: StudyResult) -> RenderableType:
    """The recommendations with their reasons, then recoveries by task and format, then what is missing."""
    rows = summary_rows(result)
    parts: list[RenderableType] = []
    if rows:
        parts += [_recommendations(rows), *(_reason(row) for row in rows)]
    else:
        parts.append(Text("Nothing was timed, so there is nothing to recommend.", style="yellow"))
    if result.recoveries:
        parts.append(_recoveries(result.recoveries))
    if result.missing:
        parts.append(Text(f"Without a result: {len(result.missing)}", style="yellow"))
        parts += [_wrapped(f"{row.title}: {row.cause}") for row in result.missing]
    return Group(*parts)


def _recommendations(rows: list[dict[str, Any]]) -> Table:
    table = _table("What to deploy", "use case", "load", "deploy", "recovery", "× baseline per USD")
    several = len({row["hardware"] for row in rows if row["hardware"]}) > 1
    for row in rows:
        name = row["choice"] or "nothing fits"
        deploy = f"{name} on {row['hardware']}" if several and row["choice"] else name
        if row["choice"] and row["choice_load"] != row["load"]:
            deploy = f"{deploy}, {row['choice_load']}"
        scale = "" if row["scale"] == 1 else f" × {row['scale']:.4g}"
        recovery = _with(percent(row["recovery_pct"]), row["recovery_ci95_pct"], decimals=1)
        saving = _with(number(row["times_baseline"]), row["times_baseline_ci95"])
        table.add_row(
            Text(row["use_case"] + scale),
            Text(row["load"]),
            Text(deploy, style="bold" if row["choice"] else "red"),
            f"{recovery}, predicted" if row["recovery_source"] == "predicted" else recovery,
            f"{saving}, predicted" if row["source"] == "predicted" else saving,
        )
    return table


def _reason(row: dict[str, Any]) -> Text:
    text = _wrapped((f"{row['use_case']}, {row['load']}: ", "bold"), row["why"])
    if row["next_step"]:
        text.append(f" {row['next_step']}", style="cyan")
    for flip in row["flips"][:_FLIPS]:
        text.append(f"\n  {flip}", style="dim")
    return text.append("\n")


def _wrapped(*parts: str | tuple[str, str]) -> Text:
    """Text that wraps at the terminal's edge even where the console would let lines run on."""
    return Text.assemble(*parts, no_wrap=False, overflow="fold")


def _recoveries(recoveries: tuple[Recovery, ...]) -> Table:
    table = _table("Recovery, against the baseline's score", "task", "format", "recovery", "verdict")
    for row in recoveries:
        verdict = Text(row.verdict, style=_STYLES[row.verdict])
        if row.verdict == "undecided" and row.questions_needed:
            verdict.append(f", about {number(row.questions_needed)} more questions")
        figure = _with(percent(row.recovery_pct, apart_from=row.min_recovery_pct), row.ci95_pct, decimals=1)
        table.add_row(Text(row.task), Text(row.format), figure, verdict)
    return table


def _with(figure: str, bounds: Sequence[float | None] | None, *, decimals: int | None = None) -> str:
    """`99.9 % (99.2 to 100.6)`; the figure alone where there is no interval."""
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return figure
    return f"{figure} ({interval((bounds[0], bounds[1]), decimals=decimals)})"


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
