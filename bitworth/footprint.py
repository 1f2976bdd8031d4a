"""How much memory quantizing needs at its peak, from shapes alone: it grows with the widest block, not with depth.

    peak = process + block + moments + activations + attention + waiting + states + learning

with, in float32 and for P weights in the largest block, I the widest input, D hidden states, C tokens a chunk, N in
all, T in a sequence, H heads, R recipes of which S have hidden states of their own and L learn on after rounding:

    block        5/2 P + 8 rows I  weights, dropped as they are rounded, and a stage's, transformed; codes and rounded
                                   weights; what is held of the rows that are rounded together. (2 + 5/4 R) P where R
                                   recipes are made of the same weights, which learning and the unquantized stream need
    moments      5/2 I²            the Hessian in the place of Σ x xᵀ, its ordered copy that becomes its factor, what
                                   its inversion holds; Σ too where a scale is searched by what GPTQ would lose;
                                   where recipes share the unquantized stream Σ and a transformed one, and all
                                   stages' where it has several chunks; all experts' at once where there are several
    activations  C (4 I + 4 D)     one chunk inside the block
    attention    C T (3 H + 2)     scores where they are a tensor: products, what is added to them, and shares; masks
                                   of two kinds. None where torch has a fused kernel for the architecture's attention
    waiting      N (3 D + max(I, 2 D))   a recipe's chunks that wait there for one another, and N T H to 3 N T H for
                                   code that holds its scores until the attention's last layer is through; none where
                                   there is one chunk, where it would exceed the states' budget, and in mixtures
    states       (1 + S) N D       the streams' and those being replaced; two chunks where they lie in files; where
                                   any learn, (2 + S + L) N D and four chunks: the unquantized model's beside them
    learning     3 P + T (8 I + 16 D)   codes before rounding, weights and their gradients; what the T tokens
                                   that a step reads leave inside the block for them
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch.nn.attention import SDPBackend

from bitworth.model import Decoder
from bitworth.quantizers.gptq import rows_at_once
from bitworth.streams import walks_alone
from bitworth.types import GptqScale, Recipe

_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """MiB at the peak, by what they hold; hidden states lie in files where they exceed their budget."""

    peak_mib: float
    process_mib: float
    block_mib: float
    moments_mib: float
    activations_mib: float
    attention_mib: float
    waiting_mib: float
    states_mib: float
    learning_mib: float
    states_in_files: bool


def footprint(
    decoder: Decoder,
    recipes: Sequence[Recipe],
    *,
    tokens: int,
    length: int,
    chunk_tokens: int,
    shared: bool,
    states_mib: float | None = None,
) -> Footprint:
    """What `quantize` would need.

    Args:
        decoder: the model.
        recipes: made together.
        tokens: of calibration, in all.
        length: tokens of one sequence.
        chunk_tokens: that pass a block at once.
        shared: GPTQ reads the unquantized stream.
        states_mib: most memory for hidden states; half of what is free unless given.
    """
    calibrated = [recipe for recipe in recipes if recipe.needs_calibration]
    alone = [recipe for recipe in calibrated if walks_alone(recipe, shared=shared)]
    streams = len(alone) + (len(calibrated) > len(alone))
    read = [recipe.tuning.read(length) for recipe in recipes if recipe.tuning is not None]
    learning = len(read)
    turning = 1 + (learning > 0)  # sets of hidden states that a block replaces
    largest = max(_blocks(decoder).values())
    widths, of_experts = _widths(decoder)
    widest = max(*widths, *of_experts)
    all_states = (streams + learning + bool(streams) * turning) * tokens * decoder.width * _FLOAT
    budget = states_budget(states_mib)
    waiting = waiting_bytes(decoder, tokens, length) if alone and tokens > chunk_tokens and not of_experts else 0
    in_files = (streams + learning) * tokens * decoder.width * _FLOAT > budget
    foreseen = any(isinstance(transform, GptqScale) for recipe in calibrated for transform in recipe.transforms)
    copies = 4 if len(alone) < len(calibrated) else 1.5 + foreseen  # beside the sum itself
    moments = (1 + copies) * widest**2
    if tokens > chunk_tokens and alone and of_experts:  # those of a level are measured in one pass
        level = max(width**2 * count for width, count in Counter(of_experts).items())
        moments = max(moments, level + copies * widest**2)
    if tokens > chunk_tokens and len(alone) < len(calibrated):
        moments = max(moments, sum(width**2 for width in (*set(widths), *of_experts)) + copies * widest**2)
    parts = {
        "process_mib": float(psutil.Process().memory_info().rss),
        "block_mib": (_copies(recipes, shared) * largest + bool(calibrated) * 8 * rows_at_once() * widest) * _FLOAT,
        "moments_mib": bool(calibrated) * moments * _FLOAT,
        "activations_mib": min(chunk_tokens, tokens) * (4 * widest + 4 * decoder.width) * _FLOAT,
        "attention_mib": bool(calibrated) * _attention_bytes(decoder, max(length, min(chunk_tokens, tokens)), length),
        "waiting_mib": waiting if waiting <= budget else 0,
        "states_mib": 2 * turning * min(chunk_tokens, tokens) * decoder.width * _FLOAT if in_files else all_states,
        "learning_mib": bool(read) * (3 * largest + max(read, default=0) * (8 * widest + 16 * decoder.width)) * _FLOAT,
    }
    named = {name: round(size / 2**20, 1) for name, size in {**parts, "peak_mib": sum(parts.values())}.items()}
    return Footprint(**named, states_in_files=in_files)


def _copies(recipes: Sequence[Recipe], shared: bool) -> float:
    """How many times a block's weights are held at most, by the recipes that are made of it at once."""
    without = [recipe for recipe in recipes if not recipe.needs_calibration]
    alone = [recipe for recipe in recipes if walks_alone(recipe, shared=shared)]
    together = len(recipes) - len(without) - len(alone)
    kept = max(len(without), together, any(recipe.tuning is not None for recipe in alone))
    return max(2 + 1.25 * kept if kept else 0, 2.5 if alone else 0)


