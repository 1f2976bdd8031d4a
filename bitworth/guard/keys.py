"""Keys stay where they are: nothing that bitworth writes or prints holds one of the environment's, nor a URL's."""

from __future__ import annotations

import os
import re
from typing import Any

#: Variables whose values are secret: of servers, of the hub, and of what results may be sent to.
NAMES = (
    *("BITWORTH_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)
#: A shorter value is no key, and would be found inside ordinary words.
SHORTEST = 8
INSTEAD = "(key)"

_USER = re.compile(r"(?<=://)[^\s/?#@\"'<>\\]{1,512}@")


def without_keys(text: str) -> str:
    """The text with `(key)` in place of every key that the environment holds."""
    for key in _keys():
        text = text.replace(key, INSTEAD)
    return text


def without_secrets(text: str) -> str:
    """`without_keys`, and the names and passwords in URLs left out as well; for sentences, not for results."""
    return _USER.sub(f"{INSTEAD}@", without_keys(text)) if "://" in text else without_keys(text)


def redacted(value: Any) -> Any:
    """A JSON value with every text of it, keys of objects included, `without_keys`; itself where there is none."""
    return _cleaned(value, _keys()) if _keys() else value


def _keys() -> list[str]:
    """The longest first, since one may hold another."""
    found = {os.environ.get(name, "").strip() for name in NAMES}
    return sorted((key for key in found if len(key) >= SHORTEST), key=lambda key: (-len(key), key))


def _cleaned(value: Any, keys: list[str]) -> Any:
    if isinstance(value, str):
        return without_keys(value) if any(key in value for key in keys) else value
    if isinstance(value, dict):
        return {_cleaned(name, keys): _cleaned(part, keys) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(part, keys) for part in value]
    return value
