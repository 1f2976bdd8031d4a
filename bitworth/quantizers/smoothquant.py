"""SmoothQuant (Xiao et al., arXiv 2211.10438, equation 4): give the weights a part of the activations' range."""

from __future__ import annotations

from torch import Tensor

from bitworth.quantizers.stats import InputStats
from bitworth.types import SmoothQuant

_LEAST = 1e-5


def smoothing_scale(weight_OI: Tensor, stats: InputStats, settings: SmoothQuant) -> Tensor:
    """Per-column divisor of the inputs, s = max|x|^a / max|w|^(1-a), shape (in,); weights are multiplied by it."""
    inputs = stats.max_abs_I.clamp(min=_LEAST)
    weights = weight_OI.float().abs().amax(0).clamp(min=_LEAST)
    return (inputs**settings.strength / weights ** (1 - settings.strength)).clamp(min=_LEAST)
