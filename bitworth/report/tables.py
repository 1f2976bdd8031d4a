"""Markdown that holds what others named: plain text, tables, and what produced a figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bitworth.guard.text import visible
from bitworth.types import EngineFacts

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~&$]|(?<=[a-z]):(?=//)|(?<=\bwww)\.)")
#: What would make a list item or a heading of the line that it begins.
_BEGINS = re.compile(r"^(\d{0,9})([-+=.)])(?=[-+=\s]|$)")


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: Sequence[int]) -> str:
    """A table whose cells are plain text; columns but `text_columns` are aligned at the right."""
    rule = ["---" if index in text_columns else "---:" for index in range(len(titles))]
    lines = [titles, rule, *([markdown_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(value: str) -> str:
    """The value as plain text: on one line, and nothing in it is markup."""
    return _BEGINS.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", visible(" ".join(value.split()))))


def facts_words(facts: EngineFacts) -> str:
    """`vllm, machete, H100, vllm 0.10.1`."""
    versions = ", ".join(f"{what} {version}" for what, version in facts.versions.items())
    return ", ".join(part for part in (facts.engine, facts.kernel, facts.device, versions) if part)
