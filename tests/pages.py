"""The project's pages as the tests read them: blocks of code, what stands before each, the commands inside.

An HTML comment on the line before a block says how it is treated:

    <!-- needs: GPU -->            not run; its commands and options are still checked
    <!-- exits: 0 1 2 -->          the exit codes that are right
    <!-- given: rows in rows -->   what a reader has by then (see test_docs.GIVEN); several may stand in a row
    <!-- after: TEXT -->           goes into the file of its title behind the line that holds TEXT
    <!-- before: TEXT -->          in front of it
    <!-- replace: TEXT -->         in its place

`<!-- tested: slow -->` at the top of a page makes all of its test slow.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_COMMENT = re.compile(r"<!-- (\w+): (.*?) -->")
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language, the file it is to be written to, its text, and the comments before it."""

    language: str
    title: str | None
    text: str
    line: int
    notes: tuple[tuple[str, str], ...]

    def noted(self, name: str) -> list[str]:
        return [value for key, value in self.notes if key == name]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    notes: list[tuple[str, str]] = []
    opened: tuple[str, str | None, int] | None = None
    body: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is not None and line.strip() == "```":
            language, title, start = opened
            text = "".join(row + "\n" for row in body)
            found.append(Block(language=language, title=title, text=text, line=start, notes=tuple(notes)))
            opened, body, notes = None, [], []
        elif opened is not None:
            body.append(line)
        elif fence:
            opened = (fence[1], fence[2], number)
        elif comment := _COMMENT.search(line):
            notes.append((comment[1], comment[2]))
        elif line.strip():
            notes = []
    assert opened is None, f"{page}: a block is not closed"
    return found


def is_slow(page: Path) -> bool:
    """Whether all of a page's test is slow."""
    return ("tested", "slow") in _COMMENT.findall(page.read_text(encoding="utf-8").partition("\n")[0])


def commands_of(text: str) -> list[str]:
    """The commands of a block: lines with a prompt if there are any, else all; continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    return [line.strip() for line in prompted or lines if line.strip() and not line.strip().startswith("#")]


def words_of(command: str) -> list[list[str]]:
    """A line's words without its comment, a list for each command that `&&` joins."""
    words = shlex.split(command, comments=True)
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def mentioned(page: Path) -> list[str]:
    """Commands of bitworth in a page's running text and in indented blocks: `bitworth VERB --option ...`."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    inline = [found.replace("\n", " ") for found in re.findall(r"`(bitworth [a-z][^`]*)`", prose)]
    indented = [line.strip() for line in prose.splitlines() if re.match(r" {4}bitworth [a-z]", line)]
    return inline + indented
