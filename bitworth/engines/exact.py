"""The arithmetic of a checkpoint's number format, in float32.

Weights are dequantized once, when they are read. Activations are quantized token by token as they arrive at a linear
layer, as vLLM's kernels do: INT8 with scale max|x| / 127, round half to even; FP8 with scale max|x| / 448, cast to
E4M3. The float32 product of the two dequantized tensors is the kernels' integer (or FP8) product times both scales,
up to float32 rounding. compressed-tensors' own emulation differs for INT8: it divides by 127.5
(`Activation("int", half_range=127.5)`). Static inputs are put on the grid of the scale that the checkpoint stores, and
saturate beyond it. FP4 inputs are quantized group by group under scales of the format's own type; the arithmetic is
compressed-tensors' (vLLM's kernels multiply by reciprocals where it divides, so that a value on the edge between two
codes may fall to the other).

>>> Activation("int")(torch.tensor([[127.0, 0.4, -3.6]])).tolist()
[[127.0, 0.0, -4.0]]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitworth.errors import Unsupported
from bitworth.kv_cache import cache_as_it_is
from bitworth.numerics import group_size_of, half_range, to_codes
from bitworth.scales import E4M3, POWERS_OF_TWO, ScaleType
from bitworth.types import Grid, Kind

LEAST_FP8_SCALE = 1.0 / (448.0 * 512.0)
"""vLLM's floor for dynamic per-token FP8 scales."""


@dataclass(frozen=True, slots=True)
class Activation:
    """Dynamic per-token 8-bit quantization of a linear layer's input."""

    kind: Kind
    half_range: float = 127.0

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., features] put on its tokens' grids and back, in x's dtype."""
        largest = x.abs().amax(dim=-1, keepdim=True)
        if self.kind == "float":
            scale = (largest / 448.0).clamp_(min=LEAST_FP8_SCALE)
            return (x / scale).clamp_(-448.0, 448.0).to(torch.float8_e4m3fn).to(x.dtype).mul_(scale)
        scale = (largest / self.half_range).clamp_(min=torch.finfo(x.dtype).tiny)
        return (x / scale).round_().clamp_(-128, 127).mul_(scale)


@dataclass(frozen=True, slots=True)
class GroupActivation:
    """Dynamic quantization of a linear layer's input in groups of features."""

    grid: Grid
    scales: ScaleType

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., features] put on its groups' grids and back, in x's dtype."""
        groups = x.float().reshape(*x.shape[:-1], -1, group_size_of(self.grid, x.shape[-1]))
        scale = self.scales.read_back(groups.abs().amax(dim=-1, keepdim=True) / half_range(self.grid))
        return to_codes(groups / scale, self.grid).mul_(scale).flatten(-2).to(x.dtype)


@dataclass(frozen=True, slots=True)
class StaticActivation:
    """8-bit quantization of a linear layer's input under one scale, shape (1,), that calibration found."""

    grid: Grid
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., features] put on the grid and back, in x's dtype; what exceeds the range saturates."""
        scale = self.scale.to(x.device).float()
        return to_codes(x.float() / scale, self.grid).mul_(scale).to(x.dtype)


AnyActivation = Activation | GroupActivation | StaticActivation


class QuantLinear(nn.Linear):
    """A linear layer whose weight is dequantized and whose input is quantized on arrival."""

    activation: AnyActivation

    def forward(self, input: Tensor) -> Tensor:
        """y = activation(x) W^T + b."""
        return nn.functional.linear(self.activation(input), self.weight, self.bias)


def activation_of(grid: Grid, scale: Tensor | None = None) -> AnyActivation:
    """The activation arithmetic of a grid; `scale` is what the checkpoint stores for the input, where the grid has one.

    Raises:
        Unsupported: anything but symmetric, 8 bits per token or FP4 per group, dynamic, or 8 bits per tensor, static;
            or no scale.
    """
    if grid.dynamic and grid.symmetric:
        if grid.granularity == "token" and grid.bits == 8:
            return Activation(grid.kind)
        if grid.granularity == "group" and grid.bits == 4 and grid.kind == "float":
            if grid.scales == "e8m0":
                return GroupActivation(grid, POWERS_OF_TWO)
            if grid.scales == "e4m3" and scale is not None:
                return GroupActivation(grid, ScaleType(E4M3, scale))
            raise Unsupported("The checkpoint has no global scale for the inputs of its FP4 layers; quantize it again.")
    if grid.symmetric and not grid.dynamic and grid.granularity == "tensor" and grid.bits == 8:
        if scale is not None:
            return StaticActivation(grid, scale)
        raise Unsupported("The checkpoint has no scale for inputs that it quantizes per tensor; quantize it again.")
    raise Unsupported(
        f"The checkpoint quantizes activations per {grid.granularity}, {grid.bits} bits, dynamic={grid.dynamic}, "
        f"symmetric={grid.symmetric}; the torch engine knows dynamic symmetric per-token 8 bits and per-group FP4, and "
        "static per-tensor 8 bits."
    )


def quantize_inputs(model: nn.Module, activations: Mapping[str, AnyActivation]) -> None:
    """Make linear layers, given by name, quantize their inputs.

    Raises:
        Unsupported: one is not a plain linear layer of the model (experts fused into one tensor).
    """
    layers = dict(model.named_modules())
    for name, activation in activations.items():
        layer = layers.get(name)
        if type(layer) is not nn.Linear:
            raise Unsupported(
                f"{type(model).__name__} runs {name} as something else than a plain linear layer, so the torch engine "
                "cannot quantize its input; evaluate this checkpoint through vLLM."
            )
        layer.__class__ = QuantLinear
        layer.activation = activation  # type: ignore[assignment]


@contextmanager
def inputs_as_they_are(model: nn.Module) -> Iterator[None]:
    """Within the block inputs and cache stay unquantized, so that two ways to run the model differ by rounding alone.

    Quantization turns a difference in the last bit into a whole step wherever a value lies on the edge of two.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    for layer in layers:
        layer.__class__ = nn.Linear  # type: ignore[assignment]
    try:
        with cache_as_it_is(model):
            yield
    finally:
        for layer in layers:
            layer.__class__ = QuantLinear
