"""Before GPTQ: the per-column scale under which it will lose least, foreseen without rounding anything.

With UᵀU = H⁻¹ in GPTQ's order, an error e_j in column j costs e_j² / U_jj² (arXiv 2210.17323, section 3.3): of the
column's second moment, d_j = 1 / U_jj² is what the columns after it cannot make good. Scaling the column by s_j leaves
d_j / s_j², and errors are spread evenly over a group's step, which goes with the largest |w s| of a row in it. So a
scale costs, up to a factor,

    Σ_g (Σ_o max_{j in g} (w_oj s_j)²) (Σ_{j in g} d_j / s_j²).

AWQ (arXiv 2306.00978) searches s = mean|x|^r by rounding to nearest, as if no column made another's error good. Here
s = d^(a/2) / rms(w)^b with a and b on a grid, which takes one factorization a layer. Scales are rounded to a quarter of
an octave: their loss is flat there, and what is left does not depend on the order of sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitworth.numerics import group_size_of
from bitworth.quantizers.gptq import alive_hessian, damped
from bitworth.quantizers.stats import InputStats
from bitworth.types import GptqScale, Grid

_ROWS = 256  # output rows that are looked at, evenly spread
_STEPS_AN_OCTAVE = 4
_WEIGHT_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def gptq_scale(weight_OI: Tensor, grid: Grid, stats: InputStats, settings: GptqScale) -> Tensor:
    """Per-column divisor of the inputs, shape (in,), normalized to a geometric middle of 1."""
    rows_OI = weight_OI[:: max(1, weight_OI.shape[0] // _ROWS)]
    left_I = conditional_variance(stats, settings.damping)
    size = group_size_of(grid, weight_OI.shape[1])
    magnitude_I = weight_OI.square().mean(0).sqrt().clamp(min=1e-6)
    best, least = torch.ones_like(left_I), torch.inf
    for step in range(settings.steps + 1):
        for power in _WEIGHT_POWERS:
            scale = left_I ** (step / settings.steps / 2) / magnitude_I**power
            scale = scale / (scale.max() * scale.min()).sqrt()
            scale = (scale.log2() * _STEPS_AN_OCTAVE).round().div(_STEPS_AN_OCTAVE).exp2()
            loss = foreseen_loss(rows_OI, scale, left_I, size)
            if loss < least:
                best, least = scale, loss
    return best


def conditional_variance(stats: InputStats, damping: float) -> Tensor:
    """d, shape (in,): what of each column's second moment those after it, in order of falling moments, do not explain.

    Raises:
        WorkFailed: the Hessian holds NaN or infinity, or stays singular under any damping.
    """
    notes: list[str] = []  # GPTQ itself will say them
    hessian = alive_hessian(stats.hessian_II, notes)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    _, factor = damped(hessian, damping, order, notes)
    return factor.diagonal().square().reciprocal()[torch.argsort(order)]


def foreseen_loss(weight_OI: Tensor, scale_I: Tensor, left_I: Tensor, size: int) -> float:
    """What GPTQ will lose in groups of `size` columns under a scale, up to a factor that all scales share."""
    largest_OG = (weight_OI * scale_I).abs().view(len(weight_OI), -1, size).amax(-1)
    return float((largest_OG.square().sum(0) * (left_I / scale_I.square()).view(-1, size).sum(1)).sum())
