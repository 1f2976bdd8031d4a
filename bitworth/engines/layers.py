"""Plain linear layers for the exact engine, whose inputs it can quantize: an expert's projections too.

A checkpoint may hold a quantized mixture only expert by expert, and its inputs are quantized where each expert receives
them, while transformers computes fused experts from one tensor. So the model is built with its mixtures taken apart
(`experts`), and every tensor is put where `naming` says it belongs.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.checkpoint import WeightReader
from bitworth.errors import BitworthError
from bitworth.naming import Names
from bitworth.skeleton import skeleton


def load_mixture(folder: Path, weights: WeightReader) -> tuple[Any, dict[str, str]] | None:
    """The model in float32 on the CPU and its quantized layers, by path the stored name; None without fused experts.

    Raises:
        BitworthError: transformers lacks the architecture, its experts cannot be taken apart, or the checkpoint's
            tensors are not the model's.
    """
    if not any("expert" in name or "moe" in name for name in weights.names):
        return None
    model: Any = skeleton(folder)
    names = Names(model, weights.names)
    if not names.fusions:
        return None
    read = lru_cache(maxsize=1)(weights.get)  # a fused tensor is read once for all of its experts
    for name in names.in_file_order():
        source = names.source(name)
        assert source is not None
        whole = read(source.name)
        tensor = source.cut(whole if source.expert is None else whole[source.expert])
        _put(folder, model, name, tensor.float())
    model.tie_weights()
    missing = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
    if missing:
        raise BitworthError(f"{folder}: its weights do not fit its config.json ({missing[0]} is missing).")
    return model, {names.of(f"{layer}.weight").removesuffix(".weight"): layer for layer in sorted(weights.quantized)}


@torch.inference_mode()
def plain_linears(model: nn.Module) -> None:
    """Make linear layers of an architecture's own class (Falcon's) plain ones, where they compute what those do."""
    source = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and type(layer) is not nn.Linear:
            probe = torch.randn(3, layer.in_features, generator=source).to(layer.weight)
            plain, own = nn.functional.linear(probe, layer.weight, layer.bias), layer(probe)
            if isinstance(own, Tensor) and own.shape == plain.shape and torch.allclose(own, plain, 1e-4, 1e-5):
                layer.__class__ = nn.Linear


def _put(folder: Path, model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give the model a tensor; one that it does not have is left out, as transformers leaves it."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        return
    places: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
    place = next((kept for kept in places if kept.get(leaf) is not None), None)
    if place is None:
        return
    known: Any = place[leaf]
    if known.shape != tensor.shape:
        raise BitworthError(
            f"{folder}: its weights do not fit its config.json ({name} is {tuple(tensor.shape)}, not "
            f"{tuple(known.shape)})."
        )
    value = tensor.to(torch.float32 if known.is_floating_point() else known.dtype)
    place[leaf] = nn.Parameter(value, requires_grad=False) if isinstance(known, nn.Parameter) else value
