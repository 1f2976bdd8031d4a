"""Writing in process: many completions at once behind a key-value cache.

Prompts of a batch are padded on the left and read once each; their keys and values are then copied to as many rows as
there are completions, and rows that have ended are dropped. Every completion draws from a stream of its own, made from
the seed, its prompt and its number: what is written does not depend on what else is in the batch (but for rounding),
and two formats of a model that are asked the same draw the same luck, so that their difference is less noisy than
two independent draws would make it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bitworth.engines.generator import Progress
from bitworth.engines.prompts import cut_at
from bitworth.errors import WorkFailed
from bitworth.types import Completion, Sampling

if TYPE_CHECKING:
    from bitworth.engines.torch import TorchModel

CPU_ROWS, GPU_ROWS = 32, 128
"""Completions written at once."""
CPU_PADDED, GPU_PADDED = 8192, 65536
"""Most prompt tokens, padding included, that are read at once."""
NUCLEUS = 256
"""The likeliest tokens, which nearly always hold `top_p`."""
LEAD = 8
"""Last tokens of the prompt that a text is decoded behind: alone, many tokenizers drop its first space."""
LOOK_BACK = 16
"""Last tokens of a text that are searched for a stop string, besides one for every character of the longest."""


@dataclass(slots=True)
class Row:
    """One completion being written."""

    prompt: int
    number: int
    lead: list[int]
    luck: np.random.Generator
    room: int
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None


@torch.inference_mode()
def write(
    engine: TorchModel, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
) -> list[list[Completion]]:
    """`sampling.n` completions of each prompt (token ids).

    A prompt that leaves too little of the context for `max_tokens` loses its beginning, but no more than half of the
    context goes to completions.
    """
    kept = [_fitted(list(prompt), engine.max_length, sampling.max_tokens) for prompt in prompts]
    rows = [
        Row(
            prompt=index,
            number=number,
            lead=kept[index][-LEAD:],
            luck=_luck(sampling.seed, number, prompts[index]),
            room=min(sampling.max_tokens, engine.max_length - len(kept[index])),
        )
        for index in sorted(range(len(prompts)), key=lambda index: -len(kept[index]))
        for number in range(sampling.n)
    ]
    done = 0
    for batch in _batches(engine, rows, kept):
        _write_batch(engine, batch, kept, sampling)
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    found: list[list[Completion]] = [[] for _ in prompts]
    for row in sorted(rows, key=lambda row: row.number):
        found[row.prompt].append(_completion(engine, row, sampling))
    return found


def _fitted(prompt: list[int], context: int, max_tokens: int) -> list[int]:
    return prompt[-max(context - max_tokens, context // 2) :]


def _luck(seed: int, number: int, prompt: Sequence[int]) -> np.random.Generator:
    """A stream of uniform draws for one completion."""
    digest = hashlib.sha256(repr((seed, number, list(prompt))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _batches(engine: TorchModel, rows: list[Row], prompts: Sequence[Sequence[int]]) -> list[list[Row]]:
    """Rows written together: a number of them, whose different prompts are not too many padded tokens."""
    gpu = engine.device.type == "cuda"
    most, padded = (GPU_ROWS, GPU_PADDED) if gpu else (CPU_ROWS, CPU_PADDED)
    if not engine.pads():
        most = 1
    batches: list[list[Row]] = []
    for row in rows:
        batch = batches[-1] if batches else []
        width = len(prompts[batch[0].prompt]) if batch else 0  # the first one is the longest
        different = len({other.prompt for other in batch} | {row.prompt})
        if not batch or len(batch) >= most or different * width > padded:
            batches.append([row])
        else:
            batch.append(row)
    return batches


def _write_batch(engine: TorchModel, rows: list[Row], prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Fill the rows' tokens."""
    distinct = list(dict.fromkeys(row.prompt for row in rows))
    step: Step | Whole = (Step if engine.pads() else Whole).over(engine, [prompts[index] for index in distinct])
    step.select([distinct.index(row.prompt) for row in rows])
    while True:
        for row, token in zip(rows, draw(step.logits_BV, [row.luck for row in rows], sampling), strict=True):
            _add(engine, row, token, sampling)
        alive = [at for at, row in enumerate(rows) if row.finish is None]
        if not alive:
            return
        if len(alive) < len(rows):
            step.select(alive)
            rows = [rows[at] for at in alive]
        step.read([row.tokens[-1] for row in rows])


