"""Round to nearest, with absmax or clipped scales."""

from __future__ import annotations

from torch import Tensor

from bitworth.numerics import clipped_scale, compact_codes, round_to_grid, scale_of
from bitworth.quantizers.stats import InputStats, Rounded
from bitworth.scales import Stored
from bitworth.types import Clip, Grid


def choose_scale(
    weight_OI: Tensor, grid: Grid, clip: Clip | None, stats: InputStats | None, *, dtype: Stored
) -> Tensor:
    """Scales (out, groups): absmax, or the clipping search, its error weighted by the Hessian's diagonal if asked."""
    if clip is None:
        return scale_of(weight_OI, grid, dtype=dtype)
    importance = stats.mean_square_I if clip.hessian_weighted and stats is not None and stats.tokens else None
    return clipped_scale(weight_OI, grid, clip, dtype=dtype, importance_I=importance)


def rtn(weight_OI: Tensor, grid: Grid, clip: Clip | None, stats: InputStats | None, *, dtype: Stored) -> Rounded:
    """Every weight to its nearest code."""
    scale = choose_scale(weight_OI, grid, clip, stats, dtype=dtype)
    return Rounded(compact_codes(round_to_grid(weight_OI, scale, grid), grid), scale)
