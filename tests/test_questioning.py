from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bitworth.cells import Subject
from bitworth.cli.settle import settlement_document
from bitworth.errors import BitworthError, WorkFailed
from bitworth.execute import Watcher, Work
from bitworth.ledger import Ledger
from bitworth.questioning import Questioning, ask_until_settled
from bitworth.report.document import plain
from bitworth.report.settlement import settlement_words
from bitworth.statistics import settle
from bitworth.types import Answer, Cell, Estimand, TaskSpec

BASELINE = Subject(format="baseline", identity="b", path="b")
CANDIDATE = Subject(format="model", identity="m", path="m")


class Respondent:
    """An executor that answers from a table: `wrong` says which items each model gets wrong."""

    def __init__(self, sizes: dict[str, int], wrong: dict[str, set[int]], *, stop_after: int | None = None) -> None:
        self.sizes, self.wrong, self.left = sizes, wrong, stop_after
        self.cells: list[Cell] = []

    def run(self, cells: Iterable[Cell], work: Work, root: str, watcher: Watcher) -> None:
        for cell in cells:
            if self.left is not None and len(self.cells) >= self.left:
                watcher.ended(cell, None, "The power went.", 0.0)
                continue
            self.cells.append(cell)
            watcher.ended(cell, self.result(cell), None, 0.0)

    def result(self, cell: Cell) -> dict[str, Any]:
        task, (start, stop) = cell.inputs["task"]["name"], cell.inputs["batch"]
        order = list(range(self.sizes[task]))
        random.Random(cell.inputs["task"]["seed"]).shuffle(order)
        answers = [
            Answer(task=task, item=str(item), prediction="A", score=float(item not in self.wrong[cell.format]))
            for item in order[start:stop]
        ]
        facts = {"rows": self.sizes[task], "metric": "acc", "shots": 0, "split": "test"}
        return {"answers": [asdict(answer) for answer in answers], "task": facts}


def ask(
    root: Path, respondent: Respondent, *, about: Estimand = "task", least: float = 99.0, **spec: Any
) -> Questioning:
    specs = [TaskSpec(name=name, **spec) for name in respondent.sizes]
    questioning = Questioning(specs=specs, min_recovery_pct=least, about=about)
    asked = [(one, None, "rows") for one in specs]
    return ask_until_settled(Ledger(root), asked, BASELINE, CANDIDATE, questioning, batch=50, executor=respondent)


def every(step: int, size: int, start: int = 0) -> set[int]:
    return set(range(start, size, step))


def test_asking_stops_when_the_verdict_falls_and_both_are_asked_the_same(tmp_path: Path) -> None:
    respondent = Respondent({"t": 5000}, {"baseline": every(3, 5000), "model": every(2, 5000)})
    found = ask(tmp_path, respondent)
    verdict = found.verdict("t", "task").settlement
    assert verdict.verdict == "loses"
    assert verdict.questions == 50 * len(found.course) < 1000
    assert verdict.settled_after is not None
    assert verdict.settled_after > verdict.questions - 50
    asked = [(cell.format, *cell.inputs["batch"]) for cell in respondent.cells]
    assert asked == [(who, 50 * i, 50 * i + 50) for i in range(len(found.course)) for who in ("baseline", "model")]
    assert found.course[-1].bounds_pct == verdict.bounds_pct


def test_what_was_answered_is_kept_and_another_margin_uses_it(tmp_path: Path) -> None:
    sizes, wrong = {"t": 3000}, {"baseline": every(3, 3000), "model": every(3, 3000) | every(20, 3000, 1)}
    with pytest.raises(WorkFailed, match="The power went"):
        ask(tmp_path, Respondent(sizes, wrong, stop_after=7))
    rest = Respondent(sizes, wrong)
    resumed = ask(tmp_path, rest)
    whole = Respondent(sizes, wrong)
    undisturbed = ask(tmp_path / "other", whole)
    assert (resumed.course, resumed.candidate) == (undisturbed.course, undisturbed.candidate)
    assert len(rest.cells) == len(whole.cells) - 7
    again = Respondent(sizes, wrong)
    laxer = ask(tmp_path, again, least=80.0)
    assert again.cells == []
    assert laxer.verdict("t", "task").settlement.verdict == "holds"


def test_a_task_is_asked_to_its_end_and_no_further(tmp_path: Path) -> None:
    respondent = Respondent({"t": 120}, {"baseline": every(2, 120), "model": every(2, 120)})
    found = ask(tmp_path, respondent, about="questions", least=99.9)
    about_task, about_questions = (row.settlement for row in found.verdicts())
    assert (about_task.verdict, about_task.exhausted, about_task.questions) == ("holds", True, 120)
    assert (about_questions.verdict, about_questions.pool) == ("undecided", None)
    assert len(respondent.cells) == 6


def test_a_limit_is_the_most_that_is_asked_while_the_verdict_is_about_the_whole_task(tmp_path: Path) -> None:
    found = ask(tmp_path, Respondent({"t": 5000}, {"baseline": set(), "model": every(100, 5000)}), limit=70)
    verdict = found.verdict("t", "task").settlement
    assert (verdict.verdict, verdict.questions, verdict.pool) == ("undecided", 70, 5000)


