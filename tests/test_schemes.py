from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitworth import schemes
from bitworth.errors import BitworthError
from bitworth.numerics import from_codes, round_to_grid, scale_of
from bitworth.scales import scale_type
from bitworth.schemes.config import quantization_config
from bitworth.types import Grid, Scheme

PRESETS = {
    "w8a8-fp": "FP8_DYNAMIC",
    "w8a8-int": "W8A8",
    "w8a8-fp-static": "FP8_DYNAMIC",  # the weights are the same
    "w8a8-int-static": "W8A8",
    "w4a16-int": "W4A16",
    "w4a8-fp": "W4AFP8",
    "w4a8-int": "W4A8",
    "nvfp4": "NVFP4",
    "nvfp4a16": "NVFP4A16",
    "mxfp4": "MXFP4",
    "mxfp4a16": "MXFP4A16",
}


def scheme_of(name: str) -> Scheme:
    return schemes.get(name, group_size=32)


def grid_of(name: str) -> Grid:
    grid = scheme_of(name).weight
    assert grid is not None
    return grid


def preset_of(name: str) -> Any:
    """compressed-tensors' own scheme of that kind, its open group size as in `scheme_of`."""
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    preset = preset_name_to_scheme(PRESETS[name], ["Linear"])
    if name.endswith("-static"):  # static inputs are only in a preset with weights by tensor
        static = preset_name_to_scheme("FP8", ["Linear"]).input_activations
        preset.input_activations = static.model_copy(update={"type": preset.weights.type})
    if preset.weights.group_size == 128:
        preset.weights.group_size = 32
    return preset


def theirs(name: str, weight: Tensor) -> dict[str, Tensor]:
    """What compressed-tensors makes of a weight from the first step to the last: scales, codes, packing."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    preset = preset_of(name)
    state = {"weight": weight}
    if preset.weights.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(weight.amin(), weight.amax())
    grouped = weight.unflatten(1, (-1, preset.weights.group_size or weight.shape[1]))
    state["weight_scale"], _ = calculate_qparams(
        grouped.amin(-1), grouped.amax(-1), preset.weights, global_scale=state.get("weight_global_scale")
    )
    compressor = BaseCompressor.get_value_from_registry(schemes.layout_of(scheme_of(name)).name)
    return dict(compressor.compress(state, preset))


def ours(name: str, weight: Tensor, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a checkpoint, and the weight they stand for."""
    grid, stored = grid_of(name), scale_type(weight, grid_of(name), dtype)
    scale = scale_of(weight, grid, dtype=stored)
    codes = round_to_grid(weight, scale, grid)
    return schemes.layout_of(scheme_of(name)).encode(codes, scale, stored), from_codes(codes, scale)


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype
        assert ours[key].shape == tensor.shape
        assert torch.equal(ours[key].view(torch.uint8), tensor.contiguous().view(torch.uint8)), key


def drawn(seed: int, spread: float, rows: int = 8, columns: int = 64) -> Tensor:
    """A weight of 16-bit numbers, as models have, its rows and columns `spread` powers of ten apart."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 10 ** (spread * torch.rand(rows, 1, generator=generator))
    weight *= 10 ** (spread * torch.rand(columns, generator=generator) - 2)
    return weight.to(torch.bfloat16).float()


@pytest.mark.parametrize("name", schemes.NAMES)
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 3))
def test_tensors_are_compressed_tensors_own(name: str, seed: int, spread: float) -> None:
    """Bit for bit: group scales, the global scale, codes and packing."""
    weight = drawn(seed, spread)
    assert_same_bits(ours(name, weight)[0], theirs(name, weight))


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_fp4_codes_on_the_edge_are_compressed_tensors_own(name: str) -> None:
    """Ties between codes, both zeros, and magnitudes on both sides of where a power of two is rounded up."""
    ties = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    row = torch.cat([ties, -ties, torch.tensor([6.0, 5.5, 7.0, 6.96875, -0.0, 0.2, -0.2, 4.5]), ties])
    weight = torch.stack([row, row * 2, row.roll(3), row / 64])
    assert_same_bits(ours(name, weight)[0], theirs(name, weight))


@pytest.mark.parametrize("name", schemes.NAMES)
def test_dead_and_tiny_groups_stand_for_what_compressed_tensors_decodes(name: str) -> None:
    """A dead group's scale is free; a group far below its tensor's greatest has an NVFP4 scale that rounds to zero."""
    from compressed_tensors.compressors import BaseCompressor

    weight = drawn(0, 1)
    weight[0] = 0
    weight[1, :32] = 0
    weight[2, 32:] *= 1e-9
    tensors, meant = ours(name, weight)
    compressor = BaseCompressor.get_value_from_registry(schemes.layout_of(scheme_of(name)).name)
    decoded = compressor.decompress(tensors, preset_of(name))["weight"].float()
    torch.testing.assert_close(decoded, meant, rtol=2**-8, atol=0)  # its FP4 weights come back in bfloat16
    expected = compressor.decompress(theirs(name, weight), preset_of(name))["weight"].float()
    torch.testing.assert_close(decoded, expected, rtol=0, atol=0)
    assert not decoded[0].any()


@pytest.mark.parametrize("name", schemes.NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decoding_undoes_encoding(name: str, dtype: torch.dtype) -> None:
    grid, layout = grid_of(name), schemes.layout_of(scheme_of(name))
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    stored = scale_type(weight, grid, dtype)
    scale = scale_of(weight, grid, dtype=stored)
    codes = round_to_grid(weight, scale, grid)
    decoded, read = layout.decode(layout.encode(codes, scale, stored))
    assert torch.equal(decoded, codes)
    assert torch.equal(read, scale)


@pytest.mark.parametrize("name", schemes.NAMES)
def test_grids_are_those_of_compressed_tensors_presets(name: str) -> None:
    preset, scheme = preset_of(name), scheme_of(name)
    config = quantization_config(scheme, [], None)["config_groups"]["group_0"]
    for key in ("weights", "input_activations"):
        args = getattr(preset, key)
        assert (args is None) == (config[key] is None)
        if args is not None:
            kept = ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "scale_dtype")
            parsed = type(args).model_validate(config[key])
            assert {key: getattr(parsed, key) for key in kept} == {key: getattr(args, key) for key in kept}


def test_presets_are_the_papers() -> None:
    """Section 3.2: symmetric weights, by channel or in groups of 128; activations by token, as they come."""
    assert schemes.get("w8a8-fp").weight == Grid(bits=8, kind="float", granularity="channel")
    assert schemes.get("w8a8-int").activation == Grid(bits=8, granularity="token", dynamic=True)
    w4 = schemes.get("w4a16-int")
    assert (w4.weight, w4.activation) == (Grid(bits=4, granularity="group", group_size=128), None)
    assert schemes.get("w8a8-int", group_size=64) == schemes.get("w8a8-int")
    assert schemes.get("nvfp4", group_size=64) == schemes.get("nvfp4")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BitworthError, match=r"w3a16.*w8a8-fp, w8a8-int, w4a16-int"):
        schemes.get("w3a16")
