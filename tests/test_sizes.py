"""Sizes against what is there: bytes that a recipe writes, layers that transformers has, by hand where it is small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_experts import LAYOUTS, save_mixture

from bitworth import recipes
from bitworth.estimate import Rates, walking
from bitworth.forecast import forecast
from bitworth.model import Decoder
from bitworth.quantization import quantize
from bitworth.sizes import Size, checkpoint_bytes, size_of, size_within
from bitworth.types import Calibration, Gptq, Recipe

NAMES = (
    "w4a16-int-gptq",
    "w4a8-int-rtn",
    "w8a8-fp",
    "w8a8-int-static-rtn",
    "nvfp4-rtn",
    "nvfp4a16-rtn",
    "mxfp4a16-rtn",
)
#: Fused on the hub too, and not; transposed and not; with biases; with shared experts and a dense first block.
FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "deepseek_v3")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"The {number}th brown fox jumps over {number * 7} lazy dogs." for number in range(200)))
    return Calibration(source=str(text), samples=8, length=64)


def made_by(names: tuple[str, ...]) -> list[Recipe]:
    return [recipes.recipe(name, group_size=32) for name in names]


def tensor_bytes(folder: Path) -> int:
    return sum(tensor.nbytes for path in folder.glob("*.safetensors") for tensor in load_file(path).values())


def assert_written_as_foretold(model: Path, chosen: list[Recipe], calibration: Calibration, out: Path) -> None:
    size = size_within(Decoder(model))
    foretold = {recipe.name: checkpoint_bytes(recipe, size) for recipe in chosen}
    made = quantize(model, chosen, {recipe.name: out / recipe.name for recipe in chosen}, calibration=calibration)
    assert foretold == {result.format: tensor_bytes(result.path) for result in made}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixtures_checkpoints_have_the_bytes_that_were_foretold(
    family: str, layout: str, calibration: Calibration, tmp_path: Path
) -> None:
    save_mixture(tmp_path / "model", family, as_on_the_hub=LAYOUTS[layout])
    assert_written_as_foretold(tmp_path / "model", made_by(NAMES), calibration, tmp_path)


def test_a_dense_models_checkpoints_have_the_bytes_that_were_foretold(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path
) -> None:
    """Scales of the cache and each column's group too."""
    chosen = made_by((*NAMES, "w8a8-int-gptq", "w8a8-fp+kv-fp8"))
    ordered = replace(chosen[0], name="ordered", rounding=Gptq(ordering="group"))
    assert_written_as_foretold(tiny_llama, [*chosen, ordered], calibration, tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_shapes_tell_what_the_layers_do(family: str, layout: str, tmp_path: Path) -> None:
    """Without building the model, whatever its experts lie in."""
    save_mixture(tmp_path, family, as_on_the_hub=LAYOUTS[layout], num_experts_per_tok=1)
    stored, exact = size_of(tmp_path), size_within(Decoder(tmp_path))
    for name in ("linear", "used", "used_squares", "rounding", "shapes", "kept"):
        assert getattr(stored, name) == getattr(exact, name), name


def sizes(folder: Path, **overrides: int) -> Size:
    save_mixture(folder, "qwen3_moe", num_key_value_heads=4, **overrides)
    return size_within(Decoder(folder))


def test_a_token_multiplies_with_the_experts_that_it_chooses(tmp_path: Path) -> None:
    """Two blocks of width 64: q, k, v and o of 64 × 64; experts of three 64 × 32, two of them a token's."""
    for experts in (4, 16):
        size = sizes(tmp_path / str(experts), num_experts=experts)
        every = 2 * 4 * 64 * 64
        assert size.linear == every + 2 * experts * 3 * 64 * 32
        assert size.used == every + 2 * 2 * 3 * 64 * 32
        assert size.used_squares == 2 * (4 * 64**2 + 2 * (2 * 64**2 + 32**2))
        assert size.shapes == {(64, 64): 2 * 4, (32, 64): 2 * 2 * experts, (64, 32): 2 * experts}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dry_run_foretells_a_mixtures_disk(layout: str, calibration: Calibration, tmp_path: Path) -> None:
    """Pieces and the shards that they are joined to."""
    save_mixture(tmp_path / "model", "gpt_oss", as_on_the_hub=LAYOUTS[layout], hidden_size=256)
    [recipe] = made_by(("w8a8-fp",))
    foretold = forecast(tmp_path / "model", [recipe], device="cpu")
    [made] = quantize(tmp_path / "model", [recipe], tmp_path / "out")
    assert foretold.disk_mib == pytest.approx(2 * tensor_bytes(made.path) / 2**20, abs=0.06)


def test_more_experts_cost_their_rounding_alone(tmp_path: Path) -> None:
    """As long as a token chooses as many; several chunks pass a mixture thrice."""
    rates = Rates(operations=1e9, bytes=1e9)
    few, many = (sizes(tmp_path / str(experts), num_experts=experts) for experts in (4, 16))
    more = [walking(tokens, many, rates) - walking(tokens, few, rates) for tokens in (1_000, 30_000)]
    assert more[0] == pytest.approx(more[1])
    assert more[0] > 0
    one, several = (walking(tokens, many, rates) for tokens in (32_768, 65_536))
    assert several > 2.5 * one
