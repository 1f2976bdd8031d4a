from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitworth.errors import BitworthError
from bitworth.model import Decoder, call


def tokens(batch: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(0, 250, (batch, length), generator=torch.Generator().manual_seed(0))


def edited(source: Path, out: Path, **config: object) -> Path:
    shutil.copytree(source, out)
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return out


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [1, 2])
def test_walking_block_by_block_is_the_models_own_forward(tiny_llama: Path, chunks: int) -> None:
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    kept: list[torch.Tensor] = []
    whole.model.norm.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    whole(tokens())
    decoder = Decoder(tiny_llama)
    hidden: list[Tensor] = []
    kwargs = decoder.first_inputs(list(torch.split(tokens(), 3 if chunks == 1 else 2)), hidden.append)
    for index in range(len(decoder)):
        with decoder.loaded(index) as block:
            hidden = [call(block.module, part, kwargs[index][part.shape[0]]) for part in hidden]
    torch.testing.assert_close(torch.cat(hidden), kept[0], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_no_more_than_one_block_is_held(tiny_llama: Path) -> None:
    decoder = Decoder(tiny_llama)

    def held() -> list[str]:
        return [name for name, parameter in decoder.model.named_parameters() if not parameter.is_meta]

    assert held() == []
    decoder.first_inputs([tokens()], lambda hidden: None)
    assert held() == []
    with decoder.loaded(1) as block:
        assert {name.split(".")[2] for name in held()} == {"1"}
        assert all(parameter.dtype == torch.float32 for parameter in block.module.parameters())
    assert held() == []


def test_names_and_shapes(tiny_llama: Path) -> None:
    decoder = Decoder(tiny_llama)
    assert (len(decoder), decoder.prefix, decoder.dtype) == (2, "model.layers", torch.bfloat16)
    assert decoder.linear_shapes()["model.layers.1.self_attn.k_proj"] == (32, 64)
    assert len(decoder.linear_shapes()) == 14
    assert decoder.others() == ["model.embed_tokens.weight", "model.norm.weight"]
    assert decoder.other_linears() == ["lm_head"]


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "untied", tie_word_embeddings=False)
    assert "lm_head.weight" in Decoder(tmp_path / "untied").others()


def test_a_quantized_model_is_not_quantized_again(tiny_llama: Path, tmp_path: Path) -> None:
    model = edited(tiny_llama, tmp_path / "again", quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(BitworthError, match="is quantized already"):
        Decoder(model)


def test_an_unknown_architecture_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="transformers cannot build"):
        Decoder(edited(tiny_llama, tmp_path / "new", model_type="llama99"))


def test_weights_that_do_not_match_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    deeper = Decoder(edited(tiny_llama, tmp_path / "deeper", num_hidden_layers=3))
    with pytest.raises(BitworthError, match=r"no tensor 'model\.layers\.2\."), deeper.loaded(2):
        pass
    wider = Decoder(edited(tiny_llama, tmp_path / "wider", intermediate_size=256))
    with pytest.raises(BitworthError, match=r"shape \(128, 64\), its config asks for \(256, 64\)"), wider.loaded(0):
        pass
    without = edited(tiny_llama, tmp_path / "without")
    weights = load_file(without / "model.safetensors")
    del weights["model.embed_tokens.weight"]
    save_file(weights, without / "model.safetensors")
    with pytest.raises(BitworthError, match=r"no tensor 'model\.embed_tokens\.weight'"):
        Decoder(without).first_inputs([tokens()], lambda hidden: None)


def test_layers_whose_weights_lie_transposed_are_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("gpt2", vocab_size=259, n_embd=64, n_layer=1, n_head=4)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    save_file({"x.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BitworthError, match="no list of decoder blocks with linear layers to quantize; GPT-2's layers"):
        Decoder(tmp_path)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["falcon", "bloom", "gptj", "llama"])
def test_blocks_may_answer_with_tuples(tmp_path: Path, family: str) -> None:
    """And arguments may have a first axis that is neither 1 nor the batch (Bloom's ALiBi)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = AutoConfig.for_model(family, vocab_size=259, **shape, **({"rotary_dim": 16} if family == "gptj" else {}))
    whole = AutoModelForCausalLM.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    decoder = Decoder(tmp_path)
    hidden: list[Tensor] = []
    kwargs = decoder.first_inputs([tokens()], hidden.append)
    expected: list[Tensor] = []
    blocks = whole.get_submodule(decoder.prefix)
    blocks[-1].register_forward_hook(lambda _m, _a, out: expected.append(out[0] if isinstance(out, tuple) else out))
    whole(tokens())
    state, alone = hidden[0], hidden[0][:1]
    for index in range(len(decoder)):
        with decoder.loaded(index) as block:
            state, alone = (call(block.module, part, kwargs[index][len(part)]) for part in (state, alone))
    torch.testing.assert_close(state, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, expected[0][:1], rtol=0, atol=1e-5)


def test_blocks_that_pass_more_than_hidden_states_are_refused(tiny_llama: Path) -> None:
    decoder = Decoder(tiny_llama)
    body = decoder.model.model
    body.forward = lambda input_ids, **_: decoder._blocks[1](decoder._blocks[0](body.embed_tokens(input_ids))[:, :1])
    with pytest.raises(BitworthError, match="passes more than one tensor from block to block"):
        decoder.first_inputs([tokens()], lambda hidden: None)


def test_weights_by_other_names_than_the_models_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = edited(tiny_llama, tmp_path / "other")
    path = folder / "model.safetensors"
    held = {name.replace("model.layers", "somewhere.else"): tensor for name, tensor in load_file(path).items()}
    save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(BitworthError, match="names that transformers has"):
        Decoder(folder)


@torch.inference_mode()
def test_blocks_that_see_more_of_the_tokens_than_hidden_states_are_refused(tmp_path: Path) -> None:
    """Gemma 4 gives each block a row a token; arguments are kept by batch size, so another chunk's would be used."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 250, "num_kv_shared_layers": 0}
    sizes |= {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 250, "pad_token_id": 0}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma4_text", **sizes)).save_pretrained(tmp_path)
    decoder = Decoder(tmp_path)
    decoder.first_inputs([tokens()], lambda hidden: None)  # a single chunk has its own
    with pytest.raises(BitworthError, match="more of the tokens than hidden states"):
        decoder.first_inputs([tokens(), tokens().flip(1)], lambda hidden: None)


@torch.inference_mode()
def test_sequences_that_a_model_cannot_read_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    decoder = Decoder(edited(tiny_llama, tmp_path / "short", max_position_embeddings=16))
    with pytest.raises(BitworthError, match="20 tokens are longer than the 16 positions"):
        decoder.first_inputs([tokens()], lambda hidden: None)
    with pytest.raises(BitworthError, match="its tokenizer is another model's"):
        Decoder(tiny_llama).first_inputs([tokens() + 10_000], lambda hidden: None)
