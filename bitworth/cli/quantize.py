"""`bitworth quantize`: the verb's options and what it prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
from bitworth.types import Calibration, Recipe, Rule, Spread, StreamKind


def quantize(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or demo:smollm2.")],
    recipe: Annotated[
        list[str],
        typer.Option("--recipe", help="A recipe's name; several make several folders.", autocompletion=names.recipes),
    ],
    out: Annotated[Path, typer.Option("--out", help="The checkpoint's folder, or the folder of several.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a step of the recipes, with the keys of a study's format: damping=0.1, ordering=group, "
            "clip=mse, sweeps=2, awq_steps=20, tuning_steps=90; name=NAME is what the changed recipe is called. "
            "Repeatable.",
        ),
    ] = None,
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
        float | None,
        typer.Option(help="Most memory for hidden states, which go to files beyond it (half the free).", min=0),
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
    from bitworth.report.calibration import audit_summary

    terminal = Terminal(as_json=json, quiet=quiet or is_follower())
    recipes = [recipe_of(name, changes or (), group_size=group_size) for name in recipe]
    called = [each.name for each in recipes]
    if len(set(called)) < len(called):
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
            terminal.answer({"model": str(folder), "recipes": called, **foretold}, lambda: _forecast_table(foretold))
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


def recipe_of(preset: str, changes: Sequence[str] = (), *, group_size: int | None = None) -> Recipe:
    """A preset, or one with steps changed as a study's format changes them, `KEY=VALUE` each.

    Unless `name` is among them its name says what was changed: `w8a8-int-gptq-damping-0.1`.

    Raises:
        BitworthError: no such preset, or whatever a study's format would be refused for.
    """
    from bitworth.recipes import recipe as recipe_named
    from bitworth.study import parse_format

    if not changes:
        return recipe_named(preset, group_size=group_size)
    given: dict[str, Any] = {}
    for text in changes:
        key, value = _change(text)
        if key in given or key == "base":
            raise BitworthError(f"--set {text}: {'--recipe names the base' if key == 'base' else 'it is set twice'}.")
        given[key] = value
    name = "-".join([preset, *(re.sub(r"[^A-Za-z0-9._+-]", "-", text) for text in changes)])
    recipe = parse_format({"name": name, "base": preset, **given}, where="--set").recipe(group_size)
    assert recipe is not None  # the baseline has no steps to change
    return recipe


def _change(text: str) -> tuple[str, Any]:
    """A key, and its value as YAML would read it."""
    from yaml import YAMLError

    from bitworth.guard.documents import yaml_of

    key, _, written = text.partition("=")
    try:
        value = yaml_of(written)
    except (YAMLError, ValueError):
        value = None
    if not key or value is None:
        raise BitworthError(f"--set {text}: write KEY=VALUE, such as --set damping=0.1.")
    return key, value


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
        *(Text(note) for note in foretold["notes"]),
    )
