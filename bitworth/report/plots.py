"""The report's plots: intervals row by row, and recovery against queries per dollar.

Altair builds each specification and `svg.draw` turns it into inline SVG. Every plot is about as wide as a phone, so
that its words keep their size there; wider screens put several side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bitworth.report.labels import Anchor, Box, place_labels
from bitworth.report.marks import Mark
from bitworth.report.svg import Word, draw, sentinel

ROW_PX = 38
WIDTH = 352
FRONTIER_PX = (400, 300)
_FIGURE_PX = 56  # at the right of an interval plot, for the figures in words
_NAME_CHARS = 38  # what fits beside the figure
_MARGIN_PX = (44, 8, 24, 38)  # left, right, top and bottom of a frontier plot: its axes and title
_SHORT = "datum.value >= 1000 ? format(datum.value, '.3~s') : format(datum.value, '.4~r')"
_INK, _MUTED, _SHADE, _PAPER = (sentinel(name) for name in ("--ink", "--muted", "--shade", "--card"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One option's value and 95 % interval, its name, and the figure in words; `open` when it is predicted."""

    name: str
    value: float
    bounds: tuple[float, float]
    text: str
    mark: Mark
    open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One option's queries per dollar and recovery, each with its bounds; `open` when its cost is predicted."""

    name: str
    x: float
    x_bounds: tuple[float, float]
    y: float
    y_bounds: tuple[float, float]
    mark: Mark
    open: bool = False
    chosen: bool = False
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One option's values over rates: (x, y) by rising x."""

    name: str
    points: tuple[tuple[float, float], ...]
    mark: Mark


def recovery_domain(bounds: Iterable[float], least_pct: float) -> tuple[float, float]:
    """One axis for all recoveries: everything up to 15 points beyond the least allowed and 100; whole percents."""
    finite = [bound for bound in bounds if math.isfinite(bound)] + [least_pct, 100.0]
    low = max(min(finite), min(least_pct, 100.0) - 15)
    high = min(max(finite), max(least_pct, 100.0) + 15)
    return float(math.floor(low - 0.5)), float(math.ceil(high + 0.5))


def interval_plot(
    rows: Sequence[Row], *, domain: tuple[float, float], dashed: float | None, solid: float | None, alt: str, unit: str
) -> str:
    """A row an option: name and figure above, point and interval below; vertical lines at `dashed` and `solid`.

    What lies outside `domain` is drawn at its edge; the figure in words says where it is.
    """
    import altair as vega

    height = len(rows) * ROW_PX + 4
    x = vega.Scale(domain=list(domain), range=[0, WIDTH - _FIGURE_PX], nice=False, zero=False, clamp=True)
    y = vega.Y("y:Q", scale=vega.Scale(domain=[0, height], range=[0, height]), axis=None)
    axis = vega.Axis(title=unit, titleX=(WIDTH - _FIGURE_PX) / 2, tickCount=5, labelFlush=True, labelExpr=_SHORT)
    data = _values([_row_datum(row, index, domain) for index, row in enumerate(rows)])
    layers = [
        _line(value, dash, vega.X("at:Q", scale=x, axis=axis))
        for value, dash in ((solid, [1, 0]), (dashed, [5, 3]))
        if value is not None and domain[0] <= value <= domain[1]
    ]
    layers += [
        data.mark_rule(strokeWidth=2, color=_of("colour")).encode(
            x=vega.X("low:Q", scale=x, axis=axis), x2="high:Q", y=y
        ),
        _symbols(data, vega.X("value:Q", scale=x, axis=axis), y, size=55),
    ]
    return draw(vega.layer(*layers).properties(width=WIDTH, height=height), alt=alt, words=list(_row_words(rows)))


