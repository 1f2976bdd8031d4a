"""`bitworth tasks`, and what `bitworth evaluate` says about the tasks that it is given."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from bitworth import tasks as registry
from bitworth.cli.console import Json, Quiet, Terminal
from bitworth.columns import as_row, average_suite, recover_suites
from bitworth.errors import BitworthError, WorkFailed
from bitworth.ledger import Ledger, key_of, revive
from bitworth.sources import Note
from bitworth.tasks.leaderboard_v2 import normalized_pct
from bitworth.tasks.reasoning import pass_rate
from bitworth.types import AVERAGE, Answer, Cell, TaskSpec

if TYPE_CHECKING:
    from bitworth.execute import Executor
    from bitworth.hygiene import PromptCheck
    from bitworth.tasks import Loaded, LoadedOpen

LOOKED_AT = 64
"""Questions a task whose prompts are looked at beforehand; the worker that asks them looks at all."""
TAIL = 1200
"""Characters shown of a prompt, its end: examples come before the question."""


def tasks(
    data: Annotated[str | None, typer.Option(help="Folder of benchmark rows, or demo:data (the hub's cache).")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the tasks and the suites that they make up, and whether their data is here."""
    from bitworth import sources

    terminal = Terminal(as_json=json, quiet=quiet)
    folder = sources.resolve_data(data, note=terminal.note)
    rows = [_task_row(name, folder) for name in registry.NAMES]
    suites = [_suite_row(name, specs) for name, specs in registry.SUITES.items()]
    document = {"tasks": rows, "suites": suites, "data": str(folder) if folder else "hub"}
    terminal.answer(document, lambda: _tables(rows, suites))


def _task_row(name: str, folder: Path | None) -> dict[str, Any]:
    from bitworth.tasks.rows import has_split

    task = registry.get(name)
    examples = bool(task.shots and task.pool)
    return {
        "name": name,
        "kind": task.kind,
        "questions": task.questions,
        "shots": task.shots,
        "samples": task.samples,
        "prompt": "conversation" if task.chat else "text",
        "metric": task.metric,
        "dataset": task.dataset,
        "data_is_here": registry.is_here(name, folder),
        "examples_are_here": has_split(task, task.pool, folder) if examples and folder is not None else None,
    }


def _suite_row(name: str, specs: Sequence[TaskSpec]) -> dict[str, Any]:
    sizes = [(spec.limit, registry.get(spec.name).questions) for spec in specs]
    questions = sum(size if limit is None else min(limit, size) for limit, size in sizes)
    entries = [{key: value for key, value in asdict(spec).items() if value is not None} for spec in specs]
    return {"name": name, "questions": questions, "tasks": entries}


