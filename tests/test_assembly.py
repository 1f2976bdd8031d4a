from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bitworth.assembly import answers_of, groups_of, recoveries_of
from bitworth.types import Answer, Cell


def evaluated(task: str, format: str, scores: list[int], **field: list[str]) -> tuple[Cell, dict[str, Any]]:
    """A cell and its result: answers with these scores, `field` (group or cluster) of each."""
    labels = [dict(zip(field, row, strict=True)) for row in zip(*field.values(), strict=True)] or [{}] * len(scores)
    answers = [
        asdict(Answer(task=task, item=str(at), prediction="A", score=float(score), **label))
        for at, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]
    cell = Cell(kind="evaluate", title=task, format=format, inputs={"task": {"name": task}})
    return cell, {"answers": answers}


def test_groups_have_rows_of_their_own_and_do_not_enter_the_average() -> None:
    group = ["law"] * 100 + ["art"] * 100
    results = [
        evaluated("mmlu", "baseline", [1] * 200, group=group),
        evaluated("mmlu", "w4", [1, 0] * 50 + [1] * 100, group=group),
        evaluated("arc", "baseline", [1] * 50),
        evaluated("arc", "w4", [1] * 50),
    ]
    rows = {row.task: row for row in groups_of(answers_of(results), 99)}
    assert {task: row.recovery_pct for task, row in rows.items()} == {"mmlu/art": 100.0, "mmlu/law": 50.0}
    found, unfit = recoveries_of(answers_of(results), 99)
    assert [(row.task, row.recovery_pct) for row in found] == [("mmlu", 75.0), ("arc", 100.0), ("average", 87.5)]
    assert unfit == []


def test_tasks_and_groups_that_allow_no_recovery_are_left_out_with_the_reason() -> None:
    passages = ["one"] * 10 + ["two", "three"] * 5
    group = ["en"] * 10 + ["fr"] * 10
    results = [
        evaluated("hard", "baseline", [0] * 10),
        evaluated("hard", "w4", [1] * 10),
        evaluated("short", "baseline", [1] * 10, cluster=["one"] * 10),
        evaluated("short", "w4", [1] * 10, cluster=["one"] * 10),
        evaluated("read", "baseline", [1] * 20, cluster=passages, group=group),
        evaluated("read", "w4", [1] * 20, cluster=passages, group=group),
    ]
    found, unfit = recoveries_of(answers_of(results), 99)
    assert [row.task for row in found] == ["read", "average"]
    assert {row.title: row.cause.split(",")[0] for row in unfit} == {
        "recovery on hard": "The baseline answers none of its questions right.",
        "recovery on short": "All its questions share one passage",
    }
    assert [row.task for row in groups_of(answers_of(results), 99)] == ["read/fr"]
