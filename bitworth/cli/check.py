"""`bitworth check`: does each format fit the devices, and does vLLM have a kernel for it there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli import names
from bitworth.cli.console import Json, Quiet, Terminal

if TYPE_CHECKING:
    from bitworth.preflight import Finding
    from bitworth.types import Hardware

_PARTS = ("codes_gib", "scales_gib", "kept_gib", "activations_gib", "runtime_gib", "cache_gib")


def check(
    config: Annotated[Path, typer.Argument(help="A model folder, or a config.json.")],
    gpu: Annotated[str, typer.Option(help="A row of the catalogue.", autocompletion=names.devices)] = "H100",
    count: Annotated[int, typer.Option(help="Devices that serve one copy of the model.", min=1)] = 1,
    tensor_parallel: Annotated[
        int | None, typer.Option(help="Devices that share each block (as many of a machine as can).", min=1)
    ] = None,
    use_case: Annotated[
        str,
        typer.Option(help="A use case of the paper, or PROMPT/OUTPUT tokens.", autocompletion=names.use_cases),
    ] = "rag",
    streams: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 1,
    format: Annotated[str, typer.Option(help="A number format, or all.", autocompletion=names.formats)] = "all",
    group_size: Annotated[int | None, typer.Option(help="Weights that share a scale (128).", min=1)] = None,
    study: Annotated[Path | None, typer.Option(help="A study file whose hardware rows count, too.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say from a config.json alone whether formats fit and run on some devices, and what would do instead."""
    from bitworth import preflight
    from bitworth.prediction import beyond_context, read_architecture
    from bitworth.workloads import use_case as shape_of

    terminal = Terminal(as_json=json, quiet=quiet)
    row, architecture, case = _row_of(gpu, count, study), read_architecture(config), shape_of(use_case)
    asked = preflight.NAMES if format == "all" else (format,)
    findings = [
        preflight.check(architecture, name, row, case, streams=streams, tensor=tensor_parallel, group_size=group_size)
        for name in asked
    ]
    notes = [*_notes(architecture.mixtures), *beyond_context(architecture, case)]
    for note in notes:
        terminal.note(note)
    split = findings[0].split
    document = {
        "model": str(config),
        "gpu": row.name,
        "capability": row.capability,
        "count": row.count,
        "tensor_parallel": split.tensor,
        "pipeline_stages": split.stages,
        "use_case": asdict(case),
        "streams": streams,
        "vllm": preflight.VLLM,
        "formats": [as_document(found) for found in findings],
        "notes": notes,
    }
    terminal.answer(document, lambda: _tables(findings, document))


def as_document(found: Finding) -> dict[str, Any]:
    """A finding as JSON: GiB are those of the fullest device."""
    memory, verdict = found.memory, found.verdict
    return {
        "format": found.format,
        "group_size": found.group_size,
        "fits": found.fits,
        "needed_gib": memory.needed_gib,
        "there_gib": memory.there_gib,
        "parts": {name: getattr(memory, name) for name in _PARTS},
        "most_streams": memory.most_streams,
        "most_context_tokens": memory.most_context_tokens,
        "memory": found.sentence,
        "runs": verdict.runs,
        "kernels": list(verdict.kernels),
        "why": verdict.why,
        "sure": verdict.sure,
        "instead": {key: list(value) if isinstance(value, tuple) else value for key, value in found.instead.items()},
    }


def _row_of(gpu: str, count: int, study: Path | None) -> Hardware:
    """A row of the study file, else of the catalogue."""
    from bitworth.hardware import hardware

    if study is not None:
        from bitworth.study import load_study

        for entry in load_study(study).hardware:
            if entry.name == gpu:
                return entry.row(count)
    return hardware(gpu, count)


def _notes(mixtures: int) -> list[str]:
    from bitworth.preflight import VLLM

    notes = [f"Kernels are those of vLLM {VLLM}, as its source selects them; no GPU was at hand to try them."]
    if mixtures:
        notes.append("Experts are multiplied by kernels of their own, which these rules do not describe.")
    return notes


def _tables(findings: list[Finding], document: dict[str, Any]) -> RenderableType:
    title = f"{document['count']} x {document['gpu']}, {document['tensor_parallel']} of them sharing each block"
    table = Table("format", "fits", "GiB a device", "most streams", "runs", "kernels", title=title)
    for found in findings:
        memory, verdict = found.memory, found.verdict
        fits = Text("yes", style="green") if found.fits else Text("part" if found.starts else "no", style="yellow")
        style = {"native": "green", "no": "red"}.get(verdict.runs, "yellow")
        table.add_row(
            found.format,
            fits,
            f"{memory.needed_gib:.1f} of {memory.there_gib:.1f}",
            str(memory.most_streams),
            Text(verdict.runs + ("" if verdict.sure else "?"), style=style),
            ", ".join(verdict.kernels) or "-",
        )
    lines = [Text(f"{found.format}: {line}") for found in findings if (line := _why(found))]
    return Group(table, *lines)


def _why(found: Finding) -> str:
    """What is wrong, and what would do instead."""
    wrong = "; ".join(filter(None, (found.verdict.why, "" if found.fits else found.sentence)))
    return f"{wrong}. Instead: {_instead(found)}." if found.instead else wrong and f"{wrong}."


def _instead(found: Finding) -> str:
    """`formats w8a8-int, w4a16-int; groups of 64; 2 such devices; on H100, H200`."""
    words = {"formats": "formats {}", "group_size": "groups of {}", "count": "{} such devices", "devices": "on {}"}
    said = {key: ", ".join(value) if isinstance(value, tuple) else value for key, value in found.instead.items()}
    return "; ".join(words[key].format(value) for key, value in said.items())
