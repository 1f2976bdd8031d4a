"""W4A8-FP: INT4 weights in groups of input columns, E4M3 activations, dynamic, by token.

Stored as W4A16-INT is. vLLM multiplies them on Hopper GPUs, in groups of 128 only.
"""

from __future__ import annotations

from bitworth.schemes.w4a16_int import LAYOUT
from bitworth.types import Grid, Scheme

__all__ = ["LAYOUT", "scheme"]


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme with groups of `group_size` input columns."""
    return Scheme(
        name="w4a8-fp",
        weight=Grid(bits=4, granularity="group", group_size=group_size or 128),
        activation=Grid(bits=8, kind="float", granularity="token", dynamic=True),
    )
