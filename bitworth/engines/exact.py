"""The arithmetic of a checkpoint's number format, in float32.

Weights are dequantized once, when they are read. Activations are quantized token by token as they arrive at a linear
layer, as vLLM's kernels do: INT8 with scale max|x| / 127, round half to even; FP8 with scale max|x| / 448, cast to
E4M3. The float32 product of the two dequantized tensors is the kernels' integer (or FP8) product times both scales,
up to float32 rounding. compressed-tensors' own emulation differs for INT8: it divides by 127.5
(`Activation("int", half_range=127.5)`).

>>> Activation("int")(torch.tensor([[127.0, 0.4, -3.6]])).tolist()
[[127.0, 0.0, -4.0]]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitworth.errors import Unsupported
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


class QuantLinear(nn.Linear):
    """A linear layer whose weight is dequantized and whose input is quantized on arrival."""

    activation: Activation

    def forward(self, input: Tensor) -> Tensor:
        """y = activation(x) W^T + b."""
        return nn.functional.linear(self.activation(input), self.weight, self.bias)


def activation_of(grid: Grid) -> Activation:
    """The activation arithmetic of a grid.

    Raises:
        Unsupported: anything but dynamic, symmetric, per-token, 8 bits.
    """
    if not (grid.dynamic and grid.symmetric and grid.granularity == "token" and grid.bits == 8):
        raise Unsupported(
            f"The checkpoint quantizes activations per {grid.granularity}, {grid.bits} bits, dynamic={grid.dynamic}, "
            f"symmetric={grid.symmetric}; the torch engine knows dynamic symmetric per-token 8 bits."
        )
    return Activation(grid.kind)


def quantize_inputs(model: nn.Module, modules: Iterable[str], activation: Activation) -> None:
    """Make the named linear layers quantize their inputs.

    Raises:
        Unsupported: one is not a plain linear layer of the model (experts fused into one tensor).
    """
    layers = dict(model.named_modules())
    for name in modules:
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
    """Within the block nothing is quantized on arrival, so that two ways to run the model differ by rounding alone.

    Quantization turns a difference in the last bit into a whole step wherever a value lies on the edge of two.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    for layer in layers:
        layer.__class__ = nn.Linear  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = QuantLinear
