"""Prompts with known faults are found, and those without are not accused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE

from bitworth import tasks
from bitworth.hygiene import PromptCheck, check_prompts
from bitworth.types import TaskSpec


class Words:
    """A tokenizer of words, with a BOS that it adds unless told otherwise, and a chat template."""

    eos_token_id: int | None = 2

    def __init__(self, *, bos: str | None = "<s>", adds: bool = True, template: str | None = None) -> None:
        self.bos_token, self.adds, self.chat_template = bos, adds and bos is not None, template

    @property
    def bos_token_id(self) -> int | None:
        return None if self.bos_token is None else 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        marked = text.replace(self.bos_token, " <bos> ") if self.bos_token else text
        ids = [1 if word == "<bos>" else 3 + len(word) for word in marked.split()]
        return [1, *ids] if add_special_tokens and self.adds else ids

    def apply_chat_template(self, turns: Any, add_generation_prompt: bool, **_: Any) -> str:
        from jinja2 import Template

        return Template(self.chat_template or "").render(
            messages=turns, add_generation_prompt=add_generation_prompt, bos_token=self.bos_token
        )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "arc" / "challenge_test.jsonl"
    path.parent.mkdir()
    choices = {"text": ["one", "two", "three", "four"], "label": list("ABCD")}
    rows = [
        {"id": f"Q{at}", "question": "Why " + "so " * 10 * at, "choices": choices, "answerKey": "C"} for at in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def check(data: Path, tokenizer: Words, *, task: str = "arc_challenge", context: int = 4096) -> PromptCheck:
    loaded = tasks.load(TaskSpec(name=task), data, chat=tokenizer.chat_template is not None)
    return check_prompts(loaded, tokenizer, context)


WRITES_BOS = "{{ bos_token }}" + CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("tokenizer", "task", "bos"),
    [
        (Words(), "arc_challenge", "once"),
        (Words(adds=False), "arc_challenge", "none"),
        (Words(bos=None), "arc_challenge", "none"),
        (Words(template=WRITES_BOS), "arc_challenge_llama", "once"),
        (Words(template=CHAT_TEMPLATE), "arc_challenge_llama", "missing"),
        (Words(template="{{ bos_token }}" + WRITES_BOS), "arc_challenge_llama", "twice"),
        (Words(template=CHAT_TEMPLATE, adds=False), "arc_challenge_llama", "none"),
    ],
)
def test_bos(data: Path, tokenizer: Words, task: str, bos: str) -> None:
    found = check(data, tokenizer, task=task)
    assert found.bos == bos
    assert any("BOS" in warning for warning in found.warnings) == (bos in ("twice", "missing"))


def test_plain_prompts_of_a_sound_model_raise_no_warning(data: Path) -> None:
    found = check(data, Words())
    assert (found.prompt, found.warnings, found.truncated, found.max_tokens) == ("text", (), 0, 0)
    assert found.first.endswith("Answer:")


def test_a_conversation_without_a_template_is_warned_of(data: Path) -> None:
    found = check(data, Words(), task="arc_challenge_llama")
    assert found.prompt == "text"
    assert any("no chat template" in warning for warning in found.warnings)
    assert check(data, Words(template=WRITES_BOS), task="arc_challenge_llama").prompt == "conversation"


@pytest.mark.parametrize("context", [60, 200, 410, 420])
def test_truncated_prompts_are_counted(data: Path, context: int) -> None:
    tokenizer = Words()
    loaded = tasks.load(TaskSpec(name="arc_challenge"), data)
    assert isinstance(loaded, tasks.Loaded)
    lengths = [
        max(len(tokenizer.encode(f"{context_}{choice}")) - 1 for context_, choice in question.requests)
        for question in loaded.questions
    ]
    found = check_prompts(loaded, tokenizer, context)
    assert found.truncated == sum(length > context for length in lengths)
    assert found.longest_tokens == max(lengths)
    assert bool(found.warnings) == (found.truncated > 0)


def test_answers_need_room_and_an_end(data: Path) -> None:
    tokenizer = Words(template=WRITES_BOS)
    tokenizer.eos_token_id = None
    found = check(data, tokenizer, task="arc_challenge_llama", context=150)
    assert found.max_tokens == 100
    assert found.stop == ()
    assert any("room for the whole answer" in warning for warning in found.warnings)
    assert any("nothing ends an answer" in warning for warning in found.warnings)
