"""`bitworth predict`: the verb's options and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli import names
from bitworth.cli.console import Json, Quiet, Terminal
from bitworth.cli.loads import parse_foretold
from bitworth.types import Hardware, Load

if TYPE_CHECKING:
    from bitworth.prediction import Architecture, Constants, Prediction

_RANGES = ("latency_s", "latency_p90_s", "first_token_s", "queries_per_second", "queries_per_usd")


def predict(
    config: Annotated[Path, typer.Argument(help="A model folder, or one that holds a config.json alone.")],
    use_case: Annotated[
        str,
        typer.Option(help="A use case of the paper, or PROMPT/OUTPUT tokens.", autocompletion=names.use_cases),
    ],
    format: Annotated[
        str, typer.Option(help="bf16, w8a8-fp, w8a8-int or w4a16-int.", autocompletion=names.predicted_formats)
    ] = "bf16",
    gpu: Annotated[str, typer.Option(help="A row of the catalogue.", autocompletion=names.devices)] = "H100",
    count: Annotated[int, typer.Option(help="Devices of that row.", min=1)] = 1,
    load: Annotated[
        str, typer.Option(help="synchronous, throughput, RATE or poisson:RATE, constant:RATE (queries a second).")
    ] = "synchronous",
    streams: Annotated[
        int | None, typer.Option(help="Requests at once under throughput (as many as can be answered).", min=1)
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale in w4a16-int (128).", min=1)
    ] = None,
    usd_per_hour: Annotated[float | None, typer.Option(help="Your price an hour for all devices.", min=0)] = None,
    study: Annotated[Path | None, typer.Option(help="A study file whose hardware rows count, too.")] = None,
    target_rate: Annotated[
        float | None,
        typer.Option(
            help="Queries a second to be answered, by replicas under --streams each or at their most: adds devices and "
            "dollars a month.",
            min=0,
        ),
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Add latencies at nine rates up to the most queries a second.")
    ] = False,
    timed: Annotated[
        list[Path] | None,
        typer.Option(help="Fit the device's own constants on what `bitworth benchmark --out` wrote there; several."),
    ] = None,
    headroom: Annotated[float, typer.Option(help="Share of the devices' rate to leave unused.", min=0)] = 0.2,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict speed and cost from a config.json alone, where there is no hardware to measure on."""
    from bitworth import prediction
    from bitworth.workloads import use_case as shape_of

    terminal = Terminal(as_json=json, quiet=quiet)
    row = _row_of(gpu, count, study)
    if usd_per_hour is not None:
        row = replace(row, usd_per_hour=usd_per_hour, price_source="the command line")
    architecture, case = prediction.read_architecture(config), shape_of(use_case)
    arrival = parse_foretold(load, streams)
    settings: dict[str, Any] = {"group_size": group_size}
    if timed:
        row, settings["constants"] = _calibrated(architecture, format, row, timed, group_size)
    found = prediction.predict(architecture, format, row, case, arrival, **settings)
    for note in found.notes:
        terminal.note(note)
    document = as_document(found)
    if target_rate is not None:
        loaded = arrival if arrival.kind == "throughput" else Load(kind="throughput")
        full = (
            [prediction.predict(architecture, format, row, case, loaded, **settings)]
            if timed
            else prediction.alternatives(architecture, row, case, loaded, group_size=group_size)
        )
        document["scale"] = _scales(full, target_rate, headroom)
    if curve:
        points = prediction.curve(architecture, format, row, case, **settings)
        document["curve"] = [{"saturation": point.saturation, **_figures(point)} for point in points]
    terminal.answer({"model": str(config), **document}, lambda: _tables(document))


def _calibrated(
    architecture: Architecture, format: str, row: Hardware, timed: list[Path], group_size: int | None
) -> tuple[Hardware, Constants]:
    """The row and the constants that the timed loads give this format there."""
    from bitworth.prediction.calibrating import calibrated, nominal, read_observation
    from bitworth.prediction.formats import kernel
    from bitworth.prediction.roofline import Deployment

    kind = kernel(format, group_size=group_size)
    row = nominal(row, kind.arithmetic)
    deployment = Deployment(architecture=architecture, kernel=kind, hardware=row)
    return row, calibrated(deployment, [read_observation(folder) for folder in timed])


