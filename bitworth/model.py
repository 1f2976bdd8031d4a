"""Walks a decoder one block at a time: no more than one block's weights are ever in memory.

The model is built without storage; its embeddings are read once to make the first block's inputs, and the keyword
arguments (masks, rotary tables) that the model itself hands each block are recorded by running its own forward over
empty blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.checkpoint import Reader, read_config
from bitworth.errors import BitworthError

#: Keyword arguments of a block's call by the batch size they were recorded at.
Arguments = dict[int, dict[str, Any]]

MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Children of one module that multiply the same input, which serving engines run as one product."""


@dataclass(slots=True)
class Block:
    """One decoder block: its place in the model and the names of the linear layers in it."""

    index: int
    prefix: str
    module: nn.Module

    def linears(self) -> dict[str, nn.Linear]:
        """Linear layers by their name inside the block."""
        return {name: module for name, module in self.module.named_modules() if isinstance(module, nn.Linear)}


class Decoder:
    """A decoder's skeleton over the tensors of a model folder."""

    def __init__(self, folder: Path) -> None:
        """Build the skeleton.

        Raises:
            BitworthError: not a decoder, an architecture that transformers lacks, or weights that do not match it.
        """
        self.folder = folder
        self.config = read_config(folder)
        if "quantization_config" in self.config:
            raise BitworthError(f"{folder} is quantized already; quantize the unquantized model it was made from.")
        self.reader = Reader(folder)
        self.model: Any = _skeleton(folder)
        self.prefix, self._blocks = _find_blocks(self.model)
        _refuse_fused(self.model, self._blocks)
        self.dtype = self._dtype()

    def __len__(self) -> int:
        """Number of decoder blocks."""
        return len(self._blocks)

    def _dtype(self) -> torch.dtype:
        name = next(name for name in sorted(self.reader.names) if name.endswith(".weight") and self.prefix in name)
        return self.reader.get(name).dtype

    def block(self, index: int) -> Block:
        """The block's module, still without weights."""
        return Block(index, f"{self.prefix}.{index}", self._blocks[index])

    @contextmanager
    def loaded(self, index: int) -> Iterator[Block]:
        """The block with its weights in float32; they are dropped on leaving."""
        block = self.block(index)
        _fill(block.module, block.prefix, self.reader)
        try:
            yield block
        finally:
            _drop_parameters(block.module)

    def others(self) -> list[str]:
        """Names of the tensors outside the blocks; a head tied to the embeddings is not one of its own."""
        tied = "lm_head.weight" if self.model.config.get_text_config().tie_word_embeddings else None
        return sorted(n for n in self.reader.names if not n.startswith(f"{self.prefix}.") and n != tied)

    def other_linears(self) -> list[str]:
        """Names of the linear layers outside the blocks (heads, towers), which stay as they are."""
        inside = f"{self.prefix}."
        named = self.model.named_modules()
        return [name for name, part in named if isinstance(part, nn.Linear) and not name.startswith(inside)]

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear layer in the blocks, by full name."""
        return {
            f"{self.prefix}.{index}.{name}": (layer.out_features, layer.in_features)
            for index in range(len(self))
            for name, layer in self.block(index).linears().items()
        }

    def first_inputs(self, chunks: list[Tensor]) -> tuple[list[Tensor], list[Arguments]]:
        """What the first block receives for each chunk of tokens (B, T), and the keyword arguments of every block.

        Returns:
            hidden states (B, T, D) float32 a chunk; keyword arguments a block and batch size (masks depend on it).

        Raises:
            BitworthError: the architecture's blocks do not take and give one tensor of hidden states.
        """
        body: nn.Module = getattr(self.model, self.model.base_model_prefix, self.model)
        inside = set(body.modules())
        around = {
            name: part
            for name, part in self.model.named_modules()
            if part in inside and not f"{name}.".startswith(f"{self.prefix}.") and list(part.parameters(recurse=False))
        }
        for name, module in around.items():
            _fill(module, name, self.reader)
        recorded: list[Arguments] = [{} for _ in self._blocks]
        hidden: list[Tensor] = []

        def record(index: int) -> Callable[..., Any]:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                if index == 0:
                    hidden.append(hidden_states.clone())
                elif hidden_states.shape != hidden[-1].shape:
                    raise BitworthError(
                        f"{type(self.model).__name__} passes more than one tensor from block to block, which bitworth "
                        "cannot follow; only recipes without calibration quantize it."
                    )
                recorded[index][hidden_states.shape[0]] = {"args": args, **kwargs}
                return hidden_states

            return forward

        originals = [block.forward for block in self._blocks]
        try:
            for index, block in enumerate(self._blocks):
                block.forward = record(index)
            for tokens in chunks:
                body(input_ids=tokens, use_cache=False)
        finally:
            for block, original in zip(self._blocks, originals, strict=True):
                block.forward = original
            for module in around.values():
                _drop_parameters(module)
        return hidden, recorded


def call(block: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
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
        found.setdefault((owner, next((group for group in MERGED if leaf in group), leaf)), []).append(name)
    return list(found.values())


def _skeleton(folder: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with without_storage():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, OSError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise BitworthError(f"transformers cannot build the model in {folder}: {first}") from error
    result: nn.Module = model.eval().requires_grad_(False)
    return result


@contextmanager
def without_storage() -> Iterator[None]:
    """Parameters made inside lose their storage before they are initialized; buffers keep theirs, being computed."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder's blocks: the ModuleList that holds the most linear weights and lies in no other."""
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            size = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
            if size and (best is None or size > best[0]):
                best = (size, name, module)
    if best is None:
        raise BitworthError(f"{type(model).__name__} has no list of decoder blocks with linear layers to quantize.")
    return best[1], best[2]


def _refuse_fused(model: nn.Module, blocks: nn.ModuleList) -> None:
    if any(parameter.ndim == 3 for parameter in blocks.parameters()):
        raise BitworthError(
            f"{type(model).__name__} keeps the experts of its mixture in one tensor, which bitworth cannot quantize; "
            "choose a dense model."
        )


def _drop_parameters(module: nn.Module) -> None:
    """Free a module's weights but keep its buffers, some of which no checkpoint holds."""
    for part in module.modules():
        for leaf, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[leaf] = nn.Parameter(parameter.to("meta"), requires_grad=False)


def _fill(module: nn.Module, prefix: str, reader: Reader) -> None:
    """Give a module's empty parameters and persistent buffers the folder's tensors, floating ones in float32."""
    for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
        full = f"{prefix}.{name}"
        if full not in reader.names:
            if parameter.is_meta:
                raise BitworthError(
                    f"{reader.folder} has no tensor '{full}'; its weights do not match its config.json."
                )
            continue
        tensor = reader.get(full)
        if tuple(tensor.shape) != tuple(parameter.shape):
            raise BitworthError(
                f"{reader.folder}: tensor '{full}' has shape {tuple(tensor.shape)}, its config asks for "
                f"{tuple(parameter.shape)}; fetch the model again."
            )
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        value = tensor.float() if tensor.is_floating_point() else tensor
        if leaf in holder._parameters:
            holder._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        else:
            holder._buffers[leaf] = value
