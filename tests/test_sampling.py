from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.engines import open_completer, sampling
from bitworth.engines.generator import Completer
from bitworth.engines.torch import TorchModel, load_exact
from bitworth.errors import BitworthError, WorkFailed
from bitworth.types import Message, Sampling

PROMPTS = ["def add(a, b):\n    return", "x", "A much longer prompt, so that rows of a batch are padded.", "for i in"]


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> TorchModel:
    return load_exact(tiny_llama, device="cpu")


def greedy_by_transformers(engine: TorchModel, prompt: str, count: int) -> str:
    """One prompt alone, by transformers' own loop."""
    ids = torch.tensor([engine.encode(prompt)])
    found = engine.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=257,
        pad_token_id=258,
    )
    return engine.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


# --- greedy -------------------------------------------------------------------------------------------------------


def test_greedy_is_transformers_own_whatever_the_batch(engine: TorchModel) -> None:
    wanted = [greedy_by_transformers(engine, prompt, 24) for prompt in PROMPTS]
    found = engine.generate(PROMPTS, Sampling(max_tokens=24))
    assert [completions[0].text for completions in found] == wanted
    assert isinstance(engine, Completer)


def test_models_without_padding_give_the_same(engine: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = engine.generate(PROMPTS, Sampling(max_tokens=12))
    assert engine.pads()
    monkeypatch.setattr(engine, "_pads", False)
    assert engine.generate(PROMPTS, Sampling(max_tokens=12)) == wanted


def test_real_model_with_a_sentencepiece_tokenizer(stories: Path) -> None:
    """Its tokenizer drops the first space of what it decodes alone."""
    engine = load_exact(stories, device="cpu")
    prompt = "Once upon a time, there was a"
    ids = torch.tensor([engine.encode(prompt)])
    tokens = engine.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=2
    )
    whole = engine.tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert prompt + engine.generate([prompt], Sampling(max_tokens=20))[0][0].text == whole


def test_ends_at_an_end_token_and_at_a_stop_string(engine: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.generate(["x"], Sampling(max_tokens=20))[0][0]
    assert (whole.finish, whole.tokens) == ("length", 20)
    mark = whole.text[5:8]
    stopped = engine.generate(["x"], Sampling(max_tokens=20, stop=("never", mark)))[0][0]
    assert (stopped.text, stopped.finish) == (whole.text[: whole.text.find(mark)], "stop")
    seventh = greedy_tokens(engine, "x", 7)[-1]
    monkeypatch.setattr(engine, "ends", frozenset({seventh}))
    ended = engine.generate(["x"], Sampling(max_tokens=20))[0][0]
    assert ended.finish == "stop"
    assert whole.text.startswith(ended.text)
    assert ended.tokens == greedy_tokens(engine, "x", 7).index(seventh) + 1


def greedy_tokens(engine: TorchModel, prompt: str, count: int) -> list[int]:
    ids = engine.encode(prompt)
    for _ in range(count):
        ids.append(int(engine.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-count:]


def test_the_context_ends_a_text_and_cuts_a_prompts_beginning(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "short", max_position_embeddings=32)
    engine = load_exact(tmp_path / "short", device="cpu")
    engine.ends = frozenset()
    found = engine.generate(["abc" * 30, "abc"], Sampling(max_tokens=100))
    assert [(row[0].finish, row[0].tokens) for row in found] == [("length", 16), ("length", 29)]


# --- sampling -----------------------------------------------------------------------------------------------------

DRAWN = Sampling(max_tokens=16, temperature=0.8, top_p=0.95, n=5, seed=3)


def test_what_is_drawn_depends_on_seed_prompt_and_number_alone(engine: TorchModel) -> None:
    together = engine.generate(PROMPTS, DRAWN)
    assert [engine.generate([prompt], DRAWN)[0] for prompt in PROMPTS] == together
    more = engine.generate(PROMPTS, Sampling(max_tokens=16, temperature=0.8, top_p=0.95, n=40, seed=3))
    assert [row[:5] for row in more] == together
    assert len({completion.text for completion in more[0]}) > 20
    other = engine.generate(PROMPTS, Sampling(max_tokens=16, temperature=0.8, top_p=0.95, n=5, seed=4))
    assert other != together


def test_progress_counts_completions(engine: TorchModel) -> None:
    told: list[tuple[int, int]] = []
    engine.generate(PROMPTS[:2], DRAWN, lambda *counts: told.append(counts))
    assert told[-1] == (10, 10)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=400), st.floats(0.05, 1.0), st.integers(0, 2**32))
def test_draws_stay_in_the_nucleus(logits: list[float], top_p: float, seed: int) -> None:
    """Naively: sort, add up until top_p is reached, and nothing else is ever drawn."""
    luck = [np.random.default_rng([seed, row]) for row in range(20)]
    drawn = sampling.draw(torch.tensor([logits] * 20), luck, Sampling(max_tokens=1, temperature=0.7, top_p=top_p))
    chances = torch.tensor(logits, dtype=torch.float32).double().div(0.7).softmax(-1)
    least, reached = 0.0, 0.0
    for chance in sorted(chances.tolist(), reverse=True):
        if reached >= top_p:
            break
        least, reached = chance, reached + chance
    assert all(chances[token] >= least for token in drawn)


def test_draws_have_the_distributions_frequencies() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    luck = [np.random.default_rng(row) for row in range(4000)]
    counts = Counter(sampling.draw(logits.repeat(4000, 1), luck, Sampling(max_tokens=1, temperature=0.5, top_p=0.99)))
    chances = (logits[0] / 0.5).softmax(-1)  # 0.864, 0.117, 0.0158, 0.00214: the last falls out
    wanted = chances[:3] / chances[:3].sum()
    assert counts[3] == 0
    for token in range(3):
        assert counts[token] / 4000 == pytest.approx(float(wanted[token]), abs=4 * (0.25 / 4000) ** 0.5)


def test_nan_is_no_text() -> None:
    with pytest.raises(WorkFailed, match="NaN"):
        sampling.draw(torch.tensor([[float("nan"), 0.0]]), [], Sampling(max_tokens=1))


# --- conversations ------------------------------------------------------------------------------------------------


def test_conversations_go_through_the_template(engine: TorchModel) -> None:
    turns = (Message(role="user", content="hello"),)
    assert engine.has_chat_template
    rendered = "<|user|>hello\n<|assistant|>"
    assert engine.generate([turns], Sampling(max_tokens=8)) == engine.generate([rendered], Sampling(max_tokens=8))


def test_a_conversation_without_a_template_is_refused(stories: Path) -> None:
    with open_completer("torch", stories, context_tokens=64, device="cpu") as model:
        assert not model.has_chat_template
        with pytest.raises(BitworthError, match="no chat template"):
            model.generate([(Message(role="user", content="hello"),)], Sampling(max_tokens=8))
