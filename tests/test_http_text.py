from __future__ import annotations

from pathlib import Path

import pytest
from test_http import served

from bitworth.engines import open_completer
from bitworth.engines.fake import FakeServer
from bitworth.engines.generator import Completer
from bitworth.engines.http_text import HttpCompleter, check_served
from bitworth.engines.prompts import encode_prompt, load_tokenizer
from bitworth.errors import BitworthError, WorkFailed
from bitworth.types import Message, Sampling

DRAWN = Sampling(max_tokens=9, stop=("STOP",), temperature=0.2, top_p=0.95, n=3, seed=7)


def test_asks_for_the_prompts_token_ids_and_the_sampling(tiny_llama: Path) -> None:
    server = FakeServer()
    turns = (Message(role="user", content="hi"),)
    with served(server) as url, open_completer(url, tiny_llama, context_tokens=64) as model:
        found = model.generate(["abc", turns], DRAWN)
    assert isinstance(model, Completer)
    assert [len(row) for row in found] == [3, 3]
    asked = sorted(server.requests, key=lambda fields: len(fields["prompt"]))
    tokenizer = load_tokenizer(tiny_llama)
    assert [fields["prompt"] for fields in asked] == [encode_prompt(tokenizer, prompt) for prompt in ("abc", turns)]
    fields = {name: asked[0][name] for name in ("max_tokens", "stop", "temperature", "top_p", "n", "seed")}
    assert fields == {"max_tokens": 9, "stop": ["STOP"], "temperature": 0.2, "top_p": 0.95, "n": 3, "seed": 7}


def test_a_server_that_gives_one_choice_is_asked_with_other_seeds(tiny_llama: Path) -> None:
    server = FakeServer(most_choices=1)
    with served(server) as url:
        found = HttpCompleter(url, tiny_llama).generate(["abc"], DRAWN)
    assert len(found[0]) == 3
    assert [fields["seed"] for fields in server.requests] == [7, 8, 9]


def test_prompts_go_as_text_where_ids_are_refused(tiny_llama: Path) -> None:
    server = FakeServer(faults=["no_ids"])
    with served(server) as url:
        found = HttpCompleter(url, tiny_llama).generate(["abc"], DRAWN)
    assert found[0][0].text.startswith("abc 7")
    assert server.requests[-1]["prompt"] == "abc"


def test_failures_are_one_sentence(tiny_llama: Path) -> None:
    with served(FakeServer(faults=["refuse"] * 9)) as url, pytest.raises(WorkFailed, match="out of order"):
        HttpCompleter(url, tiny_llama).generate(["abc"] * 3, DRAWN)
    with pytest.raises(WorkFailed, match="does not answer"):
        HttpCompleter(url, tiny_llama)


def test_a_model_of_another_name_is_told_in_the_facts_or_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with served(FakeServer()) as url:
        assert HttpCompleter(url, tiny_llama).facts.served == "fake"
        with pytest.raises(BitworthError, match=f"serves fake and nothing called {tiny_llama.name}; models that are"):
            HttpCompleter(url, tiny_llama, choice="listed")
    with served(FakeServer(models=("other", tiny_llama.name))) as url:
        assert HttpCompleter(url, tiny_llama, choice="listed").facts.served is None
        check_served(url, tiny_llama, tmp_path / "other", "walk")
        with pytest.raises(BitworthError, match=r"nothing called third; .* of their folders, or walk\.$"):
            check_served(url, tiny_llama, tmp_path / "third", "walk")
        with pytest.raises(BitworthError, match="which have one name"):
            check_served(url, tiny_llama, tmp_path / tiny_llama.name, "walk")
