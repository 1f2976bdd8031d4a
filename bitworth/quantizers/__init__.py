"""From a layer's weights and what its inputs looked like to codes and scales: tensors in, new tensors out.

`round_weight` applies a Recipe's rounding; transforms (smoothquant, awq) give the per-column scale to apply before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitworth.numerics import half_range
from bitworth.quantizers.gptq import gptq
from bitworth.quantizers.rtn import rtn
from bitworth.quantizers.stats import InputStats, Rounded
from bitworth.scales import ScaleType, global_divisor, scale_type
from bitworth.types import Gptq, Grid, Recipe

__all__ = ["InputStats", "Rounded", "round_weight"]


def round_weight(
    weight_OI: Tensor,
    recipe: Recipe,
    stats: InputStats | None,
    *,
    dtype: torch.dtype,
    rows: slice | None = None,
    spend: bool = False,
    peak: Tensor | None = None,
) -> Rounded:
    """Codes and scales of one weight, or of several stacked along rows that read the same input.

    Args:
        weight_OI: (out, in).
        recipe: what to do.
        stats: what the inputs looked like; GPTQ without it falls back to rounding and says so in the notes.
        dtype: of the model: what scales are stored in, unless the format says otherwise.
        rows: round only these; what the whole stack shares is found on all.
        spend: the second moments of `stats` may be overwritten.
        peak: without `stats`, the largest magnitude that the same layer of other experts was given.
    """
    assert recipe.scheme.weight is not None
    stored = scale_type(weight_OI, recipe.scheme.weight, dtype)
    rounded = _rounded(weight_OI if rows is None else weight_OI[rows], recipe, stats, stored, spend)
    rounded.dtype = stored
    rounded.beside |= _input_scales(recipe.scheme.activation, stats, peak, dtype, rounded.notes)
    return rounded


def _input_scales(
    grid: Grid | None, stats: InputStats | None, others: Tensor | None, dtype: torch.dtype, notes: list[str]
) -> dict[str, Tensor]:
    """The scale of a layer's inputs that a checkpoint holds, shape (1,): NVFP4's global one, or that of a static grid.

    A static scale is the largest magnitude over half the code range, as compressed-tensors has it. An expert that no
    token reached takes the largest magnitude that the same layer of the `others` was given. Gate and up of all experts
    read the same hidden states, so that is one which it may be given too; what its down projection would read nobody
    saw. Serving engines give all experts of a mixture the largest of their scales, which 1 would often be.
    """
    if grid is None or (grid.dynamic and grid.scales != "e4m3"):
        return {}
    kind = "global scale" if grid.scales == "e4m3" else "scale"
    if stats is not None and stats.tokens:
        peak = stats.max_abs_I.max().float().reshape(1)
    else:
        peak = torch.zeros(1) if others is None else others.float().reshape(1)
        taken = "1" if others is None else "that of the largest input of the other experts"
        notes.append(f"calibration never reached it, so the {kind} of its inputs is {taken}")
    if grid.scales == "e4m3":
        return {"input_global_scale": global_divisor(peak)}
    return {"input_scale": ScaleType(dtype).encode(peak / half_range(grid))}


def _rounded(weight_OI: Tensor, recipe: Recipe, stats: InputStats | None, stored: ScaleType, spend: bool) -> Rounded:
    grid = recipe.scheme.weight
    assert grid is not None
    if isinstance(recipe.rounding, Gptq):
        if stats is not None and stats.tokens:
            return gptq(weight_OI, grid, recipe.rounding, stats, dtype=stored, spend=spend)
        rounded = rtn(weight_OI, grid, recipe.rounding.clip, None, dtype=stored)
        rounded.notes.append("calibration never reached it, so it was rounded without data")
        return rounded
    return rtn(weight_OI, grid, recipe.rounding.clip, stats, dtype=stored)
