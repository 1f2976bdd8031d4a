from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitworth import recipes, schemes
from bitworth.engines.exact import inputs_as_they_are
from bitworth.engines.kernels import kernel_for
from bitworth.engines.torch import TorchModel, load_exact
from bitworth.errors import BitworthError, Unsupported
from bitworth.kv_cache import CacheGrid, attentions, cache_as_it_is, watching
from bitworth.quantization import quantize
from bitworth.schemes.config import quantization_config, scheme_from_config
from bitworth.types import Calibration

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
    "phi3": {},
    "olmo2": {},
}
GRID = schemes.FP8_CACHE


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"The {number}th brown fox jumps over {number * 7} lazy dogs." for number in range(200)))
    return Calibration(source=str(text), samples=6, length=48)


@pytest.fixture(scope="module")
def made(tiny_llama: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("made")
    names = ("w4a16-int-rtn+kv-fp8", "w8a8-fp+kv-fp8", "nvfp4-gptq+kv-fp8")
    quantize(tiny_llama, [recipes.recipe(name, group_size=32) for name in names], folder, calibration=calibration)
    return folder


def tokens(count: int = 60) -> Tensor:
    return torch.randint(0, 250, (1, count), generator=torch.Generator().manual_seed(1))


def scales_of(folder: Path) -> dict[str, Tensor]:
    stored = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in stored.items() if name.endswith((".k_scale", ".v_scale"))}


# --- scales ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w4a16-int-rtn+kv-fp8", "w8a8-int-smoothquant-gptq+kv-fp8"])
def test_scales_are_the_greatest_magnitudes_that_a_cache_would_hold(
    name: str, calibration: Calibration, tmp_path: Path
) -> None:
    """Oracle: transformers' own cache after the calibration tokens have gone through the dequantized model.

    Every head has its own values here, so that v_proj could take a scale off o_proj's input.
    """
    from transformers import DynamicCache

    from bitworth.calibration import calibration_tokens

    save(tmp_path / "model", "llama", num_key_value_heads=4)
    folder = tmp_path / "made"
    quantize(tmp_path / "model", [recipes.recipe(name, group_size=32)], folder, calibration=calibration)
    engine = load_exact(folder, device="cpu")
    cache = DynamicCache(config=engine.model.config)
    with torch.inference_mode(), cache_as_it_is(engine.model), inputs_as_they_are(engine.model):
        engine.model(calibration_tokens(folder, calibration, lambda _: None), past_key_values=cache, use_cache=True)
    found = scales_of(folder)
    assert len(found) == 4
    for index, layer in enumerate(cache.layers):
        for part, states in (("k", layer.keys), ("v", layer.values)):
            scale = found[f"model.layers.{index}.self_attn.{part}_scale"]
            assert (scale.dtype, scale.shape) == (torch.bfloat16, (1,))
            # the scale is a bfloat16, and so may be the factors of the products that the states came from
            torch.testing.assert_close(scale.float(), states.abs().max().reshape(1) / 448, rtol=2**-7, atol=0)


def test_scales_do_not_depend_on_how_calibration_is_chunked(
    tiny_llama: Path, made: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitworth.quantization.CHUNK_TOKENS", 100)
    recipe = recipes.recipe("w4a16-int-rtn+kv-fp8", group_size=32)
    quantize(tiny_llama, [recipe], tmp_path / "out", calibration=calibration)
    chunked, whole = scales_of(tmp_path / "out"), scales_of(made / "w4a16-int-rtn+kv-fp8")
    assert chunked.keys() == whole.keys()
    assert all(torch.equal(chunked[name], whole[name]) for name in whole)


def test_keys_and_values_land_on_compressed_tensors_grid() -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    states = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.003])  # so that some saturate
    args = QuantizationArgs(num_bits=8, type="float", strategy="tensor", symmetric=True)
    expected = fake_quantize(states, scale, torch.zeros(1), args)
    for found in CacheGrid(GRID, scale, scale)(states, states):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert expected.abs().max() == torch.tensor(448.0) * scale


# --- checkpoints ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def logits_in_transformers(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    logits: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens()).logits
    return logits


@pytest.mark.parametrize("name", ["w4a16-int-rtn+kv-fp8", "w8a8-fp+kv-fp8"])
def test_transformers_with_compressed_tensors_gives_the_engines_logits(made: Path, name: str) -> None:
    engine = load_exact(made / name, device="cpu")
    assert engine.facts.kernel == f"float32, {name.replace('-rtn', '')}"
    logits = engine.logits(tokens())
    torch.testing.assert_close(logits, logits_in_transformers(made / name), rtol=0, atol=1e-4)
    with cache_as_it_is(engine.model):
        assert (engine.logits(tokens()) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["w4a16-int-rtn+kv-fp8", "nvfp4-gptq+kv-fp8"])
