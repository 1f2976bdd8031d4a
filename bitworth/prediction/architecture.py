"""The sizes of a decoder, from its config.json alone: what each token multiplies with and leaves in the cache.

>>> read_architecture({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
...                    "vocab_size": 100}).kv_elements
256
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import config_of
from bitworth.prediction.families import UNGATED, blocks_that_see_all, is_tied, with_defaults

#: What families call the number of experts, those a token uses, and those that every token uses.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k")
#: The same by names of families that are not predicted.
_ALSO_CHOSEN = ("moe_topk",)
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


_LARGEST, _MOST_LAYERS = 2**31, 10_000
"""Sizes beyond these are a mistake, and would only be multiplied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder in numbers; `layers` counts all blocks, `mixtures` those whose MLP is a mixture of experts.

    `matrices` is 3 where an MLP has a gate, 2 where it has none; `shared_width` is the width of the experts that every
    token uses. `window` is the greatest distance that attention looks back, None where it sees everything, and
    `seeing_all` how many blocks see everything all the same; `context` the most tokens of a prompt and its answer, None
    where the config does not say.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    vocabulary: int
    matrices: int = 3
    mixtures: int = 0
    experts: int = 0
    chosen: int = 0
    expert_width: int = 0
    shared_width: int = 0
    window: int | None = None
    seeing_all: int = 0
    context: int | None = None
    tied: bool = False

    @property
    def attention_weights(self) -> int:
        """Weights of the four attention projections, all blocks."""
        return self.layers * self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def head_weights(self) -> int:
        """Weights of the output head, which stays in 16 bits."""
        return self.hidden * self.vocabulary

    @property
    def kv_elements(self) -> int:
        """Numbers that one token leaves in the key-value cache, all blocks."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def windowed(self) -> float:
        """Share of the blocks that look no further back than the window."""
        return 0.0 if self.window is None else 1 - self.seeing_all / self.layers

    def kept_tokens(self, context: float) -> float:
        """Tokens of a context that the blocks look at, on average."""
        window = context if self.window is None else min(context, self.window)
        return (1 - self.windowed) * context + self.windowed * window

    @property
    def cached_blocks(self) -> tuple[int, int]:
        """Blocks that the cache has room for: those that see everything, and those that have a window.

        Where there are both, vLLM puts blocks of a kind in groups of one size and fills the last group up: the size is
        the number of the rarer kind, or of the other where that is less than half as many again
        (`v1/core/kv_cache_utils.py`).
        """
        windowed = 0 if self.window is None else self.layers - self.seeing_all
        whole = self.layers - windowed
        if not whole or not windowed:
            return whole, windowed
        least, most = sorted((whole, windowed))
        group = most if most < 1.5 * least else least
        return math.ceil(whole / group) * group, math.ceil(windowed / group) * group

    def held_tokens(self, context: float, beside: float = 0.0) -> float:
        """Tokens of all blocks whose room in the cache a request takes: of a window, that and `beside` at most.

        What is `beside` a window is what passes that are under way have added: what they leave behind is given back
        once they are done.
        """
        whole, windowed = self.cached_blocks
        return (whole * context + windowed * min(context, (self.window or 0) + beside)) / self.layers

    def kv_heads_on(self, devices: int) -> int:
        """Key-value heads that each of so many devices holds; where they are more, each holds a copy of one."""
        return max(1, self.kv_heads // devices)

    def unsplittable(self, devices: int) -> str | None:
        """Why so many devices cannot share a block, or None: vLLM gives each the same number of heads and columns."""
        if self.heads % devices:
            return f"{self.heads} attention heads cannot be shared by {devices} devices"
        if max(self.kv_heads, devices) % min(self.kv_heads, devices):
            return f"{self.kv_heads} key-value heads cannot be shared by {devices} devices"
        widths = (self.width if self.mixtures < self.layers else 0, self.expert_width, self.shared_width)
        uneven = next((width for width in widths if width % devices), None)
        return f"MLPs of {uneven} columns cannot be shared by {devices} devices" if uneven else None

    @property
    def stored_weights(self) -> int:
        """Weights of the quantized linear layers that memory must hold."""
        return self.attention_weights + self._mlps(self.experts)

    @property
    def used_weights(self) -> int:
        """Weights of the quantized linear layers that one token multiplies with."""
        return self.attention_weights + self._mlps(self.chosen)

    @property
    def router_weights(self) -> int:
        """Weights that choose experts, which stay in 16 bits."""
        return self.mixtures * self.hidden * self.experts

    @property
    def kept_weights(self) -> int:
        """Weights that memory holds in 16 bits: embedding, head where it is another matrix, routers."""
        return self.head_weights * (1 if self.tied else 2) + self.router_weights

    def read_weights(self, tokens: float) -> float:
        """Weights of the quantized layers that a pass over `tokens` reads, each token choosing experts at random.

        An expert is missed by one token with probability 1 - chosen / experts, by all with that to the power `tokens`.
        """
        if not self.mixtures:
            return self.stored_weights
        hit = 1 - (1 - self.chosen / self.experts) ** tokens
        return self.attention_weights + self._mlps(self.experts * hit)

    def _mlps(self, experts: float) -> int:
        dense = (self.layers - self.mixtures) * self.width
        mixed = self.mixtures * (experts * self.expert_width + self.shared_width)
        return int(self.matrices * self.hidden * (dense + mixed))


def read_architecture(source: Path | Mapping[str, Any]) -> Architecture:
    """The architecture of a model folder, a folder that holds a config.json alone, the file itself, or its content.

    Raises:
        BitworthError: there is no such file, it is not JSON, or it lacks a size.
    """
    config, where = (_load(source), source) if isinstance(source, Path) else (source, "the config")
    text = config.get("text_config") or config
    if not isinstance(text, Mapping):
        raise BitworthError(f"{where} has a text_config that is no object; it should be the language model's sizes.")
    if text.get("kv_lora_rank"):
        raise BitworthError(f"{where} describes latent attention (kv_lora_rank), which bitworth does not predict yet.")
    text = with_defaults(text)

    def size(*names: str, default: int | None = None, most: int = _LARGEST) -> int:
        found = next((text[name] for name in names if text.get(name) is not None), default)
        if type(found) is not int or not 0 <= found <= most or (found == 0 and default != 0):
            raise BitworthError(f"{where} gives no usable {names[0]}; it should be a whole number from 1 to {most}.")
        return found

    layers, hidden = size("num_hidden_layers", "n_layer", most=_MOST_LAYERS), size("hidden_size", "n_embd")
    heads = size("num_attention_heads", "n_head", most=hidden)
    experts = size(*_EXPERTS, default=0)
    width = size("intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden)
    mixtures = _mixtures(text, layers, size) if experts else 0
    expert_width = size("moe_intermediate_size", default=width)
    always = 1 if text.get("model_type") == "llama4_text" else 0
    shared = size("shared_expert_intermediate_size", default=size(*_SHARED, default=always) * expert_width)
    one_kv_head = text.get("multi_query") and not text.get("new_decoder_architecture")
    window = size("sliding_window", "attention_chunk_size", default=0)
    seeing_all = blocks_that_see_all(text, layers) if window else 0
    if mixtures and size(*_CHOSEN) > experts:
        raise BitworthError(f"{where} lets a token choose more experts than there are ({experts}).")
    return Architecture(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=1 if one_kv_head else size("num_key_value_heads", "num_kv_heads", default=heads),
        head_dim=size("head_dim", default=hidden // heads),
        width=size("intermediate_size_mlp", default=width),
        vocabulary=size("vocab_size"),
        matrices=2 if str(text.get("model_type")) in UNGATED else 3,
        mixtures=mixtures,
        experts=experts if mixtures else 0,
        chosen=size(*_CHOSEN) if mixtures else 0,
        expert_width=expert_width if mixtures else 0,
        shared_width=shared if mixtures else 0,
        window=window if window and seeing_all < layers else None,
        seeing_all=seeing_all if seeing_all < layers else 0,
        context=_context(text, size),
        tied=is_tied(text, config),
    )


def chosen_share(config: Mapping[str, Any]) -> float:
    """The part of a mixture's experts that a token uses; 1 where the config tells of none, or in another way."""
    text = config.get("text_config") or config
    experts, chosen = (
        next((text[name] for name in names if isinstance(text.get(name), int) and text[name] > 0), 0)
        for names in (_EXPERTS, (*_CHOSEN, *_ALSO_CHOSEN))
    )
    return min(1.0, chosen / experts) if experts and chosen else 1.0


