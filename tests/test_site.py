"""The documentation: it builds without a complaint, reads from disk, finds, and shows every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browsing import open_browser, open_page, overflow, violations

import bitworth
from bitworth import types

ROOT = Path(__file__).resolve().parents[1]
LOADS = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, elsewhere."""
    if find_spec("mkdocs") is None or find_spec("material") is None or find_spec("mkdocstrings") is None:
        pytest.skip("needs MkDocs with Material and mkdocstrings, which the extra `docs` brings: make docs")
    folder: Path = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    return folder


class Loaded(HTMLParser):
    """What a page loads by itself, and its identifiers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.identifiers: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.identifiers.add(str(found["id"]))
        if tag == "link" and not {"stylesheet", "icon", "preload", "modulepreload"} & {*str(found.get("rel")).split()}:
            return
        if LOADS.get(tag) in found:
            self.addresses.append(str(found[LOADS[tag]]))


@pytest.mark.slow
def test_every_page_is_there_and_loads_only_what_lies_beside_it(site: Path) -> None:
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    pages = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")} - {Path("404")}
    assert pages == {path.with_name("index") if path.name == "README" else path for path in sources}
    for page in site.rglob("*.html"):
        for address in Loaded(page.read_text(encoding="utf-8")).addresses:
            if address.startswith("data:") or page.name == "404.html":
                continue
            assert not re.match(r"[a-z]+:|//", address), (page, address)
            assert (page.parent / address.partition("?")[0]).is_file(), (page, address)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path) -> None:
    found = Loaded((site / "api.html").read_text(encoding="utf-8")).identifiers
    public = set(bitworth.__all__) - {"__version__"}
    assert {f"bitworth.{bitworth._HOMES[name]}.{name}" for name in public} <= found
    nouns = {name.rpartition(".")[2] for name in found if re.fullmatch(r"bitworth\.types\.[A-Z]\w+", name)}
    assert len(nouns) >= 10
    assert all(hasattr(types, name) for name in nouns)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index", "guide/start", "guide/extend", "statistics", "api"])
def test_from_disk_a_page_is_whole_and_everybody_can_read_it(browser: Any, site: Path, page: str, scheme: str) -> None:
    with open_page(browser, site / f"{page}.html", width=390, color_scheme=scheme) as watched:
        assert overflow(watched.page) <= 0
        assert violations(watched.page) == []
        watched.assert_clean()


@pytest.mark.slow
def test_search_works_from_disk(browser: Any, site: Path) -> None:
    with open_page(browser, site / "index.html") as watched:
        page = watched.page
        page.click(".md-search__input")
        page.locator(".md-search__input").press_sequentially("Fieller")
        page.wait_for_selector(".md-search-result__link", timeout=20_000)
        links = page.eval_on_selector_all(".md-search-result__link", "found => found.map(link => link.href)")
        assert any("statistics.html" in link for link in links)
        watched.assert_clean()
