"""The low-bit matrix kernels of torch on NVIDIA GPUs.

INT8 through cuBLASLt's INT8 product (`_int_mm`), FP8 through its row-wise scaled product (`_scaled_mm`, from compute
capability 8.9), INT4 through tinygemm (`_weight_int4pack_mm`, from 8.0). Quantizing activations takes several small
kernels here where serving engines fuse them into one, so a server's figures will be better. Written from torch's
interfaces and not yet run on a GPU: `kernels.self_test` compares each with float64 arithmetic before it is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitworth.engines.exact import LEAST_FP8_SCALE
from bitworth.engines.kernels import Kernel, Make, group_of, scales_and_zeros, token_scale
from bitworth.errors import Unsupported
from bitworth.types import Scheme

_LEAST_INT_MM_ROWS = 17
_INNER_TILES = 8


class Int8Cuda(Kernel):
    """INT8 weights and per-token INT8 activations, accumulated in INT32."""

    title = "torch._int_mm (cuBLASLt int8)"
    weight: Tensor
    scale: Tensor

    def __init__(self, codes_OI: Tensor, scale_OG: Tensor, bias_O: Tensor | None) -> None:
        super().__init__(codes_OI, scale_OG, bias_O)
        _divisible(self, 8)
        self.register_buffer("weight", codes_OI.to(torch.int8).contiguous())
        self.register_buffer("scale", scale_OG[:, 0].float())

    def multiply(self, x_MI: Tensor) -> Tensor:
        """float32 [M, out]; cuBLASLt takes no fewer than 17 rows, so fewer are filled up with zeros."""
        scale = token_scale(x_MI, 127.0)
        codes = (x_MI / scale).round_().to(torch.int8)
        count = codes.shape[0]
        if count < _LEAST_INT_MM_ROWS:
            codes = nn.functional.pad(codes, (0, 0, 0, _LEAST_INT_MM_ROWS - count))
        sums = torch._int_mm(codes, self.weight.t())[:count]
        return sums * scale * self.scale


class Fp8Cuda(Kernel):
    """E4M3 weights and per-token E4M3 activations."""

    title = "torch._scaled_mm (cuBLASLt fp8, row-wise scales)"
    weight: Tensor
    scale: Tensor

    def __init__(self, codes_OI: Tensor, scale_OG: Tensor, bias_O: Tensor | None) -> None:
        super().__init__(codes_OI, scale_OG, bias_O)
        _divisible(self, 16)
        self.register_buffer("weight", codes_OI.to(torch.float8_e4m3fn).contiguous())
        self.register_buffer("scale", scale_OG[:, 0].float().view(1, -1).contiguous())

    def multiply(self, x_MI: Tensor) -> Tensor:
        """bfloat16 [M, out]."""
        scale = token_scale(x_MI, 448.0).clamp_(min=LEAST_FP8_SCALE)
        codes = (x_MI / scale).clamp_(-448.0, 448.0).to(torch.float8_e4m3fn)
        return torch._scaled_mm(
            codes, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )


class Int4Cuda(Kernel):
    """INT4 weights in groups, bfloat16 activations."""

    title = "_weight_int4pack_mm (tinygemm), activations in bfloat16"
    packed: Tensor
    scales: Tensor

    def __init__(self, codes_OI: Tensor, scale_OG: Tensor, bias_O: Tensor | None) -> None:
        super().__init__(codes_OI, scale_OG, bias_O)
        self.group = group_of(codes_OI, scale_OG)
        if self.group not in (32, 64, 128, 256) or self.rows % 8 or self.columns % (16 * _INNER_TILES):
            raise Unsupported(
                f"torch's INT4 kernel for GPUs takes groups of 32, 64, 128 or 256, outputs that 8 divides, inputs that "
                f"{16 * _INNER_TILES} divides; this layer is {self.rows} x {self.columns} in groups of {self.group}."
            )
        unsigned = (codes_OI + 8).to(torch.uint8)
        pairs = (unsigned[:, ::2] << 4) | unsigned[:, 1::2]
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), _INNER_TILES))
        self.register_buffer("scales", scales_and_zeros(scale_OG))

    def multiply(self, x_MI: Tensor) -> Tensor:
        """bfloat16 [M, out]."""
        y: Tensor = torch.ops.aten._weight_int4pack_mm(x_MI.to(torch.bfloat16), self.packed, self.group, self.scales)
        return y


def _divisible(layer: Kernel, by: int) -> None:
    if layer.rows % by or layer.columns % by:
        raise Unsupported(f"{layer.title} takes sides that {by} divides; this layer is {layer.rows} x {layer.columns}.")


def candidates(scheme: Scheme, device: torch.device) -> list[tuple[str, Make]]:
    """The kernel of a scheme on a GPU.

    Raises:
        Unsupported: there is none, or the GPU is too old for the format.
    """
    kinds: dict[str, tuple[type[Kernel], tuple[int, int]]] = {
        "w8a8-int": (Int8Cuda, (7, 5)),
        "w8a8-fp": (Fp8Cuda, (8, 9)),
        "w4a16-int": (Int4Cuda, (8, 0)),
    }
    if scheme.name not in kinds:
        raise Unsupported(
            f"bitworth drives no torch kernel for {scheme.name} on GPUs; benchmark this checkpoint with --engine vllm."
        )
    kind, least = kinds[scheme.name]
    have = torch.cuda.get_device_capability(device)
    if have < least:
        raise Unsupported(
            f"{scheme.name} needs a GPU of compute capability {least[0]}.{least[1]}; this one has {have[0]}.{have[1]}."
        )
    return [(kind.title, kind)]
