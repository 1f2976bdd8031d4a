"""`bitworth tasks`, suites on the command line, and prompts and answers shown."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from test_http import served
from test_tasks import arc_row, write_jsonl

from bitworth import cli, running, tasks
from bitworth.cli import tasks as cli_tasks
from bitworth.cli.console import guarded
from bitworth.engines.fake import FakeServer
from bitworth.planning import ABSENT
from bitworth.study import parse_study
from bitworth.types import Answer

pytestmark = pytest.mark.usefixtures("here")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A verb's exit code, standard output and standard error."""
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["bitworth", *words])
        code = guarded(lambda: cli.app(words, standalone_mode=False))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    write_jsonl(folder / "arc" / "challenge_test.jsonl", [arc_row(index) for index in range(30)])
    return folder


def test_tasks_and_suites_are_listed_with_what_is_here(call: Run, data: Path) -> None:
    code, out, _ = call("tasks", "--data", data, "--json")
    assert code == 0
    document = json.loads(out)
    rows = {row["name"]: row for row in document["tasks"]}
    assert set(rows) == set(tasks.NAMES)
    assert {name for name, row in rows.items() if row["data_is_here"]} == {"arc_challenge", "arc_challenge_llama"}
    assert rows["arc_challenge_llama"] == {
        "name": "arc_challenge_llama",
        "kind": "generated",
        "questions": 1165,
        "shots": 0,
        "samples": 1,
        "prompt": "conversation",
        "metric": "exact_match",
        "dataset": "allenai/ai2_arc",
        "data_is_here": True,
        "examples_are_here": None,
    }
    suites = {row["name"]: row for row in document["suites"]}
    assert suites["quick"]["questions"] == 400
    assert {"name": "hellaswag", "seed": 0, "shots": 10} in suites["leaderboard-v1"]["tasks"]
    assert "no examples" not in call("tasks", "--data", data)[1]


