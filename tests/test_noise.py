"""What an engine changes by itself: the figures, the cells that measure it, and the engine that changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from folders import write_results
from test_tasks import arc_row, write_jsonl

from bitworth import tasks
from bitworth.assembly import answers_of, noise_rows
from bitworth.cells import Subject, evaluate_cell, repeated_cells
from bitworth.engines.torch import load_exact
from bitworth.errors import BitworthError
from bitworth.evaluation import answer_questions
from bitworth.ledger import Ledger, key_of
from bitworth.report import result_as_json
from bitworth.report.markdown import render_markdown
from bitworth.report.page import render_page
from bitworth.sides import read_side
from bitworth.statistics import noise_of
from bitworth.study import parse_study
from bitworth.types import Answer, Cell, Sample, TaskSpec

SUBJECT = Subject(format="w4", identity="w", path="w")


def run(scores: list[float], texts: list[str] | None = None) -> list[Answer]:
    said = texts or [f"{score:g}" for score in scores]
    return [
        Answer(task="t", item=str(at), prediction=text, score=score)
        for at, (score, text) in enumerate(zip(scores, said, strict=True))
    ]


def test_figures_by_hand() -> None:
    """Two of four questions change their text, one of them its score; s² of (1, 0) is 1/2."""
    found = noise_of("t", "w4", [run([1, 1, 0, 0], list("abcd")), run([0, 1, 0, 0], list("xbcy"))[::-1]])
    assert found.scores_pct == (50.0, 25.0)
    assert (found.answers_differ_pct, found.scores_differ_pct) == (50.0, 25.0)
    assert found.score_sd_pct == pytest.approx(100 * 0.5**0.5 / 4)


def test_any_program_that_differs_is_another_answer() -> None:
    def programs(*texts: str) -> Answer:
        rows = tuple(Sample(text=text, passed=True) for text in texts)
        return Answer(task="t", item=texts[0], prediction="2 of 2 pass", score=1.0, samples=rows)

    found = noise_of("t", "w4", [[programs("a", "b"), programs("x", "y")], [programs("a", "c"), programs("x", "y")]])
    assert (found.answers_differ_pct, found.scores_differ_pct) == (50.0, 0.0)


def test_three_runs_are_three_pairs() -> None:
    assert noise_of("t", "w4", [run([1]), run([1]), run([0])]).scores_differ_pct == pytest.approx(200 / 3)


@pytest.mark.slow(beside=True)
def test_the_deviation_is_that_of_many_runs() -> None:
    """An engine that answers a tenth of the questions by chance: two runs against 4,000."""
    luck = random.Random(3)
    certain = [float(luck.random() < 0.6) for _ in range(360)]

    def ask() -> list[float]:
        return certain + [float(luck.random() < 0.5) for _ in range(40)]

    truth = 100 * stdev(fmean(ask()) for _ in range(4000))
    seen = [noise_of("t", "w4", [run(ask()), run(ask())]).score_sd_pct for _ in range(200)]
    assert fmean(value**2 for value in seen) ** 0.5 == pytest.approx(truth, rel=0.05)


def test_what_shows_no_noise_is_refused() -> None:
    with pytest.raises(BitworthError, match="asked once"):
        noise_of("t", "w4", [run([1])])
    with pytest.raises(BitworthError, match="different questions"):
        noise_of("t", "w4", [run([1]), run([1, 0])])


# --- cells and folders --------------------------------------------------------------------------------------------


def test_repeats_are_cells_of_their_own_and_the_first_keeps_its_key() -> None:
    once = evaluate_cell(SUBJECT, TaskSpec(name="arc_challenge"), None, "rows")
    first, *again = repeated_cells(SUBJECT, TaskSpec(name="arc_challenge", repeats=3), None, "rows")
    assert key_of(first) == key_of(once)
    assert len({key_of(cell) for cell in (first, *again)}) == 3
    assert [cell.is_repeat for cell in (first, *again)] == [False, True, True]
    assert again[0].title == "arc_challenge on w4, asked again (2)"


def test_studies_ask_for_repeats() -> None:
    raw = {"model": "m", "formats": ["baseline"], "tasks": [{"name": "quick", "repeats": 2}, "gsm8k_llama"]}
    assert {spec.name: spec.repeats for spec in parse_study(raw).task_specs()} == {
        "arc_challenge": 2,
        "hellaswag": 2,
        "winogrande": 2,
        "mmlu": 2,
        "gsm8k_llama": None,
    }
    with pytest.raises(BitworthError, match=r"repeats.*greater than 1"):
        parse_study({**raw, "tasks": [{"name": "quick", "repeats": 1}]})


def with_repeat(root: Path) -> None:
    """A folder in which the quantized model was asked twice; the second time three more answers are wrong."""
    scores = {"baseline": {"arc_easy": [1.0] * 90 + [0.0] * 10}, "w8a8-fp": {"arc_easy": [1.0] * 85 + [0.0] * 15}}
    took = {name: [1.0, 1.1] * 10 for name in scores}
    study = write_results(root, scores, took)
    ledger = Ledger(root)
    cells = ledger.read_plan()
    asked = next(cell for cell in cells if cell.kind == "evaluate" and cell.format == "w8a8-fp")
    result = ledger.get(asked)
    assert result is not None
    again = Cell(kind="evaluate", title="again", format=asked.format, inputs={**asked.inputs, "repeat": 1})
    rows = [dict(row) for row in result["answers"]]
    for row in rows[:3]:
        row |= {"score": 0.0, "prediction": "B"}
    ledger.write_study(study.model_dump(mode="json"), [*cells, again])
    ledger.put(again, {**result, "answers": rows}, seconds=50.0)


def test_repeats_are_noise_and_change_no_score(tmp_path: Path) -> None:
    from bitworth.assembly import assemble

    with_repeat(tmp_path)
    ledger = Ledger(tmp_path)
    results = [(cell, ledger.get(cell)) for cell in ledger.read_plan()]
    (noise,) = noise_rows(results)
    assert (noise.format, noise.scores_pct, noise.answers_differ_pct) == ("w8a8-fp", (85.0, 82.0), 3.0)
    assert sum(answer.score for answer in answers_of(results)["w8a8-fp"]["arc_easy"]) == 85
    assert sum(answer.score for answer in read_side(tmp_path).answered()["w8a8-fp", "arc_easy"].answers.values()) == 85
    found = assemble(tmp_path)
    assert found.recoveries[0].recovery_pct == pytest.approx(100 * 85 / 90)
    assert result_as_json(found)["noise"][0]["answers_differ_pct"] == 3.0
    text = render_markdown(found)
    assert "## Noise of the engine beside the loss" in text
    assert "| arc\\_easy | w8a8-fp | 2 | 100 | 3.0 % | 3.0 % | 1.22 | 5.00 |" in text
    page = render_page(found)
    assert "Noise of the engine beside the loss" in page
    assert 'download="noise.csv"' in page


# --- engines ------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "arc" / "challenge_test.jsonl", [arc_row(index) for index in range(12)])
    return tmp_path


@pytest.mark.slow(beside=True)
def test_the_torch_engine_answers_the_same_each_time(tiny_llama: Path, data: Path) -> None:
    """To the last bit, choices and samples; by another copy of the model too."""
    written = tasks.load(TaskSpec(name="arc_challenge_llama", samples=3, temperature=0.8), data, chat=True)
    given = tasks.load(TaskSpec(name="arc_challenge"), data)
    one, other = (load_exact(tiny_llama, device="cpu") for _ in range(2))
    for task in (given, written):
        first = answer_questions(one, task)
        assert first == answer_questions(one, task) == answer_questions(other, task)
        assert noise_of(task.task, "baseline", [first, answer_questions(one, task)]).answers_differ_pct == 0
    assert len({answer.text for answer in answer_questions(one, written)}) > 1


@pytest.mark.slow(beside=True)
def test_the_verb_measures_noise(
    tiny_llama: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitworth import cli
    from bitworth.cli.console import guarded

    words = ["evaluate", str(tiny_llama), "--task", "arc_challenge", "--limit", "4", "--data", str(data)]
    code = guarded(lambda: cli.app([*words, "--repeats", "2", "--json", "--quiet"], standalone_mode=False))
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == 0
    (row,) = document["noise"]
    assert (row["questions"], row["answers_differ_pct"], row["score_sd_pct"]) == (4, 0.0, 0.0)
    assert len(document["tasks"]) == 1
    code = guarded(lambda: cli.app([*words, "--repeats", "2", "--until-settled"], standalone_mode=False))
    assert code == 2
    assert "--repeats" in capsys.readouterr().err