def test_a_cached_prefix_gives_what_the_whole_sequence_gives(made: Path, name: str) -> None:
    from transformers import DynamicCache

    engine = load_exact(made / name, device="cpu")
    cache = DynamicCache(config=engine.model.config)
    with torch.inference_mode():
        parts = [engine.model(part, past_key_values=cache).logits for part in tokens().split([40, 19, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), engine.logits(tokens()), rtol=0, atol=1e-4)


def test_shared_prefixes_are_packed(made: Path) -> None:
    engine = load_exact(made / "w4a16-int-rtn+kv-fp8", device="cpu")
    assert engine.packs()
    requests = [("one context that all of them share", f" {word}") for word in ("cat", "dog", "catalogue")]
    together, alone = engine.loglikelihoods(requests), [engine.loglikelihoods([request])[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_inputs_as_they_are_leaves_the_cache_alone_too(made: Path) -> None:
    engine = load_exact(made / "w8a8-fp+kv-fp8", device="cpu")
    quantized = engine.logits(tokens())
    with inputs_as_they_are(engine.model):
        plain = engine.logits(tokens())
    assert (plain - quantized).abs().max() > 1e-3
    assert torch.equal(engine.logits(tokens()), quantized)


@pytest.mark.parametrize("name", schemes.NAMES)
def test_the_config_reads_back_and_is_valid_for_compressed_tensors(name: str) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    scheme = replace(schemes.get(name, group_size=64), kv_cache=GRID)
    config = quantization_config(scheme, ["lm_head"], None)
    parsed = QuantizationConfig.model_validate(config).kv_cache_scheme
    assert (parsed.num_bits, parsed.type, parsed.strategy, parsed.symmetric) == (8, "float", "tensor", True)
    assert scheme_from_config(json.loads(json.dumps(config))) == scheme


@pytest.mark.parametrize("change", [{"type": "int"}, {"strategy": "attn_head"}, {"num_bits": 4}, {"symmetric": False}])
def test_other_caches_are_refused(change: dict[str, Any]) -> None:
    config = quantization_config(replace(schemes.get("w8a8-fp"), kv_cache=GRID), [], None)
    config["kv_cache_scheme"].update(change)
    with pytest.raises(BitworthError, match="key-value cache is quantized otherwise than to FP8"):
        scheme_from_config(config)


def test_a_checkpoint_without_its_scales_is_refused(made: Path, tmp_path: Path) -> None:
    source = made / "w8a8-fp+kv-fp8"
    stored = load_file(source / "model.safetensors")
    del stored["model.layers.1.self_attn.v_scale"]
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BitworthError, match=r"no scale for the key-value cache of model\.layers\.1\.self_attn"):
        load_exact(tmp_path, device="cpu")


# --- architectures and engines ---------------------------------------------------------------------------------------


def save(folder: Path, family: str, **settings: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **{**shape, "num_key_value_heads": 2, "max_position_embeddings": 512, **tokens, **settings}
    )
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_load_alike(family: str, calibration: Calibration, tmp_path: Path) -> None:
    save(tmp_path / "model", family, **FAMILIES[family])
    recipe = recipes.recipe("w4a16-int-rtn+kv-fp8", group_size=32)
    quantize(tmp_path / "model", [recipe], tmp_path / "out", calibration=calibration)
    assert len(scales_of(tmp_path / "out")) == 4
    engine: TorchModel = load_exact(tmp_path / "out", device="cpu")
    torch.testing.assert_close(engine.logits(tokens()), logits_in_transformers(tmp_path / "out"), rtol=0, atol=1e-4)


def test_an_architecture_whose_cache_the_loaders_do_not_find_is_refused(
    calibration: Calibration, tmp_path: Path
) -> None:
    save(tmp_path / "model", "gpt_neox")
    with pytest.raises(BitworthError, match=r"GPTNeoXLayer caches keys and values .* without \+kv-fp8"):
        quantize(tmp_path / "model", [recipes.recipe("w8a8-fp+kv-fp8")], tmp_path / "out", calibration=calibration)
    assert not (tmp_path / "out").exists()


def test_latent_caches_are_refused() -> None:
    class LatentAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kv_b_proj = nn.Linear(2, 2)

        def forward(self, x: Tensor, past_key_values: Any = None) -> Tensor:
            return x

    with pytest.raises(BitworthError, match="in a way that the loaders have no scales for"):
        attentions(nn.Sequential(LatentAttention()))


def test_an_attention_that_hands_nothing_over_is_refused() -> None:
    class SilentAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k_proj = nn.Linear(2, 2)

        def forward(self, x: Tensor, past_key_values: Any = None) -> Tensor:
            return x

    block = nn.Sequential(SilentAttention())
    with pytest.raises(BitworthError, match="hands no keys and values over"), watching(block, GRID, torch.bfloat16):
        block(torch.ones(1, 2))


def test_torchs_kernels_are_refused() -> None:
    with pytest.raises(Unsupported, match="no attention over a quantized key-value cache"):
        kernel_for(replace(schemes.get("w8a8-int"), kv_cache=GRID), torch.device("cpu"))
