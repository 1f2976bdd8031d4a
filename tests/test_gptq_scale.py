from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from test_quantizers import F32, GROUPED, inputs_of, lost, normal, stats_of
from torch import Tensor

from bitworth.quantizers import InputStats
from bitworth.quantizers.gptq import gptq
from bitworth.quantizers.gptq_scale import conditional_variance, foreseen_loss, gptq_scale
from bitworth.types import Gptq, GptqScale, Grid


def rounded_loss(weight: Tensor, scale: Tensor, grid: Grid, stats: InputStats) -> float:
    """What GPTQ in the same order loses under a scale, by rounding."""
    made = gptq(weight * scale, grid, Gptq(ordering="weight"), stats.divided_by(scale), dtype=F32)
    return lost(weight, made.weight() / scale, stats)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_what_later_columns_leave_is_the_residual_of_a_regression(seed: int) -> None:
    inputs = inputs_of(8, seed=seed)
    found = conditional_variance(stats_of(inputs), damping=0.0)
    order = torch.argsort(inputs.square().mean(0), descending=True)
    exact = inputs.double()
    # The factor is float32's: its error grows with the condition of the moments (a quarter of this at most, seen).
    within = torch.finfo(torch.float32).eps * float(torch.linalg.cond(exact.T @ exact))
    for place, column in enumerate(order):
        later = exact[:, order[place + 1 :]]
        made_good = later @ torch.linalg.lstsq(later, exact[:, column : column + 1]).solution if later.shape[1] else 0
        left = (exact[:, column : column + 1] - made_good).square().mean()
        assert float(found[column]) == pytest.approx(float(left), rel=within)


def test_what_is_foreseen_follows_what_gptq_loses() -> None:
    weight, stats = normal(64, 64) * torch.logspace(-0.3, 0.3, 64).flip(0), stats_of(inputs_of(64, tokens=2000))
    left = conditional_variance(stats, damping=0.01)
    scales = [normal(64, seed=seed).mul(0.1 * (seed % 10)).exp() for seed in range(40)]
    foreseen = [foreseen_loss(weight, scale, left, 8) for scale in scales]
    happened = [rounded_loss(weight, scale, GROUPED, stats) for scale in scales]
    assert spearmanr(foreseen, happened).statistic > 0.95


@pytest.mark.parametrize("grid", [GROUPED, Grid(bits=4)], ids=["grouped", "channel"])
@pytest.mark.parametrize("seed", range(3))
def test_gptq_loses_less_under_the_scale(grid: Grid, seed: int) -> None:
    weight = normal(96, 64, seed=seed) * torch.logspace(-0.5, 0.5, 64)[normal(64, seed=seed).argsort()]
    stats = stats_of(inputs_of(64, tokens=2000, seed=seed))
    scale = gptq_scale(weight, grid, stats, GptqScale())
    assert rounded_loss(weight, scale, grid, stats) < rounded_loss(weight, torch.ones(64), grid, stats)


def test_sums_in_another_order_give_the_same_scale() -> None:
    weight, inputs = normal(32, 64), inputs_of(64, tokens=2000)
    shuffled = inputs[normal(2000, seed=5).argsort()]
    assert not torch.equal(stats_of(inputs).hessian_II, stats_of(shuffled).hessian_II)
    scales = [gptq_scale(weight, GROUPED, stats_of(some), GptqScale()) for some in (inputs, shuffled)]
    assert torch.equal(*scales)


def test_a_column_that_is_always_zero_gets_a_scale_too() -> None:
    inputs = inputs_of(24)
    inputs[:, 5] = 0
    scale = gptq_scale(normal(12, 24), GROUPED, stats_of(inputs), GptqScale())
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
