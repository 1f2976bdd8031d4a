"""The page's plots as files of their own, SVG and PNG, for slides and papers: light colours on white."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from bitworth.errors import WorkFailed, disk_reason
from bitworth.report import compared, panels
from bitworth.report.marks import marks_of
from bitworth.report.sheets import slug
from bitworth.report.words import scenario_title
from bitworth.types import StudyResult

#: Pixels of a PNG for each of the page.
SCALE = 3
_VARIABLE = re.compile(r"var\((--[a-z0-9-]+)\)")
_VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def write_plots(result: StudyResult, folder: Path) -> list[Path]:
    """Every plot of the page as NAME.svg and NAME.png in `folder`; their paths.

    Raises:
        WorkFailed: the folder cannot be written.
    """
    import vl_convert

    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, svg in drawings(result):
            alone = standing_alone(svg)
            vector, pixels = folder / f"{name}.svg", folder / f"{name}.png"
            vector.write_text(alone, encoding="utf-8")
            pixels.write_bytes(vl_convert.svg_to_png(alone, scale=SCALE))
            written += [vector, pixels]
    except OSError as error:
        raise WorkFailed(f"The plots could not be written to {folder}: {disk_reason(error)}.") from error
    return written


def drawings(result: StudyResult) -> Iterator[tuple[str, str]]:
    """(a name fit for a file, inline SVG) of every plot, in the page's order."""
    measured = [*(cost.format for cost in result.costs), *(row.format for row in result.recoveries)]
    marks = marks_of([*result.formats, *measured])
    for task, svg in panels.recovery_plots(result, marks):
        yield slug("recovery", task), svg
    for drawn in compared.likeness(result, marks):
        yield slug("likeness", drawn.title), drawn.svg
    for found in result.recommendations:
        panel = panels.cost_panel(found, result, marks)
        if panel.svg is not None:
            yield slug("cost", scenario_title(found.use_case, found.load)), panel.svg
    for drawn in compared.curves(result, marks):
        yield slug("latency", drawn.title), drawn.svg


def standing_alone(svg: str) -> str:
    """An inline drawing as a file: its size, its namespace, a white ground, the page's light colours."""
    colours = light_colours()
    text = _VARIABLE.sub(lambda match: colours[match[1]], svg)
    size = _VIEW.search(text)
    assert size is not None
    width, height = size[1], size[2]
    ground = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    opened = text.replace("<svg", head, 1)
    end = opened.index(">") + 1
    return opened[:end] + ground + opened[end:]


def light_colours() -> dict[str, str]:
    """The page's colours on a light screen, by variable."""
    style = files("bitworth.report").joinpath("page.css").read_text(encoding="utf-8")
    root = style[style.index(":root") : style.index("}")]
    return dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", root))
