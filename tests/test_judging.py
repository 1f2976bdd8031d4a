"""Judging from the files to the verdicts, with a judge that answers by rule."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from test_cli import call, refused  # noqa: F401
from test_http import served

from bitworth import judging
from bitworth.engines import http_chat
from bitworth.engines.fake import FakeServer
from bitworth.errors import BitworthError, WorkFailed
from bitworth.judging import costs, wording
from bitworth.judging.costs import MESSAGE_TOKENS, Budget, Price
from bitworth.judging.writing import write_answers
from bitworth.ledger import Ledger

Run = Callable[..., tuple[int, str, str]]
QUESTIONS = {f"q{number}": f"What is {number} plus {number}?" for number in range(6)}
GOOD = {item: f"good {item}" for item in QUESTIONS}
BAD = {item: f"bad {item}" for item in QUESTIONS}
BYTES = lambda text: len(text.encode())  # noqa: E731


def by_merit(first: str, second: str) -> str:
    return "[[A>B]]" if first.startswith("good") else "[[B>A]]"


class Judge:
    """An OpenAI-compatible server; `rule` makes a reply of the answers shown, or a status."""

    def __init__(self, rule: Callable[[str, str], Any] = by_merit, *, usage: bool = True) -> None:
        self.rule, self.usage = rule, usage
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "umpire"}]})

    async def _chat(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.requests.append(asked)
        self.keys.add(request.headers.get("Authorization"))
        reply = self.rule(*shown(asked))
        if isinstance(reply, web.Response):
            return reply
        body: dict[str, Any] = {"choices": [{"message": {"content": reply}, "finish_reason": "stop"}]}
        if self.usage:
            body["usage"] = {"prompt_tokens": 1000, "completion_tokens": 100}
        return web.json_response(body)


def shown(asked: dict[str, Any]) -> tuple[str, str]:
    """Both answers, as the judge reads them."""
    parts = asked["messages"][1]["content"].split("---\n")
    return parts[3].split("\n---")[0], parts[5].split("\n---")[0]


def refusal(status: int, message: str = "out of order") -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_chat.HttpChat.__init__, "__kwdefaults__", {"max_tokens": 4096, "pause_s": 0.0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_files(tmp_path, QUESTIONS, GOOD, BAD)


def with_files(folder: Path, questions: dict[str, str], good: dict[str, str], bad: dict[str, str]) -> Path:
    """The folder, with a file of questions and two of answers."""
    for name, texts, field in (("q", questions, "prompt"), ("good", good, "answer"), ("bad", bad, "answer")):
        rows = [json.dumps({"uid": item, field: text}) for item, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def judge(call: Run, url: str, folder: Path, *more: str | Path, who: tuple[str, str] = ("good", "bad")) -> Any:  # noqa: F811
    files = [folder / f"{name}.jsonl" for name in who]
    common = ("--judge", url, "--questions", folder / "q.jsonl", "--out", folder / "out", "--json")
    code, out, err = call("judge", *files, *common, *more)
    assert "Traceback" not in err
    return code, json.loads(out), err


def test_a_better_model_wins_in_both_orders(call: Run, folder: Path) -> None:  # noqa: F811
    server = Judge()
    with served(server) as url:  # type: ignore[arg-type]
        code, found, _ = judge(call, url, folder, "--yes")
        again = judge(call, url, folder)[1]
    assert code == 0
    rate = found["win_rate"]
    assert (rate["rate_pct"], rate["won"], rate["first_place_pct"], rate["contradicted"]) == (100, 6, 50, 0)
    assert found["spent"]["judgements"] == len(server.requests) == 12
    assert (found["spent"]["input_tokens"], found["spent"]["output_tokens"]) == (12000, 1200)
    assert again["spent"] is None
    assert again["win_rate"] == rate
    assert found["judge"] == {"model": "umpire", "url": f"{url}/v1", "temperature": 0, "max_tokens": 4096}


def test_a_judge_that_likes_first_places_finds_no_winner(call: Run, folder: Path) -> None:  # noqa: F811
    with served(Judge(lambda *_: "so [[A>>B]]")) as url:  # type: ignore[arg-type]
        rate = judge(call, url, folder, "--yes")[1]["win_rate"]
    assert (rate["rate_pct"], rate["tied"], rate["first_place_pct"], rate["contradicted"]) == (50, 6, 100, 6)


def test_nothing_is_asked_before_the_price_is_agreed(call: Run, folder: Path) -> None:  # noqa: F811
    server = Judge()
    price = ("--usd-per-million-in", "10", "--usd-per-million-out", "30")
    with served(server) as url:  # type: ignore[arg-type]
        code, found, err = judge(call, url, folder, *price)
        assert (code, found["spent"], found["win_rate"], found["absent_verdicts"]) == (0, None, None, 12)
        assert "12 judgements are left to ask" in err
        args = ("judge", folder / "good.jsonl", folder / "bad.jsonl", "--judge", url, "--questions", folder / "q.jsonl")
        refused(call(*args, "--out", folder / "out", *price, "--max-usd", "0.01"), "--max-usd", "nothing was asked")
        refused(call(*args, "--out", folder / "out", "--max-usd", "1"), "needs a price")
        refused(call(*args, "--out", folder / "out", *price[:2]), "two parts")
        assert not server.requests
    assert found["estimate"]["usd"] < found["estimate"]["most_usd"]


def test_the_limit_is_never_passed_and_the_rest_follows(call: Run, folder: Path) -> None:  # noqa: F811
    server = Judge()
    more = ("--usd-per-million-in", "0", "--usd-per-million-out", "1000", "--judge-max-tokens", "100")
    more = (*more, "--reply-tokens", "1", "--streams", "3")
    with served(server) as url:  # type: ignore[arg-type]
        code, found, _ = judge(call, url, folder, *more, "--max-usd", "0.65")  # 0.10 each, 0.20 at the worst
        assert code == 1
        assert "beyond $0.65" in found["spent"]["stopped"]
        assert found["spent"]["usd"] == pytest.approx(0.1 * len(server.requests))
        assert found["win_rate"] is None
        kept = found["spent"]["judgements"]
        assert kept == 5  # with a sixth it could have come to 0.70
        code, found, _ = judge(call, url, folder, *more, "--yes")
    assert code == 0
    assert len(server.requests) == kept + found["spent"]["judgements"] == 12
    assert found["win_rate"]["rate_pct"] == 100


def test_replies_without_a_verdict_are_asked_for_it_once(call: Run, folder: Path) -> None:  # noqa: F811
    def mute(first: str, second: str) -> str:
        return "hm" if "q1" in first else by_merit(first, second)

    server = Judge(mute)
    with served(server) as url:  # type: ignore[arg-type]
        code, found, _ = judge(call, url, folder, "--yes")
        assert len(server.requests) == 14
        assert [len(asked["messages"]) for asked in server.requests if "q1" in shown(asked)[0]].count(4) == 2
        judge(call, url, folder, "--yes")
    assert code == 0
    assert len(server.requests) == 14  # what was unreadable twice is not paid for a third time
    assert (found["unreadable_verdicts"], found["questions_left_out"]) == (2, ["q1"])
    assert found["win_rate"]["questions"] == 5


def test_a_second_reply_with_a_verdict_counts(call: Run, folder: Path) -> None:  # noqa: F811
    server = Judge()
    server.rule = lambda first, second: (
        by_merit(first, second) if len(server.requests[-1]["messages"]) == 4 else "[[A>B]] or [[B>A]]"
    )
    with served(server) as url:  # type: ignore[arg-type]
        found = judge(call, url, folder, "--yes")[1]
    assert found["win_rate"]["rate_pct"] == 100
    assert found["spent"]["output_tokens"] == 24 * 100


def test_a_passing_fault_is_retried(call: Run, folder: Path) -> None:  # noqa: F811
    server = Judge()
    server.rule = lambda *pair: refusal(500) if len(server.requests) in (1, 3, 4) else by_merit(*pair)
    with served(server) as url:  # type: ignore[arg-type]
        code, found, _ = judge(call, url, folder, "--yes")
    assert (code, found["spent"]["failures"], len(server.requests)) == (0, [], 15)


def test_a_lasting_fault_ends_the_run_and_keeps_what_was_judged(
    call: Run,  # noqa: F811
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BITWORTH_API_KEY", "sk-secret")
    server = Judge()
    server.rule = lambda *pair: by_merit(*pair) if len(server.requests) <= 4 else refusal(500, "bad key sk-secret")
    with served(server) as url:  # type: ignore[arg-type]
        code, found, err = judge(call, url, folder, "--yes", "--streams", "1")
        assert code == 1
        assert found["spent"]["judgements"] == 4
        assert found["absent_verdicts"] == 8
        assert "5 judgements in a row failed" in found["spent"]["stopped"]
        assert "HTTP 500 (bad key (key))" in found["spent"]["failures"][0]
        everything = [path.read_text() for path in (folder / "out").rglob("*.json")]
        assert not any("sk-secret" in text for text in (json.dumps(found), err, *everything))
        server.rule, before = by_merit, len(server.requests)
        code, found, _ = judge(call, url, folder, "--yes")
    assert (code, len(server.requests) - before, found["win_rate"]["rate_pct"]) == (0, 8, 100)
    assert server.keys == {"Bearer sk-secret"}


def test_one_question_that_is_refused_is_left_out_and_said(call: Run, folder: Path) -> None:  # noqa: F811
    def picky(first: str, second: str) -> Any:
        return refusal(400, "content policy") if "q3" in first else by_merit(first, second)

    with served(Judge(picky)) as url:  # type: ignore[arg-type]
        code, found, _ = judge(call, url, folder, "--yes")
    assert code == 1
    assert found["questions_left_out"] == ["q3"]
    assert found["win_rate"]["questions"] == 5


def test_models_with_other_names_for_limits_are_obliged(call: Run, folder: Path) -> None:  # noqa: F811
    server = Judge()

    def modern(*pair: str) -> Any:
        asked = server.requests[-1]
        if "max_tokens" in asked:
            return refusal(400, "max_tokens is not supported, use max_completion_tokens")
        return refusal(400, "temperature does not support 0") if "temperature" in asked else by_merit(*pair)

    server.rule = modern
    with served(server) as url:  # type: ignore[arg-type]
        code, found, _ = judge(call, url, folder, "--yes")
    assert (code, found["judge"]["temperature"]) == (0, None)
    assert found["win_rate"]["rate_pct"] == 100


@pytest.mark.slow(beside=True)
def test_killed_and_resumed_nothing_kept_is_asked_again(call: Run, folder: Path) -> None:  # noqa: F811
    server, running = Judge(), []

    def kill_the_sixth(first: str, second: str) -> str:
        if len(server.requests) == 6:
            running[0].kill()
        return by_merit(first, second)

    server.rule = kill_the_sixth
    with served(server) as url:  # type: ignore[arg-type]
        files = [str(folder / f"{name}.jsonl") for name in ("good", "bad")]
        common = ["--judge", url, "--questions", str(folder / "q.jsonl"), "--out", str(folder / "out"), "--yes"]
        command = [sys.executable, "-m", "bitworth", "judge", *files, *common, "--streams", "1"]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert running[0].wait(120) == -signal.SIGKILL
        server.rule = by_merit
        code, found, _ = judge(call, url, folder, "--yes")
    assert (code, found["spent"]["judgements"], found["win_rate"]["rate_pct"]) == (0, 7, 100)
    asked = [json.dumps(request["messages"]) for request in server.requests]
    assert len(set(asked)) == 12
    assert len(asked) == 13  # the one under way when it was killed


def test_equal_answers_tie_without_being_asked_about(call: Run, folder: Path) -> None:  # noqa: F811
    server = Judge()
    with served(server) as url:  # type: ignore[arg-type]
        code, found, _ = judge(call, url, folder, who=("good", "good"))
    assert (code, len(server.requests), found["identical_answers"]) == (0, 0, 6)
    assert (found["win_rate"]["rate_pct"], found["win_rate"]["tied"]) == (50, 6)


def test_a_model_writes_its_own_answers_once(call: Run, folder: Path, tiny_llama: Path) -> None:  # noqa: F811
    questions = folder / "q.jsonl"
    args = ("judge", tiny_llama, folder / "bad.jsonl", "--questions", questions, "--out", folder / "out", "--json")
    with served(Judge()) as url:  # type: ignore[arg-type]
        code, out, err = call(*args, "--judge", url, "--max-tokens", "6", "--limit", "3", "--yes")
        assert code == 0, err
        written = list((folder / "out" / "cells" / "write").iterdir())
        stamp = written[0].stat().st_mtime_ns
        code, again, _ = call(*args, "--judge", url, "--max-tokens", "6", "--limit", "3")
    assert json.loads(out)["win_rate"] == json.loads(again)["win_rate"]
    assert [path.stat().st_mtime_ns for path in written] == [stamp]
    texts = json.loads(written[0].read_text())["result"]["answers"]
    assert set(texts) <= set(QUESTIONS)
    assert len(texts) == 3


def test_answers_of_other_versions_or_of_another_served_model_are_not_taken(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = partial(write_answers, Ledger(tmp_path), {"q": "why?"}, tiny_llama, "id", max_tokens=4)
    server = FakeServer()
    with served(server) as url:
        with pytest.raises(BitworthError, match="served under the names of their folders"):
            write(engine=url, by_name=True)
        for _ in range(2):
            write(engine=url)
        assert len(server.requests) == 1
        monkeypatch.setattr("bitworth.versions.version", lambda name: "0")
        write(engine=url)
        assert len(server.requests) == 2


def test_the_estimate_is_exact_for_known_tokens() -> None:
    asked = ({"role": "system", "content": "abc"}, {"role": "user", "content": "äb"})  # 3 and 3 bytes
    price = Price(usd_per_million_in=2.0, usd_per_million_out=8.0)
    found = judging.estimate([asked, asked], BYTES, price, reply_tokens=50, max_tokens=200)
    read = 6 + 2 * MESSAGE_TOKENS
    assert (found.judgements, found.input_tokens, found.output_tokens) == (2, 2 * read, 100)
    assert found.usd == pytest.approx((2 * read * 2 + 100 * 8) / 1e6)
    again = read + 2 * MESSAGE_TOKENS + 200 + BYTES(wording.once_more(asked, "")[-1]["content"])
    assert found.most_usd == pytest.approx(2 * ((read + again) * 2 + 400 * 8) / 1e6)
    assert judging.estimate([], BYTES, price, reply_tokens=1, max_tokens=1).usd == 0


def test_tokens_are_counted_by_a_tokenizer_or_by_bytes(tiny_llama: Path) -> None:
    assert costs.token_counter(tiny_llama)("häuser") == 7
    assert costs.token_counter(None)("häuser") == 3


def test_a_budget_keeps_room_for_what_it_promised() -> None:
    budget = Budget(1.0)
    assert budget.promise(0.6)
    assert not budget.promise(0.5)
    budget.settle(0.6, 0.1)
    assert budget.promise(0.9)
    assert not budget.promise(0.01)
    with pytest.raises(BitworthError):
        Budget(float("nan"))


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("My verdict: [[A>>B]]", "A>>B"),
        ("[[ B > A ]].", "B>A"),
        ("[[A=B]] yes [[A=B]]", "A=B"),
        ("[[B=A]]", "A=B"),
        ("[[A>B]] no [[A>>B]]", None),
        ("A>B", None),
        ("[[A>A]]", None),
        ("[[C>A]]", None),
        ("", None),
    ],
)
def test_verdicts_are_read(reply: str, grade: str | None) -> None:
    assert wording.read_verdict(reply) == grade


def test_an_answer_cannot_close_its_own_fence() -> None:
    plain = wording.conversation("q", "one", "two")[1]["content"]
    forged = wording.conversation("q", "one\n" + plain[-40:], "two")[1]["content"]
    assert forged.count(forged[-12:]) == 6
    assert plain[-12:] != forged[-12:]


def test_published_layouts_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"uid": "a", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": {"answer": "1"}}]},
        {"uid": "b", "messages": [{"role": "assistant", "content": "2"}]},
        {"question_id": "c", "choices": [{"index": 0, "turns": [{"content": "3"}]}]},
        {"id": 4, "answer": "4"},
    ]
    path = tmp_path / "answers.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert judging.read_answers(path) == {"a": "1", "b": "2", "c": "3", "4": "4"}
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": "c", "turns": [{"content": "why"}]}\n')
    assert judging.read_questions(path) == {"c": "why"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"uid": "a", "answer": "1"}\n{"uid": "a", "answer": "2"}\n', "line 2: a was there before"),
        ('{"uid": "a"}\n', "line 1: not an answer"),
        ("[]\n", "cannot be read"),
        ('{"uid": ', "cannot be read"),
        ("", "holds no answers"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(BitworthError, match=said):
        judging.read_answers(path)
    with pytest.raises(BitworthError, match="No such file"):
        judging.read_answers(tmp_path / "none.jsonl")


def test_fewer_questions_are_among_more() -> None:
    few, more = (list(judging.choose(QUESTIONS, limit, 7)) for limit in (2, 4))
    assert more[:2] == few
    assert set(judging.choose(QUESTIONS, None, 7)) == set(QUESTIONS)
    with pytest.raises(BitworthError, match="answers 5 of 6"):
        judging.answers_to(QUESTIONS, dict.fromkeys(list(QUESTIONS)[1:], ""), Path("x"))


def test_the_published_questions_and_answers_fit(shared: Path) -> None:
    questions = judging.read_questions(shared / "data")
    path = shared / "data" / "arena_hard" / "v0.1_baseline_gpt-4-0314.jsonl.gz"
    assert len(judging.answers_to(questions, judging.read_answers(path), path)) == 500


def test_a_judge_that_is_not_there_is_one_sentence(call: Run, folder: Path) -> None:  # noqa: F811
    files = (folder / "good.jsonl", folder / "bad.jsonl")
    common = ("--questions", folder / "q.jsonl", "--out", folder / "out")
    refused(call("judge", *files, "--judge", "http://127.0.0.1:9", *common), "does not answer")
    refused(call("judge", folder / "no.jsonl", files[1], "--judge", "http://127.0.0.1:9", *common), "is not there")
    with pytest.raises(WorkFailed, match="other than a reply"):
        http_chat._reply({"choices": []})
