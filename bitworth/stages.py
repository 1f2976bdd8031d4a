"""Which layers of a block read the same tensor, in what order they run, and what could take a scale off their input.

All of it is found by running one sequence, so nothing is listed by architecture.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.model import call
from bitworth.quantizers import InputStats

_EXPERT = re.compile(r"\bexperts\.(\d+|#)")
#: By the layers of a stage, the module that can take a scale off their input; None where there is none. Experts share
#: an entry, with # for their numbers.
Producers = dict[tuple[str, ...], str | None]


@dataclass(slots=True, eq=False)
class Stage:
    """Layers that read the same tensor, what was seen of it, and the module that can take a scale off it.

    `scales` belong to the recipes, in their order: what each divides the input by.
    """

    layers: list[str]
    producer: str | None = None
    stats: InputStats | None = None
    scales: list[Tensor | None] = field(default_factory=list)
    done: bool = False

    @property
    def level(self) -> str:
        """Stages of one level can be measured in one pass: the same layers of different experts."""
        return of_any_expert(self.layers[0])


@torch.inference_mode()
def trace(
    module: nn.Module, names: list[str], sample: Tensor, kwargs: dict[str, Any], producers: Producers | None
) -> list[Stage]:
    """Stages in the order in which a block runs them, found by running one sequence.

    Unless `producers` is None, each stage also gets the module that could take a scale off its input. What an earlier
    block of the model had is tried first; a stage that had none there is not searched again. Stages of experts that the
    sequence did not reach come last, made after those of one that it did reach.
    """
    stages, seen, before = _in_order(module, names, sample, kwargs)
    if producers is not None:
        by_rows = sorted(zip(stages, seen, strict=True), key=lambda pair: -pair[1].numel())
        asked = {stage.level: stage for stage, _ in reversed(by_rows)}  # of alike experts that which most tokens reach
        _find_producers(module, list(asked.values()), before, sample, kwargs, producers)
        for stage in stages:
            stage.producer = _like(producers.get(_key(stage)), stage.layers[0])
    return stages + _untraced(stages, names)


def _in_order(
    module: nn.Module, names: list[str], sample: Tensor, kwargs: dict[str, Any]
) -> tuple[list[Stage], list[Tensor], Tensor]:
    """Stages as one sequence runs them, what each read, and the block's output."""
    inputs: list[tuple[str, Tensor]] = []
    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: inputs.append((name, args[0])))
        for name in names
    ]
    try:
        outputs = call(module, sample, kwargs)
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
    return stages, seen, outputs


def _find_producers(
    module: nn.Module,
    stages: list[Stage],
    before: Tensor,
    sample: Tensor,
    kwargs: dict[str, Any],
    producers: Producers,
) -> None:
    """Fill in the stages' producers: those of an earlier block are tried together, and one by one where that fails."""
    found = {stage.layers[0]: _like(producers.get(_key(stage)), stage.layers[0]) for stage in stages}
    likely = [(stage.layers, name) for stage in stages if (name := found[stage.layers[0]]) is not None]
    hold = bool(likely) and _still_divide(module, likely, before, sample, kwargs)
    for stage in stages:
        key, guess = _key(stage), found[stage.layers[0]]
        if key not in producers or (guess is not None and not hold):
            name = find_producer(module, stage.layers, before, sample, kwargs, likely=guess)
            producers[key] = None if name is None else _renumbered(name, "#")


def _key(stage: Stage) -> tuple[str, ...]:
    return tuple(_renumbered(name, "#") for name in stage.layers)


def _like(producer: str | None, layer: str) -> str | None:
    """A producer with the number of the layer's expert in place of #."""
    number = _expert(layer)
    return producer if producer is None or number is None else _renumbered(producer, number)


def _untraced(stages: list[Stage], names: list[str]) -> list[Stage]:
    """Stages of the experts that the sequence did not reach, by those of an expert that it did reach.

    Experts of one mixture are alike, so what takes a scale off one's input does so for another.
    """
    seen = {name for stage in stages for name in stage.layers}
    every = set(names)
    numbers = dict.fromkeys(number for name in names if (number := _expert(name)) is not None)
    models = {stage.level: stage for stage in stages if _expert(stage.layers[0]) is not None}
    made = []
    for model in models.values():
        for number in numbers:
            layers = [_renumbered(name, number) for name in model.layers]
            if every.issuperset(layers) and seen.isdisjoint(layers):
                made.append(Stage(layers, _like(model.producer and _renumbered(model.producer, "#"), layers[0])))
    return made


def _expert(layer: str) -> str | None:
    """The number of the expert that a layer belongs to."""
    found = _EXPERT.search(layer)
    return None if found is None else found[1]


