"""What becomes of memory that was freed, which on Linux glibc decides; elsewhere nothing here does anything."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MAPPED, _GLIBCS_MOST = 8 << 20, 32 << 20  # bytes of a tensor from which on it is mapped by itself


@contextmanager
def reusing() -> Iterator[None]:
    """Keep freed memory for the next tensor, since clearing new pages costs a quarter of the time, until `give_back`.

    glibc maps tensors anew each time and, told not to, keeps all that was freed between tensors still held, most of the
    peak in a wide block. So it is told not to for those below 8 MiB; the cost of clearing larger ones is lost beside
    what is computed with them.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_THRESHOLD, _GLIBCS_MOST)  # to what it comes to by itself
        library.mallopt(_M_TRIM_THRESHOLD, 2 * _GLIBCS_MOST)


def give_back() -> None:
    """Give the system what is free."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "malloc_trim") else None  # musl has none
