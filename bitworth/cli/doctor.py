"""`bitworth doctor`: what this machine can measure, and what is missing for the rest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli.console import Json, Terminal

if TYPE_CHECKING:
    from bitworth.diagnosis import Check

_STYLES = {"ok": "green", "limited": "yellow", "missing": "red"}


def doctor(
    online: Annotated[bool, typer.Option("--online", help="Also ask the model hub whether it answers.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Where results would go, for its disk.")] = None,
    json: Json = False,
) -> None:
    """Say what this machine can measure, what is missing for the rest, and the command that mends it."""
    from bitworth.diagnosis import diagnose

    checks = diagnose(online=online, folder=out)
    counts = {state: sum(check.state == state for check in checks) for state in _STYLES}
    document = {"counts": counts, "checks": [asdict(check) for check in checks]}
    Terminal(as_json=json).answer(document, lambda: _table(checks))


def _table(checks: list[Check]) -> RenderableType:
    table = Table("what", "state", "found", "means")
    for check in checks:
        table.add_row(check.name, Text(check.state, style=_STYLES[check.state]), Text(check.found), check.means)
    fixes = [Text(f"{check.name}: {check.fix}") for check in checks if check.state != "ok" and check.fix]
    return Group(table, *([Text("To mend it:", style="bold"), *fixes] if fixes else []))