def test_rows_without_their_examples_are_told_apart(call: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mmlu_pro" / "test.jsonl", [{"question_id": 1}])
    rows = {row["name"]: row for row in json.loads(call("tasks", "--data", tmp_path, "--json")[1])["tasks"]}
    assert rows["leaderboard_mmlu_pro"]["data_is_here"]
    assert rows["leaderboard_mmlu_pro"]["examples_are_here"] is False


@pytest.mark.slow(beside=True)
def test_what_is_missing_is_named_and_the_rest_is_answered(call: Run, tiny_llama: Path, data: Path) -> None:
    asked = ("--task", "arc_challenge_llama", "--task", "leaderboard_gpqa", "--limit", "4", "--data", data)
    code, out, err = call("evaluate", tiny_llama, *asked, "--show", "2", "--json")
    document = json.loads(out)
    assert code == 1
    assert "leaderboard_gpqa" in err
    assert [row["task"] for row in document["tasks"]] == ["arc_challenge_llama"]
    (missing,) = document["missing"]
    assert "accepted its terms" in missing["cause"]
    check = document["tasks"][0]["prompts"]
    assert (check["prompt"], check["bos"], check["max_tokens"]) == ("conversation", "none", 100)
    assert len(document["shown"]) == 2
    assert all(row["text"] for row in document["shown"])
    assert err.count("--- arc_challenge_llama, prompt") == 2
    assert "<|user|>Given the following question" in err


@pytest.mark.slow(beside=True)
def test_written_answers_are_compared_with_the_baselines(call: Run, tiny_llama: Path, data: Path) -> None:
    asked = ("--task", "arc_challenge_llama", "--limit", "3", "--data", data, "--similarity", "rouge1")
    code, out, _ = call("evaluate", tiny_llama, *asked, "--against", tiny_llama, "--similarity", "identical", "--json")
    assert code == 0
    rows = json.loads(out)["similarity"]
    assert [(row["measure"], row["mean"], row["questions"]) for row in rows] == [
        ("rouge1", 1.0, 3),
        ("identical", 1.0, 3),
    ]
    assert call("evaluate", tiny_llama, *asked)[0] == 2


def test_a_single_task_that_is_not_here_is_one_sentence(call: Run, tiny_llama: Path, data: Path) -> None:
    code, _, err = call("evaluate", tiny_llama, "--task", "aime24", "--data", data)
    assert code == 2
    assert "Maxwell-Jia/AIME_2024" in err


def test_a_study_goes_on_without_what_is_not_here(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    names = ("model", "group_size", "data", "engine")
    wanted = {**{name: tiny_study[name] for name in names}, "formats": ["baseline"], "tasks": ["quick"]}
    notes: list[str] = []
    with running.session(parse_study(wanted), tmp_path / "out", note=notes.append) as session:
        marks = {cell.inputs["task"]["name"]: cell.inputs["data"] for cell in session.cells}
    assert {name for name, mark in marks.items() if mark == ABSENT} == {"hellaswag", "winogrande", "mmlu"}
    assert marks["arc_challenge"] != ABSENT
    assert sum("get it by" in note for note in notes) == 3


def test_recoveries_of_a_suite_are_of_what_is_above_chance() -> None:
    """Ratio of averages of the leaderboard's columns, as the paper divides them."""

    def answers(shift: int) -> list[Answer]:
        found = []
        for spec in tasks.SUITES["leaderboard-v2"]:
            task = tasks.get(spec.name)
            for group in task.subsets or (None,):
                scores = [1.0] * (16 - shift) + [0.0] * (4 + shift)
                found += [
                    Answer(task=task.name, item=f"{group}/{at}", prediction="", score=score, group=group)
                    for at, score in enumerate(scores)
                ]
        return found

    both = {"baseline": answers(0), "model": answers(2)}
    averages = {row["checkpoint"]: row["average_pct"] for row in cli_tasks.suite_averages(["leaderboard-v2"], both)}
    ((row,), lacking) = cli_tasks.suite_recoveries(["leaderboard-v2", "code"], both, 99.0)
    assert [one["task"] for one in lacking] == ["code"]
    assert lacking[0]["cause"].startswith("It has no average without humaneval, mbpp")
    assert row["recovery_pct"] == pytest.approx(100 * averages["model"] / averages["baseline"])
    assert row["task"] == "leaderboard-v2"
    low, high = row["ci95_pct"]
    assert low < row["recovery_pct"] < high


def another(model: Path, tmp_path: Path) -> Path:
    """A model with other contents than that one's."""
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "other"}))
    return folder


class Right(FakeServer):
    """Knows the answer."""

    def _whole(self, _: dict[str, Any]) -> web.Response:
        return web.json_response({"choices": [{"index": 0, "text": "C", "finish_reason": "stop"}]})


