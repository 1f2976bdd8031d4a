"""A rounded block learnt on: codes, scales and norms move together until its outputs come near the unquantized model's.

Rounding layer by layer cannot know that one layer may make good what another loses. Here all of a block's layers step
by the sign of the gradient of its output's error, through the rounding as if that were not there (SignRound, arXiv
2309.05516, section 3; straight-through estimation, arXiv 1308.3432). Unlike there, steps begin at codes that GPTQ
chose; the aim is what the unquantized model holds at that place, so that a block makes good what those before it lost;
and a token's error counts by the token's own size, since the first token's states are thousands of times the others'.
A step reads the beginning of a sequence, of which a causal block makes the same without the rest: more steps on fewer
tokens lose about as little in less time (docs/LOG.md).

What a block loses is compared before and after: it stays as it was rounded where learning gained nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.blocks import BlockResult, skipped
from bitworth.model import Arguments, Block, Decoder, call
from bitworth.numerics import compact_codes, to_codes
from bitworth.quantizers import Rounded
from bitworth.ranks import Ranks
from bitworth.sequential import BlockPass
from bitworth.states import States
from bitworth.types import Grid, Tuning

#: How far from its code a weight may lie and still round to it.
_HALF = 0.49


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first tokens of a sequence, as many as a step reads, and a block's keyword arguments for them alone."""

    tokens: int
    kwargs: dict[str, Any]


def beginnings(decoder: Decoder, tuning: Tuning, sequence_1T: Tensor) -> list[Beginning]:
    """Those of any sequence of that length, a block."""
    tokens = tuning.read(sequence_1T.shape[1])
    arguments = decoder.first_inputs([sequence_1T[:, :tokens]], lambda hidden: None)
    return [Beginning(tokens, by_size[1]) for by_size in arguments]


def run_tuned(walk: BlockPass, states: States, teacher: States, kwargs: Arguments, beginning: Beginning) -> None:
    """Quantize a block and learn on; its outputs go into the states, the unquantized block's into the teacher's.

    Args:
        walk: of one recipe, which has a tuning.
        states: what the quantized blocks before made of the calibration data.
        teacher: what the unquantized blocks made of it.
        kwargs: the block's arguments.
        beginning: what its steps read.

    Raises:
        WorkFailed: weights or inputs hold NaN or infinity; names the layer.
    """
    block, ranks = walk.block, walk.ranks
    _teach(block, teacher, kwargs)
    walk.run(states, kwargs)
    [result] = walk.results
    before = _loss(states, teacher, ranks)
    learning = _Learning(walk)
    learning.learn(states, teacher, beginning, ranks)
    learnt = learning.result(ranks)
    _pass(walk, learnt, states, kwargs)
    if ranks.from_first(partial(_gained, before, _loss(states, teacher, ranks))):
        result.rounded, result.changed, result.cache_scales = learnt.rounded, learnt.changed, learnt.cache_scales
    else:
        result.notes.append(f"{block.prefix}: tuning gained nothing, so it stays as it was rounded")
        _pass(walk, result, states, kwargs)


def _gained(before: Tensor, after: Tensor) -> bool:
    return bool(after < before)


def relative_error(made_BTD: Tensor, aim_BTD: Tensor) -> Tensor:
    """Squared error over the squared size of what is aimed at, a token, shape (B, T), float32."""
    size_BT = aim_BTD.float().square().sum(-1)
    return (made_BTD.float() - aim_BTD.float()).square().sum(-1) / size_BT.clamp(min=torch.finfo(torch.float32).tiny)


def _loss(states: States, teacher: States, ranks: Ranks) -> Tensor:
    """The mean error a token of what a block made, over all ranks."""
    found = torch.zeros(2)
    for index in range(len(states)):
        error_BT = relative_error(states.made(index), teacher.made(index))
        found += torch.tensor([float(error_BT.sum()), float(error_BT.numel())])
    ranks.add_up(found)
    return found[0] / found[1]


def _teach(block: Block, teacher: States, kwargs: Arguments) -> None:
    with _multiplying(block):
        for index in range(len(teacher)):
            chunk = teacher[index]
            teacher[index] = call(block.module, chunk, kwargs[chunk.shape[0]])