def of_any_expert(layer: str) -> str:
    """A name that the same layer of all experts of a mixture has; what belongs to none keeps its own."""
    return _renumbered(layer, "#")


def _renumbered(layer: str, number: str) -> str:
    """The same layer of another expert; what belongs to none stays."""
    return _EXPERT.sub(f"experts.{number}", layer)


def find_producer(
    module: nn.Module,
    layers: list[str],
    before: Tensor,
    sample: Tensor,
    kwargs: dict[str, Any],
    *,
    likely: str | None = None,
) -> str | None:
    """The norm or linear layer whose output can be divided by a scale that the layers' columns take up instead.

    Found by trying: a candidate is right when dividing its parameters and multiplying the layers' columns leaves the
    block's output as it was (`before`), so nothing is listed by architecture. Norms that hold 1 + weight, and tensors
    that other modules read too, fail the trial. `likely` is tried first.
    """
    width = _weight(module, layers[0]).shape[1]
    names: list[str] = [name for name, _ in module.named_modules()]
    for name in sorted(names, key=lambda name: name != likely):
        weight = module.get_submodule(name)._parameters.get("weight")
        if name in layers or weight is None or weight.shape[0] != width or weight.ndim > 2:
            continue
        if _expert(name) not in (None, _expert(layers[0])):  # experts do not read each other
            continue
        if _divides(module, layers, name, before, sample, kwargs):
            return name
    return None


def _divides(
    module: nn.Module, layers: list[str], name: str, before: Tensor, sample: Tensor, kwargs: dict[str, Any]
) -> bool:
    """Whether the layers' columns make good a scale taken off one module's output, and nothing else does."""
    with _scaled(module, [(layers, name)]):
        error = (call(module, sample, kwargs) - before).abs().max()
    if error >= _tolerance(before, sample):
        return False
    with _scaled(module, [([], name)]):
        effect = (call(module, sample, kwargs) - before).abs().max()  # of an expert that adds little it is little too
    return bool(error < 1e-2 * effect)


def _still_divide(
    module: nn.Module,
    pairs: list[tuple[list[str], str]],
    before: Tensor,
    sample: Tensor,
    kwargs: dict[str, Any],
) -> bool:
    """Whether what took each stage's scale in an earlier block, where it was tried alone, does so for all at once."""
    for layers, name in pairs:
        weight = module.get_submodule(name)._parameters.get("weight")
        if weight is None or weight.shape[0] != _weight(module, layers[0]).shape[1]:
            return False
    with _scaled(module, pairs):
        error = (call(module, sample, kwargs) - before).abs().max()
    return bool(error < _tolerance(before, sample))


def _tolerance(before: Tensor, sample: Tensor) -> Tensor:
    return 1e-4 * (before - sample).abs().max().clamp(min=1e-6)


@contextmanager
def _scaled(module: nn.Module, pairs: list[tuple[list[str], str]]) -> Iterator[None]:
    """The block with a scale taken off each named module's output and multiplied to its layers' columns, meanwhile."""
    kept: dict[tuple[str, str], nn.Parameter] = {}

    def multiply(owner: str, leaf: str, factor: Tensor) -> None:
        parameters = module.get_submodule(owner)._parameters
        value = parameters[leaf]
        if value is not None:
            kept.setdefault((owner, leaf), value)
            parameters[leaf] = nn.Parameter(value * factor, requires_grad=False)

    try:
        for layers, name in pairs:
            weight = _weight(module, name)
            scale = torch.linspace(0.5, 2.0, weight.shape[0], device=weight.device)
            for leaf, value in list(module.get_submodule(name)._parameters.items()):
                multiply(name, leaf, 1 / (scale.unsqueeze(1) if value is not None and value.ndim == 2 else scale))
            for layer in layers:
                multiply(layer, "weight", scale)
        yield
    finally:
        for (owner, leaf), value in kept.items():
            module.get_submodule(owner)._parameters[leaf] = value


def _weight(module: nn.Module, layer: str) -> Tensor:
    weight = module.get_submodule(layer)._parameters["weight"]
    assert weight is not None
    return weight


def one_sequence(module: nn.Module, chunk: Tensor, kwargs: dict[str, Any]) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """A block, the first sequence of a chunk and its keyword arguments, all in float32, which trials need."""
    exact = module if chunk.dtype == torch.float32 else copy.deepcopy(module).float()
    return exact, chunk[:1].float(), {key: _first(value, chunk.shape[0]) for key, value in kwargs.items()}


def _first(value: Any, batch: int) -> Any:
    """The first sequence's part of a keyword argument that has a batch axis, floating numbers in float32."""
    if isinstance(value, Tensor):
        value = value[:1] if value.ndim and value.shape[0] == batch else value
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_first(part, batch) for part in value)
    return value
