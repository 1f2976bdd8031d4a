"""The number formats, one a file: what grid the tensors live on, and how a checkpoint stores them.

To add one, write a file with `scheme` and `LAYOUT` and list it in `_MODULES`.

>>> get("w4a16-int", group_size=64).weight.group_size
64
"""

from __future__ import annotations

from typing import Protocol

from bitworth.errors import BitworthError
from bitworth.schemes import (
    mxfp4,
    mxfp4a16,
    nvfp4,
    nvfp4a16,
    w4a8_fp,
    w4a8_int,
    w4a16_int,
    w8a8_fp,
    w8a8_fp_static,
    w8a8_int,
    w8a8_int_static,
)
from bitworth.schemes.base import Layout
from bitworth.types import Grid, Scheme


class _Format(Protocol):
    """What a file of this folder offers."""

    LAYOUT: Layout

    def scheme(self, group_size: int | None = None) -> Scheme:
        """The scheme; `group_size` counts only where weights are grouped."""
        ...


_MODULES: dict[str, _Format] = {
    "w8a8-fp": w8a8_fp,
    "w8a8-int": w8a8_int,
    "w4a16-int": w4a16_int,
    "w4a8-fp": w4a8_fp,
    "w4a8-int": w4a8_int,
    "nvfp4": nvfp4,
    "nvfp4a16": nvfp4a16,
    "mxfp4": mxfp4,
    "mxfp4a16": mxfp4a16,
    "w8a8-fp-static": w8a8_fp_static,
    "w8a8-int-static": w8a8_int_static,
}
NAMES = tuple(_MODULES)

FP8_CACHE = Grid(bits=8, kind="float", granularity="tensor")
"""A key-value cache in E4M3 with one scale for keys and one for values: the one kind that vLLM loads scales for."""


def get(name: str, *, group_size: int | None = None) -> Scheme:
    """The scheme of that name; `group_size` counts only where weights are grouped.

    Raises:
        BitworthError: no such scheme.
    """
    if name not in _MODULES:
        raise BitworthError(f"Unknown number format '{name}'; known: {', '.join(NAMES)}.")
    return _MODULES[name].scheme(group_size)


def layout_of(scheme: Scheme) -> Layout:
    """How a checkpoint stores the scheme's weights."""
    return _MODULES[scheme.name].LAYOUT
