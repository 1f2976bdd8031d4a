"""W8A8-INT with static inputs: one scale a layer's input, found on the calibration data and stored as `input_scale`.

A token costs no search for its scale, but what exceeds the calibration's largest magnitude saturates, and one outlier
column sets the step of all others. Layers that vLLM runs as one product read one tensor, so their scales are the same.
"""

from __future__ import annotations

from dataclasses import replace

from bitworth.schemes import w8a8_int
from bitworth.types import Grid, Scheme

LAYOUT = w8a8_int.LAYOUT


def scheme(group_size: int | None = None) -> Scheme:
    """The scheme; it has no groups."""
    return replace(w8a8_int.scheme(), name="w8a8-int-static", activation=Grid(bits=8, granularity="tensor"))
