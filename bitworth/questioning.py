"""Questions in batches, the same to baseline and candidate, until the answers settle whether the candidate holds.

Each batch of a task is a cell a model: what is answered stays answered when a run is killed, and a run with another
tolerance uses the same answers. The order of the questions is the seed's shuffle of the whole task, so that what was
asked is at any time a sample without replacement of it, as `statistics.settling` wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bitworth.cells import Subject, evaluate_cell
from bitworth.errors import BitworthError, WorkFailed
from bitworth.execute import Executor, Watcher
from bitworth.ledger import Ledger, revive
from bitworth.running import run_batches
from bitworth.sources import Note, silent
from bitworth.statistics import Settlement, settle
from bitworth.types import AVERAGE, Answer, Cell, Estimand, TaskSpec

ESTIMANDS: tuple[Estimand, ...] = ("task", "questions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """One verdict: of which task (or `average`), about the task as it is or about questions like its own."""

    task: str
    about: Estimand
    settlement: Settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Bounds of recovery, in percent, after so many questions to each model."""

    questions: int
    bounds_pct: tuple[float, float]


@dataclass(slots=True, kw_only=True)
class Questioning:
    """What was asked and answered so far; `course` follows the verdict that is waited for, a row a batch.

    `limit` in a task's spec is the most that is asked of it; tasks are asked in rounds, so the least ends them all.
    """

    specs: Sequence[TaskSpec]
    min_recovery_pct: float
    about: Estimand = "task"
    error: float = 0.05
    baseline: dict[str, list[Answer]] = field(default_factory=dict)
    candidate: dict[str, list[Answer]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    course: list[Standing] = field(default_factory=list)
    peak_rss_mib: float = 0.0

    @property
    def target(self) -> str:
        """The task whose verdict is waited for: the only one, or the average."""
        return self.specs[0].name if len(self.specs) == 1 else AVERAGE

    def add(self, spec: TaskSpec, baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """Take in a batch's results, of both models.

        Raises:
            BitworthError: they are not answers to the same questions.
        """
        answers = [[revive(Answer, row) for row in result["answers"]] for result in (baseline, candidate)]
        if [answer.item for answer in answers[0]] != [answer.item for answer in answers[1]]:
            raise BitworthError(
                f"{spec.name}: the two models were asked different questions; start again with another --out."
            )
        self.baseline.setdefault(spec.name, []).extend(answers[0])
        self.candidate.setdefault(spec.name, []).extend(answers[1])
        self.sizes[spec.name] = int(candidate["task"]["rows"])
        self.facts[spec.name] = candidate["task"]
        self.peak_rss_mib = max(
            self.peak_rss_mib, *(result.get("peak_rss_mib", 0.0) for result in (baseline, candidate))
        )

    def verdict(self, task: str, about: Estimand) -> Settled:
        """What the answers settle about a task or the average."""
        names = [spec.name for spec in self.specs] if task == AVERAGE else [task]
        scores = {name: (_scores(self.baseline[name]), _scores(self.candidate[name])) for name in names}
        if about == "questions":  # rounds end with the shortest task
            shortest = min(len(columns[0]) for columns in scores.values())
            scores = {name: (b[:shortest], q[:shortest]) for name, (b, q) in scores.items()}
        found = settle(
            scores,
            min_recovery_pct=self.min_recovery_pct,
            sizes=self.sizes if about == "task" else None,
            error=self.error,
        )
        return Settled(task=task, about=about, settlement=found)

    def verdicts(self) -> list[Settled]:
        """Every task's verdict, then the average's where there are several tasks, about both."""
        names = [spec.name for spec in self.specs]
        rows = names if len(names) == 1 else [*names, AVERAGE]
        return [self.verdict(name, about) for name in rows for about in ESTIMANDS]

    def is_over(self, asked: int) -> bool:
        """Note where the verdict stands after `asked` questions a task, and whether nothing is left to ask."""
        found = self.verdict(self.target, self.about).settlement
        self.course.append(Standing(questions=found.questions, bounds_pct=found.bounds_pct))
        return found.verdict != "undecided" or asked >= self.rounds

    @property
    def rounds(self) -> int:
        """Most rounds, each a question of every task; the least limit that cuts a task off is the end for all.

        About questions in general rounds end with the shortest task, about the tasks with the longest.
        """
        cut = [spec.limit for spec in self.specs if spec.limit is not None and spec.limit < self.sizes[spec.name]]
        sizes = self.sizes.values()
        return min([*cut, max(sizes) if self.about == "task" else min(sizes)])


def ask_until_settled(
    ledger: Ledger,
    asked: Sequence[tuple[TaskSpec, Path | None, str]],
    baseline: Subject,
    candidate: Subject,
    questioning: Questioning,
    *,
    batch: int = 64,
    engine: str = "torch",
    unsafe: bool = False,
    executor: Executor | None = None,
    watcher: Watcher | None = None,
    note: Note = silent,
) -> Questioning:
    """Put batches of `batch` questions of every task to both models until the verdict falls or nothing is left.

    Args:
        ledger: where answers are kept and found; the caller holds its lock.
        asked: each task with its rows and their fingerprint (`planning.evaluation_inputs`).
        baseline: the unquantized model.
        candidate: the checkpoint to judge.
        questioning: what is to be settled; it is filled and returned.
        batch: questions a task between two looks.
        engine: what writes (`engines.open_completer`).
        unsafe: run programs that a model writes even where nothing isolates them.
        executor: where cells run; in a local worker process unless given.
        watcher: told how the cells fare.
        note: told what happens besides.

    Raises:
        WorkFailed: a batch gave no answers.
    """

    def batches() -> Iterator[tuple[Cell, ...]]:
        start, stop = 0, min([batch, *(spec.limit for spec, _, _ in asked if spec.limit is not None)])
        while True:
            open_ = [entry for entry in asked if not start or start < questioning.sizes[entry[0].name]]
            ask = partial(evaluate_cell, batch=(start, stop), engine=engine, unsafe=unsafe, compared=True)
            pairs = [tuple(ask(who, *entry) for who in (baseline, candidate)) for entry in open_]
            yield tuple(cell for pair in pairs for cell in pair)
            for (spec, _, _), pair in zip(open_, pairs, strict=True):
                questioning.add(spec, *(_result(ledger, cell) for cell in pair))
            if questioning.is_over(stop):
                return
            start, stop = stop, min(stop + batch, questioning.rounds)

    run_batches(ledger, batches(), executor=executor, watcher=watcher, note=note)
    return questioning


def _result(ledger: Ledger, cell: Cell) -> dict[str, Any]:
    result = ledger.get(cell)
    if result is None:
        raise WorkFailed(ledger.failure(cell) or f"{cell.title} gave no result.")
    return result


def _scores(answers: Sequence[Answer]) -> list[float]:
    return [answer.score for answer in answers]
