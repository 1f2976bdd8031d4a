"""After GPTQ: alternate the best scales for the codes and the best codes for the scales, on the layer's whole error.

GPTQ never looks back at a column it has rounded, and its scales are chosen before the errors are spread. Both minimize
L = tr((Q - W) H (Q - W)ᵀ). With the codes fixed, L is quadratic in a row's scales, so all groups of a row are solved
for together; with all other codes fixed, the best code of column j is nearest to q_j + [(W - Q) H]_j / H_jj, so a sweep
over the columns is cyclic coordinate descent (as in QuantEase, arXiv 2309.01885). Neither step raises L but for the
rounding of scales to what they are stored in; where that is coarse, rows that it costs more than the refit gained keep
their scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitworth import compiled, compiled_gpu
from bitworth.numerics import as_stored, from_codes, to_codes
from bitworth.scales import ScaleType, Stored
from bitworth.types import Grid

PASSES = 4  # over the columns between two looks at the scales
_SYSTEMS = 1 << 26  # numbers of the rows' systems that are held at once
_BLOCK, _GPU_BLOCK = 32, 128  # columns whose updates stay in the processor's cache, or in a GPU's registers


def refine(
    weight_OI: Tensor,
    codes_OI: Tensor,
    scale_OG: Tensor,
    grid: Grid,
    hessian_II: Tensor,
    sweeps: int,
    *,
    dtype: Stored,
) -> tuple[Tensor, Tensor]:
    """Codes (out, in) and scales (out, groups) of a lower objective.

    Args:
        weight_OI: what they should stand for, float32.
        codes_OI: from GPTQ; groups are runs of neighbouring columns.
        scale_OG: of the codes.
        grid: what codes may be.
        hessian_II: damped, in the columns' order.
        sweeps: how often to do both.
        dtype: what scales are stored in.
    """
    target_OI = weight_OI @ hessian_II
    for _ in range(sweeps):
        refitted_OG = refit_scale(target_OI, codes_OI, scale_OG, hessian_II, dtype=dtype)
        if isinstance(dtype, ScaleType) and dtype.coarse:  # rounding may have undone a row's gain
            before, after = (_row_losses(weight_OI, codes_OI, scales, hessian_II) for scales in (scale_OG, refitted_OG))
            refitted_OG = torch.where((after < before).unsqueeze(1), refitted_OG, scale_OG)
        scale_OG = refitted_OG
        if compiled.compiles(grid, codes_OI.device):
            codes_OI = compiled.sweep(weight_OI, codes_OI, scale_OG, grid, hessian_II, PASSES)
            continue
        for _ in range(PASSES):
            codes_OI = sweep_codes(weight_OI, codes_OI, scale_OG, grid, hessian_II)
    return codes_OI, scale_OG


def refit_scale(target_OI: Tensor, codes_OI: Tensor, scale_OG: Tensor, hessian_II: Tensor, *, dtype: Stored) -> Tensor:
    """The scales that minimize the objective under these codes, a (groups, groups) system a row; `target_OI` is W H.

    A scale that would leave half to twice its old value, or whose codes are all zero, stays: such a system says little.
    """
    rows, groups = scale_OG.shape
    most = max(1, _SYSTEMS // groups**2)
    if rows > most:  # many small groups
        runs = [slice(start, start + most) for start in range(0, rows, most)]
        parts = [(target_OI[run], codes_OI[run], scale_OG[run]) for run in runs]
        return torch.cat([refit_scale(a, b, c, hessian_II, dtype=dtype) for a, b, c in parts])
    size = codes_OI.shape[1] // groups
    coded_OGS = codes_OI.reshape(rows, groups, size)
    right_OG = (target_OI.view(rows, groups, size) * coded_OGS).sum(-1)
    left_OGG = torch.empty(rows, groups, groups, device=target_OI.device)
    for group in range(groups):  # the system is symmetric
        start = group * size
        reach_OI = coded_OGS[:, group] @ hessian_II[start : start + size, start:]
        along_OG = (reach_OI.view(rows, groups - group, size) * coded_OGS[:, group:]).sum(-1)
        left_OGG[:, group, group:] = left_OGG[:, group:, group] = along_OG
    diagonal_OG = left_OGG.diagonal(dim1=1, dim2=2)
    empty_OG = diagonal_OG <= 0
    ridge_OG = 1e-6 * diagonal_OG.amax(1, keepdim=True) + empty_OG
    diagonal_OG.add_(ridge_OG)
    solved_OG = torch.linalg.solve(left_OGG, right_OG.unsqueeze(-1)).squeeze(-1)
    keep = empty_OG | ~((solved_OG > scale_OG / 2) & (solved_OG < scale_OG * 2))
    return as_stored(torch.where(keep, scale_OG, solved_OG), dtype)


def _row_losses(weight_OI: Tensor, codes_OI: Tensor, scale_OG: Tensor, hessian_II: Tensor) -> Tensor:
    """The objective a row, shape (out,)."""
    delta_OI = from_codes(codes_OI, scale_OG) - weight_OI
    return ((delta_OI @ hessian_II) * delta_OI).sum(1)


def sweep_codes(weight_OI: Tensor, codes_OI: Tensor, scale_OG: Tensor, grid: Grid, hessian_II: Tensor) -> Tensor:
    """One pass of coordinate descent over the columns; new codes (out, in)."""
    columns = weight_OI.shape[1]
    size = columns // scale_OG.shape[1]
    rounded_IO = from_codes(codes_OI, scale_OG).T.contiguous()
    codes_IO = codes_OI.T.contiguous()
    scale_GO = scale_OG.T.contiguous()
    pull_IO = hessian_II @ (weight_OI.T - rounded_IO)  # minus half the objective's gradient
    if compiled_gpu.covers(grid, weight_OI.device, _GPU_BLOCK):
        return _sweep_on_gpu(rounded_IO, codes_IO, scale_GO, pull_IO, grid, hessian_II).T.contiguous()
    steps_BO = torch.empty(_BLOCK, weight_OI.shape[0], device=weight_OI.device)
    diagonal = hessian_II.diagonal().tolist()
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        near, steps = pull_IO[start:end].clone(), steps_BO[: end - start]
        for column in range(start, end):
            at, scale = column - start, scale_GO[column // size]
            wanted = torch.add(rounded_IO[column], near[at], alpha=1 / diagonal[column])
            code = to_codes(wanted.div_(scale), grid)
            codes_IO[column] = code
            torch.sub(code.mul_(scale), rounded_IO[column], out=steps[at])
            near[at:].addr_(hessian_II[column, column:end], steps[at], alpha=-1)
        pull_IO.addmm_(hessian_II[:, start:end], steps, alpha=-1)
    return codes_IO.T.contiguous()


def _sweep_on_gpu(
    rounded_IO: Tensor, codes_IO: Tensor, scale_GO: Tensor, pull_IO: Tensor, grid: Grid, hessian_II: Tensor
) -> Tensor:
    """`sweep_codes` by blocks that a kernel walks over; `pull_IO` is changed."""
    columns = len(codes_IO)
    group_of_I = torch.arange(columns, device=codes_IO.device) // (columns // len(scale_GO))
    for start in range(0, columns, _GPU_BLOCK):
        block = slice(start, min(start + _GPU_BLOCK, columns))
        codes_IO[block], steps_BO = compiled_gpu.descend_columns(
            pull_IO[block], rounded_IO[block], scale_GO[group_of_I[block]], hessian_II[block, block], grid
        )
        pull_IO.addmm_(hessian_II[:, block], steps_BO, alpha=-1)
    return codes_IO
