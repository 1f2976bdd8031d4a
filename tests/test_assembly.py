from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from folders import write_results

from bitworth.assembly import answers_of, assemble, costs_of, effort_of, groups_of, recoveries_of
from bitworth.hardware import hardware
from bitworth.ledger import Ledger
from bitworth.types import Answer, Cell, EngineFacts, LatencyLimit, Load, Timing
from bitworth.workloads import use_case


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


def test_deployments_and_effort_come_from_the_folder(tmp_path: Path) -> None:
    scores = {name: {"arc_easy": [1.0, 0.0] * 50} for name in ("baseline", "w8a8-fp")}
    took = {"baseline": [1.0, 1.1] * 10, "w8a8-fp": [0.5, 0.55] * 10}
    study = write_results(tmp_path, scores, took, traffic={"rag": 2}, constraints={"min_recovery_pct": 90})
    found = assemble(tmp_path)
    (mix,) = found.deployments  # one load, so nothing to decide across loads
    assert mix.use_case.name == "100 % rag"
    assert mix.choice is not None
    assert found.recommendations[0].choice is not None
    assert mix.choice.format == found.recommendations[0].choice.format == "w8a8-fp"
    records = [(cell, Ledger(tmp_path).record(cell)) for cell in Ledger(tmp_path).read_plan()]
    effort = effort_of(records, study)
    assert effort.seconds_per_question["w8a8-fp", "arc_easy"] == 1.0  # 50 s of each for 100 questions
    assert effort.usd_per_hour == 3.6


def test_changed_limits_reach_the_decision(tmp_path: Path) -> None:
    scores = {name: {"arc_easy": [1.0] * 200} for name in ("baseline", "w8a8-fp")}
    took = {"baseline": [1.0, 1.1] * 10, "w8a8-fp": [0.5, 0.55] * 10}
    write_results(tmp_path, scores, took)
    tight = LatencyLimit(of="latency", at="p95", most_s=0.1)
    assert assemble(tmp_path, {"limits": (tight,)}).recommendations[0].choice is None
    busy = assemble(tmp_path, {"queries_per_second": 5.0, "available": {"local": 2}})
    assert "needs 3 × local for 3 of it, of which 2 can be had" in busy.recommendations[0].why


def timed_on(place: str, device: str, seconds: float) -> tuple[Cell, dict[str, Any]]:
    inputs = {
        "use_case": asdict(use_case("rag")),
        "load": asdict(Load(kind="synchronous")),
        "machine": {"processor": "x", "hardware": place},
    }
    row = Timing(start_s=0.0, first_token_s=seconds / 2, end_s=seconds, prompt_tokens=8, output_tokens=4)
    facts = EngineFacts(engine="vllm", kernel="none", device=device)
    cell = Cell(kind="benchmark", title=place, format="w4", inputs=inputs)
    return cell, {"unsupported": None, "timings": [asdict(row)] * 5, "facts": asdict(facts)}


def test_each_hardware_row_has_the_figures_of_its_own_machine() -> None:
    """Timed on one A100, on two and on an H100: three rows, none predicted, none twice."""
    rows = [hardware("A100", 1), hardware("A100", 2), hardware("H100", 1), hardware("A6000", 1)]
    results = [
        timed_on("1 x A100", "NVIDIA A100", 4.0),
        timed_on("2 x A100", "NVIDIA A100", 2.0),
        timed_on("1 x H100", "NVIDIA H100", 1.0),
    ]
    found = {(row.hardware, row.count): (row.latency_s, row.unsupported) for row in costs_of(results, rows)}
    assert found == {
        ("A100", 1): (4.0, None),
        ("A100", 2): (2.0, None),
        ("H100", 1): (1.0, None),
        ("A6000", 1): (None, "not timed on A6000; run the study there"),
    }
    assert len(costs_of(results, rows)) == 4
