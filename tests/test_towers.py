"""Decoders that come with towers for images: the text is walked and quantized, the towers stay as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from safetensors.torch import load_file
from torch import Tensor

from bitworth import recipes
from bitworth.checkpoint import Reader
from bitworth.engines.torch import load_exact
from bitworth.model import Decoder, call
from bitworth.quantization import quantize
from bitworth.types import Calibration

TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
TOWER: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
DEEP = {"depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 64}
#: Rotary embeddings over time, height and width; for text all three are the token's place.
PLACES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
LINEAR: dict[str, Any] = {
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {**PLACES, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.25},
}  # fmt: skip
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
#: By transformers' model type: its class, and what its configuration takes.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**TOWER, "model_type": "clip_vision_model", "projection_dim": 64},
            "image_token_index": 258,
        },
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 16},
            "image_token_index": 258,
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": TEXT,
            "vision_config": {**TOWER, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4, "image_token_index": 258, "boi_token_index": 256, "eoi_token_index": 257,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": {**TEXT, "rope_parameters": PLACES}, "vision_config": {**DEEP, "patch_size": 14}},
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {**TEXT, "rope_parameters": PLACES},
            "vision_config": {**DEEP, "deepstack_visual_indexes": [0]},
        },
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeForConditionalGeneration",
        {
            "text_config": {**TEXT, **MIXTURE, "rope_parameters": PLACES},
            "vision_config": {**DEEP, "deepstack_visual_indexes": [0]},
        },
    ),
    "qwen3_5": ("Qwen3_5ForConditionalGeneration", {"text_config": {**TEXT, **LINEAR}, "vision_config": DEEP}),
}  # fmt: skip

#: Two at a time are enough to see quickly that something broke.
QUICK = ("llava", "qwen3_5")
SOME_SLOW = [
    pytest.param(family, marks=() if family in QUICK else pytest.mark.slow(beside=True)) for family in FAMILIES
]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"The {number}th brown fox jumps over {number * 7} lazy dogs." for number in range(200)))
    return Calibration(source=str(text), samples=4, length=32)


@torch.inference_mode()
def save(folder: Path, family: str) -> Any:
    """A tiny random model in bfloat16, and transformers' own float32 model of it."""
    import transformers

    torch.manual_seed(0)
    name, settings = FAMILIES[family]
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**settings)).to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return kind.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()


def tokens(batch: int = 1, length: int = 24) -> Tensor:
    return torch.randint(0, 250, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_walk_is_transformers_own_forward_on_text(family: str, tmp_path: Path) -> None:
    whole = save(tmp_path, family)
    decoder = Decoder(tmp_path)
    expected: list[Tensor] = []
    for block in whole.get_submodule(decoder.prefix):
        block.register_forward_hook(lambda _m, _a, out: expected.append(out[0] if isinstance(out, tuple) else out))
    whole(input_ids=tokens(3), use_cache=False)
    hidden: list[Tensor] = []
    kwargs = decoder.first_inputs([tokens(3)], hidden.append)
    state = hidden[0]
    assert len(decoder) == len(expected) == whole.config.text_config.num_hidden_layers
    for index, wanted in enumerate(expected):
        with decoder.loaded(index) as block:
            state = call(block.module, state, kwargs[index][3])
        torch.testing.assert_close(state, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("family", SOME_SLOW)
def test_text_is_quantized_and_towers_stay(family: str, calibration: Calibration, tmp_path: Path) -> None:
    """Tensors keep the checkpoint's names; what stays is listed by every name that a loader may look for."""
    save(tmp_path / "model", family)
    decoder = Decoder(tmp_path / "model")
    [made] = quantize(
        tmp_path / "model", [recipes.recipe("w4a16-int-gptq", group_size=32)], tmp_path / "out", calibration=calibration
    )
    before, after = load_file(tmp_path / "model/model.safetensors"), load_file(made.path / "model.safetensors")
    layers = {decoder.names.layer(name) for name in decoder.linear_shapes()}
    rounded = {name.removesuffix(".weight_packed") for name in after if name.endswith(".weight_packed")}
    assert rounded == layers
    towers = {name for name in before if "vis" in name or "projector" in name}
    assert towers
    assert all(torch.equal(before[name], after[name]) for name in towers)
    ignore = json.loads((made.path / "config.json").read_text())["quantization_config"]["ignore"]
    linear = {name for name, part in decoder.model.named_modules() if isinstance(part, torch.nn.Linear)}
    outside = {name for name in linear if not name.startswith(decoder.prefix)}
    assert {*outside, *map(decoder.names.layer, outside)} <= set(ignore)
    assert not rounded.intersection(ignore)


@pytest.mark.parametrize("family", SOME_SLOW)
def test_the_exact_engine_runs_them_on_text(family: str, tmp_path: Path) -> None:
    """Oracle: transformers' own class."""
    whole = save(tmp_path / "model", family)
    torch.testing.assert_close(
        load_exact(tmp_path / "model").logits(tokens()), whole(input_ids=tokens()).logits, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("family", [row for row in SOME_SLOW if "moe" not in row.values[0]])  # `test_experts` has those
def test_the_exact_engine_runs_quantized_ones(family: str, tmp_path: Path) -> None:
    """Oracle: transformers' own class with the checkpoint's decoded weights."""
    whole = save(tmp_path / "model", family)
    [made] = quantize(tmp_path / "model", [recipes.recipe("w4a16-int-rtn", group_size=32)], tmp_path / "out")
    weights, decoder = Reader(made.path).weights(), Decoder(tmp_path / "model")
    for name in decoder.linear_shapes():
        whole.get_submodule(name).weight.data = weights.get(f"{decoder.names.layer(name)}.weight").float()
    expected = whole(input_ids=tokens()).logits
    torch.testing.assert_close(load_exact(made.path).logits(tokens()), expected, rtol=1e-3, atol=1e-3)
