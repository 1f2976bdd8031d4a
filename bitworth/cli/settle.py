"""`bitworth evaluate --until-settled`: batches of questions to two models until the verdict falls."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli.console import Terminal
from bitworth.cli.written import check_compared
from bitworth.errors import BitworthError
from bitworth.ledger import Ledger
from bitworth.report.settlement import settlement_words
from bitworth.types import TaskSpec

if TYPE_CHECKING:
    from bitworth.cells import Subject
    from bitworth.questioning import Questioning, Settled


def evaluate_until_settled(
    terminal: Terminal,
    subject: Subject,
    baseline: Subject | None,
    specs: list[TaskSpec],
    *,
    data: str | None,
    min_recovery: float,
    about: str,
    batch: int,
    engine: str,
    unsafe: bool,
    out: Path | None,
) -> None:
    """Ask, and print the verdicts.

    Raises:
        BitworthError: no baseline or no task, or one that will not do.
        WorkFailed: a batch gave no answers.
    """
    from bitworth.planning import evaluation_inputs
    from bitworth.questioning import ESTIMANDS, Questioning, ask_until_settled

    if baseline is None or not specs:
        raise BitworthError("--until-settled compares a checkpoint with --against BASELINE on at least one --task.")
    what = next((name for name in ESTIMANDS if name == about), None)
    if what is None:
        raise BitworthError(f"--about '{about}' is neither of: {', '.join(ESTIMANDS)}.")
    asked = evaluation_inputs(specs, data, note=terminal.note)
    check_compared(engine, subject, baseline)
    began = time.monotonic()
    questioning = Questioning(specs=specs, min_recovery_pct=min_recovery, about=what)
    with tempfile.TemporaryDirectory(prefix="bitworth-") as scratch:
        ledger = Ledger(out or Path(scratch))
        with ledger.lock(), terminal.watching(None, 0) as watcher:
            ask_until_settled(
                ledger,
                asked,
                baseline,
                subject,
                questioning,
                batch=batch,
                engine=engine,
                unsafe=unsafe,
                watcher=watcher,
                note=terminal.note,
            )
    document = settlement_document(questioning)
    document |= {"model": subject.path, "baseline": baseline.path, "seconds": round(time.monotonic() - began, 2)}
    terminal.answer(document, lambda: _table(document))


def settlement_document(questioning: Questioning) -> dict[str, Any]:
    """The verb's document: scores, verdicts, and how the bounds came together batch by batch.

    Intervals of a fixed number of questions are left out: a stop that the answers chose makes them too narrow.
    """
    scores = []
    for spec in questioning.specs:
        for who, answers in (("baseline", questioning.baseline), ("model", questioning.candidate)):
            found, facts = answers[spec.name], questioning.facts[spec.name]
            score = sum(answer.score for answer in found) / len(found)
            row = {"task": spec.name, "checkpoint": who, "score": score, "questions": len(found)}
            scores.append({**row, **{name: facts[name] for name in ("metric", "shots", "split")}})
    return {
        "tasks": scores,
        "min_recovery_pct": questioning.min_recovery_pct,
        "settled": {"task": questioning.target, "about": questioning.about},
        "settlements": [_row(found, questioning.min_recovery_pct) for found in questioning.verdicts()],
        "confidence_sequence": [asdict(row) for row in questioning.course],
        "answers": sum(len(answers) for answers in questioning.candidate.values()),
        "peak_rss_mib": questioning.peak_rss_mib,
    }


def _row(found: Settled, least_pct: float) -> dict[str, Any]:
    settlement = found.settlement
    return {
        "task": found.task,
        "about": found.about,
        "verdict": settlement.verdict,
        "recovery_pct": settlement.recovery_pct,
        "bounds_pct": settlement.bounds_pct,
        "questions": settlement.questions,
        "settled_after_questions": settlement.settled_after,
        "pool_questions": settlement.pool,
        "all_answered": settlement.exhausted,
        "error_pct": 100 * settlement.error,
        "says": settlement_words(found.task, found.about, settlement, least_pct),
    }


def _table(document: dict[str, Any]) -> RenderableType:
    table = Table("task", "checkpoint", "score", "questions", "metric")
    for row in document["tasks"]:
        table.add_row(
            row["task"], row["checkpoint"], f"{100 * row['score']:.1f} %", str(row["questions"]), row["metric"]
        )
    return Group(table, *(Text(row["says"]) for row in document["settlements"]))
