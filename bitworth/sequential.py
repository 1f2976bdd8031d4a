"""Recipes over one decoder block, in true sequential order.

Linear layers that read the same tensor (q, k and v; gate and up) form a stage: they share their second moments and are
rounded as one stack. A recipe that carries its own error forward sees, at each stage, what the stages before it,
already rounded, produce; recipes that share the unquantized stream share its forward passes and its moments too.

Every layer is evaluated once: each chunk of calibration data goes through the block as a coroutine that waits at a
stage until all have arrived there, the stage is rounded, and all go on. Small chunks keep the temporaries of a forward
small; what the waiting ones hold is a few hidden states a token. Where even that is too much, or chunks take different
ways (experts), the block is run again up to each stage instead. The unquantized stream, where no stage waits for
another, runs once in either case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import groupby
from typing import Protocol

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from bitworth.audit import audit_stage
from bitworth.blocks import BlockResult, check_finite, round_blindly, skipped
from bitworth.errors import WorkFailed
from bitworth.kv_cache import attentions, watching
from bitworth.memory import give_back
from bitworth.model import Arguments, Block, call
from bitworth.quantizers import InputStats, Rounded, round_weight
from bitworth.quantizers.awq import awq_scale
from bitworth.quantizers.gptq_scale import gptq_scale
from bitworth.quantizers.smoothquant import smoothing_scale
from bitworth.ranks import ALONE, PeerLost, Ranks
from bitworth.stages import Producers, Stage, of_any_expert, one_sequence, trace
from bitworth.types import Awq, Grid, Recipe, SmoothQuant, Transform

#: Bytes of a stage's weights from which on it is worth the time to give back what was freed before and after it.
_LARGE = 16 << 20


class Chunks(Protocol):
    """Hidden states (B, T, D) of each chunk of calibration data; a list will do."""

    def __len__(self) -> int:
        """How many chunks."""
        ...

    def __getitem__(self, index: int, /) -> Tensor:
        """What the block receives."""
        ...

    def __setitem__(self, index: int, hidden: Tensor, /) -> None:
        """What the block makes of it."""
        ...


class _Reached(Exception):
    """The stage being measured was reached; the rest of the block is not needed."""


#: Layers stacked, the statistics of what they read, and by what the transforms divide that.
Prepared = tuple[Tensor, InputStats, Tensor | None]


class BlockPass:
    """Quantizes one block on calibration data, by one recipe or by several that share the unquantized stream."""

    def __init__(
        self,
        block: Block,
        recipes: Sequence[Recipe],
        dtype: torch.dtype,
        *,
        propagate: bool = True,
        together: bool = True,
        producers: Producers | None = None,
        ranks: Ranks = ALONE,
        spend: bool = False,
    ) -> None:
        """Prepare.

        Args:
            block: with its weights.
            recipes: what to do; exactly one where `propagate`.
            dtype: what scales are stored in.
            propagate: the block's outputs are those of its quantized weights, not of its own.
            together: there is memory for all chunks to wait inside the block.
            producers: carried from block to block: what could take a scale, so that it is searched for once.
            ranks: who quantizes the block too, each on its own chunks of the same length; all get the same layers.
            spend: nobody needs the block's own weights after, which are dropped as they are rounded.
        """
        assert len(recipes) == 1 or not propagate
        assert propagate or not spend
        self.block, self.recipes, self.dtype, self._propagate = block, recipes, dtype, propagate
        self._producers, self.ranks = {} if producers is None else producers, ranks
        self._linears = {name: layer for name, layer in block.linears().items() if not skipped(name)}
        self._weights: dict[str, Tensor] = {}  # what the block computes with where it propagates
        self._stage_of: dict[str, Stage] = {}
        self._together, self._spend = together, spend
        self._peaks: dict[str, Tensor] = {}  # largest inputs, before any transform, by `of_any_expert`
        self._arrived: list[Stage] = []
        self._collecting: list[Stage] | None = None
        self.results = [BlockResult() for _ in recipes]

    def run(self, hidden: Chunks, kwargs: Arguments) -> None:
        """Quantize the block on hidden states, float32, and put its outputs in their place.

        Raises:
            WorkFailed: weights or inputs hold NaN or infinity; names the layer.
        """
        self._stage_of = {name: stage for stage in self._trace(hidden[0], kwargs) for name in stage.layers}
        try:
            for name, layer in self._linears.items():
                layer.forward = self._forward(name, layer)  # type: ignore[method-assign, assignment]
            if self._all_wait(hidden):
                self._in_step(hidden, kwargs)
            else:
                self._measure_all(hidden, kwargs)
        finally:
            for layer in self._linears.values():
                vars(layer).pop("forward", None)  # the class's own shows again
        self._round_unreached()
        for index in range(len(self.recipes)):
            self._fold(index, self._stage_of.values())

    def _trace(self, first: Tensor, kwargs: Arguments) -> list[Stage]:
        """The block's stages, found on one sequence; the float32 copy that a GPU needs goes with the call."""
        transforming = any(recipe.transforms for recipe in self.recipes)
        if 1 in kwargs:  # not every architecture's arguments can be cut to one sequence by their first axis
            first = first[:1]
        exact, sample, one = one_sequence(self.block.module, first, kwargs[first.shape[0]])
        sample = self.ranks.take_first(sample)  # so that all find the same stages, in the same order
        return trace(exact, list(self._linears), sample, one, self._producers if transforming else None)

    def folded_weight(self, name: str) -> Tensor:
        """What the first recipe's codes of a layer stand for: its weight under the scales on both of its sides."""
        weight = self._linears[name].weight.float()
        for stage in dict.fromkeys(self._stage_of.values()):
            scale = _scale_for(stage, 0)
            if scale is not None and name in stage.layers:
                weight = weight * scale
            if scale is not None and name == stage.producer:
                weight = weight / scale.unsqueeze(1)
        return weight

    def _forward(self, name: str, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(inputs: Tensor) -> Tensor:
            stage = self._stage_of.setdefault(name, Stage([name]))  # new: an expert that was not traced
            if not stage.done:
                if self._collecting is None:
                    self._see(stage, inputs)
                    self._arrived.append(stage)
                    getcurrent().parent.switch()
                elif stage in self._collecting and name == stage.layers[0]:
                    self._see(stage, inputs)
                    if self._propagate and len(self._collecting) == 1:
                        raise _Reached
            weight = self._weights[name] if stage.done and self._propagate else layer.weight
            return self.block.product(inputs, weight, layer.bias)

        return forward

    def _see(self, stage: Stage, inputs: Tensor) -> None:
        if stage.stats is None:
            stage.stats = InputStats(inputs.shape[-1], inputs.device, self.block.factors)
        stage.stats.add(inputs)

    def _all_wait(self, hidden: Chunks) -> bool:
        """Whether all chunks wait at every stage. Those of several ranks meet experts in orders of their own."""
        experts = any(stage.level != stage.layers[0] for stage in self._stage_of.values())
        single = self.ranks.agree(len(hidden) == 1) and (self.ranks.count == 1 or not experts)
        return single or (self._propagate and self._together and not experts)

    def _in_step(self, hidden: Chunks, kwargs: Arguments) -> None:
        """All chunks through the block at once, each waiting at every stage until the stage is rounded."""
        with self.watched(self.results):
            walking = [greenlet(partial(self._step, hidden, index, kwargs)) for index in range(len(hidden))]
            while walking:
                for chunk in walking:
                    chunk.switch()
                for stage in dict.fromkeys(self._arrived):
                    self._add_up(stage)
                    self._quantize(stage)
                self._arrived.clear()
                walking = [chunk for chunk in walking if not chunk.dead]

    def _step(self, hidden: Chunks, index: int, kwargs: Arguments) -> None:
        chunk = hidden[index]
        hidden[index] = call(self.block.module, chunk, kwargs[chunk.shape[0]])

    def _measure_all(self, hidden: Chunks, kwargs: Arguments) -> None:
        """See every stage's inputs over all chunks, level by level where stages wait for those before them."""
        for name in self._linears:  # experts that the traced sequence did not choose
            self._stage_of.setdefault(name, Stage([name]))
        stages = list(dict.fromkeys(self._stage_of.values()))
        if not self._propagate:
            self._measure(stages, hidden, kwargs, keep=True)
            return
        for _, level in groupby(sorted(stages, key=_first_of_level(stages)), key=lambda stage: stage.level):
            self._measure(list(level), hidden, kwargs, keep=False)
        self._pass(hidden, kwargs, keep=True)

    def _measure(self, stages: list[Stage], hidden: Chunks, kwargs: Arguments, *, keep: bool) -> None:
        self._collecting = stages
        self._pass(hidden, kwargs, keep=keep)
        self._collecting = []
        for stage in stages:
            self._add_up(stage)
            if stage.stats is not None:
                self._quantize(stage)

    def _add_up(self, stage: Stage) -> None:
        """Give the stage the statistics of all ranks; none where no token of theirs reached it."""
        if self.ranks.count == 1:
            return
        weight = self._linears[stage.layers[0]].weight
        stats = stage.stats or InputStats(weight.shape[1], weight.device, self.block.factors)
        stats.add_up(self.ranks)
        stage.stats = stats if stats.tokens else None

    def _pass(self, hidden: Chunks, kwargs: Arguments, *, keep: bool) -> None:
        """Run one chunk after the other through the block; `keep` puts its outputs in their place."""
        with self.watched(self.results) if keep else nullcontext():
            for index in range(len(hidden)):
                chunk = hidden[index]
                try:
                    outputs = call(self.block.module, chunk, kwargs[chunk.shape[0]])
                except _Reached:
                    continue
                if keep:
                    hidden[index] = outputs

    @contextmanager
    def watched(self, results: Sequence[BlockResult]) -> Iterator[None]:
        """See what enters the key-value cache meanwhile, for the recipes that quantize it; their results get scales."""
        with ExitStack() as stack:
            for recipe, result in zip(self.recipes, results, strict=True):
                if recipe.scheme.kv_cache is not None:
                    seen = watching(self.block.module, recipe.scheme.kv_cache, self.dtype, self.ranks)
                    result.cache_scales = stack.enter_context(seen)
            yield

    def _quantize(self, stage: Stage) -> None:
        """Round the stage's layers by every recipe."""
        large = sum(self._linears[name].weight.nbytes for name in stage.layers) >= _LARGE
        if large:
            give_back()
        for name in stage.layers:
            check_finite(self.block, name, self._linears[name].weight)
        assert stage.stats is not None
        if not torch.isfinite(stage.stats.max_abs_I).all():
            raise WorkFailed(
                f"{self.block.prefix}.{stage.layers[0]}: its calibration inputs hold NaN or infinity; check the model "
                "in its own dtype first."
            )
        seen = audit_stage(self.block.prefix, stage.layers, stage.stats)
        self._remember_peak(stage.layers, stage.stats)
        prepared = self._prepared(stage)
        stage.stats = None  # second moments are large
        for name in stage.layers if self._spend else ():
            self.block.drop(name)
        for recipe, result, (weight, stats, scale) in zip(self.recipes, self.results, prepared, strict=True):
            stage.scales.append(scale)
            result.audit.append(seen)
            self._round(stage, weight, stats, recipe, result)
            if self._propagate:
                for name in stage.layers:
                    rounded = result.rounded[name].weight()
                    if scale is not None:
                        rounded = rounded / scale  # as if the input were divided
                    self._weights[name] = rounded.to(self.block.factors)
        stage.done = True
        if large:
            give_back()

    def _remember_peak(self, layers: list[str], stats: InputStats) -> None:
        for name in map(of_any_expert, layers):
            peak = stats.max_abs_I.max()
            self._peaks[name] = torch.maximum(self._peaks.get(name, peak), peak)

    def _prepared(self, stage: Stage) -> list[Prepared]:
        """What each recipe rounds; what transforms prepare alike is prepared once."""
        weights = [self._linears[name].weight for name in stage.layers]
        stacked = (torch.cat(weights) if len(weights) > 1 else weights[0]).float()
        made: dict[object, Prepared] = {}
        by_recipe = []
        for recipe, result in zip(self.recipes, self.results, strict=True):
            alike = (recipe.transforms, recipe.scheme.weight if recipe.transforms else None)
            if alike not in made:
                made[alike] = self._transformed(stacked, stage, recipe, result)
            by_recipe.append(made[alike])
        return by_recipe

    def _transformed(self, stacked: Tensor, stage: Stage, recipe: Recipe, result: BlockResult) -> Prepared:
        stats, total = stage.stats, None
        assert stats is not None
        made = result.rounded.get(stage.producer or "")
        if stage.producer is None or (made is not None and made.dtype.coarse):
            return stacked, stats, None  # coarse scales cannot be divided: they would not be stored as they came out
        if recipe.scheme.kv_cache is not None and self._is_cached(stage.producer):
            return stacked, stats, None  # the cache's scales are found on values as they are
        for transform in recipe.transforms:
            assert recipe.scheme.weight is not None
            with self._naming(stage):
                scale = _scale_of(transform, stacked, recipe.scheme.weight, stats, self.dtype)
            scale = self.ranks.take_first(scale)
            stacked, stats = stacked * scale, stats.divided_by(scale, spend=len(self.recipes) == 1)
            total = scale if total is None else total * scale
        return stacked, stats, total

    def _round(self, stage: Stage, weight: Tensor, stats: InputStats, recipe: Recipe, result: BlockResult) -> None:
        with self._naming(stage):
            rounded = self._round_shared(weight, stats, recipe)
        parts = rounded.split([self._linears[name].out_features for name in stage.layers])
        for name, part in zip(stage.layers, parts, strict=True):
            result.rounded[name] = part
        result.notes.extend(f"{self.block.prefix}.{stage.layers[0]}: {note}" for note in rounded.notes)

    def _is_cached(self, producer: str) -> bool:
        """Whether what it makes goes into the key-value cache: only an attention's values can take a scale."""
        return any(producer.startswith(f"{name}." if name else "") for name in attentions(self.block.module))

    @contextmanager
    def _naming(self, stage: Stage) -> Iterator[None]:
        """Say which layer failed."""
        try:
            yield
        except PeerLost:
            raise
        except WorkFailed as error:
            raise WorkFailed(f"{self.block.prefix}.{stage.layers[0]}: {error}.") from error

    def _round_shared(self, weight_OI: Tensor, stats: InputStats, recipe: Recipe) -> Rounded:
        """Every rank rounds its part of the rows and gets the others'; all round all where there are too few."""
        rows, spend = weight_OI.shape[0], len(self.recipes) == 1
        if self.ranks.count == 1 or rows < self.ranks.count:
            return round_weight(weight_OI, recipe, stats, dtype=self.dtype, spend=spend)
        share = self.ranks.share(rows)
        made = round_weight(weight_OI, recipe, stats, dtype=self.dtype, rows=share, spend=spend)
        made.codes_OI = self.ranks.gather_rows(made.codes_OI, rows)
        made.scale_OG = self.ranks.gather_rows(made.scale_OG, rows)
        return made

    def _round_unreached(self) -> None:
        """Experts that no calibration token chose: rounded without data, and named."""
        for recipe, result in zip(self.recipes, self.results, strict=True):
            unreached = {name: layer for name, layer in self._linears.items() if name not in result.rounded}
            result.audit.extend(audit_stage(self.block.prefix, [name], None) for name in unreached)
            round_blindly(
                self.block, unreached, recipe, self.dtype, result, lambda name: self._peaks.get(of_any_expert(name))
            )

    def _fold(self, index: int, stages: Iterable[Stage]) -> None:
        """Take each stage's scale out of the module that makes its input."""
        result = self.results[index]
        for stage in dict.fromkeys(stages):
            scale = _scale_for(stage, index)
            if scale is None or stage.producer is None:
                continue
            if stage.producer in result.rounded:
                rounded = result.rounded[stage.producer]
                rounded.scale_OG = rounded.dtype.read_back(rounded.scale_OG / scale.unsqueeze(1))
                bias = self._linears[stage.producer].bias
                if bias is not None:
                    result.changed[f"{stage.producer}.bias"] = bias / scale
            else:
                norm = self.block.module.get_submodule(stage.producer)
                for leaf, value in norm.named_parameters(recurse=False):
                    result.changed[f"{stage.producer}.{leaf}"] = value / scale


def _scale_for(stage: Stage, index: int) -> Tensor | None:
    """What a recipe divides a stage's input by."""
    return stage.scales[index] if stage.scales else None


def _scale_of(transform: Transform, weight_OI: Tensor, grid: Grid, stats: InputStats, dtype: torch.dtype) -> Tensor:
    if isinstance(transform, SmoothQuant):
        return smoothing_scale(weight_OI, stats, transform)
    if isinstance(transform, Awq):
        return awq_scale(weight_OI, grid, stats, transform, dtype=dtype)
    return gptq_scale(weight_OI, grid, stats, transform)


def _first_of_level(stages: list[Stage]) -> Callable[[Stage], int]:
    """Sorts stages so that those of a level lie together, levels in the order in which they were first met."""
    first: dict[str, int] = {}
    for index, stage in enumerate(stages):
        first.setdefault(stage.level, index)
    return lambda stage: first[stage.level]
