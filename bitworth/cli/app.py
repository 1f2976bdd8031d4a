"""The command line: each verb calls the function of the same name and prints what it returns."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import bitworth
from bitworth.cli.benchmark import benchmark
from bitworth.cli.console import Json, Quiet, Terminal, guarded, pairs_table
from bitworth.cli.diff import diff
from bitworth.cli.doctor import doctor
from bitworth.cli.gate import gate, parse_available, parse_limits
from bitworth.cli.imports import import_report
from bitworth.cli.paper import paper
from bitworth.cli.predict import predict
from bitworth.cli.quantize import quantize
from bitworth.cli.report import report
from bitworth.cli.settle import evaluate_until_settled
from bitworth.cli.tasks import (
    comparable,
    first_answers,
    likeness,
    look_at_prompts,
    run_cells,
    suite_averages,
    suite_recoveries,
    task_figures,
    task_tables,
    tasks,
)
from bitworth.cli.written import sampled, written_figures
from bitworth.errors import BitworthError, WorkFailed
from bitworth.ledger import Ledger, key_of, revive
from bitworth.types import Answer, Cell, Divergence, TaskSpec

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
app.command()(paper)
app.command()(tasks)
app.command()(gate)
app.command()(diff)
app.command()(doctor)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id, model folder or checkpoint folder.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", help="A task or a suite by name; may be given several times.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions a task (all).", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed that picks the questions.")] = 0,
    shots: Annotated[int | None, typer.Option(help="Few-shot examples (the task's own).", min=0)] = None,
    samples: Annotated[int | None, typer.Option(help="Programs a question of code (50; 1 is greedy).", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling programs (0.2).", min=0)] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Ask for programs in conversations (if the model can).")
    ] = None,
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
    similarity: Annotated[
        list[str] | None,
        typer.Option(help="Likeness of written answers to the baseline's: identical, rouge1, rougeL, bertscore, sts."),
    ] = None,
    show: Annotated[int, typer.Option(help="Print so many prompts and answers of each task.", min=0)] = 0,
    engine: Annotated[
        str,
        typer.Option(help="What writes: torch (exact), vllm, or the URL of an OpenAI-compatible server."),
    ] = "torch",
    unsafe_code_execution: Annotated[
        bool,
        typer.Option("--unsafe-code-execution", help="Run programs the model writes even where nothing isolates them."),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the answers here; a second run adds to them.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a task's questions to a checkpoint and measure its divergence on text, with its format's exact arithmetic."""
    if not task and text is None:
        raise BitworthError("There is nothing to evaluate; name a task with --task, or a text with --text.")
    if similarity and (against is None or until_settled):
        raise BitworthError("--similarity compares what is written with what --against BASELINE writes, in one run.")
    from bitworth import planning, sources
    from bitworth import tasks as task_registry
    from bitworth.similarity import check_measures

    check_measures(similarity or ())

    terminal = Terminal(as_json=json, quiet=quiet)
    names = list(dict.fromkeys(task or []))
    specs = task_registry.expand([TaskSpec(name=name, limit=limit, seed=seed, shots=shots) for name in names])
    specs = sampled(specs, {"samples": samples, "temperature": temperature, "chat": chat})
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
        subject,
        baseline,
        specs,
        data=data,
        text=text,
        window=window,
        windows=windows,
        engine=engine,
        unsafe=unsafe_code_execution,
        note=terminal.note,
    )
    fresh = out is None or any(Ledger(out).get(cell) is None for cell in cells if cell.kind == "evaluate")
    if specs and (show or fresh) and not quiet:
        folder = sources.resolve_data(data, note=terminal.note)
        look_at_prompts(terminal, specs, folder, Path(subject.path), show)
    began = time.monotonic()
    results, missing = run_cells(terminal, cells, out)
    document = _evaluation(cells, results, min_recovery, baseline, names)
    document["missing"] = missing
    if similarity:
        document["similarity"] = likeness(cells, results, similarity, note=terminal.note)
    document |= {"model": subject.path, "baseline": baseline.path if baseline else None}
    document["seconds"] = round(time.monotonic() - began, 2)
    if show:
        document["shown"] = first_answers(results, specs, show)
    terminal.answer(document, lambda: _evaluation_table(document))
    if missing:
        raise typer.Exit(WorkFailed.exit_code)  # the document says what is missing


app.command()(benchmark)
app.command("import")(import_report)


app.command()(predict)


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


app.command()(report)


def _evaluation(
    cells: tuple[Cell, ...],
    results: dict[str, dict[str, Any]],
    min_recovery: float,
    baseline: Subject | None,
    asked: list[str],
) -> dict[str, Any]:
    """The evaluate verb's document."""
    from bitworth.evaluation import compare, compare_groups

    answers: dict[str, list[Answer]] = {"model": [], "baseline": []}
    document: dict[str, Any] = {"tasks": []}
    for cell in cells:
        result = results.get(key_of(cell))
        if result is None:
            continue
        if cell.kind == "evaluate":
            found = [revive(Answer, row) for row in result["answers"]]
            answers[cell.format] += found
            row = {"task": found[0].task, "checkpoint": cell.format}
            row |= task_figures(found[0].task, found, result["task"]) | written_figures(result["task"])
            document["tasks"].append(row | {"prompts": result.get("prompts")})
        elif cell.format == "model":
            document |= asdict(revive(Divergence, result["divergence"]))
    document["peak_rss_mib"] = max(result["peak_rss_mib"] for result in results.values())
    document["suites"] = suite_averages(asked, answers)
    if baseline is not None and answers["model"]:
        usable, document["without_recovery"] = comparable(answers)
        if usable["model"]:
            for name, verb in (("recoveries", compare), ("recoveries_by_group", compare_groups)):
                pairs = verb(usable["baseline"], usable["model"], min_recovery_pct=min_recovery, format="model")
                document[name] = [asdict(row) for row in pairs]
            document["recoveries"] += suite_recoveries(asked, answers, min_recovery)
    return document


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
    parts += task_tables(document)
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
        parts.append(pairs_table("Divergence", shown))
    if document.get("kl_by_position"):
        spans = [f"{row['last']}: {row['kl_nats']:.4f}" for row in document["kl_by_position"]]
        parts.append(Text(f"KL (nats) by tokens read, up to {', '.join(spans)}."))
    return Group(*parts)


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
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