def test_two_models_are_not_compared_on_a_server_that_has_one(
    call: Run, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    """It would answer for both, and recovery would be 100 %."""
    other = another(tiny_llama, tmp_path)
    asked = ("--task", "arc_challenge_llama", "--limit", "2", "--data", data, "--against", other)
    with served(FakeServer(models=(tiny_llama.name,))) as url:
        code, out, err = call("evaluate", tiny_llama, *asked, "--engine", url)
    assert (code, out) == (2, "")
    assert f"serves {tiny_llama.name} and nothing called other" in " ".join(err.split())
    assert "compare the two folders with `bitworth diff`" in " ".join(err.split())


def test_models_that_are_compared_are_asked_by_their_names(
    call: Run, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    other = another(tiny_llama, tmp_path)
    server = FakeServer(models=("other", tiny_llama.name))
    asked = ("--task", "arc_challenge_llama", "--limit", "2", "--data", data, "--against", other)
    with served(server) as url:
        code, out, _ = call("evaluate", tiny_llama, *asked, "--engine", url, "--json")
    assert code == 0
    assert {row["checkpoint"]: row["served"] for row in json.loads(out)["tasks"]} == {"baseline": None, "model": None}
    assert [asked["model"] for asked in server.requests].count("other") == 2
    assert [asked["model"] for asked in server.requests].count(tiny_llama.name) == 2


def test_a_served_model_of_another_name_is_warned_of(call: Run, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """Alone it is taken; what two such runs kept can be compared, as the refusal above advises."""
    asked = ("--task", "arc_challenge_llama", "--limit", "2", "--data", data)
    folders = [tmp_path / name for name in ("one", "two")]
    with served(Right()) as url:
        for folder in folders:
            code, out, err = call("evaluate", tiny_llama, *asked, "--engine", url, "--out", folder, "--json")
            assert code == 0
            assert [row["served"] for row in json.loads(out)["tasks"]] == ["fake"]
            assert "serves fake, which is not called as the checkpoint's folder" in " ".join(err.split())
    code, out, _ = call("diff", *folders, "--json")
    assert code == 0
    assert [row["task"] for row in json.loads(out)["scores"]] == ["arc_challenge_llama"]


def test_asking_until_settled_takes_the_engine_and_refuses_what_it_does_not_show(
    call: Run, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    other = another(tiny_llama, tmp_path)
    asked = ("--task", "arc_challenge_llama", "--data", data, "--against", other, "--until-settled")
    code, _, err = call("evaluate", tiny_llama, *asked, "--show", "1")
    assert code == 2
    assert "--show in a run of its own" in " ".join(err.split())
    server = Right(models=("other", tiny_llama.name))
    with served(server) as url:
        code, out, _ = call("evaluate", tiny_llama, *asked, "--engine", url, "--json")
    assert code == 0
    assert len(server.requests) == 2 * 30
    assert json.loads(out)["settlements"][0]["verdict"] == "holds"
    with served(FakeServer()) as url:
        code, _, err = call("evaluate", tiny_llama, *asked, "--engine", url)
    assert code == 2
    assert "serves fake and nothing called other" in " ".join(err.split())


def test_a_model_that_failed_at_a_task_has_no_average_and_it_is_said(
    call: Run, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    """The server breaks down at the model's last task; the suite it was asked for has no recovery either."""
    other = another(tiny_llama, tmp_path)
    rows = [{"question": f"{at} - {at - 1} = ?", "answer": "It is. #### 1"} for at in range(5)]
    write_jsonl(data / "gsm8k" / "test.jsonl", rows)
    asked = ("--task", "arc_challenge_llama", "--task", "gsm8k_llama", "--shots", "0", "--limit", "2", "--data", data)
    server = Breaks(models=("other", tiny_llama.name), after=6)
    with served(server) as url:
        wanted = ("evaluate", tiny_llama, *asked, "--against", other, "--engine", url)
        code, out, _ = call(*wanted, "--task", "code", "--json")
    document = json.loads(out)
    assert code == 1
    assert [row["task"] for row in document["recoveries"]] == ["arc_challenge_llama"]
    causes = {row["task"]: row["cause"] for row in document["without_recovery"]}
    assert causes["average"] == "The model did not answer gsm8k_llama, so its average would be over other tasks."
    assert causes["code"].startswith("It has no average without humaneval, mbpp")


class Breaks(Right):
    """Answers so many requests, right, and no more."""

    def __init__(self, *, models: tuple[str, ...], after: int) -> None:
        super().__init__(models=models)
        self.after = after

    def _whole(self, asked: dict[str, Any]) -> web.Response:
        if len(self.requests) > self.after:
            return web.json_response({"error": {"message": "out of order"}}, status=500)
        texts = ["The final answer is 1", "C"]
        choice = {"index": 0, "text": texts[len(self.requests) <= 2 or len(self.requests) > 4], "finish_reason": "stop"}
        return web.json_response({"choices": [choice]})
