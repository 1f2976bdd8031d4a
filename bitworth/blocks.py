"""What rounding makes of one decoder block, and rounding it without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bitworth.errors import WorkFailed
from bitworth.model import Block, stacks
from bitworth.quantizers import Rounded, round_weight
from bitworth.types import Recipe, StageAudit


@dataclass(slots=True)
class BlockResult:
    """What a block became: rounded layers, the cache's scales, other parameters that changed, and notes by layer."""

    rounded: dict[str, Rounded] = field(default_factory=dict)
    cache_scales: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    audit: list[StageAudit] = field(default_factory=list)


def skipped(name: str) -> bool:
    """Routers of mixtures of experts stay as they are: a wrong route costs more than their bits save."""
    return not {"gate", "router", "shared_expert_gate"}.isdisjoint(name.split("."))  # Hunyuan's is gate.wg


def round_block(block: Block, recipe: Recipe, dtype: torch.dtype) -> BlockResult:
    """Round every layer of a block without data."""
    result = BlockResult()
    linears = {name: layer for name, layer in block.linears().items() if not skipped(name)}
    for name, layer in linears.items():
        check_finite(block, name, layer.weight)
    round_blindly(block, linears, recipe, dtype, result)
    return result


def round_blindly(
    block: Block,
    linears: dict[str, nn.Linear],
    recipe: Recipe,
    dtype: torch.dtype,
    result: BlockResult,
    peak_of: Callable[[str], Tensor | None] = lambda _: None,
) -> None:
    """Round layers that no data is there for, those that engines merge as one stack.

    `peak_of` a layer's name: the largest magnitude that the same layer of other experts was given.
    """
    for names in stacks(linears):
        weight = torch.cat([linears[name].weight for name in names]).float()
        rounded = round_weight(weight, recipe, None, dtype=dtype, peak=peak_of(names[0]))
        layers = [linears[name] for name in names]
        for name, part in zip(names, rounded.split([layer.out_features for layer in layers]), strict=True):
            result.rounded[name] = part
            result.notes.extend(f"{block.prefix}.{name}: {note}" for note in rounded.notes)


def check_finite(block: Block, name: str, weight: Tensor) -> None:
    """Refuse weights that are no numbers.

    Raises:
        WorkFailed: they are not; names the layer.
    """
    if not torch.isfinite(weight).all():
        raise WorkFailed(f"{block.prefix}.{name}: its weights hold NaN or infinity; fetch the model again.")
