"""Scale, round and pack: the arithmetic of the number formats, in pure torch.

A quantized weight is `codes * scale`, codes on a `Grid`, one scale a channel or group. Scales are rounded to what they
are stored in (`scales.ScaleType`) before anything is rounded with them, so that what was optimized is what the loaders
compute.

>>> grid = Grid(bits=4, granularity="group", group_size=2)
>>> weight = torch.tensor([[7.0, -3.4, 0.5, 0.1]])
>>> scale = scale_of(weight, grid)
>>> round_to_grid(weight, scale, grid).tolist()
[[7.0, -3.0, 7.0, 1.0]]
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitworth import compiled
from bitworth.scales import ScaleType, Stored
from bitworth.types import Clip, Grid

FLOAT8 = torch.float8_e4m3fn
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of E2M1, in the order of their bits
_PACKED = 1 << 20  # weights that are packed at a time
#: Weights searched at once: the temporaries stay in the processor's cache; a GPU's launches are few.
_CLIP_ELEMENTS, _GPU_CLIP_ELEMENTS = 1 << 17, 1 << 25


def group_size_of(grid: Grid, columns: int) -> int:
    """How many input columns share a scale."""
    return grid.group_size if grid.granularity == "group" and grid.group_size else columns


def _grouped(weight_OI: Tensor, size: int) -> Tensor:
    """(out, groups, size) float32."""
    return weight_OI.float().reshape(weight_OI.shape[0], -1, size)


def half_range(grid: Grid) -> float:
    """What the largest magnitude maps to: half the code range, as compressed-tensors defines symmetric scales."""
    low, high = grid.levels
    return (high - low) / 2


def scale_of(weight_OI: Tensor, grid: Grid, *, shrink: Tensor | float = 1.0, dtype: Stored = torch.float32) -> Tensor:
    """Symmetric absmax scales, shape (out, groups), rounded to `dtype` and returned in float32; dead groups get 1."""
    size = group_size_of(grid, weight_OI.shape[1])
    peak = _grouped(weight_OI, size).abs().amax(-1)
    return as_stored(peak * shrink / half_range(grid), dtype)


def as_stored(scale: Tensor, dtype: Stored) -> Tensor:
    """A scale as it reads back from a checkpoint; zeros become a stored 1 so that dead groups stay exactly zero."""
    return (dtype if isinstance(dtype, ScaleType) else ScaleType(dtype)).read_back(scale)


def to_codes(scaled: Tensor, grid: Grid) -> Tensor:
    """Nearest code of a tensor already divided by its scale, as float32: ties to even, saturating."""
    low, high = grid.levels
    if grid.kind == "float":
        clamped = scaled.clamp(low, high)
        return clamped.to(FLOAT8).float() if grid.bits == 8 else _to_e2m1(clamped)
    return scaled.round().clamp_(low, high)


def _to_e2m1(clamped: Tensor) -> Tensor:
    """Nearest E2M1 number: steps of 0.5 below 2, of 1 below 4, of 2 up to 6; small negative numbers give -0."""
    magnitude = clamped.abs()
    step = 0.5 + 0.5 * (magnitude >= 2) + (magnitude >= 4)
    # + 0.0: compressed-tensors keeps the sign of a number rounded to zero, not that of a zero
    return ((clamped + 0.0) / step).round_().mul_(step)


def compact_codes(codes: Tensor, grid: Grid) -> Tensor:
    """Codes in a small type that holds each of them, and a zero's sign where the grid has one: int8 or bfloat16."""
    if grid.bits > 8:
        return codes
    return codes.to(torch.int8 if grid.kind == "int" else torch.bfloat16)


def round_to_grid(weight_OI: Tensor, scale_OG: Tensor, grid: Grid) -> Tensor:
    """Codes of a weight under its scales, shape (out, in), float32."""
    size = group_size_of(grid, weight_OI.shape[1])
    return to_codes(_grouped(weight_OI, size) / scale_OG.unsqueeze(-1), grid).flatten(1)


def from_codes(codes_OI: Tensor, scale_OG: Tensor) -> Tensor:
    """The weight that codes and scales stand for, float32."""
    size = codes_OI.shape[1] // scale_OG.shape[1]
    coded_OGS = codes_OI.reshape(codes_OI.shape[0], -1, size)
    weight_OGS: Tensor = coded_OGS * scale_OG.float().unsqueeze(-1)
    return weight_OGS.flatten(1)