def _pass(walk: BlockPass, result: BlockResult, states: States, kwargs: Arguments) -> None:
    """All chunks through the block as it will be stored."""
    tensors = _stored(walk.block, result, walk.dtype)
    with _multiplying(walk.block), walk.watched([result]):
        for index in range(len(states)):
            chunk = states[index]
            states[index] = _call_with(walk.block, tensors, chunk, kwargs[chunk.shape[0]])


def _stored(block: Block, result: BlockResult, dtype: torch.dtype) -> dict[str, Tensor]:
    """The block's tensors that are not the model's own, by name, as they read back from a checkpoint."""
    own = dict(block.module.named_parameters())
    tensors = {name: value.to(dtype).to(own[name].dtype) for name, value in result.changed.items()}
    return tensors | {f"{name}.weight": made.weight().to(block.factors) for name, made in result.rounded.items()}


def _call_with(block: Block, tensors: dict[str, Tensor], hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Run the block with other tensors in the place of its own."""
    return call(
        lambda *args, **named: torch.func.functional_call(block.module, tensors, args, named),
        hidden,
        kwargs,
    )


@contextmanager
def _multiplying(block: Block) -> Iterator[None]:
    """Round factors as the rounding passes do."""
    layers = [layer for name, layer in block.linears().items() if not skipped(name)]
    for layer in layers:
        layer.forward = partial(_product, block, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward")


def _product(block: Block, layer: nn.Linear, inputs: Tensor) -> Tensor:
    return block.product(inputs, layer.weight, layer.bias)


@dataclass(slots=True)
class _Layer:
    """What is learnt of a layer: its codes before they are rounded, and how far each scale drifted from what it was."""

    rounded: Rounded
    grid: Grid
    latent_OI: Tensor
    drift_OG: Tensor

    def learnt(self) -> Rounded:
        """Codes and scales as they are now, scales not yet as they will be stored."""
        made = self.rounded
        codes_OI = to_codes(self.latent_OI, self.grid)
        return replace(made, codes_OI=codes_OI, scale_OG=made.scale_OG * (1 + self.drift_OG))

    def step(self, weight_OI: Tensor, gradient_OI: Tensor, tuning: Tuning, rest: float) -> None:
        """Step against derivatives' signs: a weight's own for its code, its group's weighted sum for the scale.

        `rest`: the part of the rates that is left.
        """
        if not self.rounded.dtype.coarse:  # no step is so small
            by_scale_OG = self._over_groups(gradient_OI * weight_OI)
            self.drift_OG.sub_(by_scale_OG.sign(), alpha=tuning.scale_rate * rest)
        self.latent_OI.sub_(gradient_OI.sign(), alpha=tuning.code_rate * rest)

    def _over_groups(self, values_OI: Tensor) -> Tensor:
        groups = self.rounded.group_of_I
        if groups is None:
            return values_OI.view(*self.drift_OG.shape, -1).sum(-1, dtype=torch.float32)
        return torch.zeros_like(self.drift_OG).index_add_(1, groups.long(), values_OI.float())


class _Learning:
    """A rounded block as a function of what is learnt of it."""

    def __init__(self, walk: BlockPass) -> None:
        [recipe], [result], block = walk.recipes, walk.results, walk.block
        grid = recipe.scheme.weight
        assert recipe.tuning is not None
        assert grid is not None
        self._block, self._result, self._tuning = block, result, recipe.tuning
        with torch.inference_mode(False):  # what is learnt needs gradients
            self._layers = {
                name: _Layer(
                    replace(made, scale_OG=made.scale_OG.clone()),
                    grid,
                    _latent(made, walk.folded_weight(name), grid),
                    torch.zeros_like(made.scale_OG),
                )
                for name, made in result.rounded.items()
            }
            weights = {f"{name}.weight" for name in self._layers}
            own = {**dict(block.module.named_parameters()), **dict(block.module.named_buffers())}
            self._others = {
                name: _normal(result.changed.get(name, value)) for name, value in own.items() if name not in weights
            }
            # in float32, since a step is less than what a 16-bit norm can change by
            learnt = [name for name in self._others if _is_norm(block.module, name) and recipe.tuning.norm_rate]
            self._norms = {name: result.changed.get(name, own[name]).float().clone() for name in learnt}

    def learn(self, states: States, teacher: States, beginning: Beginning, ranks: Ranks) -> None:
        """Take all steps; each rank draws sequences of its own, and all step by the sum of their gradients."""
        draws = _draws(states, torch.Generator().manual_seed(self._block.index * ranks.count + ranks.number))
        steps = self._tuning.steps
        with torch.inference_mode(False), torch.enable_grad(), _multiplying(self._block):
            plain, read = _normal(beginning.kwargs), slice(beginning.tokens)
            for step in range(steps):
                leaves = self._leaves()
                for _ in range(self._tuning.batch):
                    index, row = next(draws)
                    hidden, aim = states.sequence(index, row)[:, read], teacher.made_sequence(index, row)[:, read]
                    made = _call_with(self._block, leaves, _normal(hidden), plain)
                    relative_error(made, _normal(aim)).mean().backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    self._step(leaves, ranks, 1 - step / steps)

    def _leaves(self) -> dict[str, Tensor]:
        """The block's tensors, those to be learnt with gradients to be found."""
        with torch.no_grad():
            weights = {
                f"{name}.weight": layer.learnt().weight().to(self._block.factors).requires_grad_()
                for name, layer in self._layers.items()
            }
            norms = {name: norm.to(self._others[name].dtype, copy=True) for name, norm in self._norms.items()}
            for norm in norms.values():
                norm.requires_grad_()
        return {**self._others, **norms, **weights}

    def _step(self, leaves: dict[str, Tensor], ranks: Ranks, rest: float) -> None:
        gradients = {name: _gradient(leaf, ranks) for name, leaf in leaves.items() if leaf.requires_grad}
        ranks.add_up(*(gradient for gradient in gradients.values() if gradient is not None))
        for name, layer in self._layers.items():
            gradient = gradients[f"{name}.weight"]
            if gradient is not None:  # else an expert that no token of these chose
                layer.step(leaves[f"{name}.weight"], gradient, self._tuning, rest)
        for name, norm in self._norms.items():
            gradient = gradients[name]
            if gradient is not None:
                norm.sub_(gradient.sign() * norm.abs(), alpha=self._tuning.norm_rate * rest)

    def result(self, ranks: Ranks) -> BlockResult:
        """What the block became, the same on all ranks."""
        rounded = {}
        for name, layer in self._layers.items():
            made = layer.learnt()
            made.codes_OI = ranks.take_first(compact_codes(made.codes_OI, layer.grid))
            made.scale_OG = ranks.take_first(made.dtype.read_back(made.scale_OG))
            rounded[name] = made
        norms = {name: ranks.take_first(norm) for name, norm in self._norms.items()}
        return BlockResult(rounded, changed=self._result.changed | norms)


def _latent(made: Rounded, weight_OI: Tensor, grid: Grid) -> Tensor:
    """What the weight is in units of its scales, moved to where it rounds to its code.

    So few steps change a code only if the weight lies near enough to another that losing it costs little.
    """
    latent_OI = weight_OI / replace(made, codes_OI=torch.ones_like(made.codes_OI)).weight()
    if grid.kind == "float":
        return torch.where(to_codes(latent_OI, grid) == made.codes_OI, latent_OI, made.codes_OI)
    return torch.clamp(latent_OI, made.codes_OI - _HALF, made.codes_OI + _HALF)


def _gradient(leaf: Tensor, ranks: Ranks) -> Tensor | None:
    """A leaf's gradient, in float32 where ranks add theirs up, who must all have one."""
    if ranks.count == 1:
        return leaf.grad
    return torch.zeros_like(leaf, dtype=torch.float32) if leaf.grad is None else leaf.grad.float()


def _is_norm(module: nn.Module, name: str) -> bool:
    return "norm" in type(module.get_submodule(name.rpartition(".")[0])).__name__.lower()


def _draws(states: States, generator: torch.Generator) -> Iterator[tuple[int, int]]:
    """(chunk, row) of one sequence after another, all of them before any comes again."""
    places = [(index, row) for index in range(len(states)) for row in range(states.rows(index))]
    while True:
        for place in torch.randperm(len(places), generator=generator).tolist():
            yield places[place]


def _normal(value: Any) -> Any:
    """Copies of tensors that a gradient may need, which those made without gradients in mind must not be."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _normal(part) for key, part in value.items()}
    return tuple(_normal(part) for part in value) if isinstance(value, tuple) else value
