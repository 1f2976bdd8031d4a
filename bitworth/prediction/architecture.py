"""The sizes of a decoder, from its config.json alone: what each token multiplies with and leaves in the cache.

>>> read_architecture({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
...                    "vocab_size": 100}).kv_elements
256
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import config_of

#: What families call the number of experts, those a token uses, and an expert's width.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")
_UNGATED = {"gpt2", "gpt_neox", "opt", "phi", "bloom", "starcoder2", "nemotron"}


_LARGEST, _MOST_LAYERS = 2**31, 10_000
"""Sizes beyond these are a mistake, and would only be multiplied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder in numbers; `layers` counts all blocks, `mixtures` those whose MLP is a mixture of experts.

    `matrices` is 3 where an MLP has a gate, 2 where it has none; `shared_width` is the width of the experts that every
    token uses. `window` is the greatest distance that attention looks back, None where it sees everything; `context`
    the most tokens of a prompt and its answer, None where the config does not say.
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

    def size(*names: str, default: int | None = None, most: int = _LARGEST) -> int:
        found = next((text[name] for name in names if text.get(name) is not None), default)
        if type(found) is not int or not 0 <= found <= most or (found == 0 and default != 0):
            raise BitworthError(f"{where} gives no usable {names[0]}; it should be a whole number from 1 to {most}.")
        return found

    layers, hidden = size("num_hidden_layers", "n_layer", most=_MOST_LAYERS), size("hidden_size", "n_embd")
    heads = size("num_attention_heads", "n_head", most=hidden)
    experts = size(*_EXPERTS, default=0)
    width = size("intermediate_size", "n_inner", default=4 * hidden)
    mixtures = _mixtures(text, layers, size) if experts else 0
    expert_width = size("moe_intermediate_size", default=width)
    shared = size("shared_expert_intermediate_size", default=size("n_shared_experts", default=0) * expert_width)
    if mixtures and size(*_CHOSEN) > experts:
        raise BitworthError(f"{where} lets a token choose more experts than there are ({experts}).")
    return Architecture(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=size("num_key_value_heads", default=heads),
        head_dim=size("head_dim", default=hidden // heads),
        width=width,
        vocabulary=size("vocab_size"),
        matrices=2 if str(text.get("model_type")) in _UNGATED else 3,
        mixtures=mixtures,
        experts=experts if mixtures else 0,
        chosen=size(*_CHOSEN) if mixtures else 0,
        expert_width=expert_width if mixtures else 0,
        shared_width=shared if mixtures else 0,
        window=_window(text, layers, size),
        context=_context(text, size),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
    )


def _mixtures(text: Mapping[str, Any], layers: int, size: Callable[..., int]) -> int:
    """Blocks with experts: all but the first dense ones, those listed as dense, or every n-th."""
    dense, first = _listed(text, "mlp_only_layers"), size("first_k_dense_replace", default=0)
    step = size("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    return sum((index + 1) % step == 0 and index >= first and index not in dense for index in range(layers))


def _window(text: Mapping[str, Any], layers: int, size: Callable[..., int]) -> int | None:
    """The sliding window, where all blocks have it."""
    kinds = _listed(text, "layer_types") or ["sliding_attention"] * layers
    if text.get("use_sliding_window") is False or any(kind != "sliding_attention" for kind in kinds):
        return None
    return size("sliding_window", default=0) or None


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
