"""Static input scales: found as compressed-tensors finds them, stored as it stores them, computed as it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from bitworth import recipes, schemes
from bitworth.calibration import calibrate
from bitworth.checkpoint import Reader
from bitworth.engines.exact import StaticActivation, activation_of
from bitworth.engines.torch import load_exact
from bitworth.errors import Unsupported
from bitworth.quantization import quantize
from bitworth.quantizers import InputStats, round_weight
from bitworth.types import Calibration, Grid, QuantizeResult

NAMES = ("w8a8-fp-static", "w8a8-int-static")
RECIPES = ("w8a8-fp-static", "w8a8-int-static-rtn", "w8a8-int-static-gptq", "w8a8-int-static-smoothquant-gptq")
BF16 = torch.bfloat16


def grid_of(name: str) -> Grid:
    grid = schemes.get(name).activation
    assert grid is not None
    return grid


def arguments(name: str):  # type: ignore[no-untyped-def]
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(num_bits=8, type=grid_of(name).kind, symmetric=True, strategy="tensor", dynamic=False)


def inputs(seed: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = 10 ** (spread * torch.rand(32, generator=generator))
    return torch.randn(20, 32, generator=generator) * columns


def found_scale(name: str, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    stats = InputStats(hidden.shape[1])
    stats.add(hidden)
    recipe = recipes.recipe("w8a8-fp-static" if name == "w8a8-fp-static" else "w8a8-int-static-rtn")
    return round_weight(torch.randn(4, hidden.shape[1]), recipe, stats, dtype=dtype).beside["input_scale"]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), spread=st.floats(0, 3))
def test_scales_are_compressed_tensors_own(name: str, seed: int, spread: float) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams

    hidden = inputs(seed, spread)
    expected, _ = calculate_qparams(hidden.amin().reshape(1), hidden.amax().reshape(1), arguments(name))
    found = found_scale(name, hidden, BF16)
    assert found.shape == (1,)
    assert found.dtype == BF16
    assert torch.equal(found, expected.to(BF16))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), spread=st.floats(0, 3), range_=st.floats(0.1, 2))
def test_the_engine_computes_as_compressed_tensors(name: str, seed: int, spread: float, range_: float) -> None:
    """Bit for bit, values beyond the range too."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    hidden = inputs(seed, spread)
    scale = found_scale(name, hidden * range_, BF16)
    expected = fake_quantize(hidden, scale.float(), torch.zeros(1), arguments(name))
    found = activation_of(grid_of(name), scale)(hidden)
    assert torch.equal(found, expected)


def test_what_exceeds_the_range_saturates() -> None:
    activation = activation_of(grid_of("w8a8-int-static"), torch.tensor([0.5]))
    assert activation(torch.tensor([[63.5, 100.0, -64.0, -100.0, 0.26]])).tolist() == [[63.5, 63.5, -64.0, -64.0, 0.5]]


def test_a_checkpoint_without_the_scale_is_refused() -> None:
    with pytest.raises(Unsupported, match="no scale for inputs that it quantizes per tensor"):
        activation_of(grid_of("w8a8-int-static"))


def test_inputs_that_calibration_never_saw_get_a_scale_of_one_and_a_note() -> None:
    found = round_weight(torch.randn(4, 32), recipes.recipe("w8a8-int-static-rtn"), None, dtype=BF16)
    assert found.beside["input_scale"].tolist() == [1.0]
    assert found.notes == ["calibration never reached it, so the scale of its inputs is 1"]


# --- whole checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("the cat sat on a red mat and then it ran after the other cat. " * 60)
    return Calibration(source=str(path), samples=8, length=64)


@pytest.fixture(scope="module")
def made(tiny_llama: Path, text: Calibration, tmp_path_factory: pytest.TempPathFactory) -> dict[str, QuantizeResult]:
    out = tmp_path_factory.mktemp("made")
    rows = quantize(tiny_llama, [recipes.recipe(name) for name in RECIPES], out, calibration=text, device="cpu")
    return {row.format: row for row in rows}


def seen_by(folder: Path, text: Calibration) -> dict[str, float]:
    """The largest input of every linear layer of the unquantized model, by transformers and hooks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    peaks: dict[str, float] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            layer.register_forward_pre_hook(
                lambda _, given, name=name: peaks.update({name: max(peaks.get(name, 0), given[0].abs().max().item())})
            )
    tokens, _ = calibrate(folder, text, lambda _: None, lambda *_: None)
    with torch.inference_mode():
        model(tokens)
    return peaks


@pytest.mark.parametrize(("name", "half"), [("w8a8-fp-static", 448.0), ("w8a8-int-static-rtn", 127.5)])
def test_stored_scales_are_the_largest_inputs(
    made: dict[str, QuantizeResult], tiny_llama: Path, text: Calibration, name: str, half: float
) -> None:
    tensors = load_file(made[name].path / "model.safetensors")
    peaks = seen_by(tiny_llama, text)
    scales = {key.removesuffix(".input_scale"): value for key, value in tensors.items() if key.endswith("input_scale")}
    assert scales.keys() == peaks.keys()
    for layer, scale in scales.items():
        assert scale.item() == pytest.approx(peaks[layer] / half, rel=2**-7)  # a bfloat16 apart
    for block in range(2):
        alike = [scales[f"model.layers.{block}.self_attn.{part}_proj"] for part in "qkv"]
        assert torch.equal(alike[0], alike[1])
        assert torch.equal(alike[0], alike[2])


@pytest.mark.parametrize("name", RECIPES)
def test_transformers_with_compressed_tensors_gives_the_engine_s_logits(
    made: dict[str, QuantizeResult], name: str
) -> None:
    """A value on the edge of two codes may fall either way, so a few logits may move by a step."""
    from transformers import AutoModelForCausalLM

    folder = made[name].path
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    quantized = Reader(folder).weights().quantized
    layers = dict(theirs.named_modules())
    assert all(layers[layer].quantization_scheme.input_activations.dynamic is False for layer in quantized)
    engine = load_exact(folder, device="cpu")
    applied = dict(engine.model.named_modules())
    assert all(isinstance(applied[layer].activation, StaticActivation) for layer in quantized)
    tokens = torch.randint(0, 250, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        apart = (engine.logits(tokens) - theirs(tokens).logits).abs()
    assert apart.quantile(0.99) < 1e-3
    assert apart.max() < 0.2
