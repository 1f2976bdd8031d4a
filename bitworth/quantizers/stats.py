"""What calibration keeps of a layer's inputs, and what a rounding gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitworth.numerics import from_codes
from bitworth.ranks import Ranks
from bitworth.scales import ScaleType

_ROWS, _GPU_ROWS = 2048, 32768  # tokens taken at a time: temporaries stay in the processor's cache; sums are read once
_PANELS = 8  # of the symmetric sum of x xᵀ only the panels right of the diagonal are computed: 9/16 of the work


class InputStats:
    """Second moments and magnitudes of a layer's inputs, gathered chunk by chunk.

    `hessian_II` is the mean of x xᵀ over tokens (GPTQ's H up to the factor 2, which cancels). `half_max_abs_2I` is
    max|x| a column over two halves of the tokens, which share no token and differ by one at most: the first and second
    half of the rows of each chunk, whose odd row goes to the half that has fewer. (Ranks that add up their statistics
    may differ in that row, each.)
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self._sum_II = torch.zeros(columns, columns, device=device)
        self._abs_I = torch.zeros(columns, device=device)
        self.half_max_abs_2I = torch.zeros(2, columns, device=device)
        self.max_abs_I = torch.zeros(columns, device=device)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Take in activations of shape (..., columns)."""
        rows_TI = inputs.detach().reshape(-1, inputs.shape[-1])
        first = (rows_TI.shape[0] + self.tokens % 2) // 2
        for half, part_TI in enumerate((rows_TI[:first], rows_TI[first:])):
            if part_TI.shape[0]:
                for slice_TI in torch.split(part_TI, _ROWS if part_TI.device.type == "cpu" else _GPU_ROWS):
                    self._take(slice_TI, half)
        self.max_abs_I = self.half_max_abs_2I.amax(0)
        self.tokens += rows_TI.shape[0]

    def _take(self, rows_TI: Tensor, half: int) -> None:
        if rows_TI.device.type == "cpu":
            rows_TI = rows_TI.float()
        columns = rows_TI.shape[1]
        width = -(-columns // _PANELS)
        for start in range(0, columns, width):
            panel = slice(start, start + width)
            _add_product(self._sum_II[panel, start:], rows_TI[:, panel].T, rows_TI[:, start:])
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
        upper_II = (self._sum_II / max(1, self.tokens)).triu_()
        return upper_II + upper_II.triu(1).T

    @property
    def mean_abs_I(self) -> Tensor:
        """Mean magnitude a column."""
        return self._abs_I / max(1, self.tokens)

    def divided_by(self, scale_I: Tensor) -> InputStats:
        """The statistics of x / scale, without seeing x again."""
        other = InputStats(0)
        other._sum_II = self._sum_II / scale_I.unsqueeze(0) / scale_I.unsqueeze(1)
        other._abs_I = self._abs_I / scale_I
        other.half_max_abs_2I = self.half_max_abs_2I / scale_I
        other.max_abs_I = self.max_abs_I / scale_I
        other.tokens = self.tokens
        return other


def _add_product(sum_IJ: Tensor, left_IT: Tensor, right_TJ: Tensor) -> None:
    """sum += left right, 16-bit factors multiplied as such and added up in float32."""
    if left_IT.dtype == torch.float32:
        sum_IJ.addmm_(left_IT, right_TJ)
    else:
        sum_IJ += torch.mm(left_IT, right_TJ, out_dtype=torch.float32)


@dataclass(slots=True)
class Rounded:
    """Codes (out, in) and scales (out, groups), float32; `group_of_I` is each column's group where not in order.

    `dtype` is what the scales are stored in; `beside` are tensors to be stored with them (`input_global_scale`).
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
        codes, scales = torch.split(self.codes_OI, rows), torch.split(self.scale_OG, rows)
        groups = [None if self.group_of_I is None else self.group_of_I.clone() for _ in rows]  # a file shares nothing
        beside = [{name: tensor.clone() for name, tensor in self.beside.items()} for _ in rows]
        return [
            Rounded(c, s, g, list(self.notes), self.dtype, b)
            for c, s, g, b in zip(codes, scales, groups, beside, strict=True)
        ]
