"""When the tokens of an answer came, in a few bytes a token that JSON can hold.

A chunk is what one read from the connection brought: one token or several, which the client saw at the same moment.
Packed, an answer is its gaps in whole microseconds (the first from the request's start) and the tokens of each chunk,
as little-endian 32-bit numbers, deflated, in base 64: about 3 bytes a chunk, against 36 for a Python number in a list.

>>> offsets, tokens = unpack(pack([0.25, 0.26, 0.27], [1, 3, 4]))
>>> offsets.tolist(), tokens.tolist()
([0.25, 0.26, 0.27], [1, 2, 1])
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def pack(offsets_s: Sequence[float], totals: Sequence[int]) -> str:
    """Chunks as text.

    Args:
        offsets_s: seconds from the request's start to each chunk, ascending.
        totals: tokens up to and with each chunk.
    """
    if not len(offsets_s):
        return ""
    micros = np.rint(np.asarray(offsets_s, dtype=np.float64) * 1e6)
    rows = np.stack([np.diff(micros, prepend=0.0), np.diff(np.asarray(totals, dtype=np.float64), prepend=0.0)])
    return base64.b64encode(zlib.compress(rows.clip(0, 2**32 - 1).astype("<u4").tobytes(), 1)).decode()


def unpack(text: str) -> tuple[Floats, Counts]:
    """Seconds from the start to each chunk, to the microsecond, and the tokens in each."""
    if not text:
        return np.empty(0), np.empty(0, dtype=np.int64)
    gaps, tokens = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<u4").reshape(2, -1)
    return np.cumsum(gaps, dtype=np.int64) / 1e6, tokens.astype(np.int64)


def token_gaps(text: str) -> Floats:
    """Seconds between successive tokens after the first chunk: a chunk of n tokens gives n equal shares of its gap.

    So the sum of the gaps is the time from the first chunk to the last, and their number that of the tokens after the
    first chunk's.
    """
    offsets, tokens = unpack(text)
    counts = tokens[1:]
    return np.repeat(np.diff(offsets) / np.maximum(counts, 1), counts)
