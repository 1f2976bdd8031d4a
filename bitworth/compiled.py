"""Loops over single weights, compiled for the CPU: what torch can only do a column at a time.

The rows of a weight know nothing of each other, so each thread takes a run of them. Arithmetic is float32, and rounding
is to the nearest, ties to even, as in `numerics.to_codes` for integer grids. Compiled code is kept (`jit`): only the
first run pays for compiling it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from bitworth.jit import kept
from bitworth.threads import side_by_side
from bitworth.types import Grid

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_TILE = 1024  # rows of a weight walked over together, at most: a block of their columns stays in a core's cache
_SUMS = {"reassoc", "contract", "nsz", "arcp"}  # sums may be added up in lanes; NaN and infinity keep their meaning
_ALIKE = {"contract", "nsz"}  # what lanes and the rows left over round alike: halves between two codes are common


def _series(
    function: Callable[[NDArray[np.float64]], NDArray[Any]], low: float, high: float, degree: int
) -> tuple[np.float32, ...]:
    """Coefficients of a polynomial near a function between two numbers, that of the highest power first."""
    at = low + (high - low) * (0.5 - 0.5 * np.cos(np.pi * (np.arange(999) + 0.5) / 999))
    found = np.polynomial.Polynomial.fit(at, function(at), degree).convert().coef
    return tuple(np.float32(value) for value in found[::-1])


_ROOT_HALF = np.float32(math.sqrt(0.5)).view(np.int32)  # below it a number's exponent counts as one less
#: log2(1 + t) / t for 1 + t within a factor of root two of 1, and 2 ** t for t within a half of 0.
_LOG2 = _series(lambda t: np.log2(1 + t) / t, math.sqrt(0.5) - 1, math.sqrt(2) - 1, 8)
_EXP2 = _series(np.exp2, -0.5, 0.5, 6)


def compiles(grid: Grid, device: torch.device) -> bool:
    """Whether these loops cover a grid: integers, on the CPU."""
    return grid.kind == "int" and device.type == "cpu"


def sweep(codes_OI: Tensor, scale_OG: Tensor, grid: Grid, hessian_II: Tensor, pull_OI: Tensor, sweeps: int) -> Tensor:
    """Coordinate descent over a layer's codes, as `refine.sweep_codes`, up to `sweeps` times or until nothing changes.

    A row's pull is only touched where a code changes, which few do; `pull_OI` has to be contiguous.
    """
    size = codes_OI.shape[1] // scale_OG.shape[1]
    codes = codes_OI.clone(memory_format=torch.contiguous_format)
    low, high = grid.levels
    inputs = (_numpy(codes), pull_OI.numpy(), _numpy(scale_OG))
    fixed = (_numpy(hessian_II), np.float32(low), np.float32(high), size, sweeps)
    _by_rows(_sweep_rows, inputs, fixed)
    return codes


def round_columns(left_BO: Tensor, scale_BO: Tensor, factor_BB: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """GPTQ over one block of columns, as `compiled_gpu.round_columns`."""
    left = left_BO.clone(memory_format=torch.contiguous_format)
    codes, errors = torch.empty_like(left), torch.empty_like(left)
    low, high = grid.levels
    fixed = (_numpy(scale_BO), _numpy(codes), _numpy(errors), _numpy(factor_BB), np.float32(low), np.float32(high))
    rows = left.shape[1]
    tile = min(_TILE, -(-rows // torch.get_num_threads()))
    _by_rows(_round_tiles, (np.arange(0, rows, tile),), (tile, _numpy(left), *fixed))
    return codes, errors


def best_scale(
    weight_OI: Tensor, candidates_OGS: Tensor, grid: Grid, norm: float, importance_I: Tensor | None
) -> Tensor:
    """Of the candidate scales of each group (out, groups, candidates) the one of least weighted sum of |error|**norm.

    The first of equals wins; shape (out, groups). Powers other than squares err by about a millionth.
    """
    columns = weight_OI.shape[1]
    best = candidates_OGS[..., 0].float().contiguous()  # where every error overflows
    weights = torch.ones(columns) if importance_I is None else importance_I.float()
    low, high = grid.levels
    inputs = (_numpy(weight_OI.float()), _numpy(candidates_OGS.float()), _numpy(best))
    fixed = (_numpy(weights), np.float32(norm - 2), np.float32(low), np.float32(high))
    _by_rows(_search_rows, inputs, fixed)
    return best


def _by_rows(loop: Callable[..., None], by_row: tuple[NDArray[Any], ...], whole: tuple[Any, ...]) -> None:
    """Run a compiled loop over runs of rows, a thread each; `whole` goes to all."""
    count = len(by_row[0])
    threads = max(1, min(torch.get_num_threads(), count))
    edges = [count * index // threads for index in range(threads + 1)]
    side_by_side(lambda edge: loop(*(values[slice(*edge)] for values in by_row), *whole), list(pairwise(edges)))


def _numpy(values: Tensor) -> Floats:
    found: Floats = values.contiguous().numpy()
    return found


@kept(nogil=True, fastmath=_SUMS)
def _sweep_rows(
    codes: Floats, pull: Floats, scales: Floats, hessian: Floats, low: Any, high: Any, size: int, sweeps: int
) -> None:
    rows, columns = codes.shape
    for row in range(rows):
        for _ in range(sweeps):
            changes = 0
            for column in range(columns):
                scale = scales[row, column // size]
                wanted = codes[row, column] + pull[row, column] / (hessian[column, column] * scale)
                code = min(max(np.rint(wanted), low), high)
                if code != codes[row, column]:
                    step = (code - codes[row, column]) * scale
                    codes[row, column] = code
                    changes += 1
                    for other in range(columns):
                        pull[row, other] -= step * hessian[column, other]
            if changes == 0:
                break


@kept(nogil=True, fastmath=_ALIKE)
def _round_tiles(
    tiles: Integers,
    size: int,
    left: Floats,
    scales: Floats,
    codes: Floats,
    errors: Floats,
    factor: Floats,
    low: Any,
    high: Any,
) -> None:
    columns, rows = left.shape
    for first in tiles:
        tile = slice(first, min(first + size, rows))
        for column in range(columns):
            own, now, scale = factor[column, column], left[column, tile], scales[column, tile]
            code, error = codes[column, tile], errors[column, tile]
            for row in range(len(now)):
                nearest = min(max(np.rint(now[row] / scale[row]), low), high)
                code[row] = nearest
                error[row] = (now[row] - nearest * scale[row]) / own
            for other in range(column + 1, columns):
                pays, later = factor[column, other], left[other, tile]
                for row in range(len(later)):
                    later[row] -= pays * error[row]


@njit(inline="always")
def raised(base: Any, power: Any) -> Any:
    """base ** power of float32 numbers that are not negative, by polynomials alone so that it runs in lanes."""
    bits = np.float32(base).view(np.int32)
    exponent = (bits - _ROOT_HALF) >> np.int32(23)
    part = np.int32(bits - (exponent << np.int32(23))).view(np.float32) - np.float32(1)
    log = _LOG2[0]
    for coefficient in _LOG2[1:]:
        log = log * part + coefficient
    wanted = min(max(power * (np.float32(exponent) + log * part), np.float32(-126)), np.float32(126))
    whole = np.rint(wanted)
    rest = wanted - whole
    scaled = _EXP2[0]
    for coefficient in _EXP2[1:]:
        scaled = scaled * rest + coefficient
    return scaled * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@kept(nogil=True, fastmath=_SUMS)
def _search_rows(
    weights: Floats, candidates: Floats, best: Floats, importance: Floats, beyond: Any, low: Any, high: Any
) -> None:
    rows, groups, count = candidates.shape
    size = weights.shape[1] // groups
    for row in range(rows):
        for group in range(groups):
            start = group * size
            least = np.float32(np.inf)
            for index in range(count):
                scale = candidates[row, group, index]
                loss = np.float32(0)
                for column in range(start, start + size):
                    weight = weights[row, column]
                    code = min(max(np.rint(weight / scale), low), high)
                    error = code * scale - weight
                    square = error * error * importance[column]
                    loss += square if beyond == 0 else square * raised(abs(error), beyond)
                if loss < least:
                    least = loss
                    best[row, group] = scale
