"""From an Altair chart to SVG that belongs to the page around it.

vl-convert draws without a browser. Its drawing is then rewritten: stand-in colours become the page's CSS variables (so
that plots follow a dark screen), the fonts become the page's, nothing points outside the page, and a screen reader
meets one image with a description instead of a tree of marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from xml.etree import ElementTree

from bitworth.guard.text import all_visible, visible

_NAMES = ("--ink", "--muted", "--rule", "--shade", "--card", "--neutral", *(f"--hue-{index}" for index in range(7)))
_NAMESPACE = re.compile(r"\{[^}]*\}")
_SEMANTICS = ("class", "role", "aria-label", "aria-roledescription", "aria-hidden", "pointer-events")
_DROPPED = frozenset([*_SEMANTICS, "font-family", "version", "width", "height"])
_DEFAULTS = {"opacity": "1", "stroke-width": "1", "stroke-miterlimit": "10"}


def sentinel(name: str) -> str:
    """A colour that stands for a CSS variable while Vega draws."""
    return f"#b17e{_NAMES.index(name):02x}"


_VARIABLES = {sentinel(name): f"var({name})" for name in _NAMES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """Text at a place of the plot's frame, in pixels from its top left corner; `y` is the base line."""

    text: str
    x: float
    y: float
    anchor: Literal["start", "end"] = "start"


def draw(chart: Any, *, alt: str, words: Sequence[Word] = ()) -> str:
    """The chart as one `<svg role="img">` whose description is `alt`; equal charts give equal text.

    `words` are written over it here: vl-convert measures each text that it draws itself, which takes 5 ms apiece and
    adds up to most of a minute where many formats meet many tasks.
    """
    muted, rule = sentinel("--muted"), sentinel("--rule")
    axis = {
        "domainColor": rule,
        "gridColor": rule,
        "labelColor": muted,
        "labelFontSize": 11.5,
        "tickColor": rule,
        "titleColor": muted,
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
        "titlePadding": 6,
    }
    title = {"color": muted, "fontSize": 11.5, "fontWeight": "normal"}
    config = {"aria": False, "background": "transparent", "padding": 2, "view": {"stroke": None}}
    spec = all_visible(chart.configure(**config, axis=axis, title=title).to_dict(validate=False))
    return _adopted(_rendered(json.dumps(spec, sort_keys=True)), alt, words)


@lru_cache(maxsize=256)
def _rendered(spec: str) -> str:
    """What vl-convert draws; a report that is written again after a cell has most of its plots from here."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(spec)
    return drawn


def _adopted(text: str, alt: str, words: Sequence[Word]) -> str:
    root = ElementTree.fromstring(text)
    width = float(root.get("width", "0"))
    _rewrite(root)
    for word in words:
        place = {"x": f"{word.x:g}", "y": f"{word.y:g}", "text-anchor": word.anchor, "fill": "var(--ink)"}
        ElementTree.SubElement(root[0], "text", {**place, "font-size": "13"}).text = visible(word.text)
    root.set("role", "img")
    root.set("aria-label", visible(alt))
    root.set("style", f"max-width:{width * 1.12:.0f}px")
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(element: ElementTree.Element) -> None:
    element.tag = _NAMESPACE.sub("", element.tag)
    for name, value in list(element.attrib.items()):
        if name in _DROPPED or _DEFAULTS.get(name) == value:
            del element.attrib[name]
        elif value in _VARIABLES:
            element.set(name, _VARIABLES[value])
    for child in list(element):
        if _empty(child):
            element.remove(child)
        else:
            _rewrite(child)
            if child.tag == "g" and not len(child):
                element.remove(child)


def _empty(element: ElementTree.Element) -> bool:
    """Frames and backgrounds that paint nothing."""
    return element.get("display") == "none" or (
        element.get("class") in ("background", "foreground") and "stroke" not in element.attrib
    )
