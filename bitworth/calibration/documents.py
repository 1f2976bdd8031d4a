"""A text or JSON Lines file to the documents that calibration reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.guard.templates import apply_template
from bitworth.types import Rule

_TEXT_KEYS = ("text", "content", "passage")
_PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))


def documents(path: Path, tokenizer: Any, chat_template: Rule = "auto") -> Iterator[str]:
    """The file's documents as text: plain text is one, JSON Lines have one a line.

    `chat_template` says what goes through the tokenizer's template: auto `messages` only, always everything (a text is
    a user's turn, a pair two turns, each paragraph of plain text a turn of its own), never nothing (the messages'
    contents are joined by newlines).

    Raises:
        BitworthError: the file cannot be read, or a line holds nothing to calibrate on; names the line.
    """
    text = _read(path)
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also cut inside JSON strings
            if line.strip():
                yield _render(f"{path}, line {number}", line, tokenizer, chat_template)
    elif chat_template == "always":
        for number, paragraph in enumerate(part.strip() for part in text.split("\n\n")):
            if paragraph:
                yield _chat(f"{path}, paragraph {number + 1}", [_turn("user", paragraph)], tokenizer)
    else:
        yield text


def separates(path: Path, chat_template: Rule) -> bool:
    """True when the file holds several documents, each of which ends with the end-of-text token."""
    return path.suffix == ".jsonl" or chat_template == "always"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BitworthError(f"The calibration file {path} cannot be read: {reason}.") from error


def _turn(role: str, content: Any) -> dict[str, str]:
    return {"role": role, "content": str(content)}


def _chat(where: str, messages: list[Any], tokenizer: Any) -> str:
    from jinja2 import TemplateError

    try:
        return apply_template(tokenizer, messages)
    except (ValueError, TypeError, KeyError, AttributeError, TemplateError) as error:
        first = str(error).strip().split("\n")[0]
        raise BitworthError(f"{where}: the model's chat template does not take it: {first}") from error


def _bare(where: str, messages: list[Any]) -> str:
    """The contents without the template around them."""
    contents = [message.get("content") if isinstance(message, dict) else None for message in messages]
    if not all(isinstance(content, str) for content in contents):
        raise BitworthError(f"{where}: a message's `content` is no text; calibration reads text only.")
    return "\n".join(str(content) for content in contents)


def _render(where: str, line: str, tokenizer: Any, chat_template: Rule) -> str:
    try:
        row = json_of(line, nested=MOST_NESTED)
    except ValueError as error:
        raise BitworthError(f"{where}: not valid JSON; a .jsonl file holds one JSON object a line.") from error
    if isinstance(row, dict):
        if isinstance(row.get("messages"), list):
            if chat_template == "never":
                return _bare(where, row["messages"])
            return _chat(where, row["messages"], tokenizer)
        for key in _TEXT_KEYS:
            if isinstance(row.get(key), str):
                text = str(row[key])
                return _chat(where, [_turn("user", text)], tokenizer) if chat_template == "always" else text
        for asked, answered in _PAIRS:
            if asked in row and answered in row:
                question, answer = _pair(where, row, asked, answered)
                if chat_template == "always":
                    return _chat(where, [_turn("user", question), _turn("assistant", answer)], tokenizer)
                return f"{question}\n{answer}"
    raise BitworthError(f"{where}: no `text`, `messages` or `instruction`/`output` to calibrate on.")


def _pair(where: str, row: dict[str, Any], asked: str, answered: str) -> tuple[str, str]:
    """What is asked, with the `input` that an instruction is about (Alpaca's layout), and what is answered."""
    for key in (asked, answered):
        if not isinstance(row[key], str | int | float):
            raise BitworthError(f"{where}: `{key}` is no text; calibration reads text only.")
    about = row.get("input") if asked == "instruction" else None
    question = f"{row[asked]}\n{about}" if isinstance(about, str) and about.strip() else str(row[asked])
    return question, str(row[answered])
