"""W8A8-FP: E4M3 weights, one scale an output channel; E4M3 activations, dynamic, by token (paper, section 3.2)."""

from __future__ import annotations

from bitworth.schemes.base import plain
from bitworth.types import Grid, Scheme

LAYOUT = plain("float-quantized", "float8_e4m3fn")


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme; it has no groups."""
    return Scheme(
        name="w8a8-fp",
        weight=Grid(bits=8, kind="float", granularity="channel"),
        activation=Grid(bits=8, kind="float", granularity="token", dynamic=True),
    )
