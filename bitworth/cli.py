"""The command line: each verb calls the function of the same name and prints what it returns."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import bitworth
from bitworth.cli_diff import diff
from bitworth.cli_doctor import doctor
from bitworth.cli_gate import gate, parse_available, parse_limits
from bitworth.cli_quantize import quantize
from bitworth.cli_settle import evaluate_until_settled
from bitworth.console import Json, Quiet, Terminal, guarded
from bitworth.errors import BitworthError, WorkFailed
from bitworth.ledger import Ledger, key_of, revive
from bitworth.types import Answer, Cell, Divergence, Load, TaskSpec

if TYPE_CHECKING:
    from bitworth.planning import Subject

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
def run(study: StudyFile, out: Out, json: Json = False, quiet: Quiet = False) -> None:
    """Run a study: quantize, evaluate, benchmark, recommend, report."""
    from bitworth import running
    from bitworth.report import result_as_json
    from bitworth.report.terminal import terminal_summary

    terminal = Terminal(as_json=json, quiet=quiet)
    with running.session(study, out, note=terminal.note) as session:
        with terminal.watching(len(session.cells), session.done) as watcher:
            session.run(watcher=watcher)
        result = session.finish()
    report = str((out / "report.html").resolve())
    document = {**result_as_json(result), "report": report}
    terminal.answer(document, lambda: Group(terminal_summary(result), Text(f"Report: {report}")))
    if result.missing:
        raise WorkFailed(
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

    ledger = Ledger(results)
    rows = running.as_rows(running.standing(ledger, ledger.read_plan()))
    counts = {state: sum(row["state"] == state for row in rows) for state in ("done", "failed", "to do")}
    damaged = [str(path) for path in ledger.damaged()]
    document = {"counts": counts, "running": ledger.held(), "damaged": damaged, "cells": rows}
    Terminal(as_json=json).answer(document, lambda: _status_table(document))


app.command()(quantize)
app.command()(gate)
app.command()(diff)
app.command()(doctor)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id, model folder or checkpoint folder.")],
    task: Annotated[list[str] | None, typer.Option("--task", help="A task's name; may be given several times.")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions a task (all).", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed that picks the questions.")] = 0,
    shots: Annotated[int | None, typer.Option(help="Few-shot examples (the task's own).", min=0)] = None,
    data: Annotated[str | None, typer.Option(help="Folder of benchmark rows, or demo:data (the hub).")] = None,
    text: Annotated[str | None, typer.Option(help="Text file for perplexity and divergence, or demo:heldout.")] = None,
    window: Annotated[int, typer.Option(help="Tokens a window of the text.", min=2)] = 512,
    windows: Annotated[int | None, typer.Option(help="Windows of the text (all).", min=1)] = None,
    against: Annotated[str | None, typer.Option(help="The baseline: adds KL, flips and paired recovery.")] = None,
    min_recovery: Annotated[float, typer.Option(help="Least recovery in percent, for the verdict.", min=0)] = 99.0,
    until_settled: Annotated[
        bool,
        typer.Option("--until-settled", help="Ask both models in batches until the verdict against --min-recovery."),
    ] = False,
    about: Annotated[
        str, typer.Option(help="What is to be settled: the task as it is, or questions like its own (questions).")
    ] = "task",
    batch: Annotated[int, typer.Option(help="Questions a task between two looks.", min=1)] = 64,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the answers here; a second run adds to them.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a task's questions to a checkpoint and measure its divergence on text, with its format's exact arithmetic."""
    if not task and text is None:
        raise BitworthError("There is nothing to evaluate; name a task with --task, or a text with --text.")
    from bitworth import planning

    terminal = Terminal(as_json=json, quiet=quiet)
    specs = [TaskSpec(name=name, limit=limit, seed=seed, shots=shots) for name in dict.fromkeys(task or [])]
    subject = planning.checkpoint_subject(model, "model", note=terminal.note)
    baseline = planning.checkpoint_subject(against, "baseline", note=terminal.note) if against else None
    if until_settled:
        if text is not None:
            raise BitworthError("--until-settled stops at a verdict on tasks; measure --text in a run of its own.")
        evaluate_until_settled(
            terminal, subject, baseline, specs, data=data, min_recovery=min_recovery, about=about, batch=batch, out=out
        )
        return
    cells = planning.evaluation_cells(
        subject, baseline, specs, data=data, text=text, window=window, windows=windows, note=terminal.note
    )
    began = time.monotonic()
    results = _run_cells(terminal, cells, out)
    document = _evaluation(cells, results, min_recovery, baseline)
    document |= {"model": subject.path, "baseline": baseline.path if baseline else None}
    document["seconds"] = round(time.monotonic() - began, 2)
    terminal.answer(document, lambda: _evaluation_table(document))


