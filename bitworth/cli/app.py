"""The command line: each verb calls the function of the same name and prints what it returns."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import bitworth
from bitworth.cli.benchmark import benchmark
from bitworth.cli.check import check
from bitworth.cli.console import Json, Quiet, Terminal, guarded
from bitworth.cli.diff import diff
from bitworth.cli.doctor import doctor
from bitworth.cli.evaluate import evaluate
from bitworth.cli.export import export
from bitworth.cli.gate import gate, parse_available, parse_limits
from bitworth.cli.imports import import_report
from bitworth.cli.judge import judge
from bitworth.cli.ledger import ledger as ledger_verbs
from bitworth.cli.on import On, PartQuestions, StorageUrl, placed
from bitworth.cli.paper import paper
from bitworth.cli.predict import predict
from bitworth.cli.quantize import quantize
from bitworth.cli.report import report
from bitworth.cli.tasks import tasks
from bitworth.cli.view import view
from bitworth.errors import Incomplete
from bitworth.execute.parts import QUESTIONS
from bitworth.execute.processes import leave_at_once
from bitworth.ledger import Ledger

if TYPE_CHECKING:
    from bitworth.progress import RunProgress

app = typer.Typer(
    name="bitworth",
    help="What is each bit of your LLM worth? Quantize, measure what it loses and saves, decide.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", help="Folder for the results; what is finished there is not run again.")]
Results = Annotated[Path, typer.Argument(help="A folder that `bitworth run STUDY --out FOLDER` wrote.")]
StudyFile = Annotated[Path, typer.Argument(help="A study file (YAML).")]


def _version(asked: bool) -> None:
    if asked:
        print(f"bitworth {bitworth.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version)
    ] = False,
) -> None: ...


@app.command()
def run(
    study: StudyFile,
    out: Out,
    on: On = None,
    storage: StorageUrl = None,
    part_questions: PartQuestions = QUESTIONS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a study: quantize, evaluate, benchmark, recommend, report; here, or on a Ray cluster."""
    from bitworth import running
    from bitworth.report import result_as_json
    from bitworth.report.terminal import terminal_summary
    from bitworth.study import load_study

    terminal = Terminal(as_json=json, quiet=quiet)
    asked = load_study(study)
    with (
        placed(on, storage, out, asked.hardware_values(), terminal.note, part_questions) as (executor, machines),
        running.session(asked, out, note=terminal.note, machines=machines) as session,
    ):
        kept = session.tracker.done
        with terminal.watching(len(session.cells), kept, session.tracker) as watcher:
            session.run(executor=executor, watcher=watcher)
        terminal.note(_tally(session.tracker.now(), kept))
        result = session.finish()
    report = str((out / "report.html").resolve())
    document = {**result_as_json(result), "report": report}
    terminal.answer(document, lambda: Group(terminal_summary(result), Text(f"Report: {report}")))
    if result.missing:
        raise Incomplete(
            f"{len(result.missing)} pieces of the study have no result, first: {result.missing[0].title} "
            f"({result.missing[0].cause}) The report says which; the same command tries them again."
        )


@app.command()
def plan(study: StudyFile, out: Out, json: Json = False, quiet: Quiet = False) -> None:
    """List a study's cells: what is done already, about how long the rest takes and how much disk it needs."""
    from bitworth import running
    from bitworth.estimate import estimates

    terminal = Terminal(as_json=json, quiet=quiet)
    planned = running.plan(study, out, note=terminal.note)
    found = estimates([row.cell for row in planned])
    rows = [{**row, **asdict(found[row["key"]])} for row in running.as_rows(planned)]
    left = [row for row in rows if row["state"] != "done"]
    total = {"seconds": sum(row["seconds"] for row in left), "bytes": sum(row["bytes"] for row in left)}
    terminal.answer({"cells": rows, "to_do": {"cells": len(left), **total}}, lambda: _plan_table(rows, left, total))


@app.command()
def status(results: Results, json: Json = False) -> None:
    """Say how far a study has come."""
    from bitworth import running
    from bitworth.progress import read_progress

    ledger = Ledger(results)
    rows = running.as_rows(running.standing(ledger, ledger.read_plan()))
    counts = {state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "to do")}
    damaged = [str(path) for path in ledger.damaged()]
    progress = read_progress(results)
    document = {
        "counts": counts,
        "running": ledger.held(),
        "progress": asdict(progress) if progress else None,
        "damaged": damaged,
        "cells": rows,
    }
    Terminal(as_json=json).answer(document, lambda: _status_table(document, progress))


