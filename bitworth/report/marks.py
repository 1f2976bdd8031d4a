"""One colour and one shape a format, the same in every plot and table.

Colours are named by CSS variables that the page defines for light and for dark screens; shapes differ too, so that
nothing rests on colour alone. Seven hues and eight shapes give 56 different marks before one returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitworth.types import BASELINE

HUES = 7
#: Outlines in a box from -1 to 1, as SVG paths; Vega takes the same paths as symbol shapes.
_SHAPES = (
    "M-.8,-.8H.8V.8H-.8Z",
    "M0,-1.1L1.1,0L0,1.1L-1.1,0Z",
    "M0,-1L1,.8H-1Z",
    "M0,1L-1,-.8H1Z",
    "M-.35,-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "M-.8,-1L1,0L-.8,1Z",
    "M.8,-1L-1,0L.8,1Z",
    "M-1,-.6H1V.6H-1Z",
)
_CIRCLE = "M-.9,0A.9,.9,0,1,1,.9,0A.9,.9,0,1,1,-.9,0Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How a format looks: a CSS colour variable and an outline."""

    colour: str
    shape: str


def marks_of(formats: Sequence[str]) -> dict[str, Mark]:
    """The formats' marks by their order in the study; the baseline is a neutral circle."""
    others = [format for format in dict.fromkeys(formats) if format != BASELINE]
    found = {
        format: Mark(colour=f"--hue-{index % HUES}", shape=_SHAPES[index % len(_SHAPES)])
        for index, format in enumerate(others)
    }
    return {BASELINE: Mark(colour="--neutral", shape=_CIRCLE), **found}
