"""The compiled loops against torch and against trying everything."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitworth import compiled
from bitworth.numerics import as_stored, clipped_scale, from_codes, round_to_grid, scale_of
from bitworth.quantizers.refine import pull_of, sweep_codes
from bitworth.types import Clip, Grid

GRID = Grid(bits=4, granularity="group", group_size=8)


def layer(seed: int, rows: int = 12, columns: int = 24) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight, its rounding to nearest, the scales, and a Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    hessian = inputs.T @ inputs / 200 + 0.01 * torch.eye(columns)
    weight = torch.randn(rows, columns, generator=generator)
    scale = scale_of(weight, GRID, dtype=torch.bfloat16)
    return weight, round_to_grid(weight, scale, GRID), scale, hessian


def objective(weight: Tensor, codes: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    delta = (from_codes(codes, scale) - weight).double()
    return ((delta @ hessian.double()) * delta).sum(1)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_sweep_is_torchs_sweep_and_further_ones_never_lose(seed: int) -> None:
    weight, codes, scale, hessian = layer(seed)
    pull = pull_of(weight, codes, scale, hessian)
    pulls = [pull.clone() for _ in range(3)]
    once = compiled.sweep(codes, scale, GRID, hessian, pulls[0], 1)
    expected = sweep_codes(codes, scale, GRID, hessian, pulls[1])
    assert (once != expected).float().mean() < 0.01  # ties, rounded otherwise
    many = compiled.sweep(codes, scale, GRID, hessian, pulls[2], 50)
    for found, kept_up in zip((once, expected, many), pulls, strict=True):
        left = pull_of(weight, found, scale, hessian)
        torch.testing.assert_close(kept_up, left, rtol=0, atol=1e-5 * float(pull.abs().max()))
    before, first, last = (objective(weight, found, scale, hessian) for found in (codes, once, many))
    assert (first <= before * (1 + 1e-4)).all()
    assert (last <= first * (1 + 1e-4)).all()
    assert many.min() >= -8
    assert many.max() <= 7


def test_after_enough_sweeps_no_single_code_can_be_bettered() -> None:
    weight, codes, scale, hessian = layer(3, rows=3)
    found = compiled.sweep(codes, scale, GRID, hessian, pull_of(weight, codes, scale, hessian), 100)
    least = objective(weight, found, scale, hessian)
    for row, column, code in product(range(3), range(24), range(-8, 8)):
        other = found.clone()
        other[row, column] = code
        assert objective(weight, other, scale, hessian)[row] >= least[row] * (1 - 1e-5)


def test_what_it_is_given_stays_as_it_is() -> None:
    weight, codes, scale, hessian = layer(0)
    kept = [value.clone() for value in (codes, scale, hessian)]
    compiled.sweep(codes, scale, GRID, hessian, pull_of(weight, codes, scale, hessian), 3)
    assert all(torch.equal(*pair) for pair in zip(kept, (codes, scale, hessian), strict=True))


@pytest.mark.parametrize("norm", [2.0, 2.4, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grid", [GRID, Grid(bits=8, granularity="channel"), Grid(bits=4, granularity="channel")])
def test_the_clipping_search_is_torchs(
    grid: Grid, weighted: bool, norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, _, _, hessian = layer(5, rows=40)
    weight[3] = 0
    importance = hessian.diagonal() if weighted else None
    clip = Clip(norm=norm, shrink=0.5, steps=40, hessian_weighted=weighted)
    found = clipped_scale(weight, grid, clip, dtype=torch.bfloat16, importance_I=importance)
    monkeypatch.setattr(sys.modules["bitworth.numerics"].compiled, "compiles", lambda *_: False)
    by_torch = clipped_scale(weight, grid, clip, dtype=torch.bfloat16, importance_I=importance)
    assert (found != by_torch).float().mean() <= (0 if norm == 2 else 0.02)  # equals, but for the last bits of powers

    def lost(scale: Tensor) -> Tensor:
        error = (from_codes(round_to_grid(weight, scale, grid), scale) - weight).abs().double() ** norm
        return (error if importance is None else error * importance).view(len(weight), scale.shape[1], -1).sum(-1)

    torch.testing.assert_close(lost(found), lost(by_torch), rtol=1e-5, atol=0)


def test_the_best_of_the_candidates_wins_and_the_first_of_equals() -> None:
    weight = torch.tensor([[7.0, 1.0, 0.4, 0.2]])
    grid = Grid(bits=4, granularity="channel")
    candidates = as_stored(torch.tensor([[[1.0, 0.5, 1.0, 0.25]]]), torch.float32)
    losses = [float((round_to_grid(weight, s.view(1, 1), grid) * s - weight).square().sum()) for s in candidates[0, 0]]
    expected = candidates[0, 0, losses.index(min(losses))]
    assert compiled.best_scale(weight, candidates, grid, 2, None) == expected


@given(
    st.lists(st.floats(2**-60, 2**60, width=32), min_size=1, max_size=40),
    st.floats(-1.875, 2, width=16),
)
def test_powers_are_right_to_a_millionth_or_two(bases: list[float], power: float) -> None:
    found = [compiled.raised(np.float32(base), np.float32(power)) for base in bases]
    np.testing.assert_allclose(found, np.array(bases) ** power, rtol=1e-5 if abs(power) > 1 else 5e-6)
    assert np.isfinite(compiled.raised(np.float32(0), np.float32(power)))  # times a square of zero


@given(
    columns=st.integers(1, 70),
    rows=st.sampled_from([1, 5, 1024, 1030]),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_a_block_of_columns_is_rounded_as_one_after_the_other(columns: int, rows: int, threads: int, seed: int) -> None:
    """The codes and errors are those of the equations, worked out in float64 from the codes found."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(columns, rows, generator=generator)
    scale = 0.05 + torch.rand(columns, rows, generator=generator)
    above = torch.randn(columns, columns, generator=generator).triu(1)
    factor = torch.eye(columns) + 0.3 * above / columns**0.5
    grid = Grid(bits=4, granularity="channel")
    kept, before = left.clone(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        codes, errors = compiled.round_columns(left, scale, factor, grid)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(left, kept)
    now = left.double()
    for column in range(columns):
        wanted = now[column] / scale[column]
        assert bool(((codes[column] - wanted.clamp(-8, 7)).abs() <= 0.5 + 1e-3).all())
        error = (now[column] - codes[column] * scale[column]) / factor[column, column]
        torch.testing.assert_close(errors[column].double(), error, atol=1e-3, rtol=1e-3)
        now[column + 1 :] -= torch.outer(factor[column, column + 1 :].double(), error)
    assert set(codes.unique().tolist()) <= set(range(-8, 8))
