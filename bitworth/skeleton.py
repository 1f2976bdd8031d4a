"""A folder's model as transformers has it, without storage for its weights, and the text decoder in it.

Models that read images too hold their decoder beside the towers; the towers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitworth.errors import BitworthError


def config_in(folder: Path) -> Any:
    """transformers' configuration of a folder; no code of the model's own is run."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def model_class(config: Any) -> Any:
    """transformers' class for a configuration: the one that reads images too where it is named, else the decoder alone.

    Raises:
        BitworthError: transformers has neither; names the architecture.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    both = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if both is not None and both.__name__ in (config.architectures or ()):
        return both
    alone = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if alone is None:
        raise BitworthError(f"transformers has no text decoder for a model of type {config.model_type}.")
    return alone


def skeleton(
    folder: Path, *, dtype: torch.dtype = torch.float32, attention: Callable[[Any], str] | None = None
) -> nn.Module:
    """The model of a folder in `dtype`, with the attention that `attention` names for its text's configuration.

    Raises:
        BitworthError: transformers cannot build it.
    """
    try:
        config = config_in(folder)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        how = {} if attention is None else {"attn_implementation": attention(config.get_text_config())}
        with without_storage():
            model = model_class(config)._from_config(config, dtype=dtype, **how)
    except (ValueError, KeyError, OSError, TypeError, BitworthError) as error:
        first = str(error).strip().split("\n")[0]
        raise BitworthError(f"transformers cannot build the model in {folder}: {first}") from error
    result: nn.Module = model.eval().requires_grad_(False)
    return result


@contextmanager
def without_storage() -> Iterator[None]:
    """Parameters made inside lose their storage before they are initialized; buffers keep theirs, being computed."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = emptied(parameter)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def emptied(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter without its storage."""
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


def text_body(model: Any) -> tuple[str, nn.Module]:
    """What turns tokens into hidden states, without towers and head: its path in the model, and itself."""
    whole = model if model.config.get_text_config() is model.config else model.get_decoder()
    body = getattr(whole, whole.base_model_prefix, whole)
    return next(name for name, part in model.named_modules() if part is body), body


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder's blocks, by path: the ModuleList that holds the most linear weights in its text's part.

    Raises:
        BitworthError: there is none.
    """
    path, text = text_body(model)
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in text.named_modules(prefix=path):
        if isinstance(module, nn.ModuleList):
            size = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
            if size and (best is None or size > best[0]):
                best = (size, name, module)
    if best is None:
        raise BitworthError(
            f"{type(model).__name__} has no list of decoder blocks with linear layers to quantize; GPT-2's layers, "
            "whose weights lie transposed (Conv1D), are none."
        )
    return best[1], best[2]
