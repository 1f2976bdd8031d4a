"""GPTQ (Frantar et al., arXiv 2210.17323): round one input column at a time and make the columns still to come pay.

With H = mean x xᵀ and U the upper Cholesky factor of H⁻¹ (section 3.3, "Cholesky reformulation"), column j is rounded
to q_j and every later column k takes w_k -= (w_j - q_j) / U_jj · U_jk. Columns go in blocks, so that the update of the
far columns is one matrix product a block. Weights are kept transposed (in, out): a column is then contiguous.

Orderings: `none` takes columns as they lie, scales found as each group is reached on the weights updated so far (as
published); `weight` takes the columns of largest H_jj first, under scales fixed beforehand on the original weights in
their original groups, so the checkpoint is an ordinary grouped one; `group` forms the groups in that order too and
stores each column's group.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bitworth import compiled, compiled_gpu
from bitworth.errors import WorkFailed
from bitworth.numerics import clipped_scale, compact_codes, group_size_of, scale_of, to_codes
from bitworth.quantizers.refine import refine
from bitworth.quantizers.rtn import choose_scale
from bitworth.quantizers.stats import InputStats, Rounded
from bitworth.scales import Stored
from bitworth.threads import side_by_side
from bitworth.types import Gptq, Grid

_FIRST_DAMPING, _MOST_DAMPING = 0.001, 1.0
_SOLVED = 192  # columns of a triangle that is inverted by a solve
_ROWS = 256  # that a thread rounds at a time: what is held of them is little beside the second moments
_FEWEST_ROWS = 32  # with fewer, products would mostly read
_TURNED = 1 << 20  # numbers of a matrix that are turned round at a time


def gptq(
    weight_OI: Tensor, grid: Grid, settings: Gptq, stats: InputStats, *, dtype: Stored, spend: bool = False
) -> Rounded:
    """Round `weight_OI` (out, in) under second moments `stats`, then `refine` codes and scales.

    Rows know nothing of each other, so on a CPU some are rounded after others. `spend`: nobody needs the statistics'
    second moments after, which may be overwritten.

    Raises:
        WorkFailed: the Hessian holds NaN or infinity, or stays singular under any damping.
    """
    notes: list[str] = []
    hessian = alive_hessian(stats.spent_hessian_II() if spend else stats.hessian_II, notes)
    order = torch.arange(weight_OI.shape[1], device=hessian.device)
    if settings.ordering != "none":
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    back = torch.argsort(order)
    hessian, factor = damped(hessian, settings.damping, order, notes)
    regrouped = settings.ordering == "group" and grid.granularity == "group"
    if regrouped and settings.sweeps:  # groups side by side
        hessian = hessian[order.unsqueeze(1), order]
    on_cpu = weight_OI.device.type == "cpu"
    runs = torch.split(weight_OI, _rows_a_run(len(weight_OI)) if on_cpu else len(weight_OI))

    def rounded(run_OI: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        codes, scales = _ColumnLoop(run_OI.float(), grid, settings, stats, order, dtype).run(factor)
        return compact_codes(codes if regrouped else codes[:, back], grid), scales

    def refined(at: int) -> tuple[Tensor, Tensor]:
        target_OI = (runs[at][:, order] if regrouped else runs[at]).float()
        codes, scales = parts[at]
        codes, scales = refine(target_OI, codes, scales, grid, hessian, settings.sweeps, dtype=dtype)
        return compact_codes(codes, grid), scales

    parts = side_by_side(partial(rounded, factor=factor), runs)
    del factor  # as large as the Hessian, which refining needs alone
    if settings.sweeps:
        parts = side_by_side(refined, range(len(runs)))
    codes_OI, scale_OG = (torch.cat(each) for each in zip(*parts, strict=True))
    codes_OI = codes_OI[:, back] if regrouped else codes_OI
    group_of = (back // group_size_of(grid, len(order))).to(torch.int32) if regrouped else None
    return Rounded(codes_OI, scale_OG, group_of, notes)


def rows_at_once() -> int:
    """How many rows are rounded at the same time on a CPU, at most."""
    return _ROWS * torch.get_num_threads()


def _rows_a_run(rows: int) -> int:
    """How many a thread rounds at a time, so that there is something for every thread."""
    return min(_ROWS, max(_FEWEST_ROWS, -(-rows // torch.get_num_threads())))


def alive_hessian(hessian: Tensor, notes: list[str]) -> Tensor:
    """The Hessian; a column that was always zero gets the mean diagonal, which rounds it to nearest."""
    if not all(map(math.isfinite, map(float, hessian.aminmax()))):  # of which NaN is both
        raise WorkFailed("its calibration inputs hold NaN or infinity; check the model in its own dtype first")
    dead = hessian.diagonal() == 0
    if dead.any():
        notes.append(
            f"{int(dead.sum())} input columns were zero on all calibration tokens; they were rounded to nearest"
        )
        hessian.diagonal()[dead] = hessian.diagonal()[~dead].mean() if not dead.all() else 1.0
    return hessian


def damped(hessian_II: Tensor, damping: float, order: Tensor, notes: list[str]) -> tuple[Tensor, Tensor]:
    """H + damping·mean(diag H)·I, in H's place, and its `inverse_factor` in processing order.

    Damping grows tenfold until there is a factor.

    Raises:
        WorkFailed: no damping up to 1 makes it positive definite.
    """
    plain_I = hessian_II.diagonal().clone()
    mean = plain_I.mean()
    amount = damping
    while amount <= max(damping, _MOST_DAMPING):
        hessian_II.diagonal().copy_(plain_I + amount * mean)
        factor = inverse_factor(hessian_II, order)
        if factor is not None:
            if amount != damping:
                notes.append(f"its Hessian could not be factored; damping was raised from {damping:g} to {amount:g}")
            return hessian_II, factor
        amount = amount * 10 or _FIRST_DAMPING
    raise WorkFailed("its Hessian stays singular under any damping; use more calibration data or round to nearest")


def inverse_factor(hessian_II: Tensor, order: Tensor) -> Tensor | None:
    """The upper triangular U with UᵀU = H⁻¹, H's rows and columns in that order; None where not positive definite.

    With P the reversal of rows and columns and PHP = LLᵀ, U = P L⁻¹ P: one factorization, and H⁻¹ is never formed.
    """
    reversed_I = order.flip(0)
    lower = hessian_II[reversed_I.unsqueeze(1), reversed_I]
    failed = torch.empty((), dtype=torch.int32, device=lower.device)
    # LAPACK counts columns first: the transpose lies as it wants it, and is factored without a copy
    torch.linalg.cholesky_ex(lower.T, upper=True, out=(lower.T, failed))
    if int(failed):
        return None
    _invert_triangle(lower)
    _turn_round(lower)
    return lower if math.isfinite(float(lower.sum())) else None


def _turn_round(matrix: Tensor) -> None:
    """Reverse rows and columns in place."""
    flat = matrix.view(-1)
    last = len(flat)
    for start in range(0, last // 2, _TURNED):
        end = min(start + _TURNED, last // 2)
        front, back = flat[start:end], flat[last - end : last - start]
        turned = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(turned)


def _invert_triangle(lower: Tensor) -> None:
    """Invert a lower triangular matrix in its place: [[A, 0], [B, C]] becomes [[A⁻¹, 0], [-C⁻¹ B A⁻¹, C⁻¹]].

    Products are what processors do best, and two thirds of a solve's are with zeros.
    """
    size = lower.shape[0]
    if size <= _SOLVED:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    half = size // 2
    first, below, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_triangle(first)
    _invert_triangle(last)
    torch.mm(last, below @ first, out=below).neg_()


class _ColumnLoop:
    """GPTQ's walk over the columns in processing order, with each column's scale found in advance or on the way."""

    def __init__(
        self, weight_OI: Tensor, grid: Grid, settings: Gptq, stats: InputStats, order: Tensor, dtype: Stored
    ) -> None:
        self._grid, self._clip, self._dtype = grid, settings.clip, dtype
        self._size = group_size_of(grid, weight_OI.shape[1])
        self._weight_IO = weight_OI[:, order].T.contiguous()
        self._codes_IO = torch.empty_like(self._weight_IO)
        self._importance_I = stats.mean_square_I[order]
        grouped = grid.granularity == "group"
        self._on_the_way = grouped and settings.ordering != "weight"
        if self._on_the_way:  # a group's scale is found on updated weights, so a block must not straddle groups
            self._block = self._size
            self._group_of = [column // self._size for column in range(len(order))]
            self._scales: list[Tensor] = []
        else:
            fixed_OG = choose_scale(weight_OI, grid, settings.clip, stats, dtype=dtype)
            self._block = settings.block_size
            self._group_of = (order // self._size).tolist() if grouped else [0] * len(order)
            self._scales = list(fixed_OG.T.contiguous())

    def run(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (out, in) in processing order, and scales (out, groups); to be called once."""
        total = len(self._weight_IO)
        for start in range(0, total, self._block):
            end = min(start + self._block, total)
            if self._on_the_way:
                self._scales.append(self._find(start, end))
            errors = self._round_block(factor, start, end)
            self._weight_IO[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
        return self._codes_IO.T, torch.stack(self._scales, dim=1)

    def _find(self, start: int, end: int) -> Tensor:
        """The scale (out,) of a group, on the weights updated so far."""
        grid = replace(self._grid, granularity="channel", group_size=None)
        updated_OS = self._weight_IO[start:end].T
        if self._clip is None:
            return scale_of(updated_OS, grid, dtype=self._dtype)[:, 0]
        weigh = self._importance_I[start:end] if self._clip.hessian_weighted else None
        return clipped_scale(updated_OS, grid, self._clip, dtype=self._dtype, importance_I=weigh)[:, 0]

    def _round_block(self, factor: Tensor, start: int, end: int) -> Tensor:
        """Round columns start..end, updating those of the block only; returns their errors over U's diagonal."""
        on_gpu = compiled_gpu.covers(self._grid, factor.device, end - start)
        if on_gpu or compiled.compiles(self._grid, factor.device):
            scale_BO = torch.stack([self._scales[group] for group in self._group_of[start:end]])
            round_columns = compiled_gpu.round_columns if on_gpu else compiled.round_columns
            self._codes_IO[start:end], errors_BO = round_columns(
                self._weight_IO[start:end], scale_BO, factor[start:end, start:end], self._grid
            )
            return errors_BO
        errors = torch.empty_like(self._weight_IO[start:end])
        diagonal = factor.diagonal()[start:end].tolist()
        for column in range(start, end):
            scale, now, error = self._scales[self._group_of[column]], self._weight_IO[column], errors[column - start]
            code = to_codes(now / scale, self._grid)
            self._codes_IO[column] = code
            torch.addcmul(now, code, scale, value=-1, out=error).div_(diagonal[column - start])
            self._weight_IO[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
        return errors
