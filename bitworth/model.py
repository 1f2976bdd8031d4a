"""Walks a decoder one block at a time: no more than one block's weights are ever in memory.

The model is built without storage; its embeddings are read once to make the first block's inputs, and the keyword
arguments (masks, rotary tables) that the model itself hands each block are recorded by running its own forward over
empty blocks. Mixtures of experts are taken apart, so that each expert's projections are linear layers (`experts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.checkpoint import Reader, read_config
from bitworth.errors import BitworthError
from bitworth.naming import Names
from bitworth.skeleton import emptied, find_blocks, skeleton, text_body

#: Keyword arguments of a block's call by the batch size they were recorded at.
Arguments = dict[int, dict[str, Any]]

MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Children of one module that multiply the same input, which serving engines run as one product."""
_ALSO_MERGED = (("w1", "w3"), ("q_a_proj", "kv_a_proj_with_mqa"))
"""The same by names that some families have; exact engines keep them apart."""


@dataclass(slots=True)
class Block:
    """One decoder block: its place in the model and the names of the linear layers in it.

    `factors` is what a linear layer's input and weight are rounded to before they are multiplied.
    """

    index: int
    prefix: str
    module: nn.Module
    factors: torch.dtype = torch.float32

    def linears(self) -> dict[str, nn.Linear]:
        """Linear layers by their name inside the block."""
        return {name: module for name, module in self.module.named_modules() if isinstance(module, nn.Linear)}

    def drop(self, layer: str) -> None:
        """Free the weight of a linear layer; its shape, its type and its bias stay."""
        parameters = self.module.get_submodule(layer)._parameters
        assert parameters["weight"] is not None
        parameters["weight"] = emptied(parameters["weight"])

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What a linear layer of that weight makes of its inputs, factors rounded."""
        if self.factors == inputs.dtype:
            return nn.functional.linear(inputs, weight, bias)
        product = nn.functional.linear(inputs.to(self.factors), weight.to(self.factors)).to(inputs.dtype)
        return product if bias is None else product + bias


class Decoder:
    """A decoder's skeleton over the tensors of a model folder."""

    def __init__(
        self, folder: Path, *, device: torch.device | str = "cpu", compute: torch.dtype = torch.float32
    ) -> None:
        """Build the skeleton; blocks are loaded onto `device` and computed in `compute`, and so are products.

        Raises:
            BitworthError: not a decoder, an architecture that transformers lacks, or weights that do not match it.
        """
        self.folder, self.device, self.compute, self.factors = folder, torch.device(device), compute, compute
        self.config = read_config(folder)
        if "quantization_config" in self.config:
            raise BitworthError(f"{folder} is quantized already; quantize the unquantized model it was made from.")
        self.reader = Reader(folder)
        self.model: Any = skeleton(folder)
        self.names = Names(self.model, self.reader.names)
        _move_buffers(self.model, self.device)
        self.prefix, self._blocks = find_blocks(self.model)
        self.dtype = self._dtype()

    def __len__(self) -> int:
        """Number of decoder blocks."""
        return len(self._blocks)

    @property
    def width(self) -> int:
        """Width of the hidden states that pass from block to block."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def is_mixture(self) -> bool:
        """Whether a block holds experts, of which each token reaches a few."""
        return any(".experts." in name for name in self.linear_shapes())

    def _dtype(self) -> torch.dtype:
        name = next((name for name in self.names.under(self.prefix) if name.endswith(".weight")), None)
        if name is None:
            raise BitworthError(
                f"{self.folder} has no weights of {type(self.model).__name__}'s blocks ({self.prefix}); its weights do "
                "not go by the names that transformers has for them."
            )
        return self.tensor(name).dtype

    def tensor(self, name: str) -> Tensor:
        """The model's tensor of that name, as stored.

        Raises:
            BitworthError: the folder has none.
        """
        source = self.names.source(name)
        if source is None:
            raise BitworthError(f"{self.folder} has no tensor '{name}'; its weights do not match its config.json.")
        return source.cut(self.reader.get(source.name, part=source.expert))

    def block(self, index: int) -> Block:
        """The block's module, still without weights."""
        return Block(index, f"{self.prefix}.{index}", self._blocks[index], self.factors)

    @contextmanager
    def loaded(self, index: int) -> Iterator[Block]:
        """The block with its weights on the device; they are dropped on leaving."""
        block = self.block(index)
        self._fill(block.module, block.prefix)
        try:
            yield block
        finally:
            _drop_parameters(block.module)
            self.reader.release()

    def others(self) -> list[str]:
        """Names of the tensors outside the blocks; a head tied to the embeddings is not one of its own."""
        tied = "lm_head.weight" if getattr(self.model.config, "tie_word_embeddings", False) else None
        inside = f"{self.prefix}."
        named = {name: self.names.of(name) for name in self.reader.names}
        return sorted(name for name, own in named.items() if not own.startswith(inside) and own != tied)

    def other_linears(self) -> list[str]:
        """Linear layers outside the blocks (heads, towers), which stay: by the checkpoint's names and the model's."""
        inside = f"{self.prefix}."
        named = self.model.named_modules()
        outside = [name for name, part in named if isinstance(part, nn.Linear) and not name.startswith(inside)]
        return [name for own in outside for name in dict.fromkeys((self.names.layer(own), own))]

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear layer in the blocks, by full name."""
        return {
            f"{self.prefix}.{index}.{name}": (layer.out_features, layer.in_features)
            for index in range(len(self))
            for name, layer in self.block(index).linears().items()
        }

    def first_inputs(self, chunks: Sequence[Tensor], take: Callable[[Tensor], object]) -> list[Arguments]:
        """Give `take` what the first block receives for each chunk of tokens (B, T): hidden states (B, T, D).

        Returns:
            keyword arguments a block and batch size (masks depend on it), always for the first sequence alone too.

        Raises:
            BitworthError: the architecture's blocks do not take and give one tensor of hidden states, or the tokens are
                none that the model reads.
        """
        self._check_readable(chunks)
        _, body = text_body(self.model)
        inside = set(body.modules())
        around = {
            name: part
            for name, part in self.model.named_modules()
            if part in inside and not f"{name}.".startswith(f"{self.prefix}.") and list(part.parameters(recurse=False))
        }
        handles = []
        for name, module in around.items():
            self._fill(module, name)
            if _stays_as_stored(module):
                handles.append(module.register_forward_hook(lambda _module, _args, rows: rows.to(self.compute)))
        try:
            one = [chunks[0][:1]]
            for answer in (_plainly, _in_a_tuple):
                tried = None
                with suppress(IndexError, TypeError, ValueError):  # what comes of taking a wrong answer apart
                    tried = self._run_empty(body, one, lambda hidden: None, answer)
                if tried is not None:
                    recorded = self._run_empty(body, chunks, take, answer)
                    assert recorded is not None
                    return [{**alone, **all_sizes} for alone, all_sizes in zip(tried, recorded, strict=True)]
        finally:
            for handle in handles:
                handle.remove()
            for module in around.values():
                _drop_parameters(module)
            self.reader.release()
        raise BitworthError(
            f"{type(self.model).__name__} passes more than one tensor from block to block, which bitworth cannot "
            "follow; only recipes without calibration quantize it."
        )

    def _check_readable(self, chunks: Sequence[Tensor]) -> None:
        """Refuse sequences beyond a table of positions, which would fail somewhere inside, and tokens without a row."""
        text = self.model.config.get_text_config()
        longest, most = max(chunk.shape[1] for chunk in chunks), max(int(chunk.max()) for chunk in chunks)
        positions, known = getattr(text, "max_position_embeddings", None), getattr(text, "vocab_size", most + 1)
        if isinstance(positions, int) and longest > positions:
            raise BitworthError(
                f"Calibration sequences of {longest} tokens are longer than the {positions} positions that "
                f"{self.folder} reads; give a --length of {positions} or less."
            )
        if most >= known:
            raise BitworthError(
                f"Calibration has token {most}, and {self.folder} reads {known}; its tokenizer is another model's."
            )

    def _run_empty(
        self,
        body: nn.Module,
        chunks: Sequence[Tensor],
        take: Callable[[Tensor], object],
        answer: Callable[[Tensor], Any],
    ) -> list[Arguments] | None:
        """`first_inputs`, blocks giving `answer` of what they receive; None where that is not what the model takes."""
        recorded: list[Arguments] = [{} for _ in self._blocks]
        shape: list[torch.Size] = []

        def record(index: int) -> Callable[..., Any]:
            def forward(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
                if index == 0:
                    take(hidden_states.clone())
                    shape[:] = [hidden_states.shape]
                elif not isinstance(hidden_states, Tensor) or [hidden_states.shape] != shape:
                    raise _Misread
                given = {"args": args, **kwargs}
                if not _same(recorded[index].setdefault(hidden_states.shape[0], given), given):
                    raise BitworthError(
                        f"{type(self.model).__name__} gives its blocks more of the tokens than hidden states, which "
                        "bitworth cannot follow; only recipes without calibration quantize it."
                    )
                return answer(hidden_states)

            return forward

        originals = [block.forward for block in self._blocks]
        try:
            for index, block in enumerate(self._blocks):
                block.forward = record(index)
            for tokens in chunks:
                body(input_ids=tokens.to(self.device), use_cache=False)
        except _Misread:
            return None
        finally:
            for block, original in zip(self._blocks, originals, strict=True):
                block.forward = original
        return recorded

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Give a module's empty parameters and persistent buffers the folder's tensors, floating ones to compute in."""
        for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
            full = f"{prefix}.{name}"
            if self.names.source(full) is None:
                if parameter.is_meta:
                    raise BitworthError(
                        f"{self.folder} has no tensor '{full}'; its weights do not match its config.json."
                    )
                continue
            tensor = self.tensor(full)
            if tuple(tensor.shape) != tuple(parameter.shape):
                raise BitworthError(
                    f"{self.folder}: tensor '{full}' has shape {tuple(tensor.shape)}, its config asks for "
                    f"{tuple(parameter.shape)}; fetch the model again."
                )
            owner, _, leaf = name.rpartition(".")
            holder = module.get_submodule(owner)
            if leaf in holder._parameters:
                value = tensor.to(self.device, tensor.dtype if _stays_as_stored(module) else self.compute)
                holder._parameters[leaf] = nn.Parameter(value, requires_grad=False)
            else:
                holder._buffers[leaf] = tensor.to(self.device, parameter.dtype)


