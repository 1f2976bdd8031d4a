"""`bitworth quantize`: the verb's options and what it prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli import names
from bitworth.cli.console import Json, Quiet, Terminal, is_follower
from bitworth.errors import BitworthError
from bitworth.types import Calibration, Rule, Spread, StreamKind


def quantize(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or demo:smollm2.")],
    recipe: Annotated[
        list[str],
        typer.Option("--recipe", help="A recipe's name; several make several folders.", autocompletion=names.recipes),
    ],
    out: Annotated[Path, typer.Option("--out", help="The checkpoint's folder, or the folder of several.")],
    group_size: Annotated[int | None, typer.Option(help="Input columns that share a scale (128).", min=1)] = None,
    allow_group_fallback: Annotated[
        bool, typer.Option(help="Take the largest group size that divides every layer, where the asked one does not.")
    ] = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            help="Text or JSONL file, hub:organization/name, demo:calibration, random or self; several are mixed, "
            "SOURCE=2 weighs one twice."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Calibration sequences.", min=1)] = 256,
    length: Annotated[int, typer.Option(help="Tokens a calibration sequence.", min=2)] = 512,
    seed: Annotated[int, typer.Option(help="Seed of what calibration draws and in which order.")] = 0,
    chat_template: Annotated[
        Rule, typer.Option(help="auto: conversations go through it; always: plain text too; never: nothing does.")
    ] = "auto",
    bos: Annotated[
        Rule, typer.Option(help="Start sequences with BOS: auto (where the tokenizer does), always or never.")
    ] = "auto",
    stream: Annotated[
        StreamKind,
        typer.Option(
            help="What GPTQ reads: what its own quantized blocks give (as published), or what the unquantized ones "
            "give, shared by all recipes."
        ),
    ] = "own",
    states_mib: Annotated[
        float | None, typer.Option(help="Most memory for hidden states, which go to files beyond it (half the free).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 (the GPU where there is one).")] = None,
    devices: Annotated[int, typer.Option(help="Devices of that kind, a process each.", min=1)] = 1,
    spread: Annotated[
        Spread,
        typer.Option(
            help="What is dealt to several devices: the calibration data, the recipes, or (auto) the recipes where as "
            "many have a walk of their own."
        ),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the memory, time and disk it would take, and make nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a model into checkpoints that vLLM and transformers load; killed, it goes on where it was."""
    from bitworth import sources
    from bitworth.devices import quantize_here
    from bitworth.forecast import forecast
    from bitworth.recipes import recipe as recipe_named
    from bitworth.report.calibration import audit_summary

    terminal = Terminal(as_json=json, quiet=quiet or is_follower())
    recipes = [recipe_named(name, group_size=group_size) for name in recipe]
    if len(set(recipe)) < len(recipe):
        raise BitworthError("A recipe is named twice; each makes one folder.")
    spec = None
    if calibration:
        parts = tuple(sources.parse_source(text) for text in calibration)
        asked = Calibration(
            sources=parts,
            samples=samples,
            length=length,
            seed=seed,
            chat_template=chat_template,
            bos=bos,
            stream=stream,
        )
        spec = sources.resolve_calibration(asked, note=terminal.note)
    folder = sources.resolve_model(model, note=terminal.note)
    if dry_run:
        foretold = asdict(
            forecast(
                folder, recipes, calibration=spec, allow_group_fallback=allow_group_fallback, states_mib=states_mib,
                device=device,
            )
        )  # fmt: skip
        if not is_follower():
            terminal.answer({"model": str(folder), "recipes": recipe, **foretold}, lambda: _forecast_table(foretold))
        return
    with terminal.steps("quantize") as step:
        made = quantize_here(
            devices, folder, recipes, out, calibration=spec, allow_group_fallback=allow_group_fallback,
            states_mib=states_mib, device=device, spread=spread, progress=step,
        )  # fmt: skip
    if is_follower():
        return
    rows = [asdict(result) for result in made]
    audits = {result.format: result.audit for result in made if result.audit is not None}
    shown = [audit_summary(audits)] if audits else []
    terminal.answer({"model": str(folder), "checkpoints": rows}, lambda: Group(_checkpoint_table(rows), *shown))


def _checkpoint_table(rows: list[dict[str, Any]]) -> RenderableType:
    table = Table("format", "bits a weight", "MiB", "seconds", "peak MiB", "folder")
    for row in rows:
        figures = (f"{row['bits_per_weight']:.2f}", f"{row['size_mib']:,.1f}", f"{row['seconds']:.1f}")
        table.add_row(row["format"], *figures, f"{row['peak_rss_mib']:,.0f}", str(row["path"]))
    notes = [Text(f"{row['format']}: {note}") for row in rows for note in row["notes"]]
    return Group(table, *notes)


def _forecast_table(foretold: dict[str, Any]) -> RenderableType:
    table = Table("memory at the peak", "MiB")
    for name, size in foretold["memory"].items():
        if name.endswith("_mib"):
            table.add_row(name.removesuffix("_mib"), f"{size:,.0f}")
    where = "in files" if foretold["memory"]["states_in_files"] else "in memory"
    minutes = foretold["seconds"] / 60
    return Group(
        table,
        Text(f"Hidden states lie {where}. About {minutes:.1f} minutes, {foretold['disk_mib']:,.0f} MiB on disk."),
    )
