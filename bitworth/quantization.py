"""From a model folder to checkpoints: the walk over blocks, with every recipe carried along."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitworth import schemes
from bitworth.audit import audit_of
from bitworth.blocks import skipped
from bitworth.calibration import calibrate
from bitworth.checkpoint import PROVENANCE
from bitworth.errors import BitworthError, Interrupted
from bitworth.footprint import states_budget, waiting_bytes
from bitworth.ledger import revive
from bitworth.memory import give_back, reusing
from bitworth.model import Arguments, Decoder
from bitworth.preflight.kernels import doubts
from bitworth.ranks import ALONE, Ranks, device_named
from bitworth.schemes.config import quantization_config
from bitworth.states import LABEL, TEACHER, InFiles, InMemory, Shape, States
from bitworth.streams import Build, Stream, streams_of
from bitworth.tuning import beginnings
from bitworth.types import Calibration, Gptq, QuantizeResult, Recipe, TextAudit
from bitworth.writer import Onlooker, Writer, check_replaceable

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

#: Group sizes that the loaders' kernels take, largest first.
GROUP_SIZES = (128, 64, 32)
#: Calibration tokens that go through a block at once: so few that a processor's cache holds much of what passes between
#: two layers. A GPU wants more, and so does a mixture, whose blocks several chunks go through once a stage.
CHUNK_TOKENS, LARGE_CHUNK_TOKENS = 2_048, 32_768
#: Processors' instructions for products of bfloat16.
_FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")


@torch.inference_mode()
def quantize(
    model: Path,
    recipes: Sequence[Recipe],
    out: Path | Mapping[str, Path],
    *,
    calibration: Calibration | None = None,
    allow_group_fallback: bool = False,
    states_mib: float | None = None,
    device: str | torch.device | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = lambda *_: None,
) -> list[QuantizeResult]:
    """Quantize a model by each recipe.

    A killed run goes on from the last block that was kept, and a checkpoint that is there already, made of the same
    model by the same recipe on the same data, is not made again.

    Args:
        model: folder of the unquantized model.
        recipes: of different names.
        out: the checkpoint's folder for one recipe, `out/NAME` for several; or a folder for each name.
        calibration: what recipes that look at activations see.
        allow_group_fallback: take a group size that fits every layer where the asked one does not.
        states_mib: most memory for hidden states, which go to files beyond it; half of what is free unless given.
        device: where to compute; the GPU where there is one.
        ranks: the processes that call this together, each with a device and a part of the calibration sequences; all
            get the results, and the first one writes. `bitworth.devices` starts them.
        progress: told of every block, in the first rank.

    Raises:
        BitworthError: the model, the calibration or the group size will not do.
        WorkFailed: a layer, the disk or the device's memory failed; nothing half-written is left.
    """
    decoder = open_decoder(model, device)
    with _device_memory(decoder.device):
        return _quantize(
            decoder, recipes, out, calibration, allow_group_fallback, states_mib, ranks,
            progress if ranks.first else lambda *_: None,
        )  # fmt: skip


def _quantize(
    decoder: Decoder,
    recipes: Sequence[Recipe],
    out: Path | Mapping[str, Path],
    calibration: Calibration | None,
    allow_group_fallback: bool,
    states_mib: float | None,
    ranks: Ranks,
    progress: Progress,
) -> list[QuantizeResult]:
    model = decoder.folder
    shared_notes: list[str] = []
    fitted = [fit_groups(decoder, recipe, allow_group_fallback) for recipe in recipes]
    tokens, text = ranks.from_first(
        lambda: _tokens(model, [recipe for recipe, _ in fitted], calibration, shared_notes.append, progress)
    )
    folders = out if isinstance(out, Mapping) else folders_of(out, recipes)
    for folder in folders.values():
        check_replaceable(folder, model)
    made: dict[str, QuantizeResult] = {}
    with ExitStack() as stack:
        stack.enter_context(reusing())
        builds = []
        for recipe, notes in fitted:
            key = _key(decoder, recipe, calibration, tokens)
            found = ranks.from_first(partial(_made_before, folders[recipe.name], key))
            if found is not None:
                made[recipe.name] = found
                continue
            used = [*notes, *(shared_notes if recipe.needs_calibration else ()), *notes_on_loading(decoder, recipe)]
            builds.append(Build(recipe, _writer(folders[recipe.name], model, stack, ranks), key, notes=used))
        shared = calibration is not None and calibration.stream == "shared"
        unwalked = [build for build in builds if not ranks.from_first(build.was_walked)]
        streams = streams_of(unwalked, shared=shared, ranks=ranks)
        kwargs = _prepare(decoder, streams, tokens, states_mib, ranks)
        for index in range(min((stream.done for stream in streams), default=len(decoder)), len(decoder)):
            progress("blocks", index + 1, len(decoder))
            for stream in streams:
                if stream.done <= index:
                    with decoder.loaded(index) as block:
                        stream.walk(decoder, block, kwargs[index] if kwargs else None)
            give_back()
        made |= ranks.from_first(lambda: _finish_all(decoder, builds, calibration, text))
    return [made[recipe.name] for recipe, _ in fitted]


def _writer(folder: Path, model: Path, stack: ExitStack, ranks: Ranks) -> Writer | Onlooker:
    """The checkpoint's writer in the first rank, what stands for it in the others."""
    opened: list[Writer] = []
    ranks.from_first(lambda: opened.append(stack.enter_context(Writer(folder, model))))
    return opened[0] if opened else Onlooker(folder)


