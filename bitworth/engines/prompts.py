"""Prompts to token ids and back, alike for every engine: what differs between two formats is never the prompt."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import config_of
from bitworth.guard.models import no_tokenizer
from bitworth.guard.templates import apply_template
from bitworth.types import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids: text with the tokenizer's own special tokens unless it starts with BOS; conversations by the template.

    A template writes its special tokens itself, so none are added to what it gives.

    Raises:
        BitworthError: a conversation, and the tokenizer has no chat template or it refuses the turns.
    """
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        return list(tokenizer.encode(prompt, add_special_tokens=not (bos and prompt.startswith(bos))))
    return list(tokenizer.encode(render(tokenizer, prompt), add_special_tokens=False))


def render(tokenizer: Any, prompt: Prompt) -> str:
    """The text that a prompt becomes, special tokens that a template writes included.

    A template that knows no system turn gets the conversation without it, as in lm-eval.

    Raises:
        BitworthError: see `encode_prompt`.
    """
    if isinstance(prompt, str):
        return prompt
    if not has_chat_template(tokenizer):
        raise BitworthError("The model has no chat template for a conversation; ask it for plain text.")
    from jinja2 import TemplateError

    turns = [asdict(turn) for turn in prompt]
    try:
        try:
            return _templated(tokenizer, turns)
        except TemplateError:
            if turns[0]["role"] != "system":
                raise
            return _templated(tokenizer, turns[1:])
    except (TemplateError, ValueError) as error:
        said = (str(error).splitlines() or ["no reason"])[0]
        raise BitworthError(f"The model's chat template refuses a prompt ({said[:120]}).") from error


def _templated(tokenizer: Any, turns: list[dict[str, Any]]) -> str:
    goes_on = turns[-1]["role"] == "assistant"
    return apply_template(tokenizer, turns, add_generation_prompt=not goes_on, continue_final_message=goes_on)


def has_chat_template(tokenizer: Any) -> bool:
    """Whether the tokenizer came with a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text, by the tokenizer, config.json and generation_config.json, which may name several."""
    found = {tokenizer.eos_token_id}
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        try:
            listed = config_of(path.read_bytes()).get("eos_token_id") if path.is_file() else None
        except (OSError, ValueError) as error:
            raise BitworthError(f"{path} cannot be read; fetch the model again.") from error
        tokens = listed if isinstance(listed, list) else [listed]
        if not all(token is None or type(token) is int for token in tokens):
            raise BitworthError(f"{path} gives an eos_token_id that is no token; fetch the model again.")
        found |= set(tokens)
    return frozenset(int(token) for token in found if token is not None)


@cache
def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model folder.

    Raises:
        BitworthError: there is none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        absent = f"{folder} has no tokenizer that transformers can load; copy it from the base model."
        raise BitworthError(no_tokenizer(folder, absent)) from error


def max_length(config: Any, tokenizer: Any) -> int:
    """The context length, found as lm-eval finds it."""
    inner = getattr(config, "text_config", None) or config
    for key in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(inner, key, None) is not None:
            return int(getattr(inner, key))
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length is not None and length < 10**9 else 2048


def context_tokens(folder: Path, tokenizer: Any) -> int:
    """The context length of the model in a folder.

    Raises:
        BitworthError: its config.json cannot be read.
    """
    from transformers import AutoConfig

    try:
        return max_length(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False), tokenizer)
    except (OSError, ValueError, KeyError) as error:
        raise BitworthError(f"{folder}/config.json cannot be read; fetch the model again.") from error


def cut_at(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text before the first of the stop strings, and whether there was one."""
    found = [at for at in (text.find(mark) for mark in stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)
