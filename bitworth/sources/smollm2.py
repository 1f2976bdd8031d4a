"""SmolLM2-135M-Instruct from GGUF to the checkpoint layout that transformers and vLLM load.

Written out here because transformers' own conversion takes half a minute, keeps a float32 copy of every weight, and
gives a tokenizer that does not split digits off (`\\n\\n1` then has other tokens than the model was trained on).

GGUF keeps Llama's query and key rows in the order of interleaved rotary pairs; the Hugging Face layout has halves.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitworth.errors import BitworthError

if TYPE_CHECKING:
    import torch

_OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL = 3
"""GGUF's token type for control tokens."""


def require_gguf() -> None:
    """Check that the package that reads GGUF is there.

    Raises:
        BitworthError: it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise BitworthError(
            "The demo's model is stored as GGUF, and the package that reads it is not installed; run "
            "`pip install 'bitworth[demo]'`."
        )


def convert(gguf_file: Path, folder: Path) -> None:
    """Write `gguf_file`, dequantized to bfloat16, as a checkpoint into `folder`.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields)
    _write_weights(reader, config, folder / "model.safetensors")
    _write_json(folder / "config.json", config)
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", special)
    _write_tokenizer(fields, config, folder)


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """config.json in the spelling that every release of transformers reads."""
    heads = int(fields["llama.attention.head_count"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": int(fields["llama.embedding_length"]),
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "head_dim": int(fields["llama.embedding_length"]) // heads,
        "max_position_embeddings": int(fields["llama.context_length"]),
        # Stored as float32; its shortest decimal is the value meant (1e-05).
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "vocab_size": int(fields["llama.vocab_size"]),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": int(fields["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(fields["tokenizer.ggml.padding_token_id"]),
    }


def _write_weights(reader: Any, config: Mapping[str, Any], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(_tensors(reader, config)), path, metadata={"format": "pt"})
    except SafetensorError as error:
        # safetensors tells of a full disk in words alone.
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _tensors(reader: Any, config: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor under its Hugging Face name, in bfloat16; one at a time is held in float32."""
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name in _OUTSIDE:
            yield _OUTSIDE[tensor.name], weight.to(torch.bfloat16)
            continue
        _, block, part, _ = tensor.name.split(".")
        if part in heads:
            weight = _halves(weight, heads[part])
        yield f"model.layers.{block}.{_IN_BLOCK[part]}.weight", weight.to(torch.bfloat16)


def _halves(weight_OI: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from rotary pairs (x0 y0 x1 y1 ...) to halves (x0 x1 ... y0 y1 ...)."""
    pairs = weight_OI.reshape(heads, -1, 2, weight_OI.shape[1])
    return pairs.transpose(1, 2).reshape(weight_OI.shape)


def _write_tokenizer(fields: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Byte-level BPE behind a split of every digit, which is what the pre-tokenizer called `smollm` means."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    special = [AddedToken(token, normalized=False, special=True) for token, kind in kinds if kind == _SPECIAL]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
        "unk_token": tokens[int(fields["tokenizer.ggml.unknown_token_id"])],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": fields["tokenizer.chat_template"],
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