def _mixtures(text: Mapping[str, Any], layers: int, size: Callable[..., int]) -> int:
    """Blocks with experts: all but the first dense ones, those listed as dense, or every n-th."""
    dense, first = _listed(text, "mlp_only_layers"), size("first_k_dense_replace", "moe_layer_start_index", default=0)
    step = size("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", default=1)
    return sum((index + 1) % step == 0 and index >= first and index not in dense for index in range(layers))


def _context(text: Mapping[str, Any], size: Callable[..., int]) -> int | None:
    """The most tokens that positions reach to; rotations that are stretched reach further (as vLLM reads configs)."""
    longest = size("max_position_embeddings", "n_positions", default=0)
    stretched = text.get("rope_parameters") or text.get("rope_scaling")
    kind = stretched.get("rope_type", stretched.get("type")) if isinstance(stretched, Mapping) else None
    if isinstance(stretched, Mapping) and kind in ("linear", "dynamic", "yarn"):
        factor, original = stretched.get("factor", 1), stretched.get("original_max_position_embeddings")
        if isinstance(factor, int | float) and 1 <= factor < _LARGEST:
            longest = int(factor * (original if kind == "yarn" and isinstance(original, int) else longest))
    return longest or None


def _listed(text: Mapping[str, Any], name: str) -> list[Any]:
    found = text.get(name) or []
    if not isinstance(found, list):
        raise BitworthError(f"The config gives {name} as something other than a list; fetch the model again.")
    return found


def _load(source: Path) -> Mapping[str, Any]:
    path = source / "config.json" if source.is_dir() else source
    try:
        return config_of(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise BitworthError(
            f"{path} cannot be read; name a model folder, a folder that holds a config.json, or that file."
        ) from error
    except ValueError as error:
        raise BitworthError(f"{path} is not JSON ({error}); it should be the model's config.json.") from error