def _row_of(gpu: str, count: int, study: Path | None) -> Hardware:
    """A row of the study file, else of the catalogue; this machine's is measured now."""
    from bitworth.hardware import LOCAL, hardware

    if study is not None:
        from bitworth.study import load_study

        for entry in load_study(study).hardware:
            if entry.name == gpu:
                return entry.row(count)
    row = hardware(gpu, count)
    if gpu == LOCAL:
        from bitworth.prediction.probe import probed

        return probed(row)
    return row


def as_document(found: Prediction) -> dict[str, Any]:
    """A prediction as JSON: each figure, with `_low` and `_high` behind its name."""
    row: Hardware = found.hardware
    document: dict[str, Any] = {
        "source": found.source,
        "format": found.format,
        "use_case": asdict(found.use_case),
        "load": found.load,
        "gpu": row.name,
        "count": row.count,
        "copies": found.copies,
        "devices_a_copy": found.devices_a_copy,
        "usd_per_hour": row.usd_per_hour,
        "price_source": row.price_source,
    }
    return document | _figures(found) | {"saturation": found.saturation, "notes": list(found.notes)}


def _figures(found: Prediction) -> dict[str, float]:
    """Every figure with its range."""
    figures: dict[str, float] = {}
    for name in _RANGES:
        figure = getattr(found, name)
        figures |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    return figures


def _scales(rows: Sequence[Prediction | tuple[str, str]], target: float, headroom: float) -> list[dict[str, Any]]:
    """What each format needs for a target rate, or why it cannot."""
    from bitworth.prediction import scale

    return [
        {"format": row[0], "unsupported": row[1]}
        if isinstance(row, tuple)
        else asdict(scale(row, target, headroom=headroom))
        for row in rows
    ]


def _tables(document: dict[str, Any]) -> RenderableType:
    table = Table("predicted", "value", "90 % within")
    for name in _RANGES:
        table.add_row(
            name, *(f"{document[name]:.4g}", f"{document[f'{name}_low']:.4g} to {document[f'{name}_high']:.4g}")
        )
    copies = "1 copy" if document["copies"] == 1 else f"{document['copies']} copies"
    split = f"{copies} of {document['devices_a_copy']} x {document['gpu']}"
    price = f"USD {document['usd_per_hour']:g} an hour in all ({document['price_source']})"
    parts: list[RenderableType] = [
        table,
        Text(f"{document['format']} under {document['load']} load on {split}, {price}."),
    ]
    if "scale" in document:
        parts.append(_scale_table(document["scale"]))
        parts += [Text(line) for line in _replica_words(document["scale"])]
    if "curve" in document:
        parts.append(_curve_table(document["curve"]))
    return Group(*parts)


def _replica_words(rows: list[dict[str, Any]]) -> list[str]:
    """What each replica is taken to answer, for the formats that there are."""
    able = [row for row in rows if "unsupported" not in row]
    if not able:
        return []
    rates = ", ".join(f"{row['format']} {row['replica_rate']:.3g}" for row in able)
    kind, _, streams = able[0]["load"].partition(" ")
    how = f"under {kind} load {streams}" if streams else "at its most"
    return [f"Queries a second that a replica answers {how}: {rates}."]


def _curve_table(rows: list[dict[str, float]]) -> RenderableType:
    names = ("queries_per_second", "saturation", "latency_s", "latency_p90_s", "first_token_s")
    table = Table(*names)
    for row in rows:
        table.add_row(*(f"{row[name]:.3g}" for name in names))
    return table


def _scale_table(rows: list[dict[str, Any]]) -> RenderableType:
    table = Table("format", "replicas", "devices", "USD a month", "90 % within")
    for row in rows:
        if "unsupported" in row:
            table.add_row(row["format"], "-", "-", "-", row["unsupported"])
        else:
            within = f"{row['usd_per_month_low']:,.0f} to {row['usd_per_month_high']:,.0f}"
            table.add_row(
                row["format"], str(row["replicas"]), str(row["devices"]), f"{row['usd_per_month']:,.0f}", within
            )
    return table