@contextmanager
def _device_memory(device: torch.device) -> Iterator[None]:
    """Say in one sentence that a device's memory did not suffice.

    Raises:
        Interrupted: it did not.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):  # as torch says it of a CPU
            raise
        raise Interrupted(
            f"The memory of {device} does not suffice; finished blocks are kept, so run the same command again when "
            "nothing else uses it, or with fewer or shorter calibration sequences, which starts afresh."
        ) from error


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
        hint = f"none of {GROUP_SIZES} does" if grid.scales == "float" else "the format has no others"
        if fits:
            hint = f"--group-size {fits[0]} (group_size in a study) would, or allow the fallback"
        raise BitworthError(f"{recipe.name}: groups of {size} do not divide the inputs of {named}; {hint}.")
    note = f"groups of {size} do not divide the inputs of {named}; groups of {fits[0]} were used throughout"
    scheme = replace(recipe.scheme, weight=replace(grid, group_size=fits[0]))
    return replace(recipe, scheme=scheme), [note]


def folders_of(out: Path, recipes: Sequence[Recipe]) -> dict[str, Path]:
    """Where each recipe's checkpoint goes: `out` itself for one, `out/NAME` for several."""
    return {recipe.name: out if len(recipes) == 1 else out / recipe.name for recipe in recipes}


def open_decoder(model: Path, device: str | torch.device | None = None) -> Decoder:
    """The model to walk: float32 on a CPU, where bfloat16 gains little or loses much; bfloat16 on a GPU.

    Raises:
        BitworthError: the model will not do, or there is no such device.
    """
    place = device_named(device)
    decoder = Decoder(model, device=place, compute=torch.float32 if place.type == "cpu" else torch.bfloat16)
    if decoder.dtype == torch.bfloat16:
        decoder.factors = _fast_factors(decoder.compute)
    return decoder


def _fast_factors(compute: torch.dtype) -> torch.dtype:
    """bfloat16 where the processor multiplies it faster: as the model is served, and added up in float32."""
    return torch.bfloat16 if any(torch.cpu.get_capabilities().get(name) for name in _FAST_BFLOAT16) else compute


def chunk_tokens(decoder: Decoder) -> int:
    """About how many tokens should go through a block at once."""
    return LARGE_CHUNK_TOKENS if decoder.device.type != "cpu" or decoder.is_mixture else CHUNK_TOKENS


