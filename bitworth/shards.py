"""Join safetensors files into one without reading a tensor: bytes are copied a megabyte at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def listed(path: Path) -> dict[str, Any]:
    """The tensors that a safetensors file lists: dtype, shape and place by name."""
    return _header(path)[0]


def bytes_in(path: Path) -> int:
    """Bytes of all tensors of a file.

    Raises:
        OSError: the file does not hold what it lists, or lists nothing that can be read.
    """
    try:
        tensors, begin = _header(path)
        size = sum(_size(entry) for entry in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{path.name} is not a safetensors file") from error
    if path.stat().st_size != begin + size:
        raise OSError(f"{path.name} is cut short")
    return size


def join(pieces: list[Path], path: Path) -> dict[str, Any]:
    """One safetensors file out of several, copied a megabyte at a time, so that no tensor is in memory; what it lists.

    Tensors lie in safetensors' own order, of the widest numbers first, which keeps each aligned.
    """
    parts = []
    for piece in pieces:
        tensors, begin = _header(piece)
        parts += [(name, entry, piece, begin) for name, entry in tensors.items()]
    parts.sort(key=lambda part: (-_itemsize(part[1]), part[0]))
    joined: dict[str, Any] = {}
    end = 0
    for name, entry, _, _ in parts:
        joined[name] = {**entry, "data_offsets": [end, end + _size(entry)]}
        end += _size(entry)
    header = json.dumps({"__metadata__": {"format": "pt"}, **joined}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as target:
        target.write(len(header).to_bytes(8, "little") + header)
        for _, entry, piece, begin in parts:
            _copy(piece, begin + entry["data_offsets"][0], _size(entry), target)
        target.flush()
        os.fsync(target.fileno())
    return joined


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors that a safetensors file lists, and where their bytes begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if 8 + size > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        tensors: dict[str, Any] = json.loads(file.read(size))
    tensors.pop("__metadata__", None)
    return tensors, 8 + size


def _itemsize(entry: Mapping[str, Any]) -> float:
    """Bytes a number of a listed tensor takes."""
    count = math.prod(entry["shape"])
    return _size(entry) / count if count else 0.0


def _size(entry: Mapping[str, Any]) -> int:
    first, last = entry["data_offsets"]
    return int(last) - int(first)


def _copy(path: Path, start: int, size: int, target: IO[bytes]) -> None:
    with path.open("rb") as source:
        source.seek(start)
        while size:
            data = source.read(min(size, 1 << 20))
            if not data:
                raise OSError(f"{path.name} is cut short")
            target.write(data)
            size -= len(data)
