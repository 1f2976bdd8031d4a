"""From a layer's weights and what its inputs looked like to codes and scales: tensors in, new tensors out.

`round_weight` applies a Recipe's rounding; transforms (smoothquant, awq) give the per-column scale to apply before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitworth.quantizers.gptq import gptq
from bitworth.quantizers.rtn import rtn
from bitworth.quantizers.stats import InputStats, Rounded
from bitworth.types import Gptq, Recipe

__all__ = ["InputStats", "Rounded", "round_weight"]


def round_weight(weight_OI: Tensor, recipe: Recipe, stats: InputStats | None, *, dtype: torch.dtype) -> Rounded:
    """Codes and scales of one weight, or of several stacked along rows that read the same input.

    Args:
        weight_OI: (out, in), float32.
        recipe: what to do.
        stats: what the inputs looked like; GPTQ without it falls back to rounding and says so in the notes.
        dtype: what scales are stored in.
    """
    grid = recipe.scheme.weight
    assert grid is not None
    if isinstance(recipe.rounding, Gptq):
        if stats is not None and stats.tokens:
            return gptq(weight_OI, grid, recipe.rounding, stats, dtype=dtype)
        rounded = rtn(weight_OI, grid, recipe.rounding.clip, None, dtype=dtype)
        rounded.notes.append("calibration never reached it, so it was rounded without data")
        return rounded
    return rtn(weight_OI, grid, recipe.rounding.clip, stats, dtype=dtype)