@app.command()
def benchmark(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint or model folder, or a hub id.")],
    use_case: Annotated[str, typer.Option(help="A use case of the paper, or PROMPT/OUTPUT tokens.")],
    scale: Annotated[float, typer.Option(help="Shrink the use case by this factor.", min=1e-6, max=1.0)] = 1.0,
    load: Annotated[str, typer.Option(help="synchronous, throughput, constant@RATE or poisson@RATE.")] = "synchronous",
    streams: Annotated[int | None, typer.Option(help="Requests at once under throughput.", min=1)] = None,
    engine: Annotated[str, typer.Option(help="torch, vllm, or the URL of an OpenAI-compatible server.")] = "torch",
    requests: Annotated[int, typer.Option(help="Requests that count, after a warm-up.", min=1)] = 8,
    hardware: Annotated[str, typer.Option(help="The row of the catalogue whose price counts.")] = "local",
    count: Annotated[int, typer.Option(help="Devices of that row.", min=1)] = 1,
    usd_per_hour: Annotated[float | None, typer.Option(help="Your price an hour for all of it.", min=0)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures here too (benchmark.json).")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time a checkpoint under a use case and a load, and price it."""
    from bitworth import sources
    from bitworth.benchmarking import benchmark as verb
    from bitworth.hardware import hardware as row_of
    from bitworth.report import cost_as_json
    from bitworth.workloads import use_case as shape_of

    terminal = Terminal(as_json=json, quiet=quiet)
    row = row_of(hardware, count)
    if usd_per_hour is not None:
        row = replace(row, usd_per_hour=usd_per_hour, price_source="the command line")
    shape, arrival = shape_of(use_case).scaled(scale), parse_load(load, streams)
    folder = sources.resolve_model(checkpoint, note=terminal.note)
    with terminal.steps("benchmark") as step:
        cost = verb(
            folder,
            shape,
            arrival,
            hardware=row,
            engine=engine,
            requests=requests,
            progress=lambda done, total: step("requests", done, total),
        )
    document = cost_as_json(cost)
    if out is not None:
        from bitworth.ledger import write_json

        write_json(out / "benchmark.json", document)
    terminal.answer(document, lambda: _pairs_table("Cost", document))


@app.command()
def recommend(
    results: Results,
    min_recovery: Annotated[float | None, typer.Option(help="Least recovery in percent.", min=0)] = None,
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


@app.command()
def report(results: Results, json: Json = False) -> None:
    """Write report.html, report.md and recommendation.json from a results folder."""
    from bitworth.assembly import assemble
    from bitworth.report import write_report

    page = write_report(assemble(results), results).resolve()
    Terminal(as_json=json).answer({"report": str(page)}, lambda: Text(f"Report: {page}"))


def parse_load(text: str, streams: int | None = None) -> Load:
    """`synchronous`, `throughput`, `constant@4`, `poisson@0.5`.

    Raises:
        BitworthError: none of these, or a rate that is missing or not positive.
    """
    kind, _, rate = text.partition("@")
    try:
        value = float(rate) if rate else None
    except ValueError:
        value = -1.0
    rated = kind in ("constant", "poisson")
    known = kind in ("synchronous", "throughput", "constant", "poisson")
    if not known or rated != (value is not None) or (value is not None and value <= 0):
        raise BitworthError(
            f"load '{text}' is none of synchronous, throughput, constant@RATE and poisson@RATE (requests a second)."
        )
    return revive(Load, {"kind": kind, "rate": value, "streams": streams if kind == "throughput" else None})


def _run_cells(terminal: Terminal, cells: tuple[Cell, ...], out: Path | None) -> dict[str, dict[str, Any]]:
    """Results by key.

    Raises:
        WorkFailed: the first cell that failed.
    """
    from bitworth import running

    with tempfile.TemporaryDirectory(prefix="bitworth-") as scratch:
        ledger = Ledger(out or Path(scratch))
        with ledger.lock():
            done = sum(ledger.get(cell) is not None for cell in cells)
            with terminal.watching(len(cells), done) as watcher:
                running.run_cells(ledger, cells, watcher=watcher, note=terminal.note)
        found = {}
        for cell in cells:
            result = ledger.get(cell)
            if result is None:
                raise WorkFailed(ledger.failure(cell) or f"{cell.title} gave no result.")
            found[key_of(cell)] = result
    return found


def _evaluation(
    cells: tuple[Cell, ...], results: dict[str, dict[str, Any]], min_recovery: float, baseline: Subject | None
) -> dict[str, Any]:
    """The evaluate verb's document."""
    from bitworth.evaluation import compare, compare_groups

    answers: dict[str, list[Answer]] = {"model": [], "baseline": []}
    document: dict[str, Any] = {"tasks": []}
    for cell in cells:
        result = results[key_of(cell)]
        if cell.kind == "evaluate":
            found = [revive(Answer, row) for row in result["answers"]]
            answers[cell.format] += found
            score = sum(answer.score for answer in found) / len(found)
            row = {"task": found[0].task, "checkpoint": cell.format, "score": score, "questions": len(found)}
            document["tasks"].append({**row, **{k: result["task"][k] for k in ("metric", "shots", "split")}})
        elif cell.format == "model":
            document |= asdict(revive(Divergence, result["divergence"]))
    document["peak_rss_mib"] = max(result["peak_rss_mib"] for result in results.values())
    if baseline is not None and answers["model"]:
        for name, verb in (("recoveries", compare), ("recoveries_by_group", compare_groups)):
            pairs = verb(answers["baseline"], answers["model"], min_recovery_pct=min_recovery, format="model")
            document[name] = [asdict(row) for row in pairs]
    return document


# --- what people read ---------------------------------------------------------------------------------------------


def _plan_table(rows: list[dict[str, Any]], left: list[dict[str, Any]], total: dict[str, Any]) -> RenderableType:
    table = Table("cell", "kind", "state", "about")
    for row in rows:
        table.add_row(row["title"], row["kind"], row["state"], "" if row["state"] == "done" else _time(row["seconds"]))
    size = f"{total['bytes'] / 2**20:,.0f} MiB"
    return Group(table, Text(f"{len(left)} of {len(rows)} to do: about {_time(total['seconds'])}, {size} of disk."))


def _status_table(document: dict[str, Any]) -> RenderableType:
    counts = document["counts"]
    total = sum(counts.values())
    state = "running" if document["running"] else "not running"
    lines = [Text(f"{counts['done']} of {total} cells done, {counts['failed']} failed, {state}.")]
    lines += [Text(f"failed: {row['title']}: {row['cause']}") for row in document["cells"] if row["cause"]]
    lines += [Text(f"damaged, will be run again: {path}") for path in document["damaged"]]
    return Group(*lines)


def _evaluation_table(document: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = []
    if document["tasks"]:
        table = Table("task", "checkpoint", "score", "questions", "metric")
        for row in document["tasks"]:
            cells = (f"{100 * row['score']:.1f} %", str(row["questions"]), row["metric"])
            table.add_row(row["task"], row["checkpoint"], *cells)
        parts.append(table)
    if document.get("recoveries"):
        table = Table("task", "recovery", "95 % interval", "verdict", "further questions needed")
        for row in document["recoveries"]:
            low, high = row["ci95_pct"]
            needed = f"{row['questions_needed']:,}" if row["questions_needed"] else ""
            table.add_row(
                row["task"], f"{row['recovery_pct']:.1f} %", f"{low:.1f} to {high:.1f}", row["verdict"], needed
            )
        parts.append(table)
    figures = ("perplexity", "baseline_perplexity", "kl_nats", "top1_flip_pct", "tokens")
    shown = {name: document[name] for name in figures if document.get(name) is not None}
    if shown:
        parts.append(_pairs_table("Divergence", shown))
    return Group(*parts)


def _pairs_table(title: str, document: dict[str, Any]) -> RenderableType:
    table = Table(title=title, show_header=False)
    for name, value in document.items():
        if value is not None and not isinstance(value, dict | list):
            table.add_row(name, f"{value:.5g}" if isinstance(value, float) else str(value))
    return table


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def main() -> None:
    """The `bitworth` command; alone it prints its help."""
    arguments = sys.argv[1:] or ["--help"]
    raise SystemExit(guarded(lambda: app(arguments, standalone_mode=False)))