def clipped_scale(
    weight_OI: Tensor,
    grid: Grid,
    clip: Clip,
    *,
    dtype: Stored = torch.float32,
    importance_I: Tensor | None = None,
) -> Tensor:
    """Scales by grid search over the shrink factor (published recipe: p = 1 - i/100, i < 80, sum |q - w|**2.4).

    Args:
        weight_OI: (out, in).
        grid: symmetric grid of the weight.
        clip: the search.
        dtype: what scales are stored in.
        importance_I: (in,) weights of the error of each input column, the Hessian's diagonal; None counts all alike.

    Returns:
        (out, groups) float32 scales; the first (largest) shrink factor wins a tie.
    """
    if compiled.compiles(grid, weight_OI.device):
        factors = torch.tensor(_factors(grid, clip))
        candidates_OGS = as_stored(scale_of(weight_OI, grid).unsqueeze(-1) * factors, dtype)
        return compiled.best_scale(weight_OI, candidates_OGS, grid, clip.norm, importance_I)
    elements = _CLIP_ELEMENTS if weight_OI.device.type == "cpu" else _GPU_CLIP_ELEMENTS
    rows = max(1, elements // weight_OI.shape[1])
    parts = [_clip_rows(part, grid, clip, dtype, importance_I) for part in torch.split(weight_OI.float(), rows)]
    return torch.cat(parts)


def _clip_rows(weight_OI: Tensor, grid: Grid, clip: Clip, dtype: Stored, importance_I: Tensor | None) -> Tensor:
    size = group_size_of(grid, weight_OI.shape[1])
    grouped = _grouped(weight_OI, size)
    weigh = None if importance_I is None else importance_I.float().view(-1, size)
    full = scale_of(weight_OI, grid)
    best = as_stored(full, dtype)
    least = torch.full_like(best, torch.inf)
    for factor in _factors(grid, clip):
        scale = as_stored(full * factor, dtype)
        error = to_codes(grouped / scale.unsqueeze(-1), grid).mul_(scale.unsqueeze(-1)).sub_(grouped).abs_()
        # torch's pow is a thousand times slower than exp(norm * log), which it vectorizes; log 0 = -inf gives 0 back
        error = error.square_() if clip.norm == 2 else error.log_().mul_(clip.norm).exp_()
        loss = error.sum(-1) if weigh is None else (error * weigh).sum(-1)
        better = loss < least
        least = torch.where(better, loss, least)
        best = torch.where(better, scale, best)
    return best


def _factors(grid: Grid, clip: Clip) -> list[float]:
    """What the absmax scale is multiplied by, in the order tried.

    Powers of two have three candidates. E2M1's codes lie unevenly, so that leaving 6 unused can be better (the idea of
    Cook et al., "Four Over Six").
    """
    if grid.scales == "e8m0":
        return [1.0, 2.0, 0.5]
    shrinking = [1 - step / clip.steps for step in range(int(clip.shrink * clip.steps))]
    return [*shrinking, 1.5] if grid.kind == "float" and grid.bits == 4 else shrinking


def quantize_token(hidden: Tensor, grid: Grid) -> Tensor:
    """Dynamic per-token activations: quantized and back, in the input's dtype.

    The scale is absmax over the last axis divided by half the code range (integers) or the largest finite value
    (floats), as compressed-tensors computes it.
    """
    values = hidden.float()
    # eps as compressed-tensors: a token of zeros must not divide by zero
    scale = (values.abs().amax(-1, keepdim=True) / half_range(grid)).clamp(min=torch.finfo(torch.float32).eps)
    return (to_codes(values / scale, grid) * scale).to(hidden.dtype)


def pack_int4(codes_OI: Tensor) -> Tensor:
    """Eight 4-bit codes a 32-bit word, first column in the low bits, each stored as code + 8; columns padded to a word.

    Bit for bit what compressed-tensors' `pack_to_int32` writes.
    """
    rows = max(1, _PACKED // max(1, codes_OI.shape[1]))
    return torch.cat([_words(part) for part in torch.split(codes_OI, rows)])


def _words(codes_OI: Tensor) -> Tensor:
    nibbles = (codes_OI + 8).to(torch.int32)
    pad = -nibbles.shape[1] % 8
    nibbles = torch.nn.functional.pad(nibbles, (0, pad)).reshape(codes_OI.shape[0], -1, 8)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=codes_OI.device)
    words: Tensor = (nibbles << shifts).sum(-1, dtype=torch.int64)
    return words.to(torch.int32)


def unpack_int4(packed_OW: Tensor, columns: int) -> Tensor:
    """The codes that `pack_int4` packed, int8, shape (out, columns)."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed_OW.device)
    nibbles = (packed_OW.unsqueeze(-1) >> shifts) & 0xF
    return (nibbles.flatten(1)[:, :columns] - 8).to(torch.int8)


def pack_fp4(codes_OI: Tensor) -> Tensor:
    """Two E2M1 codes a byte, first column in the low half: the sign above the index of the magnitude.

    Bit for bit what compressed-tensors' `pack_fp4_to_uint8` writes.
    """
    doubled = codes_OI.abs() * 2
    index = (doubled - 1.0 * (doubled > 5) - 1.0 * (doubled > 7) - 3.0 * (doubled > 9)).to(
        torch.uint8
    )  # 6, 8, 12 are 5, 6, 7
    nibbles = index | (torch.signbit(codes_OI).to(torch.uint8) << 3)
    return nibbles[:, ::2] | (nibbles[:, 1::2] << 4)


def unpack_fp4(packed_OB: Tensor) -> Tensor:
    """The codes that `pack_fp4` packed, float32, shape (out, 2 * bytes)."""
    nibbles = torch.stack((packed_OB & 0xF, packed_OB >> 4), dim=-1).flatten(1)
    table = torch.tensor([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)], device=packed_OB.device)
    return table[nibbles.long()]