@pytest.mark.parametrize(("limits", "asked"), [((70, 200), (70, 70)), ((20, None), (20, 20)), ((40, 120), (30, 120))])
def test_the_least_limit_that_cuts_a_task_off_ends_the_rounds(
    tmp_path: Path, limits: tuple[int, int | None], asked: tuple[int, int]
) -> None:
    sizes = {"small": 30 if limits[0] == 40 else 4000, "large": 5000}
    respondent = Respondent(sizes, {"baseline": set(), "model": every(100, 5000)})
    specs = [TaskSpec(name=name, limit=limit) for name, limit in zip(sizes, limits, strict=True)]
    found = Questioning(specs=specs, min_recovery_pct=99.0)
    entries = [(spec, None, "rows") for spec in specs]
    ask_until_settled(Ledger(tmp_path), entries, BASELINE, CANDIDATE, found, batch=50, executor=respondent)
    assert tuple(len(found.candidate[name]) for name in sizes) == asked
    assert found.verdict("average", "task").settlement.verdict == "undecided"


def test_several_tasks_settle_their_average(tmp_path: Path) -> None:
    sizes = {"small": 130, "large": 2000}
    respondent = Respondent(sizes, {"baseline": every(4, 2000), "model": every(4, 2000) | every(50, 2000, 1)})
    found = ask(tmp_path, respondent, least=90.0)
    assert found.target == "average"
    rows = {(row.task, row.about): row.settlement for row in found.verdicts()}
    assert set(rows) == {(task, about) for task in ("small", "large", "average") for about in ("task", "questions")}
    assert rows["average", "task"].verdict == "holds"
    scores = {
        name: tuple([a.score for a in side[name]] for side in (found.baseline, found.candidate)) for name in sizes
    }
    assert rows["average", "task"] == settle(scores, min_recovery_pct=90, sizes=sizes)


def test_different_questions_are_refused() -> None:
    respondent = Respondent({"t": 10}, {"baseline": set(), "model": set()})
    inputs = {"task": {"name": "t", "seed": 0}, "batch": [0, 4]}
    results = [
        respondent.result(Cell(kind="evaluate", title="", format="model", inputs={**inputs, "batch": batch}))
        for batch in ([0, 4], [4, 8])
    ]
    with pytest.raises(BitworthError, match="different questions"):
        Questioning(specs=[TaskSpec(name="t")], min_recovery_pct=99).add(TaskSpec(name="t"), *results)


def test_the_document_is_json_and_its_sentences_say_what_they_rest_on(tmp_path: Path) -> None:
    respondent = Respondent({"t": 5000}, {"baseline": every(3, 5000), "model": every(2, 5000)})
    document = json.loads(json.dumps(plain(settlement_document(ask(tmp_path, respondent)))))
    task, questions = document["settlements"]
    assert document["settled"] == {"task": "t", "about": "task"}
    assert document["answers"] == task["questions"] == document["confidence_sequence"][-1]["questions"]
    assert task["says"].startswith("t: does not hold 99 % of the baseline, settled after")
    assert "of 5,000 questions" in task["says"]
    assert "at most 5 %" in task["says"]
    assert questions["says"].startswith("questions like those of t: ")
    assert "recoveries" not in document


def test_words_of_an_open_and_of_an_exhausted_settlement() -> None:
    same = [1.0, 0.0, 1.0, 1.0] * 10
    open_ = settle({"t": (same, same)}, min_recovery_pct=99, sizes={"t": 1000})
    assert "not yet known whether it holds 99 %" in settlement_words("t", "task", open_, 99)
    whole = settle({"t": (same, same)}, min_recovery_pct=99, sizes={"t": 40})
    said = settlement_words("t", "task", whole, 99)
    assert "which were all answered" in said
    assert "says nothing yet of others like them" in said
    nothing = settle({"t": ([0.0] * 5, [1.0] * 5)}, min_recovery_pct=99)
    assert math.isnan(nothing.recovery_pct)
    assert "unbounded" in settlement_words("t", "questions", nothing, 99)


def test_batches_are_written_by_the_engine_that_was_asked_for(tmp_path: Path) -> None:
    respondent = Respondent({"mbpp": 60}, {"baseline": set(), "model": set()})
    spec = TaskSpec(name="mbpp")
    questioning = Questioning(specs=[spec], min_recovery_pct=99.0)
    ask_until_settled(
        Ledger(tmp_path),
        [(spec, None, "rows")],
        BASELINE,
        CANDIDATE,
        questioning,
        engine="http://localhost:1",
        unsafe=True,
        executor=respondent,
    )
    assert {cell.inputs["engine"] for cell in respondent.cells} == {"http://localhost:1"}
    assert {cell.where["engine"] for cell in respondent.cells} == {"http://localhost:1"}
    assert all(cell.inputs["by_name"] and cell.inputs["unsafe"] for cell in respondent.cells)
