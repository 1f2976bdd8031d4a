"""W8A8-FP with static inputs: one scale a layer's input, found on the calibration data and stored as `input_scale`.

See `w8a8_int_static`; E4M3 keeps its relative precision over the whole range, so an outlier costs the others less.
"""

from __future__ import annotations

from dataclasses import replace

from bitworth.schemes import w8a8_fp
from bitworth.types import Grid, Scheme

LAYOUT = w8a8_fp.LAYOUT


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme; it has no groups."""
    activation = Grid(bits=8, kind="float", granularity="tensor")
    return replace(w8a8_fp.scheme(), name="w8a8-fp-static", activation=activation)
