"""numba's compiler, its code kept where there is a place for it.

That is beside the source, in `NUMBA_CACHE_DIR`, or in the user's cache; where none can be written (another user's
installation without a home folder), every process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kept(**options: Any) -> Callable[[_Function], _Function]:
    """Compile a function when it is first called, with `njit`'s options; keep the code if that is possible."""

    def compiled(function: _Function) -> _Function:
        try:
            made: _Function = njit(cache=True, **options)(function)
        except RuntimeError:  # there is no locator
            made = njit(**options)(function)
        return made

    return compiled
