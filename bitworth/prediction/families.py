"""What config files leave out, because the family's own code knows it: facts of model families, by `model_type`.

Names and defaults are those of transformers, whose configuration classes would tell, too, but import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitworth.errors import BitworthError

#: MLPs of two matrices, without a gate.
UNGATED = frozenset(
    [
        "bloom",
        "codegen",
        "falcon",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "mpt",
        "nemotron",
        "opt",
        "persimmon",
        "phi",
        "starcoder2",
    ]
)
#: Whose head is the embedding unless the config says otherwise.
_TIED = frozenset(
    [
        "bloom",
        "cohere",
        "cohere2",
        "ernie4_5",
        "ernie4_5_moe",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "mpt",
        "opt",
        "smollm3",
        "starcoder2",
    ]
)
#: Blocks that are neither attention nor an MLP, whose sizes and states are another matter.
_HYBRIDS = frozenset(
    [
        "bamba",
        "falcon_h1",
        "falcon_mamba",
        "granitemoehybrid",
        "jamba",
        "kimi_linear",
        "lfm2",
        "lfm2_moe",
        "mamba",
        "mamba2",
        "minimax",
        "nemotron_h",
        "qwen3_next",
        "recurrent_gemma",
        "rwkv",
        "zamba",
        "zamba2",
    ]
)
#: Every n-th block sees everything, the others a window.
_PATTERNS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "llama4_text": 4}
#: Where a window is that of all blocks.
_ALL_WINDOWED = frozenset(["ministral", "mistral", "mixtral", "phi3", "phimoe", "starcoder2"])
#: A window counts only where `use_sliding_window` says so.
_ASKED = ("qwen2", "qwen3")
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
_SIZES: dict[str, dict[str, int]] = {
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    "gemma2": {"head_dim": 256},
}


def with_defaults(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the sizes that its family need not write down.

    Raises:
        BitworthError: its blocks are not those of an attention decoder.
    """
    kind = str(text.get("model_type"))
    listed = text.get("layer_types")
    odd = next((name for name in listed if name not in _ATTENTION), None) if isinstance(listed, list) else None
    if odd is not None or kind in _HYBRIDS:
        raise BitworthError(
            f"the config describes blocks that are no attention ({odd or kind}), which bitworth does not count yet; "
            "time the model itself."
        )
    return {**_SIZES.get(kind, {}), **text}


def is_tied(text: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the output head is the embedding."""
    by_family = str(text.get("model_type")) in _TIED or str(config.get("model_type")) in _TIED
    return bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", by_family)))


def blocks_that_see_all(text: Mapping[str, Any], layers: int) -> int:
    """How many blocks attend to everything, where the config names a window for some."""
    kind = str(text.get("model_type"))
    if text.get("use_sliding_window", not kind.startswith(_ASKED)) is False:
        return layers
    if isinstance(text.get("layer_types"), list):
        return sum(name == "full_attention" for name in text["layer_types"])
    every = text.get("sliding_window_pattern", _PATTERNS.get(kind))
    if type(every) is int and every > 0:
        return layers // every
    if kind.startswith(_ASKED) and type(text.get("max_window_layers")) is int:
        return min(layers, int(text["max_window_layers"]))
    return 0 if kind in _ALL_WINDOWED or "model_type" not in text else layers