def chunks_of(tokens: Tensor, most: int) -> list[Tensor]:
    """Calibration sequences (samples, length) in as few chunks of at most so many tokens as will do."""
    count = min(tokens.shape[0], -(-tokens.numel() // most))
    return list(torch.split(tokens, -(-tokens.shape[0] // count)))


def needed(recipes: Sequence[Recipe], calibration: Calibration | None) -> Calibration:
    """The calibration that recipes of which some need one are given.

    Raises:
        BitworthError: there is none.
    """
    if calibration is None:
        names = ", ".join(recipe.name for recipe in recipes if recipe.needs_calibration)
        raise BitworthError(f"{names} needs calibration text; name a file with --calibration.")
    return calibration


def _tokens(
    model: Path,
    recipes: list[Recipe],
    calibration: Calibration | None,
    note: Callable[[str], None],
    progress: Progress,
) -> tuple[Tensor | None, TextAudit | None]:
    if not any(recipe.needs_calibration for recipe in recipes):
        return None, None
    return calibrate(model, needed(recipes, calibration), note, progress)


def notes_on_loading(decoder: Decoder, recipe: Recipe) -> list[str]:
    """What loaders will not take of a recipe's checkpoint; it is made all the same."""
    found = doubts(recipe.scheme, mixture=decoder.is_mixture)
    if isinstance(recipe.rounding, Gptq) and recipe.rounding.ordering == "group":
        found.append("groups follow the activations' order (weight_g_idx), which newer compressed-tensors refuses")
    return found


def _key(decoder: Decoder, recipe: Recipe, calibration: Calibration | None, tokens: Tensor | None) -> str:
    """Identifies everything that could change a checkpoint: the model's files, the recipe, its data, the versions."""
    paths = [decoder.folder / "config.json", *sorted(decoder.folder.glob("*.safetensors"))]
    facts: dict[str, Any] = {
        "model": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths],
        "recipe": asdict(recipe),
        "versions": _versions(),
        "device": decoder.device.type,
    }
    if recipe.needs_calibration:
        assert calibration is not None
        assert tokens is not None
        facts["tokens"] = [list(tokens.shape), hashlib.sha256(tokens.numpy().tobytes()).hexdigest()]
        facts["stream"] = calibration.stream
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _made_before(folder: Path, key: str) -> QuantizeResult | None:
    """The result of a checkpoint that is there already, whole, under the same key."""
    try:
        page = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        same = page["key"] == key
        whole = all((folder / name).stat().st_size == size for name, size in page["files"].items())
        row = {**page["result"], "path": folder, "notes": page["notes"], "audit": page["audit"]}
        return revive(QuantizeResult, row) if same and whole else None
    except (OSError, ValueError, KeyError, TypeError, BitworthError):
        return None


def _prepare(
    decoder: Decoder, streams: list[Stream], tokens: Tensor | None, states_mib: float | None, ranks: Ranks
) -> list[Arguments] | None:
    """Give every stream the first block's inputs, or what a killed run left; the keyword arguments of every block."""
    walking = [stream for stream in streams if stream.builds[0].recipe.needs_calibration]
    if tokens is None or not walking:
        for stream in streams:
            stream.take_up([])
        return None
    if len(tokens) < ranks.count:
        raise BitworthError(
            f"{len(tokens)} calibration sequences cannot be dealt to {ranks.count} devices; take fewer devices."
        )
    tokens = tokens[ranks.share(len(tokens))]
    chunks = chunks_of(tokens, chunk_tokens(decoder))
    width = decoder.width
    shapes: list[Shape] = [(chunk.shape[0], chunk.shape[1], width) for chunk in chunks]
    size = 4 * width * tokens.numel() * sum(1 + stream.learns for stream in walking)
    # one rank's measure for all: the way through a block must be the same
    budget = ranks.from_first(lambda: states_budget(states_mib) / ranks.count)
    waiting = waiting_bytes(decoder, tokens.numel(), tokens.shape[1])
    together = ranks.from_first(lambda: waiting <= (budget if decoder.device.type != "cuda" else _room(decoder.device)))
    in_files = ranks.from_first(lambda: size > budget)
    for stream in walking:
        stream.together = together

        def hold(name: str, stream: Stream = stream) -> States:
            label = stream.label(name)
            if in_files:
                return InFiles(decoder.device, stream.folder, shapes, decoder.compute, label=label)
            return InMemory(decoder.device, _store(decoder.device, size), decoder.compute, label=label)

        stream.states = hold(LABEL)
        tuning = stream.builds[0].recipe.tuning
        if tuning is not None:
            stream.teacher, stream.beginnings = hold(TEACHER), beginnings(decoder, tuning, tokens[:1])
    fresh = [stream for stream in streams if not stream.take_up(shapes)]
    starting = [states for stream in fresh for states in stream.held.values()]

    def take(hidden: Tensor) -> None:
        for states in starting:
            states.append(hidden)

    return decoder.first_inputs(chunks, take)


def _store(device: torch.device, size: int) -> torch.device:
    """Where hidden states of so many bytes are held: with what computes, if they leave it half its memory."""
    return torch.device("cpu") if device.type == "cuda" and size > _room(device) else device


def _room(device: torch.device) -> float:
    """Half of a GPU's free memory in bytes, for what is kept there beside weights and moments."""
    return torch.cuda.mem_get_info(device)[0] / 2


def _finish_all(
    decoder: Decoder, builds: Sequence[Build], calibration: Calibration | None, text: TextAudit | None
) -> dict[str, QuantizeResult]:
    """The results by name; a fault at one checkpoint leaves the others what the next run needs to finish them."""
    for build in builds:
        build.keep_walked()
    return {build.recipe.name: _finish(decoder, build, calibration, text) for build in builds}


def _finish(decoder: Decoder, build: Build, calibration: Calibration | None, text: TextAudit | None) -> QuantizeResult:
    began = time.monotonic()
    recipe, writer = build.recipe, build.writer
    assert isinstance(writer, Writer)
    audit = audit_of(text, build.audit) if text and recipe.needs_calibration else None
    for name in decoder.others():
        writer.add({decoder.names.written(decoder.names.of(name)): decoder.reader.get(name)})
    ordering = recipe.rounding.ordering if isinstance(recipe.rounding, Gptq) else None
    grouped = recipe.scheme.weight is not None and recipe.scheme.weight.granularity == "group"
    ignored = list(dict.fromkeys([*recipe.scheme.ignore, *decoder.other_linears(), *build.ignored]))
    quantization = quantization_config(recipe.scheme, ignored, ordering if grouped else None)
    weights = sum(rows * columns for rows, columns in decoder.linear_shapes().values())
    weights += sum(math.prod(decoder.reader.shape(name)) for name in decoder.others())
    result = QuantizeResult(
        format=recipe.name,
        path=writer.folder,
        seconds=round(build.seconds + time.monotonic() - began, 3),
        peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        size_mib=round(writer.size / 2**20, 2),
        bits_per_weight=round(8 * writer.size / weights, 3),
        notes=tuple(build.notes),
        audit=audit,
    )
    kept = [field.name for field in fields(result) if field.name not in ("path", "notes", "audit")]
    provenance = {
        "format": recipe.name,
        "recipe": asdict(recipe),
        "calibration": asdict(calibration) if calibration and recipe.needs_calibration else None,
        "base": {"path": str(decoder.folder), "config_sha256": _sha256(decoder.folder / "config.json")},
        "notes": build.notes,
        "audit": asdict(audit) if audit else None,
        "versions": _versions(),
        "key": build.key,
        "result": {name: getattr(result, name) for name in kept},
    }
    config = {name: value for name, value in decoder.config.items() if name != "auto_map"}  # no code goes along
    writer.finish({**config, "quantization_config": quantization}, provenance)
    return result


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("bitworth", "torch", "transformers")}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
