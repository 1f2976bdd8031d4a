"""GPTQ (Frantar et al., arXiv 2210.17323): round one input column at a time and make the columns still to come pay.

With H = mean x xᵀ and U the upper Cholesky factor of H⁻¹ (section 3.3, "Cholesky reformulation"), column j is rounded to
q_j and every later column k takes w_k -= (w_j - q_j) / U_jj · U_jk. Columns go in blocks, so that the update of the far columns is one
matrix product a block. Weights are kept transposed (in, out): a column is then contiguous.

Orderings: `none` takes columns as they lie, scales found as each group is reached on the weights updated so far (as published);
`weight` takes the columns of largest H_jj first, under scales fixed beforehand on the original weights in their original groups,
so the checkpoint is an ordinary grouped one; `group` forms the groups in that order too and stores each column's group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitworth.errors import WorkFailed
from bitworth.numerics import clipped_scale, group_size_of, scale_of, to_codes
from bitworth.quantizers.rtn import choose_scale
from bitworth.quantizers.stats import InputStats, Rounded
from bitworth.types import Gptq, Grid

_MOST_DAMPING = 1.0


def gptq(weight_OI: Tensor, grid: Grid, settings: Gptq, stats: InputStats, *, dtype: torch.dtype) -> Rounded:
    """Round `weight_OI` (out, in) under second moments `stats`.

    Raises:
        WorkFailed: the Hessian holds NaN or infinity, or stays singular under any damping.
    """
    hessian = stats.hessian_II.clone()
    if not torch.isfinite(hessian).all():
        raise WorkFailed("its calibration inputs hold NaN or infinity; check the model in its own dtype first")
    notes: list[str] = []
    dead = hessian.diagonal() == 0
    if dead.any():
        notes.append(
            f"{int(dead.sum())} input columns were zero on all calibration tokens; they were rounded to nearest"
        )
        hessian.diagonal()[dead] = hessian.diagonal()[~dead].mean() if not dead.all() else 1.0
    columns = weight_OI.shape[1]
    order = torch.arange(columns, device=hessian.device)
    if settings.ordering != "none":
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor = inverse_factor(hessian[order][:, order], settings.damping, notes)
    scales = _scales(weight_OI, grid, settings, stats, order, dtype)
    codes = _columns(weight_OI.float()[:, order].T.contiguous(), factor, scales, grid, settings.block_size)
    back = torch.argsort(order)
    group_of = None
    if settings.ordering == "group" and grid.granularity == "group":
        group_of = (back // group_size_of(grid, columns)).to(torch.int32)
    return Rounded(codes.T[:, back].contiguous(), scales.table(), group_of, notes)


def inverse_factor(hessian_II: Tensor, damping: float, notes: list[str]) -> Tensor:
    """Upper Cholesky factor U of (H + damping·mean(diag H)·I)⁻¹, the damping raised tenfold until H can be factored."""
    mean = hessian_II.diagonal().mean()
    eye = torch.eye(hessian_II.shape[0], device=hessian_II.device)
    amount = damping
    while amount <= _MOST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(hessian_II + amount * mean * eye)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and torch.isfinite(upper).all():
                if amount != damping:
                    notes.append(
                        f"its Hessian could not be factored; damping was raised from {damping:g} to {amount:g}"
                    )
                return upper
        amount *= 10
    raise WorkFailed("its Hessian stays singular under any damping; use more calibration data or round to nearest")


class _Scales:
    """Scales by column in processing order; found in advance or as each group is reached."""

    def __init__(self, by_group_OG: list[Tensor | None], size: int, group_of: Tensor | None, find: object) -> None:
        self.groups, self.size, self.group_of, self.find = by_group_OG, size, group_of, find

    def table(self) -> Tensor:
        found = [scale for scale in self.groups if scale is not None]
        return torch.stack(found, dim=1)


def _scales(
    weight_OI: Tensor, grid: Grid, settings: Gptq, stats: InputStats, order: Tensor, dtype: torch.dtype
) -> _Scales:
    size = group_size_of(grid, weight_OI.shape[1])
    grouped = grid.granularity == "group"
    if settings.ordering == "weight" or not grouped:
        fixed = choose_scale(weight_OI, grid, settings.clip, stats, dtype=dtype)
        group_of = order // size if grouped else torch.zeros_like(order)
        return _Scales(list(fixed.unbind(1)), size, group_of, None)
    importance = stats.hessian_II.diagonal()[order]
    one = Grid(bits=grid.bits, kind=grid.kind, granularity="channel")

    def find(updated_OS: Tensor, start: int) -> Tensor:
        if settings.clip is None:
            return scale_of(updated_OS, one, dtype=dtype)[:, 0]
        weigh = importance[start : start + size] if settings.clip.hessian_weighted else None
        return clipped_scale(updated_OS, one, settings.clip, dtype=dtype, importance_I=weigh)[:, 0]

    return _Scales([None] * (weight_OI.shape[1] // size), size, None, find)


def _columns(weight_IO: Tensor, factor: Tensor, scales: _Scales, grid: Grid, block: int) -> Tensor:
    """The column loop; `weight_IO` is consumed. Returns codes (in, out)."""
    total = weight_IO.shape[0]
    codes = torch.empty_like(weight_IO)
    if scales.find is not None:  # a group's scale is found on updated weights, so a block must not straddle groups
        block = min(block, scales.size) if scales.size < block else block - block % scales.size or scales.size
    for start in range(0, total, block):
        end = min(start + block, total)
        errors = _block(weight_IO, factor, scales, grid, codes, start, end)
        weight_IO[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return codes


def _block(
    weight_IO: Tensor, factor: Tensor, scales: _Scales, grid: Grid, codes: Tensor, start: int, end: int
) -> Tensor:
    errors = torch.empty_like(weight_IO[start:end])
    for column in range(start, end):
        if scales.group_of is None:
            group = column // scales.size
            if column % scales.size == 0:
                scales.groups[group] = scales.find(weight_IO[column : column + scales.size].T, column)  # type: ignore[operator]
        else:
            group = int(scales.group_of[column])
        scale = scales.groups[group]
        assert scale is not None
        now = weight_IO[column]
        code = to_codes(now / scale, grid)
        codes[column] = code
        error = torch.addcmul(now, code, scale, value=-1).div_(factor[column, column])
        weight_IO[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
        errors[column - start] = error
    return errors
