"""Screenshots of a report at the width of a desk and of a phone, kept here: python take.py runs/demo/report.html

Needs the extra `browser` and a Chromium, found by its usual names or in BITWORTH_CHROMIUM.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).resolve().parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
MOST_BYTES = 300_000


def shot(browser: Browser, report: Path, name: str, part: str, *, width: int, height: int, scheme: str) -> None:
    """A window of that size whose top is at `part`, in at most 255 colours, which a page of words does not miss."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=1.5,
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    page.locator(part).first.evaluate("found => found.scrollIntoView()")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    path = HERE / f"{name}.png"
    picture.quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}.")
    print(f"{path.name}: {picture.width} x {picture.height}, {path.stat().st_size:,} bytes")


def main() -> None:
    """Take them all."""
    report = Path(sys.argv[1])
    program = os.environ.get("BITWORTH_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, part, scheme in (
            ("report", "body", "light"),
            ("report-dark", "#accuracy", "dark"),
            ("ask-again", "#ask", "light"),
        ):
            shot(browser, report, name, part, width=1280, height=1000, scheme=scheme)
        for name, part, scheme in (("report-phone", "body", "light"), ("ask-again-phone", "#ask", "dark")):
            shot(browser, report, name, part, width=390, height=844, scheme=scheme)


if __name__ == "__main__":
    main()
