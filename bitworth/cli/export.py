"""`bitworth export`: a study's results as Parquet files, or as runs in MLflow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import RenderableType
from rich.table import Table

from bitworth.cli.console import Json, Terminal
from bitworth.errors import BitworthError


def export(
    results: Annotated[Path, typer.Argument(help="A folder that `bitworth run STUDY --out FOLDER` wrote.")],
    to: Annotated[Literal["parquet", "mlflow"], typer.Option("--to", help="Files to query, or runs to compare.")],
    out: Annotated[Path | None, typer.Option("--out", help="parquet: the folder of the files.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="mlflow: where it keeps runs (MLFLOW_TRACKING_URI counts without it).")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="mlflow: the experiment (the study's name).")] = None,
    json: Json = False,
) -> None:
    """Write a study's answers, recoveries, costs and provenance for other programs."""
    if to == "parquet":
        if tracking_uri is not None or experiment is not None:
            raise BitworthError("--tracking-uri and --experiment are for --to mlflow.")
        document = _parquet(results, out)
    else:
        if out is not None:
            raise BitworthError("--out is for --to parquet; MLflow keeps runs where --tracking-uri says.")
        document = _mlflow(results, tracking_uri, experiment)
    Terminal(as_json=json).answer(document, lambda: _shown(document))


def _parquet(results: Path, out: Path | None) -> dict[str, Any]:
    if out is None:
        raise BitworthError("--to parquet needs --out FOLDER.")
    from bitworth.export.parquet import write_parquet

    counts = write_parquet(results, out)
    rows = [{"table": name, "rows": count, "file": str(out / f"{name}.parquet")} for name, count in counts.items()]
    return {"to": "parquet", "tables": rows}


def _mlflow(results: Path, tracking_uri: str | None, experiment: str | None) -> dict[str, Any]:
    from bitworth.export.tracking import log_study

    logged = log_study(results, tracking_uri=tracking_uri, experiment=experiment)
    return {"to": "mlflow", "runs": [asdict(run) for run in logged]}


def _shown(document: dict[str, Any]) -> RenderableType:
    if document["to"] == "parquet":
        table = Table("table", "rows", "file")
        for row in document["tables"]:
            table.add_row(row["table"], f"{row['rows']:,}", row["file"])
        return table
    table = Table("format", "run", "")
    for row in document["runs"]:
        table.add_row(row["format"], row["run_id"], "there already" if row["kept"] else "logged")
    return table
