"""How long quantizing an 8B-shaped model takes on a GPU, against the time that its arithmetic alone would take there.

The model is a random Llama of the published 8B shape, made one block at a time on the device: no download, nothing
written. Hidden states of 512 x 2048 random tokens go from block to block as in `bitworth quantize`. The floor counts
each product once: the forward pass, the second moments (symmetric, so half), the factor of the Hessian and the products
of rounding, each at the rate that a large matrix product of its dtype reaches in this process.

Without a GPU there is nothing to measure, which the script says; --quick then runs a tiny shape on the CPU, to see that
it works, and its ratio says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from claims import Claim, say
from torch import Tensor, nn

from bitworth import recipes, schemes
from bitworth.model import Block
from bitworth.quantizers.refine import PASSES
from bitworth.sequential import BlockPass
from bitworth.stages import Producers
from bitworth.types import Gptq, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama's shape and the calibration data."""

    name: str
    hidden: int
    middle: int
    heads: int
    kv_heads: int
    blocks: int
    samples: int
    length: int
    chunk: int

    @property
    def tokens(self) -> int:
        """Of calibration, in all."""
        return self.samples * self.length

    def stacks(self) -> list[tuple[int, int]]:
        """(out, in) of what is rounded together: q, k, v; o; gate, up; down."""
        keys = self.hidden // self.heads * self.kv_heads
        qkv, gate = self.hidden + 2 * keys, 2 * self.middle
        return [(qkv, self.hidden), (self.hidden, self.hidden), (gate, self.hidden), (self.hidden, self.middle)]


EIGHT = Shape(
    name="8B-shaped", hidden=4096, middle=14336, heads=32, kv_heads=8, blocks=32, samples=512, length=2048, chunk=16
)  # fmt: skip
TINY = Shape(name="tiny", hidden=128, middle=384, heads=4, kv_heads=2, blocks=2, samples=8, length=64, chunk=4)


def main() -> None:
    """Run and report."""
    arguments = parse()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        tell("There is no GPU here, so nothing is said about one" + ("." if arguments.quick else "; --quick runs."))
    if not on_gpu and not arguments.quick:
        say([], as_json=True)
        return
    shape, device = (TINY if arguments.quick else EIGHT), torch.device("cuda" if on_gpu else "cpu")
    chosen = recipes.recipe(arguments.recipe, group_size=32 if arguments.quick else None)
    blocks = min(arguments.blocks or shape.blocks, shape.blocks)
    with torch.inference_mode():
        seconds = walk(shape, chosen, blocks, device)
        floor = blocks * sum(work / rate(dtype, device) for dtype, work in operations(shape, chosen).items())
    where = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    name = f"{chosen.name}, {shape.name}, {blocks} blocks, {shape.samples} x {shape.length}, {where}"
    ratio = seconds / floor
    wanted = on_gpu and not arguments.quick  # a tiny shape is all overhead
    claims = [
        Claim(
            f"seconds / arithmetic floor: {name}",
            "<= 3" if wanted else "none",
            ratio,
            "ratio",
            not wanted or ratio <= 3,
        ),
        Claim(f"seconds for {shape.blocks} blocks: {name}", "none", seconds * shape.blocks / blocks, "s", True),
    ]
    say(claims, as_json=arguments.json)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--recipe", default="w4a16-int-gptq")
    parser.add_argument("--blocks", type=int, help="walk only so many; all unless given")
    return parser.parse_args()


def tell(text: str) -> None:
    """Progress goes to the error stream."""
    print(text, file=sys.stderr, flush=True)


def walk(shape: Shape, recipe: Recipe, blocks: int, device: torch.device) -> float:
    """Seconds for so many blocks, made, quantized, packed and dropped; making them is not counted."""
    config = config_of(shape)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.Generator(device).manual_seed(0)
    size = (shape.chunk, shape.length, shape.hidden)
    hidden = [
        torch.randn(size, generator=source, device=device, dtype=dtype) for _ in range(shape.samples // shape.chunk)
    ]
    rotary = rotary_of(config, hidden[0][:1])
    kwargs = {count: {"position_embeddings": rotary, "attention_mask": None} for count in (1, shape.chunk)}
    layout, seconds = schemes.layout_of(recipe.scheme), 0.0
    producers: Producers = {}
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.maxsize
    waiting = shape.tokens * (3 * shape.hidden + max(shape.middle, 2 * shape.hidden)) * dtype.itemsize
    for index in range(blocks):
        block = Block(index, f"layers.{index}", block_of(config, source, device, dtype), dtype)
        settle(device)
        began = time.monotonic()
        work = BlockPass(block, [recipe], torch.bfloat16, together=waiting <= free / 2, producers=producers)
        work.run(hidden, kwargs)
        for rounded in work.results[0].rounded.values():
            for tensor in layout.encode(rounded.codes_OI, rounded.scale_OG, rounded.dtype).values():
                tensor.cpu()
        settle(device)
        seconds += time.monotonic() - began
        tell(f"block {index + 1} of {blocks}: {seconds / (index + 1):.2f} s each")
    return seconds


def config_of(shape: Shape) -> Any:
    """transformers' config of the shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.middle, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, num_hidden_layers=shape.blocks, max_position_embeddings=shape.length,
        vocab_size=1024, attn_implementation="sdpa",
    )  # fmt: skip


def rotary_of(config: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The rotary tables of one sequence."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    places = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
    found: tuple[Tensor, Tensor] = LlamaRotaryEmbedding(config).to(hidden.device)(hidden, places)
    return found


def block_of(config: Any, source: torch.Generator, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A decoder block with random weights, made on the device."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    with torch.device("meta"):
        block: nn.Module = LlamaDecoderLayer(config, 0)
    for part in block.modules():
        for leaf, value in part._parameters.items():
            if value is None:
                continue
            made = torch.ones(value.shape, device=device, dtype=dtype)
            if value.ndim == 2:
                made = torch.randn(value.shape, generator=source, device=device, dtype=dtype) * value.shape[1] ** -0.5
            part._parameters[leaf] = nn.Parameter(made, requires_grad=False)
    return block.eval()


def operations(shape: Shape, recipe: Recipe) -> dict[torch.dtype, float]:
    """Least floating-point operations of one block, by the dtype of their factors on a GPU."""
    stacks, tokens = shape.stacks(), shape.tokens
    products = sum(2.0 * tokens * rows * columns for rows, columns in stacks)
    attention = 2.0 * tokens * shape.length * shape.hidden  # causal: half of two products
    moments = sum(float(tokens) * columns**2 for _, columns in stacks)
    factors = sum(2.0 * columns**3 for _, columns in stacks)
    spread = sum(float(rows) * columns**2 for rows, columns in stacks)
    rounding = recipe.rounding
    sweeps = rounding.sweeps if isinstance(rounding, Gptq) else 0
    refining = sum(2.0 * rows * columns**2 * (1 + 2 * PASSES * sweeps) for rows, columns in stacks) if sweeps else 0.0
    return {torch.bfloat16: products + attention + moments, torch.float32: factors + spread + refining}


def rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second that a large matrix product of the dtype reaches here."""
    size, times = (8192, 10) if device.type == "cuda" else (512, 5)
    dtype = dtype if device.type == "cuda" else torch.float32
    one = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(times):
        settle(device)
        began = time.monotonic()
        one @ one
        settle(device)
        best = min(best, time.monotonic() - began)
    return 2.0 * size**3 / best


def settle(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
