"""One recipe over one decoder block, in true sequential order.

Linear layers that read the same tensor (q, k and v; gate and up) form a stage: they share their second moments and are
rounded as one stack. Each stage sees what the stages before it, already quantized, produce. When all calibration data
fits one chunk every layer is evaluated once: a stage is rounded in the middle of the block's forward, which then goes
on with the rounded weights. With several chunks the block is run again up to each stage, so that memory is bounded by a
chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.errors import WorkFailed
from bitworth.kv_cache import watching
from bitworth.model import Arguments, Block, call, stacks
from bitworth.quantizers import InputStats, Rounded, round_weight
from bitworth.quantizers.awq import awq_scale
from bitworth.quantizers.smoothquant import smoothing_scale
from bitworth.types import Recipe, SmoothQuant


class _Reached(Exception):
    """The stage being measured was reached; the rest of the block is not needed."""


#: By the layers of a stage, the module that can take a scale off their input; None where there is none.
Producers = dict[tuple[str, ...], str | None]


@dataclass(slots=True)
class Stage:
    """Layers that read the same tensor, what was seen of it, and the module that can take a scale off it."""

    layers: list[str]
    producer: str | None = None
    stats: InputStats | None = None
    scale_I: Tensor | None = None
    done: bool = False


@dataclass(slots=True)
class BlockResult:
    """What a block became: rounded layers, the cache's scales, other parameters that changed, and notes by layer."""

    rounded: dict[str, Rounded] = field(default_factory=dict)
    cache_scales: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def skipped(name: str) -> bool:
    """Routers of mixtures of experts stay as they are: a wrong route costs more than their bits save."""
    return name.rpartition(".")[2] in ("gate", "router", "shared_expert_gate")


def round_block(block: Block, recipe: Recipe, dtype: torch.dtype) -> BlockResult:
    """Round every layer of a block without data."""
    result = BlockResult()
    linears = {name: layer for name, layer in block.linears().items() if not skipped(name)}
    for name, layer in linears.items():
        _check_finite(block, name, layer.weight)
    _round_blindly(block, linears, recipe, dtype, result)
    return result


def _round_blindly(
    block: Block, linears: dict[str, nn.Linear], recipe: Recipe, dtype: torch.dtype, result: BlockResult
) -> None:
    """Round layers that no data is there for, those that engines merge as one stack."""
    for names in stacks(linears):
        layers = [linears[name] for name in names]
        rounded = round_weight(torch.cat([layer.weight for layer in layers]), recipe, None, dtype=dtype)
        for name, part in zip(names, rounded.split([layer.out_features for layer in layers]), strict=True):
            result.rounded[name] = part
            result.notes.extend(f"{block.prefix}.{name}: {note}" for note in rounded.notes)


