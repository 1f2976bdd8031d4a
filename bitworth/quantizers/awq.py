"""AWQ (Lin et al., arXiv 2306.00978, section 3.2): protect the columns whose inputs are large by scaling them up first.

The scale is s = mean|x|^r, r on a grid over [0, 1); the best r loses least at the layer's output. That loss,
E‖(Q(W·s)/s - W) x‖², equals tr(Δ H Δᵀ) with H = E x xᵀ, so the search needs the Hessian and no activations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitworth.numerics import from_codes, round_to_grid, scale_of
from bitworth.quantizers.stats import InputStats
from bitworth.scales import scale_type
from bitworth.types import Awq, Grid

_ROWS = 128  # output rows, at least, that the search looks at, evenly spread: one scale serves all, with like losses


def awq_scale(weight_OI: Tensor, grid: Grid, stats: InputStats, settings: Awq, *, dtype: torch.dtype) -> Tensor:
    """Per-column divisor of the inputs, shape (in,), normalized to a geometric middle of 1."""
    hessian = stats.settled_II()
    sample = weight_OI[:: max(1, weight_OI.shape[0] // _ROWS)]
    magnitude = stats.mean_abs_I.clamp(min=1e-4)
    best, least = torch.ones_like(magnitude), torch.inf
    for step in range(settings.steps):
        scale = magnitude ** (step / settings.steps)
        scale = scale / (scale.max() * scale.min()).sqrt()
        loss = _loss(sample, scale, grid, hessian, dtype)
        if loss < least:
            best, least = scale, loss
    return best


def _loss(weight_OI: Tensor, scale_I: Tensor, grid: Grid, hessian_II: Tensor, dtype: torch.dtype) -> float:
    scaled = weight_OI * scale_I
    scales = scale_of(scaled, grid, dtype=scale_type(scaled, grid, dtype))
    delta = from_codes(round_to_grid(scaled, scales, grid), scales) / scale_I - weight_OI
    return float(((delta @ hessian_II) * delta).sum())