def frontier_plot(points: Sequence[Point], *, domain: tuple[float, float], least_pct: float, alt: str) -> str:
    """Recovery over queries per dollar: right and up is better, the shade is below the least recovery allowed.

    The dotted line joins the options that no other beats on both; the choice wears a ring.
    """
    import altair as vega

    width, height = FRONTIER_PX
    reach = _cost_domain(points)
    x_scale = vega.Scale(domain=list(reach), type="log" if reach[0] > 0 else "linear", nice=False, clamp=True)
    y_scale = vega.Scale(domain=list(domain), nice=False, zero=False, clamp=True)
    x = vega.X("x:Q", scale=x_scale, axis=vega.Axis(title="queries per dollar", labelExpr=_SHORT, **_ticks(reach)))
    y = vega.Y("y:Q", scale=y_scale, axis=vega.Axis(title=None, tickCount=6))
    data = _values([_point_datum(point, domain) for point in points])
    edge = min(max(least_pct, domain[0]), domain[1])
    layers = [
        _values([{"y": domain[0], "y2": edge}]).mark_rect(color=_SHADE).encode(y=y, y2="y2:Q"),
        _values([{"y": edge}]).mark_rule(color=_INK, strokeDash=[5, 3], opacity=0.7).encode(y=y),
        _places(best(points)).mark_line(color=_MUTED, strokeDash=[2, 3]).encode(x=x, y=y),
        data.mark_rule(color=_of("colour"), strokeWidth=1.5).encode(x=_with(x, "x_low"), x2="x_high:Q", y=y),
        data.mark_rule(color=_of("colour"), strokeWidth=1.5).encode(x=x, y=_with(y, "y_low"), y2="y_high:Q"),
        _symbols(data, x, y, size=90),
        _places([point for point in points if point.chosen])
        .mark_point(size=420, color=_INK, strokeWidth=1.6, filled=False, opacity=1)
        .encode(x=x, y=y),
        *_labels(points, reach, domain, x, y),
    ]
    chart = vega.layer(*layers).properties(
        width=width,
        height=height,
        autosize={"type": "fit", "contains": "padding"},
        title=vega.Title(text="recovery, %", anchor="start", frame="bounds", offset=6),
    )
    return draw(chart, alt=alt)


def curve_plot(lines: Sequence[Line], *, x: str, y: str, alt: str) -> str:
    """A line an option; the vertical axis is logarithmic where values span more than a factor of ten."""
    import altair as vega

    width, height = FRONTIER_PX
    rows = [{"x": at, "y": value, "name": line.name, **_look(line.mark)} for line in lines for at, value in line.points]
    values = [row["y"] for row in rows]
    wide = min(values) > 0 and max(values) / min(values) > 10
    scale = vega.Scale(type="log", nice=False) if wide else vega.Scale(zero=True, nice=False)
    ticks = _ticks((min(values) / 1.2, max(values) * 1.2)) if wide else {"tickCount": 6}
    across = vega.X("x:Q", scale=vega.Scale(zero=True, nice=False), axis=vega.Axis(title=x, tickCount=6))
    up = vega.Y("y:Q", scale=scale, axis=vega.Axis(title=None, labelExpr=_SHORT, **ticks))
    layers = []
    for line in lines:
        data = _values([row for row in rows if row["name"] == line.name])
        layers.append(data.mark_line(color=sentinel(line.mark.colour), strokeWidth=2).encode(x=across, y=up))
        layers.append(_symbols(data, across, up, size=60))
    chart = vega.layer(*layers).properties(
        width=width,
        height=height,
        autosize={"type": "fit", "contains": "padding"},
        title=vega.Title(text=y, anchor="start", frame="bounds", offset=6),
    )
    return draw(chart, alt=alt)