class BlockPass:
    """Quantizes one block on calibration data and gives the block's outputs with the quantized weights."""

    def __init__(self, block: Block, recipe: Recipe, dtype: torch.dtype, *, producers: Producers | None = None) -> None:
        """Prepare; `producers` carries from block to block what could take a scale, so that it is searched for once."""
        self._block, self._recipe, self._dtype = block, recipe, dtype
        self._producers = {} if producers is None else producers
        self._linears = {name: layer for name, layer in block.linears().items() if not skipped(name)}
        self._weights: dict[str, Tensor] = {}
        self._stage_of: dict[str, Stage] = {}
        self._collecting: Stage | None = None
        self.result = BlockResult()

    def run(self, hidden: list[Tensor], kwargs: Arguments) -> list[Tensor]:
        """Quantize the block on chunks of hidden states (B, T, D); returns their outputs, in float32.

        Raises:
            WorkFailed: weights or inputs hold NaN or infinity; names the layer.
        """
        module = self._block.module
        first = kwargs[hidden[0].shape[0]]
        stages = trace(
            module, list(self._linears), hidden[0], first, self._producers if self._recipe.transforms else None
        )
        self._stage_of = {name: stage for stage in stages for name in stage.layers}
        try:
            for name, layer in self._linears.items():
                layer.forward = self._forward(name, layer)  # type: ignore[method-assign, assignment]
            if len(hidden) > 1:
                for name in self._linears:  # experts that the traced sequence did not choose
                    if name not in self._stage_of:
                        stages.append(Stage([name]))
                        self._stage_of[name] = stages[-1]
                for stage in stages:
                    self._measure(stage, hidden, kwargs)
            outputs = self._outputs(hidden, kwargs)
        finally:
            for layer in self._linears.values():
                vars(layer).pop("forward", None)  # the class's own shows again
        self._round_unreached()
        self._fold(stages)
        return outputs

    def _outputs(self, hidden: list[Tensor], kwargs: Arguments) -> list[Tensor]:
        module, grid = self._block.module, self._recipe.scheme.kv_cache
        if grid is None:
            return [call(module, chunk, kwargs[chunk.shape[0]]) for chunk in hidden]
        with watching(module, grid, self._dtype) as self.result.cache_scales:
            return [call(module, chunk, kwargs[chunk.shape[0]]) for chunk in hidden]

    def _forward(self, name: str, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(inputs: Tensor) -> Tensor:
            stage = self._stage_of.setdefault(name, Stage([name]))  # new: an expert that was not traced
            if not stage.done:
                if self._collecting not in (None, stage):  # an expert beside the one being measured
                    return nn.functional.linear(inputs, layer.weight, layer.bias)
                self._see(stage, inputs)
                if self._collecting is not None:
                    raise _Reached
                self._quantize(stage)
            scaled = inputs if stage.scale_I is None else inputs / stage.scale_I
            return nn.functional.linear(scaled, self._weights[name], layer.bias)

        return forward

    def _see(self, stage: Stage, inputs: Tensor) -> None:
        if stage.stats is None:
            stage.stats = InputStats(inputs.shape[-1], inputs.device)
        stage.stats.add(inputs)

    def _measure(self, stage: Stage, hidden: list[Tensor], kwargs: Arguments) -> None:
        self._collecting = stage
        for chunk in hidden:
            try:
                call(self._block.module, chunk, kwargs[chunk.shape[0]])
            except _Reached:
                continue
        self._collecting = None
        if stage.stats is not None:
            self._quantize(stage)

    def _quantize(self, stage: Stage) -> None:
        layers = [self._linears[name] for name in stage.layers]
        for name, layer in zip(stage.layers, layers, strict=True):
            _check_finite(self._block, name, layer.weight)
        stacked = torch.cat([layer.weight for layer in layers])
        stats = stage.stats
        assert stats is not None
        if not torch.isfinite(stats.max_abs_I).all():
            raise WorkFailed(
                f"{self._block.prefix}.{stage.layers[0]}: its calibration inputs hold NaN or infinity; check the model "
                "in its own dtype first."
            )
        assert self._recipe.scheme.weight is not None
        for transform in self._recipe.transforms:
            if stage.producer is None:
                continue
            if stage.producer in self.result.rounded and self.result.rounded[stage.producer].dtype.coarse:
                continue  # its scales cannot be divided: they would not be stored as they came out
            scale = (
                smoothing_scale(stacked, stats, transform)
                if isinstance(transform, SmoothQuant)
                else awq_scale(stacked, self._recipe.scheme.weight, stats, transform, dtype=self._dtype)
            )
            stacked, stats = stacked * scale, stats.divided_by(scale)
            stage.scale_I = scale if stage.scale_I is None else stage.scale_I * scale
        try:
            rounded = round_weight(stacked, self._recipe, stats, dtype=self._dtype)
        except WorkFailed as error:
            raise WorkFailed(f"{self._block.prefix}.{stage.layers[0]}: {error}.") from error
        parts = rounded.split([layer.out_features for layer in layers])
        for name, part in zip(stage.layers, parts, strict=True):
            self.result.rounded[name] = part
            self._weights[name] = part.weight()
        stage.done = True
        stage.stats = None
        self.result.notes.extend(f"{self._block.prefix}.{stage.layers[0]}: {note}" for note in rounded.notes)

    def _round_unreached(self) -> None:
        """Experts that no calibration token chose: rounded without data, and named."""
        unreached = {name: layer for name, layer in self._linears.items() if name not in self.result.rounded}
        _round_blindly(self._block, unreached, self._recipe, self._dtype, self.result)

    def _fold(self, stages: list[Stage]) -> None:
        """Take each stage's scale out of the module that makes its input."""
        for stage in stages:
            if stage.scale_I is None or stage.producer is None:
                continue
            if stage.producer in self.result.rounded:
                rounded = self.result.rounded[stage.producer]
                rounded.scale_OG = rounded.dtype.read_back(rounded.scale_OG / stage.scale_I.unsqueeze(1))
                bias = self._linears[stage.producer].bias
                if bias is not None:
                    self.result.changed[f"{stage.producer}.bias"] = bias / stage.scale_I
            else:
                norm = self._block.module.get_submodule(stage.producer)
                for leaf, value in norm.named_parameters(recurse=False):
                    self.result.changed[f"{stage.producer}.{leaf}"] = value / stage.scale_I


@torch.inference_mode()
def trace(
    module: nn.Module, names: list[str], chunk: Tensor, kwargs: dict[str, Any], producers: Producers | None
) -> list[Stage]:
    """Stages in the order in which a block runs them, found by running one sequence.

    Unless `producers` is None, each stage also gets the module that could take a scale off its input. What an earlier
    block of the model had is tried first; a stage that had none there is not searched again.
    """
    sample = chunk[:1]
    one = {key: _first(value, chunk.shape[0]) for key, value in kwargs.items()}
    inputs: list[tuple[str, Tensor]] = []
    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: inputs.append((name, args[0])))
        for name in names
    ]
    try:
        call(module, sample, one)
    finally:
        for handle in handles:
            handle.remove()
    stages: list[Stage] = []
    seen: list[Tensor] = []
    for name, tensor in inputs:
        for stage, known in zip(stages, seen, strict=True):
            if known is tensor and name not in stage.layers:
                stage.layers.append(name)
                break
        else:
            stages.append(Stage([name]))
            seen.append(tensor)
    if producers is not None:
        for stage in stages:
            key = tuple(stage.layers)
            if key not in producers or producers[key] is not None:
                producers[key] = find_producer(module, stage.layers, sample, one, likely=producers.get(key))
            stage.producer = producers[key]
    return stages


