"""A model in numbers: how many matrices of which shapes a recipe rounds, what it leaves, what each token multiplies.

Experts count one by one, whether they are stored so or fused into three-dimensional tensors (`experts`). Of an expert's
matrices a token multiplies with the part that the config says it chooses.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitworth import schemes
from bitworth.blocks import skipped
from bitworth.checkpoint import Reader, read_config
from bitworth.errors import BitworthError
from bitworth.kv_cache import attentions
from bitworth.model import Decoder
from bitworth.prediction.architecture import chosen_share
from bitworth.scales import E4M3, POWERS_OF_TWO, ScaleType
from bitworth.types import Gptq, Grid, Recipe

_EXPERT = re.compile(r"\bexperts\b")
#: What holds the matrices of all experts, in transformers' names and in those of hub checkpoints that fuse them too.
_FUSED = re.compile(r"\b(gate_up_proj|up_proj|down_proj|input_linear|output_linear)\b")
_FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A model in numbers.

    `linear` are all weights of the layers that are rounded, `used` those that a token multiplies with; `head` those of
    the output head; `used_squares` is Σ in² over the layers that a token reaches. `rounding` is about how many
    operations it takes to round them by second moments, whose inversion is among them. `shapes` counts these layers by
    (out, in); `kept` is the bytes of all other tensors.
    """

    linear: int
    used: float
    head: int
    used_squares: float
    rounding: float
    shapes: Mapping[tuple[int, int], int]
    kept: int
    dtype: torch.dtype = torch.bfloat16
    caches: int = 0
    """Attentions whose cache can be quantized."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """`count` linear layers of a shape (out, in)."""

    name: str
    shape: tuple[int, int]
    count: int = 1
    expert: bool = False


def size_of(folder: Path) -> Size:
    """A model's size from the shapes of its stored tensors, where building its layers would take too long."""
    reader, config = Reader(folder), read_config(folder)
    text = config.get("text_config") or config
    width = text.get("hidden_size") or text.get("n_embd") or 0
    layers = [layer for name in reader.names for layer in _layers(name, reader.shape(name), width)]
    outside = [layer for layer in layers if "embed" in layer.name or "head" in layer.name]
    layers = [layer for layer in layers if layer not in outside]
    rounded = {layer.name for layer in layers if not skipped(layer.name)}
    return _size(
        layers,
        config,
        head=max((math.prod(layer.shape) for layer in outside), default=0),
        kept=sum(reader.bytes_of(name) for name in reader.names if name.removesuffix(".weight") not in rounded),
    )


def size_within(decoder: Decoder) -> Size:
    """A model's size from the layers that quantizing meets: exact."""
    shapes = decoder.linear_shapes()
    rounded = {f"{name}.weight" for name in shapes if not skipped(name)}
    kept = sum(_bytes_within(decoder, name) for name in decoder.names.under(decoder.prefix) if name not in rounded)
    kept += sum(decoder.reader.bytes_of(name) for name in decoder.others())
    output = decoder.model.get_output_embeddings()
    return _size(
        [_Layer(name, shape, expert=".experts." in name) for name, shape in shapes.items()],
        decoder.config,
        head=0 if output is None else math.prod(output.weight.shape),
        kept=kept,
        dtype=decoder.dtype,
        caches=_caches(decoder),
    )


def checkpoint_bytes(recipe: Recipe, size: Size) -> int:
    """Bytes of the tensors of a recipe's checkpoint."""
    layout, grid = schemes.layout_of(recipe.scheme), recipe.scheme.weight
    assert grid is not None
    ordered = isinstance(recipe.rounding, Gptq) and recipe.rounding.ordering == "group" and grid.granularity == "group"
    total = float(size.kept)
    for (rows, columns), count in size.shapes.items():
        codes = torch.empty(rows, columns, device="meta")
        scale = torch.empty(rows, columns // (grid.group_size or columns), device="meta")
        stored = layout.encode(codes, scale, _scales_in(grid, size.dtype)).values()
        beside = 4 * columns * ordered + _input_scale_bytes(recipe.scheme.activation, size.dtype)
        total += count * (sum(tensor.nbytes for tensor in stored) + beside)
    caches = 0 if recipe.scheme.kv_cache is None else 2 * size.caches * size.dtype.itemsize
    return int(total) + caches


def _scales_in(grid: Grid, dtype: torch.dtype) -> ScaleType:
    """`scales.scale_type` of a weight that is not there."""
    if grid.scales == "e8m0":
        return POWERS_OF_TWO
    return ScaleType(E4M3, torch.empty(1, device="meta")) if grid.scales == "e4m3" else ScaleType(dtype)


def _input_scale_bytes(grid: Grid | None, dtype: torch.dtype) -> int:
    if grid is None or (grid.dynamic and grid.scales != "e4m3"):
        return 0
    return _FLOAT32 if grid.scales == "e4m3" else dtype.itemsize


def _size(layers: Sequence[_Layer], config: Mapping[str, Any], *, head: int, kept: float, **rest: Any) -> Size:
    share = chosen_share(config)
    rounded = [layer for layer in layers if not skipped(layer.name)]
    reached = [(layer.shape, layer.count * (share if layer.expert else 1)) for layer in rounded]
    shapes: Counter[tuple[int, int]] = Counter()
    for layer in rounded:
        shapes[layer.shape] += layer.count
    return Size(
        linear=sum(count * rows * columns for (rows, columns), count in shapes.items()),
        used=sum(times * math.prod(shape) for shape, times in reached),
        head=head,
        used_squares=sum(times * shape[1] ** 2 for shape, times in reached),
        rounding=sum(count * (rows + columns) * columns**2 for (rows, columns), count in shapes.items()),
        shapes=shapes,
        kept=int(kept),
        **rest,
    )


def _layers(name: str, shape: tuple[int, ...], width: int) -> list[_Layer]:
    """The linear layers that a stored tensor holds: itself, or those of fused experts; hidden states have `width`.

    A fused matrix may lie either way; of an expert's only the down projection does not read the hidden states.
    """
    layer = name.removesuffix(".weight")
    fused = _FUSED.search(name)
    if len(shape) == 2 and not name.endswith("bias"):
        return [_Layer(layer, (shape[0], shape[1]), expert=bool(_EXPERT.search(name)))]
    if len(shape) != 3 or fused is None:
        return []
    other = shape[1] * shape[2] // width if width in shape[1:] else shape[1]
    halves = 2 if fused[1] in ("gate_up_proj", "input_linear") else 1
    matrix = (width, other) if fused[1] in ("down_proj", "output_linear") else (other // halves, width)
    return [_Layer(layer, matrix, count=halves * shape[0], expert=True)]


def _bytes_within(decoder: Decoder, name: str) -> float:
    """Bytes of a tensor of the model, which may be a part of a stored one."""
    source = decoder.names.source(name)
    assert source is not None
    whole = decoder.reader.bytes_of(source.name)
    if source.fusion is None:
        return whole
    return whole / source.fusion.count / len(source.fusion.pieces(source.name.rpartition(".")[2]))


def _caches(decoder: Decoder) -> int:
    blocks = (decoder.block(index).module for index in range(len(decoder)))
    try:
        return sum(len(attentions(block)) for block in blocks)
    except BitworthError:  # which a recipe that quantizes the cache is refused with
        return 0
