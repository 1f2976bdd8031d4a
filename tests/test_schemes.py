from __future__ import annotations

import pytest
import torch

from bitworth import schemes
from bitworth.errors import BitworthError
from bitworth.numerics import round_to_grid, scale_of
from bitworth.types import Grid, Scheme


def scheme_of(name: str) -> Scheme:
    return schemes.get(name, group_size=32)


@pytest.mark.parametrize("name", schemes.NAMES)
def test_tensors_are_compressed_tensors_own(name: str) -> None:
    """Bit for bit what its compressor of that format writes for the same weight and scales."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_args import QuantizationArgs

    grid, layout = scheme_of(name).weight, schemes.layout_of(scheme_of(name))
    assert grid is not None
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    scale = scale_of(weight, grid)
    ours = layout.encode(round_to_grid(weight, scale, grid), scale, torch.float32)
    args = QuantizationArgs(
        num_bits=grid.bits, type=grid.kind, strategy=grid.granularity, group_size=grid.group_size, symmetric=True
    )
    compressor = BaseCompressor.get_value_from_registry(layout.name)
    theirs = compressor.compress(
        {"weight": weight, "weight_scale": scale}, QuantizationScheme(targets=["Linear"], weights=args)
    )
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype
        assert torch.equal(ours[key].view(torch.uint8), tensor.view(torch.uint8)), key


@pytest.mark.parametrize("name", schemes.NAMES)
def test_decoding_undoes_encoding(name: str) -> None:
    grid, layout = scheme_of(name).weight, schemes.layout_of(scheme_of(name))
    assert grid is not None
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    scale = scale_of(weight, grid, dtype=torch.bfloat16)
    codes = round_to_grid(weight, scale, grid)
    decoded, read = layout.decode(layout.encode(codes, scale, torch.bfloat16))
    assert torch.equal(decoded, codes)
    assert torch.equal(read, scale)


def test_presets_are_the_papers() -> None:
    """Section 3.2: symmetric weights, by channel or in groups of 128; activations by token, as they come."""
    assert schemes.get("w8a8-fp").weight == Grid(bits=8, kind="float", granularity="channel")
    assert schemes.get("w8a8-int").activation == Grid(bits=8, granularity="token", dynamic=True)
    w4 = schemes.get("w4a16-int")
    assert (w4.weight, w4.activation) == (Grid(bits=4, granularity="group", group_size=128), None)
    assert schemes.get("w8a8-int", group_size=64) == schemes.get("w8a8-int")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BitworthError, match=r"w3a16.*w8a8-fp, w8a8-int, w4a16-int"):
        schemes.get("w3a16")