def find_producer(
    module: nn.Module, layers: list[str], sample: Tensor, kwargs: dict[str, Any], *, likely: str | None = None
) -> str | None:
    """The norm or linear layer whose output can be divided by a scale that the layers' columns take up instead.

    Found by trying: a candidate is right when dividing its parameters and multiplying the layers' columns leaves the
    block's output as it was, so nothing is listed by architecture. Norms that hold 1 + weight, and tensors that other
    modules read too, fail the trial. `likely` is tried first.
    """
    width = _weight(module, layers[0]).shape[1]
    before = call(module, sample, kwargs)
    scale = torch.linspace(0.5, 2.0, width, device=sample.device)
    names: list[str] = [name for name, _ in module.named_modules()]
    for name in sorted(names, key=lambda name: name != likely):
        weight = module.get_submodule(name)._parameters.get("weight")
        if name in layers or weight is None or weight.shape[0] != width or weight.ndim > 2:
            continue
        if _divides(module, name, layers, scale, before, sample, kwargs):
            return name
    return None


def _divides(
    module: nn.Module,
    name: str,
    layers: list[str],
    scale: Tensor,
    before: Tensor,
    sample: Tensor,
    kwargs: dict[str, Any],
) -> bool:
    owner = module.get_submodule(name)
    kept = {leaf: value for leaf, value in owner._parameters.items() if value is not None}
    columns = {layer: _weight(module, layer) for layer in layers}
    try:
        for leaf, value in kept.items():
            divisor = scale.unsqueeze(1) if value.ndim == 2 else scale
            owner._parameters[leaf] = nn.Parameter(value / divisor, requires_grad=False)
        for layer, weight in columns.items():
            module.get_submodule(layer)._parameters["weight"] = nn.Parameter(weight * scale, requires_grad=False)
        after = call(module, sample, kwargs)
    finally:
        owner._parameters.update(kept)
        for layer, weight in columns.items():
            module.get_submodule(layer)._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    span = (before - sample).abs().max().clamp(min=1e-6)
    return bool((after - before).abs().max() < 1e-4 * span)


def _weight(module: nn.Module, layer: str) -> Tensor:
    weight = module.get_submodule(layer)._parameters["weight"]
    assert weight is not None
    return weight


def _first(value: Any, batch: int) -> Any:
    """The first sequence's part of a keyword argument that has a batch axis."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
        return value[:1]
    if isinstance(value, tuple):
        return tuple(_first(part, batch) for part in value)
    return value


def _check_finite(block: Block, name: str, weight: Tensor) -> None:
    if not torch.isfinite(weight).all():
        raise WorkFailed(f"{block.prefix}.{name}: its weights hold NaN or infinity; fetch the model again.")
