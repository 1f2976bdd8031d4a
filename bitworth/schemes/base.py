"""How a compressed-tensors checkpoint stores the codes and scales of one layer.

torch is imported only where tensors are handled: a study names schemes where nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from bitworth.scales import ScaleType


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A named layout; `encode` and `decode` are each other's inverse.

    encode: (codes (out, in), scales (out, groups), what these are stored in) to tensors by suffix
    ('weight_scale', ...).
    decode: those tensors to (codes (out, in) float32, scales (out, groups) float32).
    """

    name: str
    encode: Callable[[Tensor, Tensor, ScaleType], dict[str, Tensor]]
    decode: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]


def plain(name: str, storage: str) -> Layout:
    """A layout that stores codes as they are, in torch's dtype of the name `storage`, under `weight`."""

    def encode(codes: Tensor, scale: Tensor, dtype: ScaleType) -> dict[str, Tensor]:
        import torch

        return {"weight": codes.to(getattr(torch, storage)), "weight_scale": dtype.encode(scale)}

    def decode(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return tensors["weight"].float(), tensors["weight_scale"].float().reshape(tensors["weight"].shape[0], -1)

    return Layout(name=name, encode=encode, decode=decode)
