"""Suites in studies: rows, constraints, reports, and what is said where a task is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny_llama
from folders import write_results
from test_tasks import arc_row, write_jsonl

from bitworth import running
from bitworth.assembly import assemble
from bitworth.columns import average_suite, column_answers, column_pct, recover_suite, recover_suites
from bitworth.errors import BitworthError
from bitworth.report.markdown import render_markdown
from bitworth.report.page import render_page
from bitworth.statistics import holm, mean_recovery
from bitworth.study import parse_study
from bitworth.tasks.leaderboard import MMLU_SUBJECTS
from bitworth.tasks.suites import LEADERBOARD_V1
from bitworth.types import Answer, Missing


def graded(task: str, right: int, of: int, group: str | None = None) -> list[Answer]:
    return [
        Answer(task=task, item=f"{group}/{at}", prediction="", score=float(at < right), group=group) for at in range(of)
    ]


def test_suites_of_a_format_are_adjusted_for_each_other() -> None:
    names = {"humaneval": 164, "mbpp": 400, "mgsm_native_cot": 250, "belebele": 300}
    before = {name: graded(name, of // 2, of) for name, of in names.items()}
    after = {name: graded(name, of // 2 - 9, of) for name, of in names.items()}
    alone = [
        recover_suite(suite, before, after, min_recovery_pct=99, format="w4") for suite in ("code", "multilingual")
    ]
    asked = ("code", "reasoning", "multilingual")
    rows, causes = recover_suites(asked, before, after, min_recovery_pct=99, format="w4")
    assert [row.p_value for row in rows] == [row.p_value for row in alone]
    assert [row.p_holm for row in rows] == holm([float(row.p_value or 0) for row in alone])
    assert [row.p_holm for row in rows] != [row.p_value for row in rows]
    assert list(causes) == ["reasoning"]


# --- columns ------------------------------------------------------------------------------------------------------


def test_a_suite_is_the_plain_mean_of_its_columns_whatever_their_sizes() -> None:
    answers = {"humaneval": graded("humaneval", 82, 164), "mbpp": graded("mbpp", 300, 400)}
    found = average_suite("code", "w4", answers)
    assert found.average_pct == pytest.approx((50 + 75) / 2)
    assert found.missing == ()
    short = average_suite("code", "w4", {"mbpp": answers["mbpp"]})
    assert (short.average_pct, short.missing, dict(short.columns_pct)) == (None, ("humaneval",), {"mbpp": 75.0})


def test_columns_of_the_second_leaderboard_are_above_guessing() -> None:
    answers = graded("leaderboard_mmlu_pro", 55, 100)
    assert column_pct("leaderboard_mmlu_pro", answers) == pytest.approx(50.0)
    assert sum(one.score for one in column_answers("leaderboard_mmlu_pro", answers)) / 100 == pytest.approx(0.5)
    assert column_pct("mbpp", graded("mbpp", 3, 4)) == 75.0


def test_recovery_of_a_suite_has_the_interval_of_independent_columns() -> None:
    before = {"humaneval": graded("humaneval", 80, 164), "mbpp": graded("mbpp", 300, 400)}
    after = {"humaneval": graded("humaneval", 76, 164), "mbpp": graded("mbpp", 290, 400)}
    row = recover_suite("code", before, after, min_recovery_pct=90, format="w4")
    expected = mean_recovery(
        {name: ([a.score for a in before[name]], [a.score for a in after[name]]) for name in before},
        min_recovery_pct=90,
    )
    assert (row.task, row.columns, row.questions) == ("code", ("humaneval", "mbpp"), 564)
    assert row.recovery_pct == pytest.approx(100 * (76 / 164 + 290 / 400) / (80 / 164 + 300 / 400))
    assert row.ci95_pct == pytest.approx(expected.ci95_pct)
    with pytest.raises(BitworthError, match="no average without mbpp"):
        recover_suite("code", before, {"humaneval": after["humaneval"]}, min_recovery_pct=90, format="w4")


# --- studies ------------------------------------------------------------------------------------------------------

RIGHT = {
    "baseline": {"humaneval": 82, "mbpp": 300, "arc_easy": 380},
    "w8a8-fp": {"humaneval": 82, "mbpp": 300, "arc_easy": 300},
}
SIZES = {"humaneval": 164, "mbpp": 400, "arc_easy": 400}


def scores(without: tuple[str, ...] = ()) -> dict[str, dict[str, list[float]]]:
    return {
        format: {
            task: [1.0] * right + [0.0] * (SIZES[task] - right)
            for task, right in columns.items()
            if not (format != "baseline" and task in without)
        }
        for format, columns in RIGHT.items()
    }


def made(root: Path, *, recovery_of: str, without: tuple[str, ...] = ()) -> None:
    """The quantized model answers the programs as the baseline does, and loses a fifth of ARC."""
    took = {"baseline": [1.0, 1.1] * 10, "w8a8-fp": [0.5, 0.55] * 10}
    constraints = {"min_recovery_pct": 98, "recovery_of": recovery_of}
    write_results(root, scores(without), took, tasks=["code", "arc_easy"], constraints=constraints)


def test_a_suite_has_a_row_and_the_constraint_may_name_it(tmp_path: Path) -> None:
    made(tmp_path, recovery_of="code")
    found = assemble(tmp_path)
    assert [row.task for row in found.recoveries] == ["humaneval", "mbpp", "arc_easy", "average", "code"]
    (one,) = found.recommendations
    assert one.choice is not None
    assert one.choice.format == "w8a8-fp"
    assert "accuracy on code (95 % interval" in one.why
    text, page = render_markdown(found), render_page(found)
    assert "recovery on code at least 98 %" in text
    assert "| code | w8a8-fp | 62.5 % | 62.5 % | 100.0 % |" in text
    assert "| humaneval | w8a8-fp | 50.0 % | 50.0 % | 100.0 % |" in text
    assert "| 164 | holds | 0 / 0 |" in text or "| 164 | undecided | 0 / 0 |" in text
    assert "<figcaption>code</figcaption>" in page
    assert "Lost / won" in page


def test_the_average_decides_where_no_suite_is_named_and_options_change_that(tmp_path: Path) -> None:
    made(tmp_path, recovery_of="average")
    (one,) = assemble(tmp_path).recommendations
    assert one.choice is not None
    assert one.choice.format == "baseline"
    (one,) = assemble(tmp_path, {"recovery_of": "mbpp"}).recommendations
    assert one.choice is not None
    assert one.choice.format == "w8a8-fp"
    with pytest.raises(BitworthError, match=r"unknown task or suite for `recovery_of` 'mbp'; did you mean 'mbpp'"):
        assemble(tmp_path, {"recovery_of": "mbp"})


def test_a_suite_without_one_of_its_tasks_is_missing_and_says_which(tmp_path: Path) -> None:
    made(tmp_path, recovery_of="code", without=("mbpp",))
    found = assemble(tmp_path)
    assert "code" not in {row.task for row in found.recoveries}
    (row,) = [row for row in found.missing if "code" in row.title]
    assert row == Missing(
        title="recovery of w8a8-fp on code",
        cause="It has no average without mbpp, which w8a8-fp and the baseline did not both answer.",
    )
    (one,) = found.recommendations
    assert one.choice is not None
    assert one.choice.format == "baseline"
    assert "its accuracy was not measured on code" in one.why


def test_constraints_name_what_is_asked() -> None:
    raw = {"model": "m", "formats": ["baseline"], "tasks": ["quick"], "constraints": {"recovery_of": "hellaswag"}}
    assert parse_study(raw).constraint().recovery_of == "hellaswag"
    with pytest.raises(BitworthError, match="recovery_of"):
        parse_study({**raw, "constraints": {"recovery_of": "leaderboard-v1"}})


def test_open_questions_are_spread_over_the_suites_tasks_alone(tmp_path: Path) -> None:
    columns = {task: [1.0] * 60 + [0.0] * 40 for task in SIZES}
    lossy = {task: [0.0] + [1.0] * 59 + [0.0] * 40 for task in SIZES}
    took = {"baseline": [1.0, 1.1] * 10, "w8a8-fp": [0.5, 0.55] * 10}
    constraints = {"min_recovery_pct": 96, "recovery_of": "code"}
    write_results(
        tmp_path, {"baseline": columns, "w8a8-fp": lossy}, took, tasks=["code", "arc_easy"], constraints=constraints
    )
    (one,) = assemble(tmp_path).recommendations
    assert one.contender is not None
    assert set(one.steps[0].count) == {"humaneval", "mbpp"}


# --- end to end ---------------------------------------------------------------------------------------------------


def mirror(folder: Path) -> None:
    """Made-up rows of the first leaderboard's data sets, TruthfulQA's left out."""
    letters = {"text": ["one", "two", "three", "four"], "label": list("ABCD")}
    mmlu = [
        {"question": f"Which {at} of {subject}?", "subject": subject, "choices": letters["text"], "answer": at % 4}
        for subject in MMLU_SUBJECTS
        for at in range(5)
    ]
    write_jsonl(folder / "mmlu" / "test.jsonl", mmlu)
    write_jsonl(folder / "mmlu" / "dev.jsonl", mmlu)
    write_jsonl(folder / "arc" / "challenge_test.jsonl", [arc_row(at) for at in range(8)])
    write_jsonl(
        folder / "gsm8k" / "test.jsonl", [{"question": f"{at} and 2?", "answer": f"#### {at + 2}"} for at in range(8)]
    )
    stories = [
        {
            "ind": at,
            "activity_label": "Cooking",
            "ctx_a": f"A cook takes {at} eggs.",
            "ctx_b": "she",
            "ctx": f"A cook takes {at} eggs. she",
            "endings": ["boils them.", "sings.", "flies.", "sleeps."],
            "source_id": f"s{at // 2}",
            "label": "0",
        }
        for at in range(16)
    ]
    write_jsonl(folder / "hellaswag" / "validation.jsonl", stories)
    write_jsonl(folder / "hellaswag" / "train.jsonl", stories)
    twins = [
        {
            "sentence": f"The {at} cup fits the box as _ is small.",
            "option1": "cup",
            "option2": f"box {at // 2}",
            "answer": "1",
        }
        for at in range(16)
    ]
    write_jsonl(folder / "winogrande" / "xl_validation.jsonl", twins)
    write_jsonl(folder / "winogrande" / "train.jsonl", twins)


def truthfulqa(folder: Path) -> None:
    rows = [
        {"question": f"Is {at} odd?", **{f"mc{n}_targets": {"Yes": at % 2, "No": 1 - at % 2} for n in (1, 2)}}
        for at in range(8)
    ]
    write_jsonl(folder / "truthfulqa" / "v1_mc_task.jsonl", rows)


@pytest.mark.slow(beside=True)
def test_a_leaderboard_from_its_name_to_the_report(tmp_path: Path) -> None:
    """Without TruthfulQA's rows first, which is said; with them, only what was missing is run."""
    model, rows, out = tmp_path / "model", tmp_path / "rows", tmp_path / "out"
    save_tiny_llama(model, max_position_embeddings=4096, eos_token_id=list(range(0, 258, 2)))
    mirror(rows)
    study: dict[str, Any] = {
        "model": str(model),
        "formats": ["baseline", "w8a8-fp"],
        "data": str(rows),
        "tasks": [{"name": "leaderboard-v1", "limit": 4, "repeats": 2}],
        "use_cases": ["16/4"],
        "requests": 3,
        "engine": "fake",
        "constraints": {"min_recovery_pct": 50, "recovery_of": "leaderboard-v1"},
    }
    notes: list[str] = []
    found = running.run(parse_study(study), out, note=notes.append)
    assert any("v1_mc_task.jsonl" in note for note in notes)
    missing = {row.title: row.cause for row in found.missing}
    assert "get it by" in missing["truthfulqa_mc2 on baseline"]
    assert "no average without truthfulqa_mc2" in missing["recovery of w8a8-fp on leaderboard-v1"]
    assert "leaderboard-v1" not in {row.task for row in found.recoveries}
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "truthfulqa\\_mc2 on baseline" in text.partition("## Missing")[2]

    truthfulqa(rows)
    found = running.run(parse_study(study), out)
    row = next(row for row in found.recoveries if row.task == "leaderboard-v1")
    assert row.columns == tuple(spec.name for spec in LEADERBOARD_V1)
    assert row.questions == 4 * 7
    assert all(noise.answers_differ_pct == 0 for noise in found.noise)
    assert {(noise.format, noise.task) for noise in found.noise} == {
        (format, spec.name) for format in ("baseline", "w8a8-fp") for spec in LEADERBOARD_V1
    }
    document = json.loads((out / "recommendation.json").read_text(encoding="utf-8"))
    assert "leaderboard-v1" in {row["task"] for row in document["recoveries"]}
    assert document["constraint"]["recovery_of"] == "leaderboard-v1"
    assert "| leaderboard-v1 | w8a8-fp |" in (out / "report.md").read_text(encoding="utf-8")
