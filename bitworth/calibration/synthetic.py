"""Calibration without text of the user's: random tokens, and what the model itself writes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitworth import fingerprint
from bitworth.audit import special_ids
from bitworth.checkpoint import read_config
from bitworth.engines.torch import TorchModel, load_exact
from bitworth.errors import BitworthError
from bitworth.sources import cache_folder
from bitworth.sources.cache import cached

Progress = Callable[[str, int, int], None]

ROWS_AT_ONCE = 32
"""Sequences that are generated side by side."""


def random_tokens(model: Path, tokenizer: Any, *, samples: int, length: int, bos: int | None, seed: int) -> Tensor:
    """(samples, length) ids, uniform over the vocabulary without special tokens; `bos` goes first where it is given.

    Raises:
        BitworthError: the vocabulary holds special tokens only.
    """
    known = _vocabulary(model)
    barred = special_ids(tokenizer)
    words = torch.tensor(sorted({id for id in tokenizer.get_vocab().values() if id < known and id not in barred}))
    if not len(words):
        raise BitworthError("The model's vocabulary holds special tokens only, so none can be drawn; name a file.")
    chosen = torch.randint(len(words), (samples, length), generator=torch.Generator().manual_seed(seed))
    tokens_ST = words[chosen]
    if bos is not None:
        tokens_ST[:, 0] = bos
    return tokens_ST


def own_text(
    model: Path, tokenizer: Any, *, samples: int, length: int, keep_bos: bool, seed: int, progress: Progress
) -> Tensor:
    """(samples, length) ids that the model writes at temperature 1, kept in the cache for the study's other recipes.

    See `write` for how; without `keep_bos` the token that they start from is left out.

    Raises:
        BitworthError: the sequences exceed the model's context, it has no token to start from, or it does not fit.
        WorkFailed: the cache cannot be written.
    """
    asked = [fingerprint.of_model(model, cache_folder()), samples, length, keep_bos, seed]
    made_by = [version("torch"), version("transformers")]
    digest = hashlib.sha256(repr([*asked, *made_by]).encode()).hexdigest()[:20]

    def build(folder: Path) -> None:
        engine = load_exact(model)
        extra = 0 if keep_bos else 1
        tokens_ST = write(engine, tokenizer, samples=samples, length=length + extra, seed=seed, progress=progress)
        torch.save(tokens_ST[:, extra:].clone(), folder / "tokens.pt")

    found: Tensor = torch.load(cached(f"own-text-{digest}", "1", build) / "tokens.pt", weights_only=True)
    return found


@torch.inference_mode()
def write(
    engine: TorchModel, tokenizer: Any, *, samples: int, length: int, seed: int, progress: Progress = lambda *_: None
) -> Tensor:
    """(samples, length) ids: the start token and what the model samples after it, at temperature 1 and no truncation.

    The start token is BOS, or EOS where there is none. A text that ends goes on with the start token and another text,
    as training data is packed. A sequence depends on the seed and its own number, not on how many there are.

    Raises:
        BitworthError: see `own_text`.
    """
    if length > engine.max_length:
        raise BitworthError(
            f"The model cannot write calibration sequences of {length} tokens: its context is {engine.max_length}; "
            "ask for a smaller length."
        )
    start, ends = _start(tokenizer), _ends(engine, tokenizer)
    luck_ST = torch.rand(samples, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = []
    try:
        for at in range(0, samples, ROWS_AT_ONCE):
            rows.append(_write_rows(engine, luck_ST[at : at + ROWS_AT_ONCE], start, ends, len(tokenizer)))
            progress("writing calibration text", min(at + ROWS_AT_ONCE, samples), samples)
    except torch.OutOfMemoryError as error:
        raise BitworthError(
            "The model does not fit whole in this device's memory, so it cannot write its own calibration text; "
            "calibrate on a file or on `random`."
        ) from error
    return torch.cat(rows)


def _write_rows(engine: TorchModel, luck_BT: Tensor, start: int, ends: set[int], known: int) -> Tensor:
    from transformers import DynamicCache

    cache = DynamicCache(config=engine.model.config)
    # Where texts start and end with the same token, an end is the next start already.
    stops = torch.tensor(sorted(ends - {start}), dtype=torch.long)
    tokens_BT = torch.full(luck_BT.shape, start)
    for at in range(1, luck_BT.shape[1]):
        last = tokens_BT[:, at - 1 : at].to(engine.device)
        output = engine.model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
        # Rows past the tokenizer's vocabulary pad the matrix; they were never trained.
        chances_BV = output.logits[:, -1, :known].double().softmax(-1).cpu()
        reached_BV = chances_BV.cumsum(-1)
        wanted_B1 = luck_BT[:, at : at + 1] * reached_BV[:, -1:]
        drawn = torch.searchsorted(reached_BV, wanted_B1, right=True)[:, 0].clamp(max=reached_BV.shape[1] - 1)
        tokens_BT[:, at] = torch.where(torch.isin(tokens_BT[:, at - 1], stops), start, drawn)
    return tokens_BT


def _start(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise BitworthError(
        "The tokenizer has neither BOS nor EOS, so the model has no token to start a text from; calibrate on a file or "
        "on `random`."
    )


def _ends(engine: TorchModel, tokenizer: Any) -> set[int]:
    """Tokens that end a text: the tokenizer's and the config's, which may be several."""
    listed = getattr(engine.model.config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    return {int(token) for token in found if token is not None}


def _vocabulary(model: Path) -> int:
    """Rows of the model's embeddings; a tokenizer may know more ids than that."""
    config = read_config(model)
    size: int = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 2**31
    return size
