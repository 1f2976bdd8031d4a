"""Sizes read from config files beside the parameters of transformers' own classes, built without memory."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from bitworth.errors import BitworthError
from bitworth.prediction import Architecture, read_architecture
from bitworth.prediction.families import _HYBRIDS, _TIED

#: By `model_type`, what differs from the class's defaults; small where the class is large.
MOE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 4}
SMALL = {name: {"hidden_size": 256, "num_attention_heads": 8} for name in ("cohere", "cohere2")}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 8}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"num_key_value_heads": 4}),
    "qwen3": ("qwen3", {}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "gemma": ("gemma", {}),
    "gemma 2": ("gemma2", {}),
    "gemma 3": ("gemma3_text", {}),
    "cohere": ("cohere", {}),
    "cohere 2": ("cohere2", {"num_key_value_heads": 8}),
    "falcon 7b": ("falcon", {"multi_query": True}),
    "falcon 40b": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 8, "hidden_size": 512, "num_attention_heads": 16},
    ),
    "gpt-2": ("gpt2", {}),
    "gpt-neox": ("gpt_neox", {}),
    "gpt-j": ("gptj", {}),
    "opt": ("opt", {}),
    "bloom": ("bloom", {}),
    "starcoder 2": ("starcoder2", {}),
    "stablelm": ("stablelm", {}),
    "olmo 2": ("olmo2", {}),
    "granite": ("granite", {}),
    "smollm 3": ("smollm3", {}),
    "nemotron": ("nemotron", {"num_key_value_heads": 8}),
    "mixtral": ("mixtral", {**MOE, "intermediate_size": 96, "num_local_experts": 4}),
    "qwen 2 moe": ("qwen2_moe", {**MOE, "num_experts": 6, "moe_intermediate_size": 32, "mlp_only_layers": [1]}),
    "qwen 3 moe": ("qwen3_moe", {**MOE, "num_experts": 6, "num_experts_per_tok": 2, "decoder_sparse_step": 2}),
    "llama 4": (
        "llama4_text",
        {**MOE, "intermediate_size": 48, "num_local_experts": 4, "interleave_moe_layer_step": 2},
    ),
    "ernie 4.5": ("ernie4_5", {**MOE}),
    "ernie 4.5 moe": ("ernie4_5_moe", {**MOE, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 32}),
}


#: Families whose forward pass chooses by what it computes; the others' runs on no device, since sizes need no numbers.
LOOK_AT_NUMBERS = ("gpt-2", "mixtral", "qwen 2 moe", "qwen 3 moe", "ernie 4.5 moe")


def built(kind: str, changes: dict[str, Any]) -> tuple[Any, Any]:
    """The class's config, and a model of three or four blocks on no device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    depth = {"gpt2": "n_layer", "gptj": "n_layer", "bloom": "n_layer"}.get(kind, "num_hidden_layers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(kind, **{depth: 3, **changes})
        with torch.device("meta"):
            return config, AutoModelForCausalLM.from_config(config)


def read(config: Any) -> Architecture:
    """What is read from the file as makers publish it: what is the class's default is left out, but for the depth."""
    written = {**config.to_diff_dict(), "model_type": config.model_type}
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    sizes += ("n_embd", "n_layer", "n_head", "num_experts_per_tok", "num_experts", "num_local_experts", "n_positions")
    sizes += ("num_key_value_heads", "moe_intermediate_size", "shared_expert_intermediate_size", "sliding_window")
    sizes += ("moe_num_experts", "moe_k", "moe_num_shared_experts", "moe_layer_start_index", "intermediate_size_mlp")
    sizes += ("ffn_dim", "attention_chunk_size", "max_window_layers")
    full = {name: value for name in sizes if (value := config.to_dict().get(name)) is not None}
    left_out = ("layer_types", "tie_word_embeddings")
    return read_architecture({**full, **{key: value for key, value in written.items() if key not in left_out}})


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_class(family: str) -> None:
    config, model = built(*FAMILIES[family])
    found = read(config)
    inside = [
        tensor.numel()
        for name, tensor in model.named_parameters()
        if tensor.dim() > 1
        and (".layers." in name or ".h." in name)
        and "shared_expert_gate" not in name
        and "bias" not in name
    ]
    assert found.stored_weights + found.router_weights == sum(inside)
    assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "falcon 40b"])  # kept once a query there
def test_caches_are_those_of_the_class(family: str) -> None:
    kind, changes = FAMILIES[family]
    config, model = built(kind, {**SMALL.get(kind, {}), "vocab_size": 128, "pad_token_id": 0, **changes})
    found = read(config)
    device = "cpu" if family in LOOK_AT_NUMBERS else "meta"
    if device == "cpu":
        model = model.to_empty(device=device)
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.long, device=device), past_key_values=cache, use_cache=True)
    assert found.kv_elements == sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    windows = [getattr(layer, "sliding_window", None) for layer in cache.layers]
    assert found.windowed == pytest.approx(sum(window is not None for window in windows) / len(windows))
    assert found.window in (None, *windows)


@pytest.mark.parametrize("kind", sorted(_TIED))
def test_families_that_tie_their_embeddings_do(kind: str) -> None:
    from transformers import CONFIG_MAPPING

    assert CONFIG_MAPPING[kind]().tie_word_embeddings


@pytest.mark.parametrize("kind", [*sorted(_HYBRIDS - {"kimi_linear"})])
def test_blocks_that_are_no_attention_are_refused(kind: str) -> None:
    config = {"model_type": kind, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9}
    with pytest.raises(BitworthError, match="no attention"):
        read_architecture(config)
    with pytest.raises(BitworthError, match="conv"):
        read_architecture({**config, "model_type": "new", "layer_types": ["full_attention", "conv"]})