@dataclass(slots=True)
class Step:
    """A batch between two tokens: what is cached of its rows, and what they predict next."""

    engine: TorchModel
    cache: Any
    mask_BT: Tensor
    logits_BV: Tensor

    @classmethod
    def over(cls, engine: TorchModel, prompts: Sequence[Sequence[int]]) -> Step:
        """Read prompts, padded on the left."""
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        tokens_BT = torch.tensor([[0] * lack + list(p) for lack, p in zip(padding, prompts, strict=True)])
        mask_BT = torch.tensor([[0] * lack + [1] * (width - lack) for lack in padding], device=engine.device)
        found = cls(engine, None, mask_BT, torch.empty(0))
        found._forward(tokens_BT, (mask_BT.cumsum(-1) - 1).clamp(min=0))
        return found

    def read(self, tokens: Sequence[int]) -> None:
        """One more token a row."""
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(tokens), 1)], dim=1)
        self._forward(torch.tensor(tokens)[:, None], self.mask_BT.sum(-1, keepdim=True) - 1)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, a row as often as it is named."""
        if list(rows) == list(range(len(self.mask_BT))):
            return
        at = torch.tensor(rows, device=self.engine.device)
        self.cache.reorder_cache(at)
        self.mask_BT, self.logits_BV = self.mask_BT[at], self.logits_BV[at]

    def _forward(self, tokens_BT: Tensor, positions_BT: Tensor) -> None:
        even = bool(self.mask_BT.all())  # without padding the kernels need no mask
        output = self.engine.model(
            input_ids=tokens_BT.to(self.engine.device),
            attention_mask=None if even else self.mask_BT,
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache, self.logits_BV = output.past_key_values, output.logits[:, -1].float()


@dataclass(slots=True)
class Whole:
    """What `Step` is, for models whose rows we cannot pad or cache: every row is read again from its start."""

    engine: TorchModel
    rows: list[list[int]]
    logits_BV: Tensor

    @classmethod
    def over(cls, engine: TorchModel, prompts: Sequence[Sequence[int]]) -> Whole:
        """Read prompts."""
        found = cls(engine, [list(prompt) for prompt in prompts], torch.empty(0))
        found._forward()
        return found

    def read(self, tokens: Sequence[int]) -> None:
        """One more token a row."""
        self.rows = [[*row, token] for row, token in zip(self.rows, tokens, strict=True)]
        self._forward()

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, a row as often as it is named."""
        self.rows, self.logits_BV = [self.rows[at] for at in rows], self.logits_BV[list(rows)]

    def _forward(self) -> None:
        self.logits_BV = torch.stack([self.engine.logits(torch.tensor([row]))[0, -1] for row in self.rows])


def draw(logits_BV: Tensor, luck: Sequence[np.random.Generator], sampling: Sampling) -> list[int]:
    """One token a row: the likeliest at temperature 0, else by inverting the distribution within `top_p`.

    Raises:
        WorkFailed: the model gives numbers that are none.
    """
    if bool(torch.isnan(logits_BV).any()):
        raise WorkFailed("The model predicts NaN, so it cannot write; its weights or its format are damaged.")
    if sampling.temperature == 0:
        return [int(token) for token in logits_BV.argmax(-1)]
    chances_BK, tokens_BK = _nucleus((logits_BV.double() / sampling.temperature).softmax(-1), sampling.top_p)
    reached_BK = chances_BK.cumsum(-1)
    uniform_B1 = torch.tensor([[stream.random()] for stream in luck], dtype=torch.float64, device=logits_BV.device)
    place_B1 = torch.searchsorted(reached_BK, uniform_B1 * reached_BK[:, -1:], right=True)
    last_B1 = (reached_BK < reached_BK[:, -1:]).sum(-1, keepdim=True)  # the last token that has a chance
    place_B1 = torch.minimum(place_B1, last_B1)
    return [int(token) for token in (place_B1 if tokens_BK is None else tokens_BK.gather(-1, place_B1))[:, 0]]


def _nucleus(chances_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor | None]:
    """The likeliest tokens' probabilities, descending and 0 beyond `top_p`, and the tokens (None: all, in order).

    The token that crosses `top_p` is kept (nucleus sampling, arXiv 1904.09751).
    """
    if top_p >= 1:
        return chances_BV, None
    chances_BK, tokens_BK = chances_BV.topk(min(NUCLEUS, chances_BV.shape[-1]), -1)
    if bool((chances_BK.sum(-1) < top_p).any()):  # sorting a whole vocabulary is slow, and seldom needed
        chances_BK, tokens_BK = chances_BV.sort(dim=-1, descending=True, stable=True)
    before_BK = chances_BK.cumsum(-1) - chances_BK
    return chances_BK.masked_fill(before_BK >= top_p, 0.0), tokens_BK


def _add(engine: TorchModel, row: Row, token: int, sampling: Sampling) -> None:
    row.tokens.append(token)
    if token in engine.ends or _stopped(engine, row, sampling.stop):
        row.finish = "stop"
    elif len(row.tokens) >= row.room:
        row.finish = "length"


def _stopped(engine: TorchModel, row: Row, stop: tuple[str, ...]) -> bool:
    """Whether the text's end holds a stop string; only the last tokens are looked at, since it was not there before."""
    if not stop:
        return False
    tail = row.tokens[-(LOOK_BACK + max(map(len, stop))) :]
    return cut_at(_decode(engine, tail), stop)[1]


def _completion(engine: TorchModel, row: Row, sampling: Sampling) -> Completion:
    lead = _decode(engine, row.lead)
    text = _decode(engine, row.lead + [token for token in row.tokens if token not in engine.ends])
    # a character that the prompt left half written comes out as another one
    text = text[len(lead) :] if text.startswith(lead) else _decode(engine, row.tokens)
    return Completion(
        text=cut_at(text, sampling.stop)[0], finish="stop" if row.finish == "stop" else "length", tokens=len(row.tokens)
    )


def _decode(engine: TorchModel, tokens: Sequence[int]) -> str:
    """Without special tokens: a conversation's marks are no part of what the model says."""
    return str(engine.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pads(engine: TorchModel) -> bool:
    """Whether padded, cached and reordered rows give this architecture's own answers; tried on three rows."""
    last = engine.model.config.get_text_config().vocab_size - 1
    first, second = ([min(token, last) for token in ids] for ids in ([5, 7, 11, 13, 17], [19, 23, 29]))
    alone = [engine.logits(torch.tensor([ids]))[0, -1] for ids in (first, second)]
    try:
        step = Step.over(engine, [first[:-1], second[:-1]])
        step.select([1, 0, 1])
        step.read([second[-1], first[-1], second[-1]])
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, IndexError):
        return False  # a cache that cannot be reordered, or no mask or positions of ours
    wanted = torch.stack([alone[1], alone[0], alone[1]])
    return torch.allclose(wanted, step.logits_BV, rtol=1e-3, atol=1e-3)
