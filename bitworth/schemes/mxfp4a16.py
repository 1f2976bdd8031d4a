"""MXFP4A16: MXFP4's weights, 16-bit activations."""

from __future__ import annotations

from bitworth.schemes.mxfp4 import LAYOUT, WEIGHT
from bitworth.types import Scheme

__all__ = ["LAYOUT", "scheme"]


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme; its groups have 32 columns."""
    return Scheme(name="mxfp4a16", weight=WEIGHT)
