"""Linear layers on torch's own low-bit matrix kernels, for timing a number format in process.

A kernel computes what its format says, on operands as narrow as its format says; where torch has none for a device,
that is refused, never imitated with wider operands. Every kernel is tried at load against float64 arithmetic.

What torch 2.13 offers on an x86 CPU, and what is used of it:

- INT8 x INT8 -> INT32. FBGEMM's `linear_dynamic` wants one scale a tensor, so each token is first divided by its own
  scale and rounded; four more columns, which meet zero weights, hold the ends of the code range, so that FBGEMM's scale
  is 1 and its rounding exact. `_int_mm` gives the same integers, but lays the weight out anew at each call: 9 times
  slower for 8 tokens at 4096 x 4096. oneDNN's `qlinear_pointwise` runs a reference loop on signed activations, 1000
  times slower, and on unsigned ones is no faster than FBGEMM. None of FBGEMM's kernels uses AMX.
- Without VNNI every one of these adds pairs of products in 16 bits and saturates, so activations go in as two 7-bit
  halves.
- INT4 weights: `_weight_int4pack_mm_for_cpu`, in bfloat16; its float32 and float16 variants are plain loops.
- FP8: `_scaled_mm` runs a reference loop, 50 times slower than float32: there is no kernel to time.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bitworth.engines.exact import activation_of
from bitworth.errors import Unsupported
from bitworth.numerics import from_codes
from bitworth.types import Scheme

_PAD = 4
"""Columns added to INT8 activations: one group of FBGEMM's four interleaved rows."""
_INT4_GROUPS = (32, 64, 128, 256)


