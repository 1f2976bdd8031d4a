"""`bitworth import`: figures that another program measured, in bitworth's terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bitworth.cli.benchmark import spreads_table
from bitworth.cli.console import Json, Terminal
from bitworth.errors import WorkFailed

if TYPE_CHECKING:
    from bitworth.engines.guidellm import GuideRun


def import_report(
    program: Annotated[Literal["guidellm"], typer.Argument(help="The program that wrote the report.")],
    file: Annotated[Path, typer.Argument(help="Its JSON report.")],
    usd_per_hour: Annotated[float | None, typer.Option(help="What the machine costs an hour.", min=0)] = None,
    json: Json = False,
) -> None:
    """Read a load generator's report (GuideLLM 0.8, JSON) and print its runs' metrics as bitworth defines them."""
    from bitworth.engines.guidellm import read_report

    rows = [_row(run, usd_per_hour) for run in read_report(file)]
    Terminal(as_json=json).answer({"benchmarks": rows}, lambda: _shown(rows))


def _row(run: GuideRun, usd_per_hour: float | None) -> dict[str, Any]:
    """A run's metrics, or why they are of no use: too many of its requests failed."""
    from bitworth.load.document import metrics_as_json
    from bitworth.load.metrics import metrics_of, succeeded

    row = {"load": run.load, "guidellm": run.version}
    try:
        succeeded(run.timings)
    except WorkFailed as error:
        return {**row, "unusable": str(error), "metrics": None}
    return {**row, "unusable": None, "metrics": metrics_as_json(metrics_of(run.timings, whole=True), usd_per_hour)}


def _shown(rows: list[dict[str, Any]]) -> RenderableType:
    parts: list[RenderableType] = []
    for row in rows:
        parts.append(Text(f"{row['load']}: {row['unusable'] or 'GuideLLM ' + row['guidellm']}"))
        if row["metrics"] is not None:
            parts.append(spreads_table(row["metrics"]))
    return Group(*parts)