def _stays_as_stored(module: nn.Module) -> bool:
    """Plain embeddings are read row by row, so that only the rows asked for need converting."""
    return type(module) is nn.Embedding


class _Misread(Exception):
    """A block was given something else than the hidden states that the block before it gave."""


def _same(one: Any, other: Any) -> bool:
    """Whether arguments hold the same tensors; what else they hold is taken to be."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return True


def _plainly(hidden: Tensor) -> Tensor:
    return hidden


def _in_a_tuple(hidden: Tensor) -> tuple[Tensor, None]:
    return hidden, None


def call(block: Callable[..., Any], hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Run a block on hidden states; blocks of some architectures answer with a tuple."""
    named = {key: value for key, value in kwargs.items() if key != "args"}
    out = block(hidden, *kwargs.get("args", ()), **named)
    hidden_states: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden_states


def stacks(names: Iterable[str]) -> list[list[str]]:
    """Layers that serving engines run as one product put together, by name; the others alone."""
    found: dict[tuple[str, object], list[str]] = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        group = next((group for group in (*MERGED, *_ALSO_MERGED) if leaf in group), leaf)
        found.setdefault((owner, group), []).append(name)
    return list(found.values())


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for part in model.modules():
        for leaf, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[leaf] = buffer.to(device)


def _drop_parameters(module: nn.Module) -> None:
    """Free a module's weights but keep its buffers, some of which no checkpoint holds."""
    for part in module.modules():
        for leaf, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[leaf] = emptied(parameter)
