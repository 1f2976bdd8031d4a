"""What scales are stored in, and so which values a scale can have.

A checkpoint keeps the scales of a weight as 16-bit floats, as E4M3 under one float32 scale of the whole tensor (NVFP4),
or as bare powers of two (the OCP microscaling formats' E8M0). Whoever chooses a scale asks a `ScaleType` what it reads
back as, before anything is rounded with it.

>>> POWERS_OF_TWO.read_back(torch.tensor([0.3, 0.0])).tolist()
[0.5, 1.0]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitworth.types import Grid

E4M3, E8M0 = torch.float8_e4m3fn, torch.uint8
_E4M3_MAX, _E2M1_MAX = 448.0, 6.0
_LEAST_EXPONENT, _BIAS = -126, 127  # 2**-127 is subnormal in float32, which processors may take for zero


@dataclass(frozen=True, slots=True, eq=False)
class ScaleType:
    """A dtype, and the scale of the whole tensor that stored scales are to be divided by (NVFP4), shape (1,)."""

    dtype: torch.dtype
    divisor: Tensor | None = None

    @property
    def coarse(self) -> bool:
        """True where neighbouring scales lie so far apart that rounding one can undo what it was chosen for."""
        return self.dtype in (E4M3, E8M0)

    def read_back(self, scale: Tensor) -> Tensor:
        """A scale as it reads back from a checkpoint, float32; zeros become a stored 1: dead groups stay zero."""
        if self.dtype == E8M0:
            return torch.where(scale > 0, torch.ldexp(torch.ones_like(scale), _exponent(scale)), 1.0)
        return self.decode(self._stored(scale))

    def encode(self, scale: Tensor) -> Tensor:
        """The tensor that a checkpoint holds for a scale."""
        if self.dtype == E8M0:
            return (_exponent(self.read_back(scale)) + _BIAS).to(E8M0)
        return self._stored(scale).to(self.dtype)

    def decode(self, stored: Tensor) -> Tensor:
        """`encode` undone, float32."""
        if self.dtype == E8M0:
            return torch.ldexp(torch.ones(stored.shape, device=stored.device), stored.int() - _BIAS)
        return stored.float() if self.divisor is None else stored.float() / self.divisor

    def _stored(self, scale: Tensor) -> Tensor:
        units = scale if self.divisor is None else scale * self.divisor
        if self.dtype == E4M3:
            units = units.clamp(max=_E4M3_MAX)  # torch makes NaN of what exceeds it
        units = units.to(self.dtype).float()
        return torch.where(units > 0, units, torch.ones_like(units))


POWERS_OF_TWO = ScaleType(E8M0)

Stored = torch.dtype | ScaleType
"""What scales are stored in; a dtype stands for itself."""


def _exponent(scale: Tensor) -> Tensor:
    """The power of two for an absmax scale, int32.

    compressed-tensors' rule (the OCP formats' rounding to even): the group's largest magnitude, 6 scales, is rounded to
    a power of two, down unless that is beyond 1.75 of the lower one, and 2**2 is taken off. Powers of two stay put.
    """
    half, exponent = torch.frexp(scale.float() * _E2M1_MAX)  # 0.5 <= half < 1
    return (exponent - 1 + (half >= 0.875).int() - 2).clamp(_LEAST_EXPONENT, _BIAS)


def global_divisor(peak: Tensor) -> Tensor:
    """NVFP4's scale of a whole tensor, float32 of shape (1,): 448 * 6 over its largest magnitude, 1 where that is 0.

    Stored beside the tensor as it is: group scales times it fill the range of E4M3.
    """
    divisor = _E4M3_MAX * _E2M1_MAX / peak.float().reshape(1)
    return torch.where(torch.isfinite(divisor), divisor, torch.ones_like(divisor))


def scale_type(weight_OI: Tensor, grid: Grid, dtype: torch.dtype) -> ScaleType:
    """How a weight's scales are stored in a model of `dtype`; layers that are stacked share the global scale."""
    if grid.scales == "e8m0":
        return POWERS_OF_TWO
    if grid.scales == "e4m3":
        return ScaleType(E4M3, global_divisor(weight_OI.abs().max()))
    return ScaleType(dtype)
