"""The paper's seven use cases (section 5): prompt and output tokens of a typical request. To add one, add a row.

>>> use_case("rag").prompt_tokens, use_case("2048/256").output_tokens
(1024, 256)
"""

from __future__ import annotations

import difflib
import re

from bitworth.errors import BitworthError
from bitworth.types import UseCase

_ROWS = {
    "code_completion": (256, 1024),
    "docstring": (768, 128),
    "code_fixing": (1024, 1024),
    "rag": (1024, 128),
    "instruction_following": (256, 128),
    "multi_turn_chat": (512, 256),
    "summarization": (4096, 512),
}
NAMES = tuple(_ROWS)


def use_case(name: str) -> UseCase:
    """The use case of that name, or the shape `PROMPT/OUTPUT` in tokens.

    Raises:
        BitworthError: neither.
    """
    shape = re.fullmatch(r"([1-9]\d{0,6})/([1-9]\d{0,6})", name)
    if shape:
        return UseCase(name=name, prompt_tokens=int(shape[1]), output_tokens=int(shape[2]))
    if name not in _ROWS:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        known = ", ".join(NAMES)
        raise BitworthError(f"unknown use case '{name}'; {hint}known: {known}, or PROMPT/OUTPUT tokens such as 512/128")
    prompt, output = _ROWS[name]
    return UseCase(name=name, prompt_tokens=prompt, output_tokens=output)
