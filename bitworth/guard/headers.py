"""What a safetensors file lists, believed only where it fits the file.

The layout: 8 bytes (little endian) with the length of the header, the header as JSON, the tensors' bytes. A header is
checked in full before any tensor is looked for: its length, names given twice, dtypes, shapes, and that the tensors
fill the file from the first byte to the last without a gap or an overlap.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from bitworth.guard.documents import MOST_NESTED, json_of

#: The format's own limit.
MOST_HEADER_BYTES = 100_000_000
MOST_DIMENSIONS = 64
_COUNT = 8

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One tensor: where its bytes lie, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


def read_header(path: Path) -> dict[str, Listed]:
    """The tensors that a safetensors file lists, by name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file, or does not hold what it lists; says what is wrong, in a few words.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_COUNT)
        length = int.from_bytes(start, "little")
        if len(start) < _COUNT or length > size - _COUNT:
            raise ValueError("it is shorter than its header")
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"its header claims {length:,} bytes")
        text = file.read(length)
    return check_header(text, size - _COUNT - length)


def check_header(text: bytes, size: int) -> dict[str, Listed]:
    """The tensors of a header whose file has `size` bytes for them; see `read_header` for what it raises."""
    if not text.startswith(b"{"):
        raise ValueError("its header is no JSON object")
    entries = _object(text)
    about = entries.pop("__metadata__", None)
    if about is not None and not (isinstance(about, dict) and all(isinstance(note, str) for note in about.values())):
        raise ValueError("its __metadata__ is no mapping of texts")
    found = {name: _listed(name, entry) for name, entry in entries.items()}
    _check_places(found, size)
    return found


def _object(text: bytes) -> dict[str, Any]:
    """The header's object; JSON allows a name twice and Python keeps the last, which is refused here."""
    twice: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return found

    value = json_of(text, nested=MOST_NESTED, collect=collect)
    if twice:
        raise ValueError(f"it lists {twice[0][:80]!r} twice")
    if not isinstance(value, dict):
        raise ValueError("its header is no JSON object")
    return value


def _listed(name: str, entry: Any) -> Listed:
    if not isinstance(entry, dict):
        raise ValueError(f"what it says of {name[:80]!r} is no object")
    dtype, shape, places = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name[:80]!r} has an unknown dtype")
    if not _counts(shape) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name[:80]!r} has no shape")
    if not _counts(places) or len(places) != 2 or places[0] > places[1]:
        raise ValueError(f"{name[:80]!r} has no place in the file")
    if math.prod(shape) * _BITS[dtype] != 8 * (places[1] - places[0]):
        raise ValueError(f"{name[:80]!r} has another number of bytes than its shape and dtype need")
    return Listed(dtype=dtype, shape=tuple(shape), first=places[0], last=places[1])


def _counts(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers from 0 to what an address can hold."""
    return isinstance(value, list) and all(type(part) is int and 0 <= part < 1 << 63 for part in value)


def _check_places(found: dict[str, Listed], size: int) -> None:
    """Tensors lie one after another from 0 to the file's end."""
    end = 0
    for name, entry in sorted(found.items(), key=lambda item: (item[1].first, item[1].last)):
        if entry.first != end:
            raise ValueError(f"{name[:80]!r} {'overlaps another tensor' if entry.first < end else 'follows a gap'}")
        end = entry.last
    if end != size:
        raise ValueError("it is cut short" if end > size else "it holds more bytes than it lists")
