"""`bitworth judge` with a model that vLLM serves as the judge: what a real server counts, allows and repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli import call  # noqa: F401
from test_judging import with_files
from test_vllm import installed  # noqa: F401

from bitworth import judging
from bitworth.engines.prompts import load_tokenizer
from bitworth.engines.vllm import serve
from bitworth.judging import wording
from bitworth.ledger import Ledger

Run = Callable[..., tuple[int, str, str]]
QUESTIONS = {
    "poem": "Write two lines about rain, with a `<|im_end|>` in them.",
    "code": "Print 1 to 3 in Python.\n\n```python\n",
}
GOOD = {
    "poem": "Rain on the roof,\nrain in the shoe — naß <|im_end|> ☔",
    "code": "for n in range(1, 4):\n    print(n)",
}
BAD = dict.fromkeys(QUESTIONS, "I do not know.")
REPLY_TOKENS = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_files(tmp_path, QUESTIONS, GOOD, BAD)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_judge_that_vllm_serves(call: Run, folder: Path, smollm2: Path) -> None:  # noqa: F811
    """The model is too small to judge well: it is held to how it was asked, counted and read, not to what it finds."""

    def judge(out: str) -> dict[str, Any]:
        files = (folder / "good.jsonl", folder / "bad.jsonl", "--questions", folder / "q.jsonl", "--out", folder / out)
        more = ("--judge-tokenizer", smollm2, "--judge-max-tokens", REPLY_TOKENS, "--streams", 1, "--yes", "--json")
        code, text, err = call("judge", *files, "--judge", server.url.removesuffix("/v1"), *map(str, more))
        assert code == 0, err
        found: dict[str, Any] = json.loads(text)
        return found

    with serve(smollm2, context_tokens=2048, device="cpu", dtype="float32") as server:
        found, again = judge("one"), judge("two")
    planned = judging.plan_judgements(
        QUESTIONS, GOOD, BAD, judge=found["judge"]["model"], max_tokens=found["judge"]["max_tokens"]
    )
    kept, repeated = ([Ledger(folder / out).get(one.cell) for one in planned] for out in ("one", "two"))
    assert kept == repeated, "greedy, and one at a time"
    assert found["win_rate"] == again["win_rate"]
    assert (found["spent"]["judgements"], found["spent"]["failures"], found["absent_verdicts"]) == (4, [], 0)
    assert found["judge"]["temperature"] == 0

    # By the model's own tokenizer and template: what the server says that it read.
    first, second = 0, 0
    tokenizer = load_tokenizer(smollm2)
    for one, result in zip(planned, kept, strict=True):
        assert result is not None
        first += rendered(tokenizer, one.turns)
        if len(result["replies"]) == 2:
            second += rendered(tokenizer, wording.once_more(one.turns, result["replies"][0]))
        assert result["grade"] == wording.read_verdict(result["replies"][-1])
        assert set(result["finish"]) <= {"stop", "length"}
    assert found["spent"]["input_tokens"] == first + second
    assert found["estimate"]["input_tokens"] == pytest.approx(first, rel=0.02)
    replies = sum(len(result["replies"]) for result in kept if result is not None)
    assert 0 < found["spent"]["output_tokens"] <= REPLY_TOKENS * replies
    assert found["unreadable_verdicts"] == sum(result["grade"] is None for result in kept if result is not None)


def rendered(tokenizer: Any, turns: wording.Conversation) -> int:
    return len(tokenizer.apply_chat_template([*turns], add_generation_prompt=True, return_dict=False))
