"""Where a point's name goes so that it covers no point, no other name and, where there is room, no line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_CHAR_PX = 7.2
_LINE_PX = 14.0
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A point in pixels (y grows downwards), half the width it covers, and its name; an empty name is not placed."""

    name: str
    x: float
    y: float
    radius: float = 6.0

    @property
    def box(self) -> Box:
        """Left, top, right and bottom of what the point covers."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


@dataclass(frozen=True, slots=True)
class Spot:
    """A name's place relative to its point, in pixels."""

    dx: float
    dy: float
    align: Literal["left", "right", "center"]


def place_labels(
    anchors: Sequence[Anchor], lines: Sequence[Box] = (), *, width: float, height: float
) -> list[Spot | None]:
    """A spot for each name, earlier ones first, inside a frame of `width` by `height`; None where none is free.

    `lines` are boxes that a name avoids as long as another spot is free.
    """
    taken: list[Box] = [anchor.box for anchor in anchors]
    spots: list[Spot | None] = []
    for anchor in anchors:
        boxes = [(spot, _box(anchor, spot)) for spot in _around(anchor.radius)] if anchor.name else []
        free = [(spot, box) for spot, box in boxes if _inside(box, width, height) and not _hits(box, taken)]
        spot, box = next((pair for pair in free if not _hits(pair[1], lines)), free[0] if free else (None, None))
        if box is not None:
            taken.append(box)
        spots.append(spot)
    return spots


def _around(radius: float) -> list[Spot]:
    """Beside, then above and below, then at the corners, then farther off."""
    side, level, slant = radius + 5, radius + 10, radius + 7
    corners = [spot for dy in (-slant, slant) for spot in (Spot(side, dy, "left"), Spot(-side, dy, "right"))]
    level_spots = [Spot(0, -level, "center"), Spot(0, level, "center")]
    far = [Spot(spot.dx, 2 * spot.dy, spot.align) for spot in (*level_spots, *corners)]
    return [Spot(side, 0, "left"), Spot(-side, 0, "right"), *level_spots, *corners, *far]


def _box(anchor: Anchor, spot: Spot) -> Box:
    width = _CHAR_PX * len(anchor.name)
    left = anchor.x + spot.dx - {"left": 0.0, "center": width / 2, "right": width}[spot.align]
    middle = anchor.y + spot.dy
    return left, middle - _LINE_PX / 2, left + width, middle + _LINE_PX / 2


def _inside(box: Box, width: float, height: float) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height


def _hits(box: Box, others: Sequence[Box]) -> bool:
    left, top, right, bottom = box
    return any(left < r and right > l and top < b and bottom > t for l, t, r, b in others)