def best(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats on both axes, by rising queries per dollar."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.x, -p.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found[::-1]


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Each name in at most `most` characters, cut where the names stay different if there is such a place."""
    cuts = [[_cut(name, most, tail) for name in names] for tail in (most // 2, most // 4, 0, most - 1)]
    return next((cut for cut in cuts if len(set(cut)) == len(set(names))), cuts[0])


def _cut(name: str, most: int, tail: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


def _row_words(rows: Sequence[Row]) -> Iterable[Word]:
    for index, (row, name) in enumerate(zip(rows, shortened([row.name for row in rows], _NAME_CHARS), strict=True)):
        y = index * ROW_PX + 18
        yield Word(text=name, x=0, y=y)
        yield Word(text=row.text, x=WIDTH, y=y, anchor="end")


def _row_datum(row: Row, index: int, domain: tuple[float, float]) -> dict[str, Any]:
    low, high = _within(row.bounds, domain)
    colour = sentinel(row.mark.colour)
    return {
        "y": index * ROW_PX + 27,
        "value": row.value,
        "low": low,
        "high": high,
        "colour": colour,
        "fill": _PAPER if row.open else colour,
        "shape": row.mark.shape,
    }


def _point_datum(point: Point, domain: tuple[float, float]) -> dict[str, Any]:
    colour = sentinel(point.mark.colour)
    y_low, y_high = _within(point.y_bounds, domain)
    return {
        "x": point.x,
        "x_low": point.x_bounds[0],
        "x_high": point.x_bounds[1],
        "y": point.y,
        "y_low": y_low,
        "y_high": y_high,
        "colour": colour,
        "fill": _PAPER if point.open else colour,
        "shape": point.mark.shape,
    }


def _look(mark: Mark) -> dict[str, Any]:
    colour = sentinel(mark.colour)
    return {"colour": colour, "fill": colour, "shape": mark.shape}


def _within(bounds: tuple[float, float], domain: tuple[float, float]) -> tuple[float, float]:
    low, high = (min(max(bound, domain[0]), domain[1]) for bound in bounds)
    return low, high


def _cost_domain(points: Sequence[Point]) -> tuple[float, float]:
    """From zero, unless the costs span more than a factor of ten; then on a logarithmic axis."""
    least = min(point.x_bounds[0] for point in points)
    most = max(point.x_bounds[1] for point in points)
    return (least / 1.4, most * 1.4) if least > 0 and most / least > 10 else (0.0, 1.12 * most)


def _ticks(reach: tuple[float, float]) -> dict[str, Any]:
    """About five on a linear axis; on a logarithmic one 1, 2 and 5 times each power of ten, or the powers alone."""
    if reach[0] <= 0:
        return {"tickCount": 5}
    powers = range(math.floor(math.log10(reach[0])), math.ceil(math.log10(reach[1])) + 1)
    steps = (1, 2, 5) if reach[1] / reach[0] < 200 else (1,)
    return {"values": [step * 10.0**power for power in powers for step in steps if _inside(step * 10.0**power, reach)]}


def _inside(value: float, reach: tuple[float, float]) -> bool:
    return reach[0] <= value <= reach[1]


def _labels(
    points: Sequence[Point], reach: tuple[float, float], domain: tuple[float, float], x: Any, y: Any
) -> list[Any]:
    """Names beside the points that carry one, the choice's first."""
    frame = _Frame(reach, domain)
    order = sorted(points, key=lambda point: (not point.chosen, not point.named, -point.x, point.name))
    anchors = [
        Anchor(name=p.name if p.named else "", x=frame.x(p.x), y=frame.y(p.y), radius=12 if p.chosen else 6)
        for p in order
    ]
    spots = place_labels(anchors, _strokes(points, frame), width=frame.width, height=frame.height)
    rows = [
        {"x": point.x, "y": point.y, "name": point.name, "dx": spot.dx, "dy": spot.dy, "align": spot.align}
        for point, spot in zip(order, spots, strict=True)
        if spot is not None
    ]
    if not rows:
        return []
    text = _values(rows).mark_text(
        dx=_of("dx"), dy=_of("dy"), align=_of("align"), baseline="middle", color=_INK, fontSize=12.5
    )
    return [text.encode(x=x, y=y, text="name:N")]


class _Frame:
    """Where a frontier plot's values lie, in pixels of its inner frame."""

    def __init__(self, reach: tuple[float, float], domain: tuple[float, float]) -> None:
        left, right, top, bottom = _MARGIN_PX
        self.width, self.height = FRONTIER_PX[0] - left - right, FRONTIER_PX[1] - top - bottom
        self._log = reach[0] > 0
        self._start, self._end = (math.log(bound) if self._log else bound for bound in reach)
        self._domain = domain

    def x(self, value: float) -> float:
        """Pixels from the left."""
        place = math.log(value) if self._log else value
        return self.width * (place - self._start) / (self._end - self._start)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self._domain
        return self.height * (high - min(max(value, low), high)) / (high - low)


def _strokes(points: Sequence[Point], frame: _Frame) -> list[Box]:
    """What the intervals and the line of the best options cover."""
    found = []
    for point in points:
        x, y = frame.x(point.x), frame.y(point.y)
        found.append((frame.x(point.x_bounds[0]), y - 1, frame.x(point.x_bounds[1]), y + 1))
        found.append((x - 1, frame.y(point.y_bounds[1]), x + 1, frame.y(point.y_bounds[0])))
    for one, other in itertools.pairwise(best(points)):
        for step in range(17):
            x = frame.x(one.x) + (frame.x(other.x) - frame.x(one.x)) * step / 16
            y = frame.y(one.y) + (frame.y(other.y) - frame.y(one.y)) * step / 16
            found.append((x - 1, y - 1, x + 1, y + 1))
    return found


def _values(rows: list[dict[str, Any]]) -> Any:
    import altair as vega

    return vega.Chart(vega.Data(values=rows))


def _places(points: Sequence[Point]) -> Any:
    return _values([{"x": point.x, "y": point.y} for point in points])


def _line(value: float, dash: list[int], x: Any) -> Any:
    return _values([{"at": value}]).mark_rule(color=_INK, strokeDash=dash, opacity=0.55).encode(x=x)


def _symbols(data: Any, x: Any, y: Any, *, size: int) -> Any:
    mark = data.mark_point(shape=_of("shape"), fill=_of("fill"), stroke=_of("colour"), size=size, opacity=1)
    return mark.encode(x=x, y=y)


def _with(channel: Any, field: str) -> Any:
    """The same channel, on another field."""
    again = channel.copy()
    again.shorthand = f"{field}:Q"
    return again


def _of(field: str) -> Any:
    """A property of a mark that each row of its data sets."""
    return {"expr": f"datum.{field}"}
