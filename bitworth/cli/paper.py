"""`bitworth paper`: the published tables computed again, their defects, and their guidelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli.console import Json, Quiet, Terminal

if TYPE_CHECKING:
    from bitworth.paper.review import Review


def paper(
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a study's report of each of the paper's models here.")
    ] = None,
    min_recovery: Annotated[
        float, typer.Option(help="Least recovery in percent, for the reports' choices.", min=0)
    ] = 95.0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compute every derived figure of the paper's tables again, name their defects, derive its guidelines."""
    from bitworth.paper.review import review, review_as_json, write_reports

    terminal = Terminal(as_json=json, quiet=quiet)
    found = review()
    document = review_as_json(found)
    if out is not None:
        document["reports"] = [str(path.resolve()) for path in write_reports(found, out, min_recovery_pct=min_recovery)]
    terminal.answer(
        document, lambda: Group(*_parts(found), *(Text(f"Report: {p}") for p in document.get("reports", [])))
    )


def _parts(found: Review) -> list[RenderableType]:
    agreeing = sum(check.agrees for check in found.checks)
    return [
        Text(f"{agreeing} of {len(found.checks)} derived figures agree with the figures they are computed from."),
        _tables(found),
        Text(f"{len(found.defects)} defects:"),
        *(Text(f"  {one.kind}: {one.says}") for one in found.defects),
        _guidelines(found),
    ]


def _tables(found: Review) -> Table:
    table = Table("table", "derived", "agree")
    for number in dict.fromkeys(check.table for check in found.checks):
        mine = [check for check in found.checks if check.table == number]
        table.add_row(found.tables[number].title, str(len(mine)), str(sum(check.agrees for check in mine)))
    return table


def _guidelines(found: Review) -> Table:
    table = Table("size", "GPU", "load", "winner", "ahead by", "use cases won", "the paper")
    for one in found.guidelines:
        won = ", ".join(f"{name} {count}" for name, count in one.wins.items())
        ahead = f"{one.margin_pct:.1f} %" + ("" if one.settled else " (or none)")
        advice = one.advised + ("" if one.agrees else ", not so here")
        table.add_row(one.size, one.gpu, one.load, one.winner, ahead, won, advice)
    return table
