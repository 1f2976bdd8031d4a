"""The GPU's loops beside torch's, on Triton's interpreter where there is no GPU.

They run in a process of their own, since Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from bitworth import compiled_gpu
from bitworth.numerics import from_codes, round_to_grid, scale_of
from bitworth.quantizers import InputStats
from bitworth.quantizers.gptq import gptq
from bitworth.quantizers.refine import pull_of, sweep_codes
from bitworth.types import Clip, Gptq, Grid

INTERPRETED = "BITWORTH_TEST_INTERPRETED"
SHAPES = [(5, 64, 16), (70, 96, 32), (33, 48, None)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def stats_of(columns: int) -> InputStats:
    stats = InputStats(columns, DEVICE)
    stats.add(
        normal(400, columns, seed=1) @ (torch.eye(columns, device=DEVICE) + 0.3 * normal(columns, columns, seed=2))
    )
    return stats


def grid_of(bits: int, size: int | None) -> Grid:
    return Grid(bits=bits, granularity="group" if size else "channel", group_size=size)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED in os.environ, reason="this is that process")
def test_on_the_interpreter_or_the_gpu() -> None:
    settings = {INTERPRETED: "1", **({} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"})}
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__]
    ended = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:]


inside = pytest.mark.skipif(INTERPRETED not in os.environ, reason="runs in the process that the test above starts")


@pytest.fixture
def covering(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the loops take CPU tensors; the blocks that they were asked for."""
    asked: list[int] = []

    def covers(grid: Grid, _device: torch.device, columns: int) -> bool:
        asked.append(columns)
        return grid.kind == "int"

    monkeypatch.setattr(compiled_gpu, "covers", covers)
    return asked


@inside
@pytest.mark.parametrize(("rows", "columns", "size"), SHAPES)
@pytest.mark.parametrize("ordering", ["none", "weight"])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_is_that_of_the_loop_in_torch(
    rows: int,
    columns: int,
    size: int | None,
    ordering: str,
    bits: int,
    covering: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, stats, grid = normal(rows, columns), stats_of(columns), grid_of(bits, size)
    chosen = Gptq(ordering=ordering, block_size=24, clip=Clip(norm=2.0, shrink=0.5, steps=10))  # type: ignore[arg-type]
    found = gptq(weight, grid, chosen, stats, dtype=torch.bfloat16)
    assert covering
    monkeypatch.setattr(compiled_gpu, "covers", lambda *_: False)
    expected = gptq(weight, grid, chosen, stats, dtype=torch.bfloat16)
    assert torch.equal(found.scale_OG, expected.scale_OG) or ordering == "none"
    assert (found.codes_OI != expected.codes_OI).float().mean() < 2e-3


@inside
@pytest.mark.parametrize(("rows", "columns", "size"), SHAPES)
def test_descent_is_that_of_the_loop_in_torch(
    rows: int, columns: int, size: int | None, covering: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian, grid = normal(rows, columns), stats_of(columns).hessian_II, grid_of(4, size)
    scale = scale_of(weight, grid, dtype=torch.bfloat16)
    codes = round_to_grid(weight, scale, grid)
    pulls = [pull_of(weight, codes, scale, hessian) for _ in range(2)]
    found = sweep_codes(codes, scale, grid, hessian, pulls[0])
    assert covering
    left = pull_of(weight, found, scale, hessian)
    torch.testing.assert_close(pulls[0], left, rtol=0, atol=1e-4 * float(left.abs().max()))
    monkeypatch.setattr(compiled_gpu, "covers", lambda *_: False)
    expected = sweep_codes(codes, scale, grid, hessian, pulls[1])
    assert (found != codes).any()
    assert (found != expected).float().mean() < 2e-3
    delta = [from_codes(some, scale) - weight for some in (codes, found)]
    losses = [float(((each @ hessian) * each).sum()) for each in delta]
    assert losses[1] < losses[0]


@inside
def test_halves_go_to_the_even_code() -> None:
    left = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 9.0, -9.0, 7.5]], device=DEVICE)
    codes, errors = compiled_gpu.round_columns(
        left, torch.ones_like(left), torch.ones(1, 1, device=DEVICE), Grid(bits=4)
    )
    assert codes.tolist() == [[0, 2, 2, 0, -2, 7, -8, 7]]
    assert torch.equal(errors, left - codes)


def test_other_devices_and_grids_are_not_covered() -> None:
    assert not compiled_gpu.covers(Grid(bits=4), torch.device("cpu"), 128)
    assert not compiled_gpu.covers(Grid(bits=8, kind="float"), torch.device("cuda"), 128)
    assert not compiled_gpu.covers(Grid(bits=4), torch.device("cuda"), 512)
