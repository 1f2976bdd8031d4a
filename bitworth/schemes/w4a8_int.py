"""W4A8-INT: INT4 weights in groups of input columns, INT8 activations, dynamic, by token.

Each code is stored in a byte of its own, as compressed-tensors does and as vLLM's kernel for CPUs reads them; it packs
two a byte in memory, and quantizes activations asymmetrically.
"""

from __future__ import annotations

from bitworth.schemes.base import plain
from bitworth.types import Grid, Scheme

LAYOUT = plain("int-quantized", "int8")


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme with groups of `group_size` input columns."""
    return Scheme(
        name="w4a8-int",
        weight=Grid(bits=4, granularity="group", group_size=group_size or 128),
        activation=Grid(bits=8, granularity="token", dynamic=True),
    )
