"""Calibration text to token sequences of one length."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitworth.errors import BitworthError
from bitworth.types import Calibration

_TEXT_KEYS = ("text", "content", "passage")
_PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))


def calibration_tokens(model: Path, spec: Calibration, note: Callable[[str], None]) -> Tensor:
    """Sequences (samples, length) of token ids, cut without overlap from the source and picked in a seeded order.

    Documents of a JSONL file (`text`, `messages`, or `instruction`/`output` and the like) are joined by the end-of-text
    token; chats go through the model's own template. When the text is too short, `note` is told and fewer or shorter
    samples come back.

    Raises:
        BitworthError: the file is missing, empty, or holds no text; the tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(model)
    path = Path(spec.source)
    ids: list[int] = []
    for document in _documents(path, tokenizer):
        ids.extend(tokenizer(document, add_special_tokens=False)["input_ids"])
        if tokenizer.eos_token_id is not None and path.suffix == ".jsonl":
            ids.append(tokenizer.eos_token_id)
    if len(ids) < 2:
        raise BitworthError(f"The calibration file {path} holds no text; give plain text or JSONL with a `text` key.")
    length = min(spec.length, len(ids))
    starts = list(range(0, len(ids) - length + 1, length))
    random.Random(spec.seed).shuffle(starts)
    if len(starts) < spec.samples or length < spec.length:
        note(
            f"the calibration text {path.name} gives {len(starts)} samples of {length} tokens, "
            f"not {spec.samples} of {spec.length}; all of it was used"
        )
    return torch.tensor([ids[start : start + length] for start in starts[: spec.samples]])


def load_tokenizer(model: Path) -> Any:
    """The model's tokenizer.

    Raises:
        BitworthError: the folder holds none that transformers can read.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise BitworthError(f"{model} holds no tokenizer that transformers can read: {first}") from error


def _documents(path: Path, tokenizer: Any) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BitworthError(f"The calibration file {path} cannot be read: {reason}.") from error
    if path.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also cut inside JSON strings
        if line.strip():
            yield _render(path, number, line, tokenizer)


def _chat(path: Path, number: int, messages: list[Any], tokenizer: Any) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (ValueError, TypeError, KeyError, AttributeError, TemplateError) as error:
        first = str(error).strip().split("\n")[0]
        raise BitworthError(f"{path}, line {number}: the model's chat template does not take it: {first}") from error


def _render(path: Path, number: int, line: str, tokenizer: Any) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BitworthError(
            f"{path}, line {number}: not valid JSON; a .jsonl file holds one JSON object a line."
        ) from error
    if isinstance(row, dict):
        if isinstance(row.get("messages"), list):
            return _chat(path, number, row["messages"], tokenizer)
        for key in _TEXT_KEYS:
            if isinstance(row.get(key), str):
                return str(row[key])
        for asked, answered in _PAIRS:
            if asked in row and answered in row:
                return f"{row[asked]}\n{row[answered]}"
    raise BitworthError(f"{path}, line {number}: no `text`, `messages` or `instruction`/`output` to calibrate on.")
