"""MkDocs hook: a page that mkdocs.yml does not list joins the section of its folder, so a new page needs no line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECTIONS = {"guide": "Guides", "decisions": "Decisions"}


def on_config(config: Any) -> Any:
    """Add to the navigation what it lacks, in the order of names."""
    root = Path(config.docs_dir)
    listed = set(_pages(config.nav))
    for path in sorted(root.rglob("*.md")):
        name = path.relative_to(root).as_posix()
        if name not in listed:
            section = SECTIONS.get(path.relative_to(root).parent.as_posix(), "Subjects")
            next(entry[section] for entry in config.nav if section in entry).append(name)
    return config


def _pages(entries: Any) -> Iterator[str]:
    """The pages of a part of the navigation."""
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from _pages(entry)
