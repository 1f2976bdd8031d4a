"""Loops over single columns on a GPU: what torch can only do in several launches a column.

A program takes a run of rows, which know nothing of each other, holds a block of their columns in registers and walks
over it; a launch a block is left of some seven a column. Arithmetic is float32 and rounding to the nearest, ties to
even, as in `numerics.to_codes` for integer grids. Weights lie transposed (in, out), as in the loops that this replaces.

Without Triton, on other devices and for other grids those loops run.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from bitworth.types import Grid

_ROWS = 32
_MOST_COLUMNS = 256  # of a block; more do not fit the registers

triton: Any = None
tl: Any = None
if importlib.util.find_spec("triton") is not None:  # kernels find what they refer to among their module's globals
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")


def covers(grid: Grid, device: torch.device, columns: int) -> bool:
    """Whether these loops can take blocks of so many columns of a grid."""
    return triton is not None and device.type == "cuda" and grid.kind == "int" and columns <= _MOST_COLUMNS


def round_columns(left_BO: Tensor, scale_BO: Tensor, factor_BB: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """GPTQ over one block of columns: each is rounded and makes those after it in the block pay.

    Args:
        left_BO: the weights updated so far; not changed.
        scale_BO: each column's.
        factor_BB: the block of U, upper triangular, with UᵀU = H⁻¹.
        grid: integers.

    Returns:
        codes, and errors over U's diagonal, both (block, out).
    """
    codes, errors = torch.empty_like(left_BO), torch.empty_like(left_BO)
    _launch(_round_columns, (left_BO, scale_BO, factor_BB, codes, errors), grid)
    return codes, errors


def descend_columns(
    near_BO: Tensor, rounded_BO: Tensor, scale_BO: Tensor, hessian_BB: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Coordinate descent over one block of columns, as `refine.sweep_codes`.

    Args:
        near_BO: minus half the objective's gradient at these columns; not changed.
        rounded_BO: the weights that the codes stand for.
        scale_BO: each column's.
        hessian_BB: of the block.
        grid: integers.

    Returns:
        new codes, and what they change the weights by, both (block, out).
    """
    codes, steps = torch.empty_like(near_BO), torch.empty_like(near_BO)
    _launch(_descend_columns, (near_BO, rounded_BO, scale_BO, hessian_BB, codes, steps), grid)
    return codes, steps


def _launch(kernel: Any, tensors: tuple[Tensor, ...], grid: Grid) -> None:
    columns, rows = tensors[0].shape
    low, high = grid.levels
    held = [tensor.contiguous() for tensor in tensors]
    power = triton.next_power_of_2(columns)
    kernel[(triton.cdiv(rows, _ROWS),)](*held, rows, columns, float(low), float(high), ROWS=_ROWS, COLUMNS=power)


if triton is not None:

    @triton.jit
    def _nearest(values, low, high):  # type: ignore[no-untyped-def]
        """The nearest code, ties to even: adding 1.5 * 2**23 leaves float32 no bit for fractions."""
        near = tl.minimum(tl.maximum(values, low), high)
        return (near + 12582912.0) - 12582912.0

    @triton.jit
    def _column(values_BR, here_B):  # type: ignore[no-untyped-def]
        """One column out of registers."""
        return tl.sum(tl.where(here_B[:, None], values_BR, 0.0), axis=0)

    @triton.jit  # type: ignore[untyped-decorator]
    def _round_columns(  # type: ignore[no-untyped-def]
        left, scale, factor, codes, errors, rows, columns, low, high, ROWS: tl.constexpr, COLUMNS: tl.constexpr
    ):
        row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        at_B = tl.arange(0, COLUMNS)
        place_BR = at_B[:, None] * rows + row_R[None, :]
        inside_BR = (at_B < columns)[:, None] & (row_R < rows)[None, :]
        left_BR = tl.load(left + place_BR, mask=inside_BR, other=0.0)
        scale_BR = tl.load(scale + place_BR, mask=inside_BR, other=1.0)
        for column in range(columns):
            here_B = at_B == column
            now_R, step_R = _column(left_BR, here_B), _column(scale_BR, here_B)
            factor_B = tl.load(factor + column * columns + at_B, mask=at_B < columns, other=0.0)
            code_R = _nearest(tl.div_rn(now_R, step_R), low, high)
            own = tl.sum(tl.where(here_B, factor_B, 0.0), axis=0)
            error_R = tl.div_rn(now_R - code_R * step_R, own + tl.zeros_like(now_R))
            left_BR -= tl.where(at_B > column, factor_B, 0.0)[:, None] * error_R[None, :]
            tl.store(codes + column * rows + row_R, code_R, mask=row_R < rows)
            tl.store(errors + column * rows + row_R, error_R, mask=row_R < rows)

    @triton.jit  # type: ignore[untyped-decorator]
    def _descend_columns(  # type: ignore[no-untyped-def]
        near, rounded, scale, hessian, codes, steps, rows, columns, low, high, ROWS: tl.constexpr, COLUMNS: tl.constexpr
    ):
        row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        at_B = tl.arange(0, COLUMNS)
        place_BR = at_B[:, None] * rows + row_R[None, :]
        inside_BR = (at_B < columns)[:, None] & (row_R < rows)[None, :]
        near_BR = tl.load(near + place_BR, mask=inside_BR, other=0.0)
        rounded_BR = tl.load(rounded + place_BR, mask=inside_BR, other=0.0)
        scale_BR = tl.load(scale + place_BR, mask=inside_BR, other=1.0)
        for column in range(columns):
            here_B = at_B == column
            hessian_B = tl.load(hessian + column * columns + at_B, mask=at_B < columns, other=0.0)
            own = tl.sum(tl.where(here_B, hessian_B, 0.0), axis=0)
            step_R, before_R = _column(scale_BR, here_B), _column(rounded_BR, here_B)
            wanted_R = before_R + tl.div_rn(_column(near_BR, here_B), own + tl.zeros_like(before_R))
            code_R = _nearest(tl.div_rn(wanted_R, step_R), low, high)
            change_R = code_R * step_R - before_R
            near_BR -= hessian_B[:, None] * change_R[None, :]
            tl.store(codes + column * rows + row_R, code_R, mask=row_R < rows)
            tl.store(steps + column * rows + row_R, change_R, mask=row_R < rows)
