"""Prompts: their lengths as real tokenizers count them, and nothing that a prefix cache could answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.errors import BitworthError
from bitworth.load.prompts import ANY_VOCABULARY, ExactText, Prompts, unseen_seed

LENGTHS = (2, 3, 17, 64, 511)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80), size=st.integers(2, 90), seed=st.integers(0))
def test_prompts_are_as_long_as_asked_and_start_apart(lengths: list[int], size: int, seed: int) -> None:
    vocabulary = range(10, 10 + size)
    prompts = Prompts(vocabulary, seed=seed)
    drawn = [prompts.draw(length) for length in lengths]
    assert [len(prompt) for prompt in drawn] == lengths
    assert {token for prompt in drawn for token in prompt} <= set(vocabulary)
    again = Prompts(vocabulary, seed=seed)
    assert [again.draw(length) for length in lengths] == drawn
    for begin in range(0, len(drawn), size):
        firsts = [prompt[0] for prompt in drawn[begin : begin + size]]
        assert len(set(firsts)) == len(firsts)


def test_no_block_of_a_prefix_cache_comes_twice() -> None:
    """vLLM caches blocks of 16 tokens; two runs of 2,000 prompts in its smallest vocabulary share none."""
    runs = [Prompts(ANY_VOCABULARY, seed=unseen_seed()) for _ in range(2)]
    blocks = [tuple(prompts.draw(32)[:16]) for prompts in runs for _ in range(2000)]
    assert len(set(blocks)) == 4000


def test_tokens_are_drawn_evenly() -> None:
    drawn = Prompts(range(50), seed=1).draw(100_000)
    assert np.bincount(drawn, minlength=50) == pytest.approx(np.full(50, 2000), abs=250)


def counted_by(folder: Path, texts: Sequence[str]) -> list[int]:
    """Tokens of each text as transformers counts them for the model, special ones included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [len(tokenizer(text).input_ids) for text in texts]


def check_texts(folder: Path) -> None:
    write, prompts = ExactText(folder), Prompts(range(60, 250), seed=3)
    texts = [write(prompts.draw(length)) for length in LENGTHS * 4]
    assert counted_by(folder, texts) == list(LENGTHS * 4)
    assert len({text[:20] for text in texts if len(text) > 20}) == sum(len(text) > 20 for text in texts)


def test_texts_have_exact_counts_a_byte_a_token(tiny_llama: Path) -> None:
    check_texts(tiny_llama)


def test_texts_have_exact_counts_with_a_bos(stories: Path) -> None:
    """A SentencePiece vocabulary of 512, whose tokenizer adds a BOS."""
    check_texts(stories)


@pytest.mark.slow
def test_texts_have_exact_counts_in_a_large_vocabulary(smollm2: Path) -> None:
    check_texts(smollm2)


def test_a_text_is_the_same_for_the_same_prompt(tiny_llama: Path) -> None:
    assert ExactText(tiny_llama)([70, 1, 2, 3]) == ExactText(tiny_llama)([70, 1, 2, 3])


def test_a_prompt_needs_room_beside_the_bos(stories: Path) -> None:
    with pytest.raises(BitworthError, match="leaves no room"):
        ExactText(stories)([5])


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="has no tokenizer"):
        ExactText(tmp_path)([5, 6, 7])
