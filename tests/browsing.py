"""A real browser for the tests: Chromium through Playwright, with nothing but local files to read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
"""What a Chromium may be called; BITWORTH_CHROMIUM names another."""
LOCAL = ("file:", "data:", "about:", "blob:")


@dataclass(slots=True, kw_only=True)
class Watched:
    """A page and what it did that it must not: what it asked of a network, what its console says is wrong."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def assert_clean(self) -> None:
        assert self.requests == []
        assert self.complaints == []


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium, headless; skips with the reason where there is none, or no Playwright to steer it."""
    driver = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright, which the extra `browser` brings: pip install -e '.[browser]'"
    )
    program = os.environ.get("BITWORTH_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: none of its names is on the path, and BITWORTH_CHROMIUM is not set")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, path: Path, *, width: int = 1280, **options: Any) -> Iterator[Watched]:
    """A file in a window of that width, with the network off; options are those of Playwright's `new_context`."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    context.set_offline(True)
    context.set_default_timeout(120_000)  # a busy machine is no fault of the page
    watched = Watched(page=context.new_page())

    def asked(route: Any) -> None:
        url = route.request.url
        if url.startswith(LOCAL):
            route.continue_()
        else:
            watched.requests.append(url)
            route.abort()

    def said(message: Any) -> None:
        if message.type in ("error", "warning"):
            watched.complaints.append(message.text)

    context.route("**/*", asked)
    watched.page.on("console", said)
    watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    watched.page.goto(path.resolve().as_uri())
    yield watched
    context.close()


def violations(page: Any) -> list[str]:
    """What axe-core calls serious or critical, or cannot settle and would: a line each of rule, element, why.

    Of contrast it settles nothing that lies on a drawing: see `faint`. It loses the last column of a table whose rows
    have group headings across all columns, and only says that it cannot tell.
    """
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run(document, {preload: false, resultTypes: ['violations', 'incomplete']})")
    unable = ("color-contrast", "th-has-data-cells")
    unsettled = [rule for rule in found["incomplete"] if rule["id"] not in unable]
    return [
        f"{rule['id']}: {node['html'][:160]}: {node['failureSummary']}"
        for rule in (*found["violations"], *unsettled)
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def faint(page: Any, texts: str, grounds: str) -> list[str]:
    """Texts of a drawing whose contrast to the plain ground around them is below WCAG's 4.5."""
    rows = page.evaluate(
        """([texts, grounds]) => [...document.querySelectorAll(texts)].map((text) => [
            text.textContent,
            getComputedStyle(text).fill,
            getComputedStyle(text.closest(grounds)).backgroundColor,
        ])""",
        [texts, grounds],
    )
    assert rows
    return [f"{text}: {ink} on {ground}" for text, ink, ground in rows if contrast(ink, ground) < 4.5]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two opaque colours as a browser computes them, `rgb(0, 0, 0)`."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]  # type: ignore[union-attr]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("() => document.scrollingElement.scrollWidth - window.innerWidth"))
