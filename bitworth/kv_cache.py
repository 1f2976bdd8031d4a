"""The key-value cache in FP8: one scale for the keys and one for the values of each attention.

Keys and values are met where they enter the cache, after norms and rotation: whatever an attention is given as its
`past_key_values` is wrapped, whether it is a cache or None. Attentions are told as compressed-tensors tells them, since
it (and vLLM after it) looks for `k_scale` and `v_scale` there. Numbers are rounded to the nearest, as it does; vLLM's
CPU build rounds them toward zero (measured at 0.32). Queries stay as they are, though vLLM's FP8 attention on GPUs may
quantize them too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.errors import BitworthError
from bitworth.numerics import half_range, to_codes
from bitworth.ranks import ALONE, Ranks
from bitworth.scales import ScaleType
from bitworth.types import Grid

_ARGUMENT = "past_key_values"
_GRID = "_key_value_grid"

Treat = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From keys and values to the ones that are cached instead."""


@dataclass(frozen=True, slots=True)
class CacheGrid:
    """The grids of an attention's keys and values, which share all but the scale."""

    grid: Grid
    key: Tensor
    value: Tensor

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Both put on their grid and back, in their dtype."""
        return self._put(keys, self.key), self._put(values, self.value)

    def _put(self, states: Tensor, scale: Tensor) -> Tensor:
        scale = scale.to(states.device)
        return (to_codes(states.float() / scale, self.grid) * scale).to(states.dtype)


@dataclass(slots=True)
class _Gate:
    """An attention's cache, or none, with something done to what enters it."""

    cache: Any
    treat: Treat

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As transformers' `Cache.update`: the keys and values to attend to."""
        keys, values = self.treat(keys, values)
        if self.cache is None:
            return keys, values
        updated: tuple[Tensor, Tensor] = self.cache.update(keys, values, *args, **kwargs)
        return updated

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def attentions(root: nn.Module) -> dict[str, nn.Module]:
    """Attentions that hand their keys and values to a cache, by name.

    Raises:
        BitworthError: none does so in a way that the loaders find too.
    """
    found = {name: module for name, module in root.named_modules() if _caches(module)}
    if not found or any(hasattr(module, "kv_b_proj") for module in found.values()):
        raise BitworthError(
            f"{type(root).__name__} caches keys and values in a way that the loaders have no scales for; choose a "
            "recipe without +kv-fp8."
        )
    return found


def _caches(module: nn.Module) -> bool:
    named = "attention" in type(module).__name__.lower()
    projects = any(hasattr(module, name) for name in ("k_proj", "v_proj", "qkv_proj", "kv_b_proj"))
    return named and projects and _ARGUMENT in inspect.signature(module.forward).parameters


@contextmanager
def watching(block: nn.Module, grid: Grid, dtype: torch.dtype, ranks: Ranks = ALONE) -> Iterator[dict[str, Tensor]]:
    """Sees all keys and values of a block's attentions; on leaving, what it gave holds their scales by tensor name.

    Scales are the largest magnitude over half the code range, as they read back from `dtype`, shape (1,).

    Raises:
        BitworthError: the block has no attention whose cache could be quantized, or one saw nothing.
    """
    peaks: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}

    def watch(name: str) -> Treat:
        def treat(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            for part, states in (("k_scale", keys), ("v_scale", values)):
                full = f"{name}.{part}" if name else part
                peak = states.abs().amax().float().reshape(1)
                peaks[full] = torch.maximum(peaks[full], peak) if full in peaks else peak
            return keys, values

        return treat

    found = attentions(block)
    watched = {module: watch(name) for name, module in found.items()}
    handles = [_hook(module, watched.get) for module in watched]
    try:
        yield scales
    finally:
        for handle in handles:
            handle.remove()
    if len(peaks) < 2 * len(found):
        raise BitworthError(f"{type(block).__name__} hands no keys and values over; choose a recipe without +kv-fp8.")
    for full, peak in peaks.items():
        ranks.take_largest(peak)
        scales[full] = ScaleType(dtype).read_back(peak / half_range(grid))


def quantize_cache(model: nn.Module, grid: Grid, scales: Mapping[str, Tensor]) -> None:
    """Make a model's attentions put keys and values on their grid before they cache and use them.

    Raises:
        BitworthError: no attention does so, or one has no scale in the checkpoint.
    """
    for name, module in attentions(model).items():
        parts = [scales.get(f"{name}.{part}") for part in ("k_scale", "v_scale")]
        if parts[0] is None or parts[1] is None:
            raise BitworthError(f"The checkpoint has no scale for the key-value cache of {name}; quantize it again.")
        vars(module)[_GRID] = CacheGrid(grid, parts[0].float(), parts[1].float())
        _hook(module, lambda module: vars(module).get(_GRID))


@contextmanager
def cache_as_it_is(model: nn.Module) -> Iterator[None]:
    """Within the block keys and values are cached unquantized."""
    kept = {module: vars(module).pop(_GRID) for module in model.modules() if _GRID in vars(module)}
    try:
        yield
    finally:
        for module, grid in kept.items():
            vars(module)[_GRID] = grid


def _hook(module: nn.Module, choose: Callable[[nn.Module], Treat | None]) -> Any:
    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        treat = choose(module)
        if treat is None:
            return None
        return args, {**kwargs, _ARGUMENT: _Gate(kwargs.get(_ARGUMENT), treat)}

    return module.register_forward_pre_hook(before, with_kwargs=True)