for verb in (quantize, evaluate, judge, benchmark, predict, check, tasks, report, gate, diff, doctor, paper):
    app.command()(verb)
app.command()(view)
app.command()(export)
app.command("import")(import_report)
app.add_typer(ledger_verbs, name="ledger")


@app.command()
def recommend(
    results: Results,
    min_recovery: Annotated[float | None, typer.Option(help="Least recovery in percent.", min=1)] = None,
    recovery_of: Annotated[
        str | None, typer.Option(help="The task or suite whose recovery counts (the average of all tasks).")
    ] = None,
    max_latency: Annotated[float | None, typer.Option(help="Most seconds a request.", min=0)] = None,
    max_first_token: Annotated[float | None, typer.Option(help="Most seconds to the first token.", min=0)] = None,
    max_usd_per_1k: Annotated[float | None, typer.Option(help="Most dollars a thousand queries.", min=0)] = None,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="Most seconds of a statistic, such as p95:first_token=0.5.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Confidence in percent that recovery is to be shown with.", min=1, max=99.99)
    ] = None,
    max_usd_per_month: Annotated[float | None, typer.Option(help="Most dollars a month.", min=0)] = None,
    queries_per_second: Annotated[float | None, typer.Option(help="The traffic to be served.", min=0)] = None,
    available: Annotated[
        list[str] | None, typer.Option("--available", help="Most devices to be had, such as H100=4.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what to deploy, from a results folder alone; options replace the study's own constraints."""
    from bitworth.assembly import assemble
    from bitworth.report import result_as_json
    from bitworth.report.terminal import terminal_summary

    asked: dict[str, Any] = {
        "min_recovery_pct": min_recovery,
        "recovery_of": recovery_of,
        "max_latency_s": max_latency,
        "max_first_token_s": max_first_token,
        "max_usd_per_1k_queries": max_usd_per_1k,
        "limits": parse_limits(limit) if limit else None,
        "confidence_pct": confidence,
        "max_usd_per_month": max_usd_per_month,
        "queries_per_second": queries_per_second or None,
        "available": parse_available(available) if available else None,
    }
    result = assemble(results, {name: value for name, value in asked.items() if value is not None})
    Terminal(as_json=json).answer(result_as_json(result), lambda: terminal_summary(result))


# --- what people read ---------------------------------------------------------------------------------------------


def _plan_table(rows: list[dict[str, Any]], left: list[dict[str, Any]], total: dict[str, Any]) -> RenderableType:
    table = Table("cell", "kind", "state", "about")
    for row in rows:
        table.add_row(row["title"], row["kind"], row["state"], "" if row["state"] == "done" else _time(row["seconds"]))
    count = f"{len(left)} of {len(rows)} to do"
    if math.isnan(total["seconds"]):
        return Group(table, Text(f"{count}; how long it takes is known once the model is on this machine."))
    size = f"{total['bytes'] / 2**20:,.0f} MiB"
    return Group(table, Text(f"{count}: about {_time(total['seconds'])}, {size} of disk."))


def _tally(now: RunProgress, kept: int) -> str:
    """`19 cells: 12 run now in 34 s, 7 kept from before.`"""
    from bitworth.progress import duration

    failed = f", {now.cells_failed} failed" if now.cells_failed else ""
    took = duration(now.updated - now.began)
    return f"{now.cells_total} cells: {now.cells_done - kept} run now in {took}, {kept} kept from before{failed}."


def _status_table(document: dict[str, Any], progress: RunProgress | None) -> RenderableType:
    from bitworth.progress import cell_words, left_words

    counts = document["counts"]
    total = sum(counts.values())
    state = "running" if document["running"] else "not running"
    lines = [Text(f"{counts['done']} of {total} cells done, {counts['failed']} failed, {state}.")]
    if progress is not None:
        lines += [Text(cell_words(cell)) for cell in progress.running]
        lines += [Text(f"{left_words(progress)}.".capitalize())] if progress.left_s is not None else []
    lines += [Text(f"failed: {row['title']}: {row['cause']}") for row in document["cells"] if row["cause"]]
    lines += [Text(f"damaged, will be run again: {path}") for path in document["damaged"]]
    return Group(*lines)


def _time(seconds: float) -> str:
    from bitworth.progress import duration

    return "" if math.isnan(seconds) else duration(seconds)


def main() -> None:
    """The `bitworth` command; alone it prints its help."""
    leave_at_once()
    arguments = sys.argv[1:] or ["--help"]
    raise SystemExit(guarded(lambda: app(arguments, standalone_mode=False, prog_name="bitworth")))
