"""MXFP4 (OCP Microscaling Formats 1.0): E2M1 weights and activations in groups of 32, whose scales are powers of two.

A scale is stored as its exponent plus 127 in a byte (E8M0). Activations are quantized as they arrive, by the same rule.
vLLM quantizes them where a kernel does (Blackwell) and leaves them at 16 bits elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bitworth.schemes.base import Layout
from bitworth.types import Grid, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from bitworth.scales import ScaleType

WEIGHT = Grid(bits=4, kind="float", granularity="group", group_size=32, scales="e8m0")


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme; its groups have 32 columns."""
    activation = Grid(bits=4, kind="float", granularity="group", group_size=32, dynamic=True, scales="e8m0")
    return Scheme(name="mxfp4", weight=WEIGHT, activation=activation)


def _encode(codes: Tensor, scale: Tensor, dtype: ScaleType) -> dict[str, Tensor]:
    from bitworth.numerics import pack_fp4

    return {"weight_packed": pack_fp4(codes), "weight_scale": dtype.encode(scale)}


def _decode(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    from bitworth.numerics import unpack_fp4
    from bitworth.scales import POWERS_OF_TWO

    return unpack_fp4(tensors["weight_packed"]), POWERS_OF_TWO.decode(tensors["weight_scale"])


LAYOUT = Layout(name="mxfp4-pack-quantized", encode=_encode, decode=_decode)
