"""What calibration keeps of a layer's inputs, and what a rounding gives back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitworth.numerics import from_codes
from bitworth.ranks import Ranks
from bitworth.scales import ScaleType

_ROWS, _GPU_ROWS = 2048, 32768  # tokens multiplied at a time: a few thousand stay in a cache, and sums are read once
_ELEMENTS, _GPU_ELEMENTS = 1 << 17, 1 << 26  # whose magnitudes are taken at a time: temporaries stay in a core's cache
# Of the symmetric sum of x xᵀ only panels right of the diagonal are computed: of eight, 9/16 of the work. Where a CPU
# has to round the factors first, that costs more than narrow panels save.
_PANELS, _ROUNDED = 8, 512


class InputStats:
    """Second moments and magnitudes of a layer's inputs, gathered chunk by chunk.

    `hessian_II` is the mean of x xᵀ over tokens (GPTQ's H up to the factor 2, which cancels). `half_max_abs_2I` is
    max|x| a column over two halves of the tokens, which share no token and differ by one at most: the first and second
    half of the rows of each chunk, whose odd row goes to the half that has fewer. (Ranks that add up their statistics
    may differ in that row, each.)
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu", factors: torch.dtype = torch.float32) -> None:
        """Prepare; products are of inputs rounded to `factors`, as those of the layers are, and added up in float32."""
        self._sum_II = torch.zeros(columns, columns, device=device)
        self._settled = False  # whether that is the mean already
        self._spent_I: Tensor | None = None  # the mean squares, where the second moments are no more
        self._abs_I = torch.zeros(columns, device=device)
        self._factors = factors
        self.half_max_abs_2I = torch.zeros(2, columns, device=device)
        self.max_abs_I = torch.zeros(columns, device=device)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Take in activations of shape (..., columns); not after the mean was asked for in place."""
        assert not self._settled
        rows_TI = inputs.detach().reshape(-1, inputs.shape[-1])
        on_cpu = rows_TI.device.type == "cpu"
        with _rounded_factors(self._factors) if on_cpu else nullcontext():
            for slice_TI in torch.split(rows_TI, _ROWS if on_cpu else _GPU_ROWS):
                self._multiply(slice_TI.float() if on_cpu else slice_TI)
        first = (rows_TI.shape[0] + self.tokens % 2) // 2
        few = max(1, (_ELEMENTS if on_cpu else _GPU_ELEMENTS) // rows_TI.shape[1])
        for half, part_TI in enumerate((rows_TI[:first], rows_TI[first:])):
            for slice_TI in torch.split(part_TI, few):
                self._measure(slice_TI, half)
        self.max_abs_I = self.half_max_abs_2I.amax(0)
        self.tokens += rows_TI.shape[0]

    def _multiply(self, rows_TI: Tensor) -> None:
        for panel in self._panels():
            _add_product(self._sum_II[panel, panel.start :], rows_TI[:, panel].T, rows_TI[:, panel.start :])

    def _panels(self) -> list[slice]:
        columns = len(self._abs_I)
        width = max(1, -(-columns // _PANELS))
        if self._factors != torch.float32 and self._abs_I.device.type == "cpu":
            width = max(width, -(-columns // -(-columns // _ROUNDED)))
        return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]

    def _measure(self, rows_TI: Tensor, half: int) -> None:
        if not len(rows_TI):
            return
        magnitude = rows_TI.abs()
        self._abs_I += magnitude.sum(0, dtype=torch.float32)
        self.half_max_abs_2I[half] = torch.maximum(self.half_max_abs_2I[half], magnitude.amax(0).float())

    def add_up(self, ranks: Ranks) -> None:
        """Take in what the other ranks saw, so that all hold the statistics of all tokens."""
        tokens = torch.tensor([self.tokens], device=self._abs_I.device)
        ranks.add_up(self._sum_II, self._abs_I, tokens)
        ranks.take_largest(self.half_max_abs_2I)
        self.max_abs_I = self.half_max_abs_2I.amax(0)
        self.tokens = int(tokens)

    @property
    def hessian_II(self) -> Tensor:
        """Mean of x xᵀ; a new tensor each time."""
        return self.settled_II().clone()

    def spent_hessian_II(self) -> Tensor:
        """The same in the place of the second moments, which are gone then, but for the mean squares."""
        mean_II = self.settled_II()
        self._spent_I = mean_II.diagonal().clone()
        self._sum_II = torch.empty(0, 0)
        return mean_II

    def settled_II(self) -> Tensor:
        """The same in the place of the sum, which becomes it: to be read only."""
        mean_II = self._sum_II
        if not self._settled:
            mean_II.div_(max(1, self.tokens))
            for panel in self._panels():
                own = mean_II[panel, panel].triu()
                mean_II[panel, panel] = own + own.triu(1).T
                mean_II[panel, : panel.start] = mean_II[: panel.start, panel].T
            self._settled = True
        return mean_II

    @property
    def mean_square_I(self) -> Tensor:
        """Mean square a column: the Hessian's diagonal."""
        if self._spent_I is not None:
            return self._spent_I
        squares_I = self._sum_II.diagonal()
        return squares_I.clone() if self._settled else squares_I / max(1, self.tokens)

    @property
    def mean_abs_I(self) -> Tensor:
        """Mean magnitude a column."""
        return self._abs_I / max(1, self.tokens)

    def divided_by(self, scale_I: Tensor, *, spend: bool = False) -> InputStats:
        """The statistics of x / scale, without seeing x again; `spend`: in the place of these, which are gone then."""
        other = InputStats(0, factors=self._factors)
        other._sum_II = self._sum_II if spend else self._sum_II.clone()
        for panel in self._panels():
            other._sum_II[panel] /= scale_I[panel].unsqueeze(1) * scale_I  # one divisor for both of a pair
        other._settled = self._settled
        if spend:
            self._sum_II = torch.empty(0, 0)
        other._abs_I = self._abs_I / scale_I
        other.half_max_abs_2I = self.half_max_abs_2I / scale_I
        other.max_abs_I = self.max_abs_I / scale_I
        other.tokens = self.tokens
        return other


@contextmanager
def _rounded_factors(factors: torch.dtype) -> Iterator[None]:
    """Products of float32 on the CPU with factors rounded to bfloat16, where that is asked for, added up in float32."""
    if factors != torch.bfloat16:
        yield
        return
    how = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, how.fp32_precision = how.fp32_precision, "bf16"
    try:
        yield
    finally:
        how.fp32_precision = before


def _add_product(sum_IJ: Tensor, left_IT: Tensor, right_TJ: Tensor) -> None:
    """sum += left right, 16-bit factors multiplied as such and added up in float32."""
    if left_IT.dtype == torch.float32:
        sum_IJ.addmm_(left_IT, right_TJ)
    else:
        sum_IJ += torch.mm(left_IT, right_TJ, out_dtype=torch.float32)


@dataclass(slots=True)
class Rounded:
    """Codes (out, in), as `numerics.compact_codes` has them, and scales (out, groups), float32.

    `group_of_I` is each column's group where not in order; `dtype` is what the scales are stored in; `beside` are
    tensors to be stored with them (`input_global_scale`).
    """

    codes_OI: Tensor
    scale_OG: Tensor
    group_of_I: Tensor | None = None
    notes: list[str] = field(default_factory=list)
    dtype: ScaleType = field(default_factory=lambda: ScaleType(torch.float32))
    beside: dict[str, Tensor] = field(default_factory=dict)

    def weight(self) -> Tensor:
        """The weight that the loaders will compute with, float32."""
        if self.group_of_I is None:
            return from_codes(self.codes_OI, self.scale_OG)
        return self.codes_OI * self.scale_OG[:, self.group_of_I.long()]

    def split(self, rows: list[int]) -> list[Rounded]:
        """The parts of a stack that was rounded together."""
        codes = [part.clone() for part in torch.split(self.codes_OI, rows)]  # else they would keep each other alive
        scales = torch.split(self.scale_OG, rows)
        groups = [None if self.group_of_I is None else self.group_of_I.clone() for _ in rows]  # a file shares nothing
        beside = [{name: tensor.clone() for name, tensor in self.beside.items()} for _ in rows]
        return [
            Rounded(c, s, g, list(self.notes), self.dtype, b)
            for c, s, g, b in zip(codes, scales, groups, beside, strict=True)
        ]
