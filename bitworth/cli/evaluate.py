"""`bitworth evaluate`: the verb's options, the document it gives, and what it prints."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli import names
from bitworth.cli.console import Json, Quiet, Terminal, pairs_table
from bitworth.cli.settle import evaluate_until_settled
from bitworth.cli.tasks import (
    comparable,
    first_answers,
    likeness,
    look_at_prompts,
    no_average,
    repeat_noise,
    run_cells,
    suite_averages,
    suite_recoveries,
    task_figures,
    task_tables,
)
from bitworth.cli.written import check_compared, sampled, served_words, written_figures
from bitworth.errors import BitworthError, WorkFailed
from bitworth.execute.local import LocalExecutor
from bitworth.ledger import Ledger, key_of, revive
from bitworth.types import Answer, Cell, Divergence, TaskSpec

if TYPE_CHECKING:
    from bitworth.cells import Subject


def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id, model folder or checkpoint folder.")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="A task or a suite by name; may be given several times.", autocompletion=names.tasks
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions a task (all).", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed that picks the questions.")] = 0,
    shots: Annotated[int | None, typer.Option(help="Few-shot examples (the task's own).", min=0)] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Completions of a question answered in writing.", min=1),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling what is written.", min=0)] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Ask in conversations (if the model can).")
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Ask everything so often, to measure the noise of the engine.", min=1)
    ] = 1,
    data: Annotated[str | None, typer.Option(help="Folder of benchmark rows, or demo:data (the hub).")] = None,
    text: Annotated[str | None, typer.Option(help="Text file for perplexity and divergence, or demo:heldout.")] = None,
    window: Annotated[int, typer.Option(help="Tokens a window of the text.", min=2)] = 512,
    windows: Annotated[int | None, typer.Option(help="Windows of the text (all).", min=1)] = None,
    against: Annotated[str | None, typer.Option(help="The baseline: adds KL, flips and paired recovery.")] = None,
    min_recovery: Annotated[float, typer.Option(help="Least recovery in percent, for the verdict.", min=1)] = 99.0,
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
        typer.Option(
            help="What writes: torch (exact), vllm, or the URL of an OpenAI-compatible server.",
            autocompletion=names.engines,
        ),
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
    if until_settled:
        _check_settling(text, repeats, show)
    from bitworth import planning, sources
    from bitworth import tasks as task_registry
    from bitworth.similarity import check_measures
    from bitworth.work import get_ready

    check_measures(similarity or ())

    terminal = Terminal(as_json=json, quiet=quiet)
    names = list(dict.fromkeys(task or []))
    specs = task_registry.expand([TaskSpec(name=name, limit=limit, seed=seed, shots=shots) for name in names])
    specs = sampled(specs, {"samples": samples, "temperature": temperature, "chat": chat})
    specs = [replace(spec, repeats=repeats) for spec in specs]
    subject = planning.checkpoint_subject(model, "model", note=terminal.note)
    baseline = planning.checkpoint_subject(against, "baseline", note=terminal.note) if against else None
    if until_settled:
        evaluate_until_settled(
            terminal,
            subject,
            baseline,
            specs,
            data=data,
            min_recovery=min_recovery,
            about=about,
            batch=batch,
            engine=engine,
            unsafe=unsafe_code_execution,
            out=out,
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
    if fresh:
        check_compared(engine, subject, baseline)
    soon = specs and fresh and engine == "torch"
    with closing(LocalExecutor(partial(get_ready, Path(subject.path)) if soon else None)) as executor:
        if specs and (show or fresh) and not quiet:
            folder = sources.resolve_data(data, note=terminal.note)
            look_at_prompts(terminal, specs, folder, Path(subject.path), show)
        began = time.monotonic()
        results, missing = run_cells(terminal, cells, out, executor)
    document = _evaluation(cells, results, min_recovery, baseline, names)
    document["missing"] = missing
    if similarity:
        document["similarity"] = likeness(cells, results, similarity, note=terminal.note)
    document |= {"model": subject.path, "baseline": baseline.path if baseline else None}
    document["seconds"] = round(time.monotonic() - began, 2)
    if show:
        document["shown"] = first_answers(results, specs, show)
    for line in served_words(document["tasks"], engine):
        terminal.note(line)
    terminal.answer(document, lambda: _evaluation_table(document))
    if missing:
        raise typer.Exit(WorkFailed.exit_code)  # the document says what is missing


def _check_settling(text: str | None, repeats: int, show: int) -> None:
    """Refuse what `--until-settled` does not do."""
    if text is not None:
        raise BitworthError("--until-settled stops at a verdict on tasks; measure --text in a run of its own.")
    if repeats > 1:
        raise BitworthError(
            "--until-settled asks each question once; measure noise with --repeats in a run of its own."
        )
    if show:
        raise BitworthError("--until-settled prints verdicts alone; look at prompts with --show in a run of its own.")


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
        if cell.is_repeat:
            continue
        if cell.kind == "evaluate":
            found = [revive(Answer, row) for row in result["answers"]]
            answers[cell.format] += found
            row = {"task": found[0].task, "checkpoint": cell.format}
            row |= task_figures(found[0].task, found, result["task"]) | written_figures(result["task"])
            row["served"] = result.get("facts", {}).get("served")
            document["tasks"].append(row | {"prompts": result.get("prompts")})
        elif cell.format == "model":
            document |= asdict(revive(Divergence, result["divergence"]))
    document["peak_rss_mib"] = max(result["peak_rss_mib"] for result in results.values())
    document["suites"] = suite_averages(asked, answers)
    document["noise"] = repeat_noise(cells, results)
    if baseline is not None and answers["model"]:
        usable, document["without_recovery"] = comparable(answers)
        if usable["model"]:
            for name, verb in (("recoveries", compare), ("recoveries_by_group", compare_groups)):
                pairs = verb(usable["baseline"], usable["model"], min_recovery_pct=min_recovery, format="model")
                document[name] = [asdict(row) for row in pairs]
            document["without_recovery"] += no_average(usable)
        rows, lacking = suite_recoveries(asked, answers, min_recovery)
        document["recoveries"] = document.get("recoveries", []) + rows
        document["without_recovery"] += lacking
    return document


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