def states_budget(states_mib: float | None) -> float:
    """Most bytes for hidden states: half of what is free, unless said."""
    return states_mib * 2**20 if states_mib is not None else psutil.virtual_memory().available / 2


def waiting_bytes(decoder: Decoder, tokens: int, length: int) -> int:
    """What chunks of so many tokens in all, in sequences of `length`, hold while they wait inside a block.

    The residual stream, the normed states and the stage's input; at the attention's end its queries, keys and values,
    and its scores.
    """
    widest = max(max(widths, default=0) for widths in _widths(decoder))
    states = 3 * decoder.width + max(widest, 2 * decoder.width)
    return tokens * (states * decoder.compute.itemsize + length * _held_bytes(decoder))


def _attention_bytes(decoder: Decoder, tokens: int, length: int) -> int:
    """Scores and masks of a chunk of so many tokens; nothing where they are never a tensor."""
    if not _is_eager(decoder) and _is_fused(decoder):
        return 0
    return tokens * length * (_score_bytes(decoder) + 2 * _FLOAT)


def _held_bytes(decoder: Decoder) -> int:
    """What all heads still hold of a pair of tokens in the attention's last layer, at most.

    Where the attention is a function of its own that is its shares; code that is written out holds its steps as well.
    """
    if not _is_eager(decoder):
        return 0
    apart = decoder.model._supports_attention_backend
    return _heads(decoder) * decoder.compute.itemsize if apart else _score_bytes(decoder)


def _score_bytes(decoder: Decoder) -> int:
    """What all heads hold of a pair of tokens; shares are taken in float32 and put into what is computed in."""
    return _heads(decoder) * (2 * decoder.compute.itemsize + _FLOAT)


def _heads(decoder: Decoder) -> int:
    return int(getattr(decoder.model.config.get_text_config(), "num_attention_heads", 0))


def _is_eager(decoder: Decoder) -> bool:
    """Whether transformers multiplies and adds as written, having no other attention for the class."""
    return bool(decoder.model.config.get_text_config()._attn_implementation == "eager")


def _is_fused(decoder: Decoder) -> bool:
    """Whether torch has a kernel that never holds the scores; on a CPU none takes values narrower than keys."""
    text = decoder.model.config.get_text_config()
    parts = [getattr(text, f"qk_{part}_head_dim", None) or 0 for part in ("nope", "rope")]
    keys: int = sum(parts) or getattr(text, "head_dim", None) or 64
    values: int = getattr(text, "v_head_dim", None) or keys
    states = torch.empty(1, 1, 2, max(keys, values), device=decoder.device, dtype=decoder.compute)
    chosen = torch._fused_sdp_choice(states[..., :keys], states[..., :keys], states[..., :values])
    return chosen != SDPBackend.MATH.value


def _widths(decoder: Decoder) -> tuple[list[int], list[int]]:
    """Inputs' widths in the block that has most layers: of its own layers, and of each expert's, whose equals share."""
    by_block: dict[str, dict[str, int]] = defaultdict(dict)
    for name, (_, columns) in decoder.linear_shapes().items():
        by_block[name.removeprefix(f"{decoder.prefix}.").split(".")[0]][name] = columns
    block = max(by_block.values(), key=len)
    experts = {(name.rpartition(".")[0], width) for name, width in block.items() if ".experts." in name}
    return [width for name, width in block.items() if ".experts." not in name], [width for _, width in experts]


def _blocks(decoder: Decoder) -> dict[str, int]:
    """Weights of each block."""
    sizes: dict[str, int] = defaultdict(int)
    for name in decoder.reader.names:
        inside = decoder.names.of(name)
        if inside.startswith(f"{decoder.prefix}."):
            index = inside.removeprefix(f"{decoder.prefix}.").split(".")[0]
            sizes[index] += math.prod(decoder.reader.shape(name))
    return sizes
