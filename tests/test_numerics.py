from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitworth import numerics as nm
from bitworth.scales import scale_type
from bitworth.types import Clip, Grid

INT4 = Grid(bits=4, granularity="group", group_size=8)
INT4_CHANNEL = Grid(bits=4)
INT8 = Grid(bits=8)
FP8 = Grid(bits=8, kind="float")
FP4 = Grid(bits=4, kind="float", granularity="group", group_size=8)
NVFP4 = replace(FP4, scales="e4m3")
MXFP4 = replace(FP4, scales="e8m0")
SEEDS = st.integers(0, 2**31)
unhurried = settings(deadline=None, max_examples=40)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randint(-8, 8, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


# --- against compressed-tensors -----------------------------------------------------------------------------------


@unhurried
@given(st.integers(1, 5), st.integers(1, 40), SEEDS)
def test_packed_words_are_compressed_tensors(rows: int, columns: int, seed: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    chosen = codes(rows, columns, seed)
    packed = nm.pack_int4(chosen)
    assert packed.dtype == torch.int32
    assert torch.equal(nm.unpack_int4(packed, columns).float(), chosen)
    assert torch.equal(packed, pack_to_int32(chosen.to(torch.int8), 4))


@pytest.mark.parametrize("grid", [INT4, INT8, FP8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_and_codes_are_compressed_tensors(grid: Grid, dtype: torch.dtype) -> None:
    """`calculate_qparams` works in the weight's dtype, so the weight has the dtype that scales are stored in."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = normal(6, 32).to(dtype)
    args = QuantizationArgs(
        num_bits=grid.bits, type=grid.kind, strategy=grid.granularity, group_size=grid.group_size, symmetric=True
    )
    grouped = weight.unflatten(1, (-1, nm.group_size_of(grid, 32)))
    expected, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    scale = nm.scale_of(weight, grid, dtype=dtype)
    torch.testing.assert_close(scale, expected.float(), rtol=0, atol=0)
    if dtype == torch.float32:
        theirs = quantize(weight, expected, torch.zeros_like(expected), args)
        assert torch.equal(nm.round_to_grid(weight, scale, grid), theirs.float())


def test_token_quantization_is_compressed_tensors() -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    hidden = normal(2, 5, 24)
    hidden[0, 0] = 0
    for kind in ("int", "float"):
        args = QuantizationArgs(num_bits=8, type=kind, strategy="token", dynamic=True, symmetric=True)
        low, high = hidden.amin(-1, keepdim=True), hidden.amax(-1, keepdim=True)
        scale, zero = calculate_qparams(low, high, args)
        ours = nm.quantize_token(hidden, Grid(bits=8, kind=kind, granularity="token", dynamic=True))
        torch.testing.assert_close(ours, fake_quantize(hidden, scale, zero, args), rtol=0, atol=1e-6)
        assert torch.equal(ours[0, 0], torch.zeros(24))


# --- rounding -----------------------------------------------------------------------------------------------------


@unhurried
@given(SEEDS, st.sampled_from([INT4, INT8, INT4_CHANNEL]))
def test_no_other_code_is_nearer(seed: int, grid: Grid) -> None:
    weight = normal(3, 16, seed=seed)
    scale = nm.scale_of(weight, grid)
    rounded = nm.from_codes(nm.round_to_grid(weight, scale, grid), scale)
    low, high = (int(level) for level in grid.levels)
    spread = scale.repeat_interleave(16 // scale.shape[1], dim=1)
    every = torch.arange(low, high + 1).view(-1, 1, 1) * spread
    assert torch.all((rounded - weight).abs() <= (every - weight).abs().amin(0) + 1e-6)


@unhurried
@given(SEEDS)
def test_rounding_again_changes_nothing(seed: int) -> None:
    weight = normal(3, 16, seed=seed)
    for grid in (INT4, INT8, FP8):
        scale = nm.scale_of(weight, grid, dtype=torch.bfloat16)
        once = nm.round_to_grid(weight, scale, grid)
        assert torch.equal(nm.round_to_grid(nm.from_codes(once, scale), scale, grid), once)


def test_dead_groups_stay_exactly_zero() -> None:
    weight = normal(2, 16)
    weight[:, :8] = 0
    scale = nm.scale_of(weight, INT4)
    assert torch.equal(scale[:, 0], torch.ones(2))
    assert torch.equal(nm.from_codes(nm.round_to_grid(weight, scale, INT4), scale)[:, :8], torch.zeros(2, 8))


def test_scales_are_optimized_as_they_are_stored() -> None:
    scale = nm.scale_of(normal(4, 16), INT4, dtype=torch.bfloat16)
    assert torch.equal(scale, scale.to(torch.bfloat16).float())


def test_float_codes_saturate_instead_of_overflowing() -> None:
    assert nm.to_codes(torch.tensor([1e6, -1e6, 0.3]), FP8).tolist() == [448.0, -448.0, 0.3125]


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@unhurried
@given(SEEDS)
def test_fp4_codes_are_the_nearest_and_compressed_tensors(seed: int) -> None:
    from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4

    values = 3 * normal(40, seed=seed)
    values = torch.cat([values, values.mul(4).round() / 4])  # and ties
    found = nm.to_codes(values, FP4)
    table = torch.tensor([*E2M1, *(-code for code in E2M1)])
    clamped = values.clamp(-6, 6)
    assert torch.equal((found - clamped).abs(), (table - clamped[:, None]).abs().amin(1))
    assert torch.equal(found.view(torch.int32), cast_to_fp4(clamped.clone()).view(torch.int32))


@unhurried
@given(st.integers(1, 5), st.integers(1, 20), SEEDS)
def test_packed_bytes_are_compressed_tensors(rows: int, bytes_: int, seed: int) -> None:
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8

    chosen = nm.to_codes(4 * normal(rows, 2 * bytes_, seed=seed), FP4)
    packed = nm.pack_fp4(chosen)
    assert torch.equal(packed, pack_fp4_to_uint8(chosen))
    assert torch.equal(nm.unpack_fp4(packed), chosen)
    assert torch.equal(nm.unpack_fp4(packed), unpack_fp4_from_uint8(packed, rows, 2 * bytes_, torch.float32))


# --- clipping -----------------------------------------------------------------------------------------------------


def brute_force(weight: Tensor, grid: Grid, clip: Clip, importance: Tensor | None) -> Tensor:
    """Every shrink factor of every group in float64, loops only."""
    size = nm.group_size_of(grid, weight.shape[1])
    low, high = grid.levels
    best = torch.empty(weight.shape[0], weight.shape[1] // size)
    for row in range(weight.shape[0]):
        for group in range(best.shape[1]):
            part = slice(group * size, (group + 1) * size)
            values = weight[row, part].double()
            weigh = torch.ones(size).double() if importance is None else importance[part].double()
            losses = []
            for step in range(int(clip.shrink * clip.steps)):
                scale = values.abs().max() / ((high - low) / 2) * (1 - step / clip.steps)
                rounded = (values / scale).round().clamp(low, high) * scale
                losses.append((float(((rounded - values).abs() ** clip.norm * weigh).sum()), float(scale)))
            best[row, group] = min(losses)[1]
    return best


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("clip", [Clip(), Clip(norm=2.0, shrink=0.5, steps=40)])
@pytest.mark.parametrize("grid", [INT4, INT4_CHANNEL])
def test_clipping_is_brute_force(grid: Grid, clip: Clip, weighted: bool) -> None:
    weight = normal(12, 24)
    importance = normal(24, seed=1).square() * torch.logspace(-2, 2, 24) if weighted else None
    found = nm.clipped_scale(weight, grid, clip, importance_I=importance)
    torch.testing.assert_close(found, brute_force(weight, grid, clip, importance), rtol=1e-6, atol=0)


@pytest.mark.parametrize("grid", [NVFP4, MXFP4])
def test_clipping_fp4_finds_the_best_scale_that_can_be_stored(grid: Grid) -> None:
    """Brute force over every scale of the format near the absmax one; the search may miss those it does not try."""
    weight = normal(12, 24)
    stored = scale_type(weight, grid, torch.bfloat16)

    def loss(scale: Tensor) -> Tensor:
        error = nm.from_codes(nm.round_to_grid(weight, scale, grid), scale) - weight
        return error.square().view(12, 3, 8).sum(-1)

    absmax = nm.scale_of(weight, grid, dtype=stored)
    found = nm.clipped_scale(weight, grid, Clip(norm=2.0, shrink=0.5, steps=40), dtype=stored)
    assert torch.equal(stored.read_back(found), found)
    every = torch.stack([loss(stored.read_back(absmax * factor)) for factor in torch.linspace(0.45, 2.1, 200)])
    assert torch.all(loss(found) <= loss(absmax))
    assert loss(found).sum() < (1 if grid is MXFP4 else 0.95) * loss(absmax).sum()
    assert loss(found).sum() <= (1.0001 if grid is MXFP4 else 1.05) * every.amin(0).sum()


def test_clipping_in_parts_is_clipping_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(13, 24)
    whole = nm.clipped_scale(weight, INT4, Clip())
    monkeypatch.setattr(nm, "_CLIP_ELEMENTS", 50)
    assert torch.equal(nm.clipped_scale(weight, INT4, Clip()), whole)


@unhurried
@given(SEEDS)
def test_clipping_never_loses_to_absmax(seed: int) -> None:
    weight = normal(4, 16, seed=seed)

    def loss(scale: Tensor) -> Tensor:
        error = nm.from_codes(nm.round_to_grid(weight, scale, INT4), scale) - weight
        return error.abs().pow(2.4).view(4, 2, 8).sum(-1)

    assert torch.all(loss(nm.clipped_scale(weight, INT4, Clip())) <= loss(nm.scale_of(weight, INT4)) * (1 + 1e-5))


def test_clipping_leaves_the_weight_alone_and_dead_groups_at_one() -> None:
    weight = normal(2, 16)
    weight[:, 8:] = 0
    before = weight.clone()
    scale = nm.clipped_scale(weight, INT4, Clip(), importance_I=torch.zeros(16))
    assert torch.equal(weight, before)
    assert torch.equal(scale[:, 1], torch.ones(2))
