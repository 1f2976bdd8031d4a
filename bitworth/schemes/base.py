"""How a compressed-tensors checkpoint stores the codes and scales of one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A named layout; `encode` and `decode` are each other's inverse.

    encode: (codes (out, in) float32, scales (out, groups), dtype of scales) to tensors by suffix ('weight_scale', ...).
    decode: those tensors to (codes (out, in) float32, scales (out, groups) float32).
    """

    name: str
    encode: Callable[[Tensor, Tensor, torch.dtype], dict[str, Tensor]]
    decode: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]


def plain(name: str, storage: torch.dtype) -> Layout:
    """A layout that stores codes as they are, in `storage`, under `weight`."""

    def encode(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"weight": codes.to(storage), "weight_scale": scale.to(dtype)}

    def decode(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return tensors["weight"].float(), tensors["weight_scale"].float().reshape(tensors["weight"].shape[0], -1)

    return Layout(name=name, encode=encode, decode=decode)
