"""W4A16-INT: INT4 weights, one scale a group of input columns, 16-bit activations (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bitworth.schemes.base import Layout
from bitworth.types import Grid, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from bitworth.scales import ScaleType


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme with groups of `group_size` input columns."""
    return Scheme(name="w4a16-int", weight=Grid(bits=4, granularity="group", group_size=group_size or 128))


def _encode(codes: Tensor, scale: Tensor, dtype: ScaleType) -> dict[str, Tensor]:
    import torch

    from bitworth.numerics import pack_int4

    return {
        "weight_packed": pack_int4(codes),
        "weight_scale": dtype.encode(scale),
        "weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }


def _decode(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    from bitworth.numerics import unpack_int4

    columns = int(tensors["weight_shape"][1])
    return unpack_int4(tensors["weight_packed"], columns).float(), tensors["weight_scale"].float()


LAYOUT = Layout(name="pack-quantized", encode=_encode, decode=_decode)
