"""NVFP4: E2M1 weights and activations in groups of 16, E4M3 group scales under a float32 scale of the whole tensor.

The scale of a weight's groups is `weight_scale / weight_global_scale`. Activations get their group scales as they
arrive, under an `input_global_scale` that calibration finds. Layers that vLLM runs as one product (q, k and v; gate and
up) have the same global scales, which it asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bitworth.schemes.base import Layout
from bitworth.types import Grid, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from bitworth.scales import ScaleType

WEIGHT = Grid(bits=4, kind="float", granularity="group", group_size=16, scales="e4m3")


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme; its groups have 16 columns."""
    activation = Grid(bits=4, kind="float", granularity="group", group_size=16, dynamic=True, scales="e4m3")
    return Scheme(name="nvfp4", weight=WEIGHT, activation=activation)


def _encode(codes: Tensor, scale: Tensor, dtype: ScaleType) -> dict[str, Tensor]:
    from bitworth.numerics import pack_fp4

    assert dtype.divisor is not None
    return {
        "weight_packed": pack_fp4(codes),
        "weight_scale": dtype.encode(scale),
        "weight_global_scale": dtype.divisor.clone(),  # layers of a stack share it, and a file shares nothing
    }


def _decode(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    from bitworth.numerics import unpack_fp4
    from bitworth.scales import E4M3, ScaleType

    scale = ScaleType(E4M3, tensors["weight_global_scale"]).decode(tensors["weight_scale"])
    return unpack_fp4(tensors["weight_packed"]), scale


LAYOUT = Layout(name="nvfp4-pack-quantized", encode=_encode, decode=_decode)
