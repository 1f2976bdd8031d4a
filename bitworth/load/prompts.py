"""Synthetic prompts of exact token counts that no prefix cache can answer: each differs from its first token on.

A server that keeps running would also know the prompts of an earlier benchmark, so `unseen_seed` is new each time; what
a seed that the user gives decides is when requests come and how long they are.

Prompts are token ids, which servers of vLLM's kind take as they are. For a server that takes text only, `ExactText`
writes one that its tokenizer cuts into exactly as many tokens, those that it adds of itself (BOS) included.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bitworth.errors import BitworthError
from bitworth.guard.documents import config_of
from bitworth.guard.models import no_tokenizer

#: For an engine without a model folder: bytes and punctuation in every common vocabulary.
ANY_VOCABULARY = range(3, 256)
#: Words that texts are made of; more would take long to find in a large vocabulary.
_MOST_WORDS = 8192
_MOST_TOKENS = 1 << 22
_ROUNDS = 200


class Prompts:
    """Draws prompts of random tokens; first tokens repeat only when the whole vocabulary has been used."""

    def __init__(self, vocabulary: Sequence[int], *, seed: int) -> None:
        """Draw from these ids, which are all ordinary tokens."""
        self._generator = np.random.default_rng(seed)
        self._tokens = np.asarray(vocabulary, dtype=np.uint32)
        self._firsts: list[int] = []

    def draw(self, length: int) -> array[int]:
        """The next prompt: `length` ids of 4 bytes each, since there may be millions of them."""
        if not self._firsts:
            self._firsts = self._generator.permutation(self._tokens).tolist()
        prompt = array("I", self._generator.choice(self._tokens, length).astype("=u4").tobytes())
        prompt[0] = self._firsts.pop()
        return prompt


def unseen_seed() -> int:
    """A seed of prompts that no server has seen."""
    return secrets.randbits(63)


def ordinary_tokens(checkpoint: Path) -> list[int]:
    """Ids that the model embeds and its tokenizer does not call special, ascending.

    Raises:
        BitworthError: config.json is missing or names no vocabulary.
    """
    config = _json(checkpoint / "config.json")
    if config is None:
        raise BitworthError(f"{checkpoint} has no readable config.json, so it is not a model folder.")
    text = _part(config, "text_config") or config
    size = text.get("vocab_size") or config.get("vocab_size")
    if type(size) is not int or not 2 <= size <= _MOST_TOKENS:
        raise BitworthError(f"{checkpoint}/config.json gives no vocab_size to draw prompts from.")
    special = {token for name in ("bos", "eos", "pad") for token in _whole(text.get(f"{name}_token_id"))}
    tokenizer = _json(checkpoint / "tokenizer.json") or {}
    added = tokenizer.get("added_tokens")
    special |= _whole([row.get("id") for row in added if isinstance(row, dict)] if isinstance(added, list) else None)
    known = _ids(_part(tokenizer, "model").get("vocab"))
    tokens = [token for token in range(size) if token not in special and (known is None or token in known)]
    return tokens or list(range(size))


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The object of that name; empty where it is none."""
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _whole(ids: Any) -> set[int]:
    """The whole numbers among one or several."""
    return {token for token in (ids if isinstance(ids, list) else [ids]) if type(token) is int}


def _ids(vocabulary: Any) -> set[int] | None:
    """Ids of a tokenizer's vocabulary: text to id, or [text, score] in order of ids."""
    if isinstance(vocabulary, dict):
        return _whole(list(vocabulary.values()))
    return set(range(len(vocabulary))) if isinstance(vocabulary, list) else None


def _json(path: Path) -> dict[str, Any] | None:
    """A file's JSON object, or None where there is none."""
    try:
        return config_of(path.read_bytes())
    except (OSError, ValueError):
        return None


class ExactText:
    """Token ids to a text of exactly as many tokens; texts differ from their first token on.

    The text is other words than the ids: only words that stay whole beside any other word have a count that one can
    rely on.
    """

    def __init__(self, folder: Path) -> None:
        """Write for the tokenizer of a model folder, which is loaded when it is first needed."""
        self._folder = folder
        self._started: dict[int, int] = {}
        self._unused: list[int] = []

    def __call__(self, prompt: Sequence[int]) -> str:
        """A text that the tokenizer cuts into `len(prompt)` tokens, its own special ones included.

        Raises:
            BitworthError: there is no such text, or no tokenizer.
        """
        generator = np.random.default_rng([*prompt[:8]])
        count = len(prompt) - len(self.encode(""))
        if count < 1:
            raise BitworthError(f"A prompt of {len(prompt)} tokens leaves no room for text beside the tokenizer's own.")
        words = [self._first(prompt[0]), *self._draw(generator, count - 1)]
        for _ in range(_ROUNDS):
            text = self._decode(words)
            excess = len(self.encode(text)) - len(prompt)
            if not excess:
                return text
            # Other words stand at the end each time, so that a joint that merges does not come back.
            size = max(1, len(words) - excess)
            kept = max(1, min(len(words), size) - 1)
            words = words[:kept] + self._draw(generator, size - kept)
        raise BitworthError(f"The tokenizer of {self._folder} cuts no text into exactly {len(prompt)} tokens.")

    def encode(self, text: str) -> list[int]:
        """The ids that a server counts."""
        return [int(token) for token in self._tokenizer(text, verbose=False)["input_ids"]]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def _draw(self, generator: np.random.Generator, count: int) -> list[int]:
        found: list[int] = generator.choice(self._words, count).tolist()
        return found

    def _first(self, wanted: int) -> int:
        """The word that stands for prompts beginning with that token, and for no others as long as there are enough."""
        if wanted not in self._started:
            self._unused = self._unused or list(self._words)
            self._started[wanted] = self._unused.pop()
        return self._started[wanted]

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            absent = f"The server takes text only, and {self._folder} has no tokenizer that transformers can load."
            raise BitworthError(no_tokenizer(self._folder, absent)) from error

    @cached_property
    def _words(self) -> list[int]:
        """Tokens that come back alone and beside one another; whole words if the tokenizer has them."""
        special = set(self._tokenizer.all_special_ids)
        ids = np.random.default_rng(0).permutation(len(self._tokenizer)).tolist()
        own = len(self.encode(""))
        spelled = self._tokenizer.convert_ids_to_tokens(ids[: 4 * _MOST_WORDS])
        starts = [
            token for token, text in zip(ids, spelled, strict=False) if text and text[0] in "Ġ▁" and len(text) > 1
        ]
        for pool in (starts, ids[: 4 * _MOST_WORDS]):
            known = [token for token in pool if token not in special and self._stable(token, own)][:_MOST_WORDS]
            if len(known) > 1:
                return known
        raise BitworthError(f"The tokenizer of {self._folder} has no two tokens that it cuts text into.")

    def _stable(self, token: int, own: int) -> bool:
        """Whether the token's text, once and twice in a row, is cut into that token, once and twice."""
        return all(
            len(ids := self.encode(self._decode([token] * times))) == own + times and ids.count(token) == times
            for times in (1, 2)
        )