class Kernel(nn.Module, ABC):
    """A linear layer y = x W^T + b on a low-bit kernel; x [..., in] has any floating dtype, y [..., out] the same."""

    title: ClassVar[str]
    bias: Tensor | None

    def __init__(self, codes_OI: Tensor, scale_OG: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.rows, self.columns = codes_OI.shape
        self.register_buffer("bias", bias_O, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """y in the shape and dtype of x but for the last axis."""
        flat = x.reshape(-1, self.columns)
        y = self.multiply(flat) if flat.shape[0] else flat.new_empty(0, self.rows)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.rows)

    @abstractmethod
    def multiply(self, x_MI: Tensor) -> Tensor:
        """x W^T, [M, out], for M > 0 rows."""


Make = Callable[[Tensor, Tensor, Tensor | None], Kernel]
"""A layer from codes (out, in), scales (out, groups) and a bias (out,) or None, on the device of the codes."""


def token_scale(x_MI: Tensor, largest_code: float) -> Tensor:
    """float32 [M, 1] scales that put each token's largest magnitude on `largest_code`; zeros get a tiny one."""
    largest = x_MI.abs().amax(dim=-1, keepdim=True).float()
    return largest.div_(largest_code).clamp_(min=torch.finfo(torch.float32).tiny)


# --- CPU ----------------------------------------------------------------------------------------------------------


class Scratch:
    """The FBGEMM input of every layer with this many input columns: codes as float32, then the ends of the range."""

    def __init__(self, columns: int, ends: tuple[float, float]) -> None:
        self.columns, self._ends = columns, ends
        self._whole = torch.empty(0, columns + _PAD)
        self._views = (self._whole, self._whole)

    def rows(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` rows, [count, columns + 4], and the part of them that a layer fills, [count, columns]."""
        if count > self._whole.shape[0]:
            self._whole = torch.zeros(count, self.columns + _PAD)
            self._whole[:, self.columns : self.columns + 2] = torch.tensor(self._ends)
        if count != self._views[0].shape[0]:
            whole = self._whole[:count]
            self._views = (whole, whole[:, : self.columns])
        return self._views


class Int8Cpu(Kernel):
    """INT8 weights and per-token INT8 activations through FBGEMM, which sees codes + 128 as unsigned bytes."""

    title = "FBGEMM int8"
    ends: ClassVar[tuple[float, float]] = (-128.0, 127.0)

    def __init__(
        self, codes_OI: Tensor, scale_OG: Tensor, bias_O: Tensor | None, *, scratches: dict[int, Scratch]
    ) -> None:
        super().__init__(codes_OI, scale_OG, bias_O)
        self._packed = _fbgemm_pack(codes_OI, scale_OG[:, 0])
        self._scratch = scratches.setdefault(self.columns, Scratch(self.columns, self.ends))

    def multiply(self, x_MI: Tensor) -> Tensor:
        """float32 [M, out]."""
        scale = token_scale(x_MI, 127.0)
        whole, codes = self._scratch.rows(x_MI.shape[0])
        torch.div(x_MI, scale, out=codes).round_()
        y: Tensor = torch.ops.quantized.linear_dynamic(whole, self._packed, False)
        return y.mul_(scale)


class Int8CpuHalves(Int8Cpu):
    """The same on a CPU that adds pairs of 8-bit products in 16 bits: a code goes in as floor(code / 2) and the rest.

    Both halves lie in [-64, 64] and are seen as unsigned bytes up to 128: 2 x 128 x 127 does not overflow. It costs
    twice the multiplications.
    """

    title = "FBGEMM int8 in two 7-bit halves, this CPU having no VNNI"
    ends = (-64.0, 191.0)

    def multiply(self, x_MI: Tensor) -> Tensor:
        """float32 [M, out]."""
        count = x_MI.shape[0]
        scale = token_scale(x_MI, 127.0)
        whole, halves = self._scratch.rows(2 * count)
        lower, upper = halves[:count], halves[count:]
        torch.div(x_MI, scale, out=upper).round_()
        torch.mul(upper, 0.5, out=lower).floor_()
        upper.sub_(lower)
        y: Tensor = torch.ops.quantized.linear_dynamic(whole, self._packed, False)
        return y[:count].add_(y[count:]).mul_(scale)


def _fbgemm_pack(codes_OI: Tensor, scale_O: Tensor) -> Any:
    """FBGEMM's packed weight, four columns of zeros added."""
    padded = nn.functional.pad(codes_OI.to(torch.int8), (0, _PAD))
    zero_points = torch.zeros(len(scale_O), dtype=torch.int64)
    with warnings.catch_warnings():  # quantized tensors are deprecated, but FBGEMM packs nothing else
        warnings.simplefilter("ignore", UserWarning)
        weight = torch._make_per_channel_quantized_tensor(padded, scale_O.double(), zero_points, 0)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = before


class Int4Cpu(Kernel):
    """INT4 weights in groups, bfloat16 activations."""

    title = "_weight_int4pack_mm_for_cpu, activations in bfloat16"
    packed: Tensor
    scales: Tensor

    def __init__(self, codes_OI: Tensor, scale_OG: Tensor, bias_O: Tensor | None) -> None:
        super().__init__(codes_OI, scale_OG, bias_O)
        self.group = group_of(codes_OI, scale_OG)
        if self.group not in _INT4_GROUPS or self.rows % 16:
            raise Unsupported(
                f"torch's INT4 kernel for CPUs takes groups of {', '.join(map(str, _INT4_GROUPS))} and outputs that 16 "
                f"divides; this layer is {self.rows} x {self.columns} in groups of {self.group}."
            )
        unsigned = (codes_OI + 8).to(torch.int32)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1))
        self.register_buffer("scales", scales_and_zeros(scale_OG))

    def multiply(self, x_MI: Tensor) -> Tensor:
        """bfloat16 [M, out]."""
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x_MI.to(torch.bfloat16), self.packed, self.group, self.scales
        )
        return y


def group_of(codes_OI: Tensor, scale_OG: Tensor) -> int:
    """Input columns that share a scale."""
    return codes_OI.shape[1] // scale_OG.shape[1]


def scales_and_zeros(scale_OG: Tensor) -> Tensor:
    """bfloat16 [groups, out, 2]: scales, and 0 as what code 8 of the unsigned codes stands for."""
    scale_GO = scale_OG.t()
    return torch.stack([scale_GO, torch.zeros_like(scale_GO)], -1).to(torch.bfloat16).contiguous()


# --- the choice ---------------------------------------------------------------------------------------------------


def kernel_for(scheme: Scheme, device: torch.device) -> tuple[str, Make]:
    """A kernel for the scheme on the device that gives the format's own numbers there, and its title.

    Raises:
        Unsupported: torch has none, or it computes something else; the message says which.
    """
    if scheme.kv_cache is not None:
        raise Unsupported(
            "torch has no attention over a quantized key-value cache; benchmark this checkpoint with --engine vllm."
        )
    candidates = _candidates(scheme, device)
    if scheme.activation is not None:
        activation_of(scheme.activation)
    wrong = []
    for title, make in candidates:
        try:
            error = self_test(make, scheme, device)
        except (RuntimeError, NotImplementedError) as cause:
            wrong.append(f"{title}: {str(cause).splitlines()[0]}")
            continue
        if error is None:
            return title, make
        wrong.append(f"{title}: {error}")
    raise Unsupported(f"torch's kernels for {scheme.name} do not work on this {device.type} ({'; '.join(wrong)}).")


def _candidates(scheme: Scheme, device: torch.device) -> list[tuple[str, Make]]:
    """Kernels from fastest to slowest.

    Raises:
        Unsupported: none.
    """
    if device.type == "cuda":
        from bitworth.engines.kernels_cuda import candidates

        return candidates(scheme, device)
    if device.type != "cpu":
        raise Unsupported(f"bitworth knows torch's low-bit kernels for CPUs and CUDA GPUs, not for '{device.type}'.")
    if scheme.name == "w8a8-int":
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            raise Unsupported("torch has no exact INT8 matrix kernel for this CPU (FBGEMM needs x86 with AVX2).")
        # the scratch is shared by all layers of a model, so a candidate has its own
        return [(kind.title, partial(kind, scratches={})) for kind in (Int8Cpu, Int8CpuHalves)]
    if scheme.name == "w4a16-int":
        return [(Int4Cpu.title, Int4Cpu)]
    why = " (its FP8 product there is a loop far slower than float32)" if scheme.name == "w8a8-fp" else ""
    raise Unsupported(
        f"torch has no matrix kernel for {scheme.name} on CPUs{why}, so timing it would say nothing of the format."
    )


@torch.inference_mode()
def self_test(make: Make, scheme: Scheme, device: torch.device) -> str | None:
    """What is wrong with a kernel, or None: tried on a random layer, some rows at the ends of both code ranges."""
    assert scheme.weight is not None
    generator = torch.Generator().manual_seed(0)
    rows, low, high = 64, *scheme.weight.levels
    group = scheme.weight.group_size or 256
    columns = group * max(1, 256 // group)
    codes = torch.rand(rows, columns, generator=generator).mul_(high - low).add_(low).round_()
    if scheme.weight.kind == "float":
        codes = codes.to(torch.float8_e4m3fn).float()
    codes[:4] = torch.tensor([high, -high, low, 0.0])[:, None]
    scale = torch.rand(rows, columns // group, generator=generator).add_(0.5).mul_(0.01)
    x = torch.randn(20, columns, generator=generator)
    x[:4] = torch.tensor([1.0, -1.0, 0.0, 3.0])[:, None]
    x[4] = 0.01
    x[4, 7] = 50.0  # an outlier
    dtype = torch.float32 if scheme.name == "w8a8-int" else torch.bfloat16
    x = x.to(dtype)
    expected = oracle(codes, scale.to(torch.bfloat16).float(), x, scheme)
    found = make(codes.to(device), scale.to(torch.bfloat16).float().to(device), None)(x.to(device)).cpu().double()
    worst = float(((found - expected).abs().amax() / expected.abs().amax()).item())
    return None if worst < (1e-6 if dtype == torch.float32 else 2e-2) else f"off by {worst:.2g} of the largest output"


def oracle(codes_OI: Tensor, scale_OG: Tensor, x_MI: Tensor, scheme: Scheme) -> Tensor:
    """The format's product in float64, [M, out], activations quantized in float32."""
    values = x_MI.float()
    if scheme.activation is not None:
        values = activation_of(scheme.activation)(values)
    return values.double() @ from_codes(codes_OI, scale_OG).double().T
