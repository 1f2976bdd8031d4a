"""NVFP4A16: NVFP4's weights, 16-bit activations."""

from __future__ import annotations

from bitworth.schemes.nvfp4 import LAYOUT, WEIGHT
from bitworth.types import Scheme

__all__ = ["LAYOUT", "scheme"]


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme; its groups have 16 columns."""
    return Scheme(name="nvfp4a16", weight=WEIGHT)
