"""W8A8-INT: INT8 weights, one scale an output channel; INT8 activations, dynamic, by token (paper, section 3.2)."""

from __future__ import annotations

from bitworth.schemes.base import plain
from bitworth.types import Grid, Scheme

LAYOUT = plain("int-quantized", "int8")


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme; it has no groups."""
    return Scheme(
        name="w8a8-int",
        weight=Grid(bits=8, granularity="channel"),
        activation=Grid(bits=8, granularity="token", dynamic=True),
    )
