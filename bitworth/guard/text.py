"""Text of others as people see it: what would reorder, hide or control is written out."""

from __future__ import annotations

import re
from typing import Any

#: Control characters but tab and newline; marks, embeddings, overrides and isolates of text that runs both ways; line
#: and paragraph separators; zero-width space, byte order mark and tags; halves of pairs that are alone.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with `[U+202E]` in place of a character that is not seen but changes what is.

    >>> visible("safe\u202etxt.exe")
    'safe[U+202E]txt.exe'
    """
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def all_visible(value: Any) -> Any:
    """A JSON value with every text of it `visible`, names of objects included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {all_visible(name): all_visible(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [all_visible(part) for part in value]
    return value
