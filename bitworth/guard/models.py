"""Model folders that would have to run code to be loaded: refused, by a sentence that names what asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import config_of

#: Files of weights that are pickles, which run what they hold when they are opened.
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def refuse_code(folder: Path, config: dict[str, Any]) -> None:
    """Raise where a config.json wants Python of the model's own and transformers has no decoder of that type.

    Raises:
        BitworthError: it has `auto_map`, and there is no other way to run it.
    """
    if "auto_map" in config and not _in_transformers(config.get("model_type")):
        raise BitworthError(
            f"{folder} needs code of its own (auto_map in config.json), which transformers runs under "
            "trust_remote_code only; bitworth never sets that flag, so convert the model to an architecture that "
            "transformers has."
        )


def _in_transformers(model_type: object) -> bool:
    """Whether transformers' own classes run models of a type, so that code which comes with one is not needed."""
    from transformers.models.auto import modeling_auto as auto

    own = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return any(model_type in names for names in own)


def no_tokenizer(folder: Path, otherwise: str) -> str:
    """Why a folder's tokenizer was not loaded: it wants code of its own, or `otherwise`."""
    try:
        settings = config_of((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return otherwise
    if "auto_map" not in settings:
        return otherwise
    return (
        f"{folder} has a tokenizer that needs code of its own (auto_map in tokenizer_config.json), which transformers "
        "runs under trust_remote_code only; bitworth never sets that flag, so convert the tokenizer to tokenizer.json."
    )


def no_safetensors(folder: Path) -> str:
    """Why a folder without *.safetensors is not read."""
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if not pickled:
        return f"{folder} holds no *.safetensors; pickled weights are not read, convert them first."
    return (
        f"{folder} holds its weights as {pickled[0]} only, a pickle, which can run code when it is opened and is not "
        "read; save the model again with safe_serialization=True where you trust it."
    )
