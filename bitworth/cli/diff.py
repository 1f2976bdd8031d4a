"""`bitworth diff`: two studies, or two versions of a model, side by side."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli.console import Json, Terminal
from bitworth.errors import BitworthError
from bitworth.report.figures import UNKNOWN, chance, interval, number, percent, seconds

if TYPE_CHECKING:
    from bitworth.comparison import Comparison

_STYLES = {"better": "green", "worse": "red", "no change shown": ""}
_MOST_SETTINGS = 20


def diff(
    before: Annotated[str, typer.Argument(help="A results folder, or FOLDER:FORMAT.")],
    after: Annotated[str, typer.Argument(help="Another, or the same folder with another format.")],
    json: Json = False,
) -> None:
    """Compare two results folders, or two formats: settings, accuracy (paired where possible), speed, cost, choices."""
    from bitworth.comparison import compare_sides
    from bitworth.sides import read_side

    (one, one_format), (other, other_format) = parse_side(before), parse_side(after)
    found = compare_sides(read_side(one), read_side(other), before_format=one_format, after_format=other_format)
    document = {"before": before, "after": after, **asdict(found)}
    Terminal(as_json=json).answer(document, lambda: _tables(found))


def parse_side(text: str) -> tuple[Path, str | None]:
    """A folder, or a folder and a format after the last colon.

    Raises:
        BitworthError: there is no such folder.
    """
    if os.path.isdir(text):
        return Path(text), None
    folder, colon, format = text.rpartition(":")
    if colon and os.path.isdir(folder) and format:
        return Path(folder), format
    raise BitworthError(f"{text} is neither a results folder nor FOLDER:FORMAT.")


def _tables(found: Comparison) -> RenderableType:
    parts: list[RenderableType] = []
    if found.settings:
        parts.append(_settings(found))
    if found.scores:
        parts.append(_scores(found))
    if found.speeds:
        parts.append(_speeds(found))
    parts += [
        Text(f"{row.use_case}, {row.load}: {row.before or 'nothing'} before, {row.after or 'nothing'} after.")
        for row in found.choices
    ]
    parts += [Text(note, style="dim") for note in found.notes]
    return Group(*parts) if parts else Text("Nothing differs, and there is nothing to compare.")


def _settings(found: Comparison) -> Table:
    table = Table("setting", "before", "after", title="What was asked and run differently", title_justify="left")
    for row in found.settings[:_MOST_SETTINGS]:
        table.add_row(row.what, _shown(row.before), _shown(row.after))
    more = len(found.settings) - _MOST_SETTINGS
    if more > 0:
        table.add_row(f"and {more} more (--json has all)", "", "")
    return table


def _shown(value: Any) -> str:
    text = UNKNOWN if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def _scores(found: Comparison) -> Table:
    columns = ("task", "format", "before", "after", "after / before", "questions", "p, adjusted", "change")
    table = Table(*columns, title="Accuracy", title_justify="left")
    for row in found.scores:
        ratio = f"{percent(row.ratio_pct)} ({interval(row.ci95_pct, decimals=1)})"
        asked = f"{row.questions:,}{'' if row.paired else ', unpaired'}"
        figures = (percent(100 * row.before), percent(100 * row.after), ratio, asked, chance(row.p_holm))
        table.add_row(row.task, _pair(row.before_format, row.after_format), *figures, _change(row.change))
    return table


def _speeds(found: Comparison) -> Table:
    columns = ("use case, load, device", "format", "latency", "speed", "queries per dollar", "change")
    table = Table(*columns, title="Speed and cost, after / before", title_justify="left")
    for row in found.speeds:
        table.add_row(
            f"{row.use_case}, {row.load}, {row.hardware}",
            _pair(row.before_format, row.after_format),
            f"{seconds(row.before_latency_s)} → {seconds(row.after_latency_s)}",
            _ratio(row.speed_ratio, row.speed_ci95),
            _ratio(row.queries_per_usd_ratio, row.queries_per_usd_ci95),
            _change(row.change),
        )
    return table


def _ratio(value: float, bounds: tuple[float, float] | None) -> str:
    return f"{number(value)} ({interval(bounds)})" if bounds else number(value)


def _pair(one: str, other: str) -> str:
    return one if one == other else f"{one} → {other}"


def _change(change: str) -> Text:
    return Text(change, style=_STYLES[change])
