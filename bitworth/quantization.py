"""From a model folder to checkpoints: the walk over blocks, with every recipe carried along."""

from __future__ import annotations

import ctypes
import hashlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from bitworth import schemes
from bitworth.calibration import calibration_tokens
from bitworth.checkpoint import Writer
from bitworth.errors import BitworthError
from bitworth.model import Arguments, Block, Decoder
from bitworth.schemes.config import quantization_config
from bitworth.sequential import BlockPass, BlockResult, Producers, round_block, skipped
from bitworth.types import Calibration, Gptq, QuantizeResult, Recipe

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

#: Group sizes that the loaders' kernels take, largest first.
GROUP_SIZES = (128, 64, 32)
#: Calibration tokens that go through a block at once; more are split into chunks, so that memory stays bounded.
CHUNK_TOKENS = 32_768


@dataclass(slots=True)
class _Stream:
    """One recipe on its way through the blocks."""

    recipe: Recipe
    writer: Writer
    hidden: list[Tensor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    producers: Producers = field(default_factory=dict)
    seconds: float = 0.0


@torch.inference_mode()
def quantize(
    model: Path,
    recipes: Sequence[Recipe],
    out: Path,
    *,
    calibration: Calibration | None = None,
    allow_group_fallback: bool = False,
    progress: Progress = lambda *_: None,
) -> list[QuantizeResult]:
    """Quantize a model by each recipe; `out` itself for one recipe, `out/NAME` for several.

    Each GPTQ recipe carries its own quantization error forward, as the published method does.

    Raises:
        BitworthError: the model, the calibration or the group size will not do.
        WorkFailed: a layer or the disk failed; nothing half-written is left.
    """
    decoder = Decoder(model)
    fitted = [fit_groups(decoder, recipe, allow_group_fallback) for recipe in recipes]
    shared_notes: list[str] = []
    tokens = _tokens(model, [recipe for recipe, _ in fitted], calibration, shared_notes.append)
    with ExitStack() as stack:
        streams = []
        for recipe, notes in fitted:
            folder = out if len(fitted) == 1 else out / recipe.name
            used = [*notes, *(shared_notes if recipe.needs_calibration else ())]
            if isinstance(recipe.rounding, Gptq) and recipe.rounding.ordering == "group":
                used.append(
                    "groups follow the activations' order (weight_g_idx), which newer compressed-tensors refuses"
                )
            streams.append(_Stream(recipe, stack.enter_context(Writer(folder, model)), notes=used))
        kwargs = _first_inputs(decoder, streams, tokens)
        for index in range(len(decoder)):
            progress("blocks", index + 1, len(decoder))
            with decoder.loaded(index) as block:
                for stream in streams:
                    _one_block(decoder, block, stream, kwargs[index] if kwargs else None)
            _trim_heap()
        return [_finish(decoder, stream, calibration) for stream in streams]


def fit_groups(decoder: Decoder, recipe: Recipe, allow_fallback: bool) -> tuple[Recipe, list[str]]:
    """The recipe with a group size that divides every layer's input.

    Raises:
        BitworthError: it does not and no other was allowed; names the layers and what would do. Or the format cannot
            store groups that follow the activations' order.
    """
    grid = recipe.scheme.weight
    if grid is None or grid.granularity != "group" or grid.group_size is None:
        return recipe, []
    ordered = isinstance(recipe.rounding, Gptq) and recipe.rounding.ordering == "group"
    if ordered and schemes.layout_of(recipe.scheme).name != "pack-quantized":
        raise BitworthError(
            f"{recipe.name}: {recipe.scheme.name} stores no group a column, so its groups cannot follow the "
            "activations' order; use ordering: weight."
        )
    size = grid.group_size
    shapes = {name: shape for name, shape in decoder.linear_shapes().items() if not skipped(name)}
    misfits = [name for name, (_, columns) in shapes.items() if columns % size]
    if not misfits:
        return recipe, []
    fits = [s for s in GROUP_SIZES if s < size and all(columns % s == 0 for _, columns in shapes.values())]
    named = ", ".join(misfits[:3]) + (f" and {len(misfits) - 3} more" if len(misfits) > 3 else "")
    if not allow_fallback or not fits:
        none = f"none of {GROUP_SIZES} does" if grid.scales == "float" else "the format has no others"
        hint = f"--group-size {fits[0]} would, or allow the fallback" if fits else none
        raise BitworthError(f"{recipe.name}: groups of {size} do not divide the inputs of {named}; {hint}.")
    note = f"groups of {size} do not divide the inputs of {named}; groups of {fits[0]} were used throughout"
    scheme = replace(recipe.scheme, weight=replace(grid, group_size=fits[0]))
    return replace(recipe, scheme=scheme), [note]


def _tokens(
    model: Path, recipes: list[Recipe], calibration: Calibration | None, note: Callable[[str], None]
) -> Tensor | None:
    needing = [recipe.name for recipe in recipes if recipe.needs_calibration]
    if not needing:
        return None
    if calibration is None:
        raise BitworthError(f"{', '.join(needing)} needs calibration text; name a file with --calibration.")
    return calibration_tokens(model, calibration, note)


def _first_inputs(decoder: Decoder, streams: list[_Stream], tokens: Tensor | None) -> list[Arguments] | None:
    if tokens is None:
        return None
    count = -(-tokens.numel() // CHUNK_TOKENS)
    chunks = list(torch.split(tokens, -(-tokens.shape[0] // count)))
    hidden, kwargs = decoder.first_inputs(chunks)
    for stream in streams:
        if stream.recipe.needs_calibration:
            stream.hidden = hidden
    return kwargs


def _trim_heap() -> None:
    """Give freed memory back: glibc keeps what lies between tensors still held, a third of the peak after 30 blocks."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _one_block(decoder: Decoder, block: Block, stream: _Stream, kwargs: Arguments | None) -> None:
    began = time.monotonic()
    if stream.recipe.needs_calibration:
        assert kwargs is not None
        walk = BlockPass(block, stream.recipe, decoder.dtype, producers=stream.producers)
        stream.hidden = walk.run(stream.hidden, kwargs)
        result = walk.result
    else:
        result = round_block(block, stream.recipe, decoder.dtype)
    _write_block(decoder, block, stream, result)
    stream.notes.extend(result.notes)
    stream.seconds += time.monotonic() - began


def _write_block(decoder: Decoder, block: Block, stream: _Stream, result: BlockResult) -> None:
    layout = schemes.layout_of(stream.recipe.scheme)
    for name, rounded in result.rounded.items():
        tensors = layout.encode(rounded.codes_OI, rounded.scale_OG, rounded.dtype) | rounded.beside
        if rounded.group_of_I is not None:
            tensors["weight_g_idx"] = rounded.group_of_I
        stream.writer.add({f"{block.prefix}.{name}.{part}": tensor for part, tensor in tensors.items()})
    scales = {f"{block.prefix}.{name}": scale.to(decoder.dtype) for name, scale in result.cache_scales.items()}
    stream.writer.add(scales)
    written = {f"{block.prefix}.{name}.weight" for name in result.rounded}
    for full in sorted(name for name in decoder.reader.names if name.startswith(f"{block.prefix}.")):
        if full not in written:
            changed = result.changed.get(full.removeprefix(f"{block.prefix}."))
            kept = decoder.reader.get(full)
            stream.writer.add({full: kept if changed is None else changed.to(kept.dtype)})
    stream.ignored.extend(f"{block.prefix}.{name}" for name in block.linears() if skipped(name))


def _finish(decoder: Decoder, stream: _Stream, calibration: Calibration | None) -> QuantizeResult:
    began = time.monotonic()
    recipe = stream.recipe
    for name in decoder.others():
        stream.writer.add({name: decoder.reader.get(name)})
    ordering = recipe.rounding.ordering if isinstance(recipe.rounding, Gptq) else None
    grouped = recipe.scheme.weight is not None and recipe.scheme.weight.granularity == "group"
    config = dict(decoder.config)
    ignored = list(dict.fromkeys([*recipe.scheme.ignore, *decoder.other_linears(), *stream.ignored]))
    config["quantization_config"] = quantization_config(recipe.scheme, ignored, ordering if grouped else None)
    provenance = {
        "format": recipe.name,
        "recipe": asdict(recipe),
        "calibration": asdict(calibration) if calibration and recipe.needs_calibration else None,
        "base": {"path": str(decoder.folder), "config_sha256": _sha256(decoder.folder / "config.json")},
        "notes": stream.notes,
        "versions": {
            "bitworth": version("bitworth"),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
    }
    size = stream.writer.finish(config, provenance)
    weights = sum(rows * columns for rows, columns in decoder.linear_shapes().values())
    weights += sum(_numel(decoder, name) for name in decoder.others())
    return QuantizeResult(
        format=recipe.name,
        path=stream.writer.folder,
        seconds=round(stream.seconds + time.monotonic() - began, 3),
        peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        size_mib=round(size / 2**20, 2),
        bits_per_weight=round(8 * size / weights, 3),
        notes=tuple(stream.notes),
    )


def _numel(decoder: Decoder, name: str) -> int:
    count = 1
    for side in decoder.reader.shape(name):
        count *= side
    return count


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
