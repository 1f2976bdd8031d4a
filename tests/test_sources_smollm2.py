from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bitworth.sources import smollm2


def write_gguf(path: Path, weights: Mapping[str, Any], tokenizer: Any) -> None:
    """A llama in GGUF as llama.cpp's converter writes it (query and key rows in rotary pairs)."""
    import gguf

    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in vocabulary])
    writer.add_token_merges(["Ċ Ċ", "a b"])
    for name, value in (("bos", 0), ("eos", 1), ("pad", 1), ("unk", 0)):
        getattr(writer, f"add_{name}_token_id")(value)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A random llama's weights under their Hugging Face names, and its GGUF converted."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("gguf")
    torch.manual_seed(0)
    alphabet = ["<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "ab"]
    vocabulary = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    block, hub_block = "blk.0", "model.layers.0"
    shapes = {
        ("token_embd", "model.embed_tokens"): (len(alphabet), 64),
        ("output_norm", "model.norm"): (64,),
        (f"{block}.attn_norm", f"{hub_block}.input_layernorm"): (64,),
        (f"{block}.attn_q", f"{hub_block}.self_attn.q_proj"): (64, 64),
        (f"{block}.attn_k", f"{hub_block}.self_attn.k_proj"): (32, 64),
        (f"{block}.attn_v", f"{hub_block}.self_attn.v_proj"): (32, 64),
        (f"{block}.attn_output", f"{hub_block}.self_attn.o_proj"): (64, 64),
        (f"{block}.ffn_norm", f"{hub_block}.post_attention_layernorm"): (64,),
        (f"{block}.ffn_gate", f"{hub_block}.mlp.gate_proj"): (96, 64),
        (f"{block}.ffn_up", f"{hub_block}.mlp.up_proj"): (96, 64),
        (f"{block}.ffn_down", f"{hub_block}.mlp.down_proj"): (64, 96),
    }
    expected, stored = {}, {}
    for (inside, outside), shape in shapes.items():
        weight = torch.randn(shape).bfloat16()
        expected[f"{outside}.weight"] = weight
        heads = {"attn_q": 4, "attn_k": 2}.get(inside.split(".")[-1])
        if heads is not None:
            weight = weight.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(shape)
        stored[f"{inside}.weight"] = weight.float().numpy()
    write_gguf(folder / "tiny.gguf", stored, vocabulary)
    (folder / "model").mkdir()
    smollm2.convert(folder / "tiny.gguf", folder / "model")
    return expected, folder / "model"


def test_conversion_restores_every_weight(converted: tuple[dict[str, Any], Path]) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    expected, folder = converted
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.rms_norm_eps == 1e-5
    assert model.dtype == torch.bfloat16


def test_converted_tokenizer_splits_digits_off(converted: tuple[dict[str, Any], Path]) -> None:
    """Before a digit, two line ends are one token, as at the end of a text; GPT-2's own split would give two."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[1])
    assert tokenizer.tokenize("ab\n\n12") == ["ab", "ĊĊ", "1", "2"]
    assert tokenizer.decode(tokenizer("é 12\n\n3 <eos>")["input_ids"]) == "é 12\n\n3 <eos>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.model_max_length) == ("<bos>", "<eos>", 128)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
