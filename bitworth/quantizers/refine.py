"""After GPTQ: alternate the best scales for the codes and the best codes for the scales, on the layer's whole error.

GPTQ never looks back at a column it has rounded, and its scales are chosen before the errors are spread. Both minimize
L = tr((Q - W) H (Q - W)ᵀ). With the codes fixed, L is quadratic in a row's scales, so all groups of a row are solved
for together; with all other codes fixed, the best code of column j is nearest to q_j + [(W - Q) H]_j / H_jj, so a sweep
over the columns is cyclic coordinate descent (as in QuantEase, arXiv 2309.01885). Both steps read the pull, (W - Q) H,
minus half of L's gradient, and bring it up to date by what they changed. Neither raises L: rows that new scales would
cost more, for what they are stored in is coarse, keep theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitworth import compiled, compiled_gpu
from bitworth.numerics import as_stored, from_codes, to_codes
from bitworth.scales import Stored
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
    codes_OI = codes_OI.float()
    pull_OI = pull_of(weight_OI, codes_OI, scale_OG, hessian_II)
    known: list[Tensor] = []
    for _ in range(sweeps):
        refitted_OG = _refitted(pull_OI, codes_OI, scale_OG, hessian_II, known, dtype)
        moved_OI = from_codes(codes_OI, refitted_OG - scale_OG)
        reach_OI = moved_OI @ hessian_II
        change_O1 = ((reach_OI - 2 * pull_OI) * moved_OI).sum(1, keepdim=True)  # of the objective
        scale_OG = torch.where(change_O1 < 0, refitted_OG, scale_OG)
        pull_OI -= reach_OI.mul_(change_O1 < 0)
        if compiled.compiles(grid, codes_OI.device):
            codes_OI = compiled.sweep(codes_OI, scale_OG, grid, hessian_II, pull_OI, PASSES)
            continue
        for _ in range(PASSES):
            codes_OI = sweep_codes(codes_OI, scale_OG, grid, hessian_II, pull_OI)
    return codes_OI, scale_OG


def _refitted(
    pull_OI: Tensor, codes_OI: Tensor, scale_OG: Tensor, hessian_II: Tensor, known: list[Tensor], dtype: Stored
) -> Tensor:
    """`refit_scale`, a few rows at a time where their systems are large.

    Where they are not, `known` keeps them for the next time: few codes will have changed, and the pull is exact.
    """
    rows, groups = scale_OG.shape
    most = max(1, _SYSTEMS // groups**2)
    if rows <= most:
        known[:] = known or [systems(codes_OI, groups, hessian_II)]
        return refit_scale(pull_OI, codes_OI, scale_OG, known[0], dtype=dtype)
    runs = zip(*(torch.split(each, most) for each in (pull_OI, codes_OI, scale_OG)), strict=True)
    parts = [
        refit_scale(pull, codes, scale, systems(codes, groups, hessian_II), dtype=dtype) for pull, codes, scale in runs
    ]
    return torch.cat(parts)


def pull_of(weight_OI: Tensor, codes_OI: Tensor, scale_OG: Tensor, hessian_II: Tensor) -> Tensor:
    """Minus half the objective's gradient, (W - Q) H, shape (out, in)."""
    return (weight_OI - from_codes(codes_OI, scale_OG)) @ hessian_II


def systems(codes_OI: Tensor, groups: int, hessian_II: Tensor) -> Tensor:
    """By row, the products of its groups' codes under H, shape (out, groups, groups), their diagonals made positive."""
    rows, columns = codes_OI.shape
    size = columns // groups
    left_OGG = torch.empty(rows, groups, groups, device=codes_OI.device)
    for group in range(groups):  # they are symmetric
        start = group * size
        reach_OI = codes_OI[:, start : start + size] @ hessian_II[start : start + size, start:]
        along_OG = reach_OI.mul_(codes_OI[:, start:]).view(rows, groups - group, size).sum(-1)
        left_OGG[:, group, group:] = left_OGG[:, group:, group] = along_OG
    diagonal_OG = left_OGG.diagonal(dim1=1, dim2=2)
    diagonal_OG.add_(1e-6 * diagonal_OG.amax(1, keepdim=True) + (diagonal_OG <= 0))
    return left_OGG


def refit_scale(pull_OI: Tensor, codes_OI: Tensor, scale_OG: Tensor, left_OGG: Tensor, *, dtype: Stored) -> Tensor:
    """The scales that minimize the objective under these codes, whose `systems` are `left_OGG`.

    A scale that would leave half to twice its old value, or whose codes are all zero, stays: such a system says little.
    """
    right_OG = (pull_OI * codes_OI).view(*scale_OG.shape, -1).sum(-1)
    solved_OG = scale_OG + torch.linalg.solve(left_OGG, right_OG.unsqueeze(-1)).squeeze(-1)
    kept = (solved_OG > scale_OG / 2) & (solved_OG < scale_OG * 2)
    return as_stored(torch.where(kept, solved_OG, scale_OG), dtype)


def sweep_codes(codes_OI: Tensor, scale_OG: Tensor, grid: Grid, hessian_II: Tensor, pull_OI: Tensor) -> Tensor:
    """One pass of coordinate descent over the columns; new codes (out, in), and `pull_OI` becomes theirs."""
    rounded_IO = from_codes(codes_OI, scale_OG).T.contiguous()
    codes_IO = codes_OI.T.contiguous()
    scale_GO = scale_OG.T.contiguous()
    pull_IO = pull_OI.T.contiguous()
    if compiled_gpu.covers(grid, codes_OI.device, _GPU_BLOCK):
        _sweep_on_gpu(rounded_IO, codes_IO, scale_GO, pull_IO, grid, hessian_II)
    else:
        _sweep_in_torch(rounded_IO, codes_IO, scale_GO, pull_IO, grid, hessian_II)
    pull_OI.copy_(pull_IO.T)
    return codes_IO.T.contiguous()


def _sweep_in_torch(
    rounded_IO: Tensor, codes_IO: Tensor, scale_GO: Tensor, pull_IO: Tensor, grid: Grid, hessian_II: Tensor
) -> None:
    """`sweep_codes` a column at a time; codes and pull are changed."""
    columns, rows = codes_IO.shape
    size = columns // len(scale_GO)
    steps_BO = torch.empty(_BLOCK, rows, device=codes_IO.device)
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


def _sweep_on_gpu(
    rounded_IO: Tensor, codes_IO: Tensor, scale_GO: Tensor, pull_IO: Tensor, grid: Grid, hessian_II: Tensor
) -> None:
    """`sweep_codes` by blocks that a kernel walks over; codes and pull are changed."""
    columns = len(codes_IO)
    group_of_I = torch.arange(columns, device=codes_IO.device) // (columns // len(scale_GO))
    for start in range(0, columns, _GPU_BLOCK):
        block = slice(start, min(start + _GPU_BLOCK, columns))
        codes_IO[block], steps_BO = compiled_gpu.descend_columns(
            pull_IO[block], rounded_IO[block], scale_GO[group_of_I[block]], hessian_II[block, block], grid
        )
        pull_IO.addmm_(hessian_II[:, block], steps_BO, alpha=-1)
