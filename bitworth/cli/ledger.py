"""`bitworth ledger`: look into a results folder, tidy it, take it along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli.console import Json, Terminal
from bitworth.errors import BitworthError, Incomplete
from bitworth.ledger import Ledger

if TYPE_CHECKING:
    from bitworth.ledger.checking import Finding
    from bitworth.ledger.query import Rows

ledger = typer.Typer(help="Look into a results folder, tidy it, take it along.")

Folder = Annotated[Path, typer.Argument(help="A folder that bitworth wrote results into.")]
Most = Annotated[int, typer.Option(help="Rows to print at most.", min=1)]


@ledger.command("list")
def list_results(
    folder: Folder,
    kind: Annotated[
        str | None, typer.Option(help="Only quantize, evaluate, diverge, benchmark, write or judge.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Only this format's.")] = None,
    limit: Most = 1000,
    json: Json = False,
) -> None:
    """List the results that lie in a folder, whatever study or verb made them."""
    from bitworth.ledger.query import CELLS, query

    wanted = {"kind": kind, "format": format}
    where = " and ".join(f"{name} = {_quoted(value)}" for name, value in wanted.items() if value is not None)
    _print_rows(query(Ledger(folder), f"select * from ({CELLS}) where {where or 'true'}", most=limit), json=json)


@ledger.command("query")
def run_query(
    folder: Folder,
    sql: Annotated[
        str | None, typer.Argument(help="SQL over cells, answers and recoveries; without it, recoveries.")
    ] = None,
    limit: Most = 1000,
    json: Json = False,
) -> None:
    """Ask the results in SQL: which questions did a format lose, what do subjects recover, where did the time go."""
    from bitworth.ledger.query import RECOVERIES, query

    _print_rows(query(Ledger(folder), sql or RECOVERIES, most=limit), json=json)


@ledger.command()
def check(folder: Folder, json: Json = False) -> None:
    """Say what is damaged or lies there for nothing; exit code 1 when something is damaged."""
    from bitworth.ledger.checking import check as look

    found = look(Ledger(folder))
    faults = [entry for entry in found if entry.fault]
    document = {"faults": len(faults), "findings": [{**asdict(entry), "fault": entry.fault} for entry in found]}
    Terminal(as_json=json).answer(
        document, lambda: _findings(found, "Nothing is damaged, and nothing lies there for nothing.")
    )
    if faults:
        raise typer.Exit(1)


@ledger.command()
def compact(folder: Folder, json: Json = False) -> None:
    """Put results that have a file each into a few packs; results of older versions are written anew."""
    from bitworth.ledger.compaction import compact as pack

    opened = _existing(folder)
    with opened.lock():
        done = pack(opened)
    packs = "1 pack" if done.packs == 1 else f"{done.packs} packs"
    says = f"{done.results} results in {packs}, {done.removed_files} files fewer."
    Terminal(as_json=json).answer(asdict(done), lambda: Text(says))


@ledger.command()
def gc(
    folder: Folder,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; without this it is only listed.")] = False,
    unplanned: Annotated[
        bool, typer.Option("--unplanned", help="Also results, and their checkpoints, of cells not in the plan.")
    ] = False,
    json: Json = False,
) -> None:
    """List what lies there for nothing (unfinished writes, orphan checkpoints, old copies), and remove it when told."""
    from bitworth.ledger.checking import gc as remove
    from bitworth.ledger.checking import removable

    opened = _existing(folder)
    if apply:
        with opened.lock():
            found = remove(opened, unplanned=unplanned)
    else:
        found = removable(opened, unplanned=unplanned)
    size = sum(entry.size for entry in found)
    document = {"removed": apply, "bytes": size, "findings": [asdict(entry) for entry in found]}
    done = "removed" if apply else "would go; --apply removes it"
    Terminal(as_json=json).answer(
        document, lambda: Group(_findings(found, "Nothing to remove."), Text(f"{len(found)}, {size:,} bytes: {done}."))
    )


@ledger.command()
def export(
    folder: Folder, out: Annotated[Path, typer.Argument(help="The archive to write.")], json: Json = False
) -> None:
    """Write the study and all its results into one file, without the checkpoints; equal results give equal files."""
    from bitworth.ledger.archives import export as write

    done = write(_existing(folder), out)
    says = f"{done.results} results in {out}, {done.size:,} bytes, SHA-256 {done.sha256}."
    Terminal(as_json=json).answer({**asdict(done), "path": str(out)}, lambda: Text(says))
    if done.damaged:
        raise Incomplete(f"{len(done.damaged)} results are damaged and were left out, first {done.damaged[0]}.")


@ledger.command("import")
def import_results(
    folder: Annotated[Path, typer.Argument(help="The results folder to add to; it need not exist yet.")],
    archive: Annotated[Path, typer.Argument(help="An archive that `bitworth ledger export` wrote.")],
    json: Json = False,
) -> None:
    """Add an archive's results to a folder; what the folder has whole stays as it is."""
    from bitworth.ledger.archives import import_archive

    opened = Ledger(folder)
    with opened.lock():
        done = import_archive(opened, archive)
    says = f"{done.added} results added, {done.kept} were there already ({done.different} of them with another result)."
    Terminal(as_json=json).answer(asdict(done), lambda: Text(says))
    if done.damaged:
        raise Incomplete(
            f"{len(done.damaged)} of the archive's files are damaged, first {done.damaged[0]}; they were left out."
        )


def _existing(folder: Path) -> Ledger:
    if not folder.is_dir():
        raise BitworthError(f"There is no folder {folder}; name one that bitworth wrote results into.")
    return Ledger(folder)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _print_rows(found: Rows, *, json: bool) -> None:
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    Terminal(as_json=json).answer({"rows": rows, "more": found.more}, lambda: _table(found))


def _table(found: Rows) -> RenderableType:
    table = Table(*found.columns)
    for row in found.rows:
        table.add_row(*(Text("" if v is None else f"{v:.5g}" if isinstance(v, float) else str(v)) for v in row))
    return Group(table, Text("There are more; --limit raises how many are shown.")) if found.more else table


def _findings(found: Sequence[Finding], nothing: str) -> RenderableType:
    lines: list[Any] = [Text(f"{entry.what}: {entry.path} {entry.says}") for entry in found]
    return Group(*lines) if lines else Text(nothing)