def _tables(rows: Sequence[Mapping[str, Any]], suites: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(
        Column("task", no_wrap=True), "kind", "questions", "shots", "samples", "prompt", "metric", "data set", "here"
    )
    for row in rows:
        counts = (f"{row['questions']:,}", str(row["shots"]), str(row["samples"]))
        here = "no" if not row["data_is_here"] else "no examples" if row["examples_are_here"] is False else "yes"
        table.add_row(row["name"], row["kind"], *counts, row["prompt"], row["metric"], row["dataset"], here)
    groups = Table("suite", "questions", "tasks")
    for suite in suites:
        groups.add_row(suite["name"], f"{suite['questions']:,}", ", ".join(entry["name"] for entry in suite["tasks"]))
    return Group(table, groups)


def look_at_prompts(
    terminal: Terminal, specs: Sequence[TaskSpec], data: Path | None, checkpoint: Path, show: int
) -> None:
    """Check a task's first prompts with the model's tokenizer, before it is asked, and say what they are like.

    The first prompt of each task is shown, or as many as `show` says, whole. A task that cannot be loaded is left to
    its cell, whose failure says why.
    """
    from bitworth.engines.prompts import context_tokens, load_tokenizer, render
    from bitworth.evaluation import takes_conversations
    from bitworth.hygiene import check_prompts, prompts_of

    tokenizer, chat = load_tokenizer(checkpoint), takes_conversations(checkpoint)
    for spec in specs:
        some = replace(spec, limit=min(spec.limit or LOOKED_AT, LOOKED_AT))
        try:
            loaded = registry.load(some, data, chat=chat, measure=lambda text: len(tokenizer.encode(text)))
        except BitworthError:
            continue
        check = check_prompts(loaded, tokenizer, context_tokens(checkpoint, tokenizer))
        for line in check_words(check, loaded):
            terminal.note(line)
        for number, prompt in enumerate(prompts_of(loaded)[: max(show, 1)]):
            text = render(tokenizer, prompt)
            short = text if show or len(text) <= TAIL else f"[{len(text) - TAIL} characters] ...{text[-TAIL:]}"
            terminal.note(f"--- {spec.name}, prompt {number + 1}, {loaded.questions[number].item} ---\n{short}")


def check_words(check: PromptCheck, loaded: Loaded | LoadedOpen) -> list[str]:
    """What a check found, a line each."""
    bos = {"once": "BOS once", "twice": "BOS twice", "missing": "no BOS", "none": "no BOS, as the tokenizer has it"}
    answers = (
        f"answers of at most {check.max_tokens:,} tokens, ended by {', '.join(map(repr, check.stop)) or 'no string'}"
        if check.max_tokens
        else "given choices are scored"
    )
    shots = loaded.facts["shots"]
    line = f"{check.task}: {check.prompt}, {shots} examples, {bos[check.bos]}, {answers}, "
    line += f"at most {check.longest_tokens:,} of {check.context_tokens:,} tokens."
    return [line, *(f"{check.task}: warning: {warning}." for warning in check.warnings)]


def run_cells(
    terminal: Terminal, cells: tuple[Cell, ...], out: Path | None, executor: Executor | None = None
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """Results by key, and the title and cause of each cell without one.

    Raises:
        WorkFailed: no cell has a result; the first one's cause.
    """
    from bitworth import running

    with tempfile.TemporaryDirectory(prefix="bitworth-") as scratch:
        ledger = Ledger(out or Path(scratch))
        with ledger.lock():
            done = sum(ledger.done(cell) for cell in cells)
            with terminal.watching(len(cells), done) as watcher:
                running.run_cells(ledger, cells, executor=executor, watcher=watcher, note=terminal.note)
        found, missing = {}, []
        for cell in cells:
            result = ledger.get(cell)
            if result is not None:
                found[key_of(cell)] = result
            else:
                cause = ledger.failure(cell) or f"{cell.title} gave no result."
                missing.append({"title": cell.title, "cause": cause})
    if not found:
        raise WorkFailed(missing[0]["cause"])
    return found, missing


def first_answers(
    results: Mapping[str, Mapping[str, Any]], specs: Sequence[TaskSpec], show: int
) -> list[dict[str, Any]]:
    """So many rows of each task, the baseline's first where there is one."""
    rows = [row for result in results.values() for row in result.get("answers", ())]
    return [row for spec in specs for row in [one for one in rows if one["task"] == spec.name][:show]]


def task_figures(task: str, answers: Sequence[Answer], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A task's row: the mean score, and where its protocol has them, what is above chance, pass@1, further measures."""
    row: dict[str, Any] = {
        "score": fmean(answer.score for answer in answers),
        "questions": len(answers),
        **{name: facts[name] for name in ("metric", "shots", "split")},
    }
    definition = registry.get(task)
    if definition.chance:
        row["above_chance_pct"] = normalized_pct(definition, answers)
    if facts.get("samples", 1) > 1:
        row["pass_at_1"] = asdict(pass_rate(answers, int(facts["samples"])))
    groups = by_group(answers)
    if len(groups) > 1:
        row["score_by_group"] = groups
    if answers[0].measures:
        row["measures"] = {name: fmean(one.measures[name] for one in answers) for name in answers[0].measures}
    return row


def by_group(answers: Sequence[Answer]) -> dict[str, float]:
    """Mean score of every subject, subtask or language."""
    names = sorted({answer.group for answer in answers if answer.group is not None})
    return {name: fmean(answer.score for answer in answers if answer.group == name) for name in names}


def repeat_noise(cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The engine's noise, a row a checkpoint and task that was asked several times."""
    from bitworth.statistics import noise_of

    runs: dict[tuple[str, str], list[list[Answer]]] = {}
    for cell in cells:
        if cell.kind == "evaluate" and key_of(cell) in results:
            answers = [revive(Answer, row) for row in results[key_of(cell)]["answers"]]
            runs.setdefault((cell.format, cell.inputs["task"]["name"]), []).append(answers)
    return [asdict(noise_of(task, format, found)) for (format, task), found in runs.items() if len(found) > 1]


def suite_averages(asked: Sequence[str], answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """The average of every suite that was asked for by name, for each checkpoint that answered anything."""
    return [
        as_row(average_suite(suite, checkpoint, by_task(found)))
        for suite in asked
        if suite in registry.SUITES
        for checkpoint, found in answers.items()
        if found
    ]


def comparable(answers: Mapping[str, Sequence[Answer]]) -> tuple[dict[str, list[Answer]], list[dict[str, str]]]:
    """The answers to tasks on which something can be compared, and the other tasks with the reason."""
    from bitworth.evaluation import unfit_because

    causes = {task: unfit_because(rows) for task, rows in by_task(answers["baseline"]).items()}
    usable = {who: [one for one in rows if causes.get(one.task, "") is None] for who, rows in answers.items()}
    return usable, [{"task": task, "cause": cause} for task, cause in causes.items() if cause is not None]


def suite_recoveries(
    asked: Sequence[str], answers: Mapping[str, Sequence[Answer]], min_recovery: float
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Recovery of the average of every suite that was asked for, and the suites that have none with the reason."""
    suites = [name for name in asked if name in registry.SUITES]
    sides = by_task(answers["baseline"]), by_task(answers["model"])
    rows, causes = recover_suites(suites, *sides, min_recovery_pct=min_recovery, format="model")
    return [asdict(row) for row in rows], [{"task": suite, "cause": cause} for suite, cause in causes.items()]


def no_average(usable: Mapping[str, Sequence[Answer]]) -> list[dict[str, str]]:
    """Why there is no recovery of the average, where the model lacks a task that could be compared."""
    answered = by_task(usable["model"])
    absent = [task for task in by_task(usable["baseline"]) if task not in answered]
    if not absent:
        return []
    cause = f"The model did not answer {', '.join(absent)}, so its average would be over other tasks."
    return [{"task": AVERAGE, "cause": cause}]


def by_task(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers by the name of their task."""
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.task, []).append(answer)
    return found


def likeness(
    cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]], measures: Sequence[str], *, note: Note
) -> list[dict[str, Any]]:
    """Likeness of the model's written answers to the baseline's, a row a task and measure.

    Raises:
        BitworthError: see `similarity.compare_texts`.
    """
    from bitworth import sources
    from bitworth.similarity import STS_MODEL, compare_texts

    answers: dict[str, list[Answer]] = {"baseline": [], "model": []}
    for cell in cells:
        rows = results.get(key_of(cell), {}).get("answers", ())
        answers[cell.format] += [] if cell.is_repeat else [revive(Answer, row) for row in rows]
    encoder: Path | str = sources.demo_encoder(note) if "sts" in measures else STS_MODEL
    return [asdict(row) for row in compare_texts(answers["baseline"], answers["model"], measures, encoder=encoder)]


def task_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Scores, suites, what is missing, what prompts were warned of, and the answers that were to be shown."""
    parts: list[RenderableType] = []
    if document["tasks"]:
        parts.append(_score_table(document["tasks"]))
    if document["suites"]:
        table = Table("suite", "checkpoint", "average", "without")
        for row in document["suites"]:
            average = "" if row["average_pct"] is None else f"{row['average_pct']:.1f} %"
            table.add_row(row["suite"], row["checkpoint"], average, ", ".join(row["missing"]))
        parts.append(table)
    checks = {row["task"]: row["prompts"] for row in document["tasks"] if row["prompts"]}
    parts += [Text(f"{task}: {said}.") for task, check in checks.items() for said in check["warnings"]]
    parts += [Text(f"No recovery of {row['task']}: {row['cause']}") for row in document.get("without_recovery", ())]
    parts += [Text(f"Without a result: {row['title']}: {row['cause']}") for row in document["missing"]]
    if document.get("noise"):
        parts.append(_noise_table(document["noise"]))
    if document.get("similarity"):
        table = Table("task", "likeness to the baseline's text", "mean", "95 % interval", "questions")
        for row in document["similarity"]:
            low, high = row["ci95"]
            interval = f"{low:.3f} to {high:.3f}"
            table.add_row(row["task"], row["measure"], f"{row['mean']:.3f}", interval, str(row["questions"]))
        parts.append(table)
    if document.get("shown"):
        table = Table("task", "question", "written", "answer", "score")
        for row in document["shown"]:
            table.add_row(row["task"], row["item"], *_said(row), f"{row['score']:.2f}")
        parts.append(table)
    return parts


def _noise_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table("task", "checkpoint", "asked", "answers that differ", "scores that differ", "noise of the score (sd)")
    for row in rows:
        shares = (f"{row['answers_differ_pct']:.1f} %", f"{row['scores_differ_pct']:.1f} %")
        noise = f"{row['score_sd_pct']:.2f} points"
        table.add_row(row["task"], row["format"], f"{len(row['scores_pct'])} times", *shares, noise)
    return table


def _said(row: Mapping[str, Any]) -> tuple[Text, Text]:
    return Text(row["text"]), Text(row["prediction"])


def _score_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table("task", "checkpoint", "score", "above chance", "questions", "metric")
    for row in rows:
        above = f"{row['above_chance_pct']:.1f} %" if "above_chance_pct" in row else ""
        score = f"{100 * row['score']:.1f} %"
        if "pass_at_1" in row:
            low, high = row["pass_at_1"]["ci95_pct"]
            score += f" ({low:.1f} to {high:.1f})"
        table.add_row(row["task"], row["checkpoint"], score, above, str(row["questions"]), row["metric"])
    return table
