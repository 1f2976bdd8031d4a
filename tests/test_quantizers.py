from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitworth import recipes, schemes
from bitworth.errors import BitworthError, WorkFailed
from bitworth.numerics import as_stored, clipped_scale, from_codes, round_to_grid, scale_of
from bitworth.quantizers import InputStats, Rounded, round_weight
from bitworth.quantizers.awq import awq_scale
from bitworth.quantizers.gptq import gptq, inverse_factor
from bitworth.quantizers.refine import pull_of, refine, refit_scale, sweep_codes, systems
from bitworth.quantizers.rtn import rtn
from bitworth.quantizers.smoothquant import smoothing_scale
from bitworth.scales import scale_type
from bitworth.types import Awq, Clip, Gptq, Grid, Recipe, Rtn, SmoothQuant

CHANNEL = Grid(bits=4)
GROUPED = Grid(bits=4, granularity="group", group_size=8)
FP8 = Grid(bits=8, kind="float")
NVFP4 = Grid(bits=4, kind="float", granularity="group", group_size=16, scales="e4m3")
MXFP4 = Grid(bits=4, kind="float", granularity="group", group_size=32, scales="e8m0")
CLIPS = {"absmax": None, "mse": Clip(), "hessian": Clip(norm=2.0, shrink=0.5, steps=40, hessian_weighted=True)}
F32 = torch.float32
#: Stored so, a scale puts no weight exactly between two codes; an absmax scale in float32 puts the peak at -7.5.
BF16 = torch.bfloat16


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(columns: int, tokens: int = 200, seed: int = 7) -> Tensor:
    """Correlated activations of unequal size."""
    mixing = torch.eye(columns) + 0.3 * normal(columns, columns, seed=seed + 1)
    return normal(tokens, columns, seed=seed) @ mixing * torch.logspace(-0.5, 0.5, columns)


def stats_of(inputs: Tensor) -> InputStats:
    stats = InputStats(inputs.shape[-1])
    stats.add(inputs)
    return stats


def lost(weight: Tensor, rounded: Tensor, stats: InputStats) -> float:
    delta = (rounded - weight).double()
    return float(((delta @ stats.hessian_II.double()) * delta).sum())


# --- GPTQ against the paper's equations -----------------------------------------------------------------------------


def naive_gptq(weight: Tensor, grid: Grid, settings: Gptq, inputs: Tensor) -> Tensor:
    """Equations 2 and 3 in float64: quantize a column, update the rest with H⁻¹, eliminate the column from H⁻¹.

    No Cholesky factor, no blocks; (out, in).
    """
    columns = weight.shape[1]
    size = grid.group_size or columns
    hessian = (inputs.double().T @ inputs.double()) / len(inputs)
    weigh = hessian.diagonal().clone()
    hessian += settings.damping * weigh.mean() * torch.eye(columns)
    order = list(range(columns))
    if settings.ordering != "none":
        order = sorted(order, key=lambda column: -float(weigh[column]))
    work, inverse = weight.double()[:, order].clone(), torch.linalg.inv(hessian[order][:, order])
    fixed = scales(weight, grid, settings.clip, weigh) if settings.ordering == "weight" or size == columns else None
    out = torch.empty_like(work)
    for at, column in enumerate(order):
        if fixed is not None:
            scale = fixed[:, column // size].double()
        elif at % size == 0:
            part = work[:, at : at + size].float()
            scale = scales(part, replace(grid, group_size=None), settings.clip, weigh[order][at : at + size])[:, 0]
            scale = scale.double()
        code = (work[:, at] / scale).round().clamp(*grid.levels)
        out[:, at] = code * scale
        error = (work[:, at] - out[:, at]) / inverse[at, at]
        work -= error[:, None] * inverse[at]
        inverse = inverse - inverse[:, [at]] @ inverse[[at]] / inverse[at, at]
    return out[:, torch.tensor(order).argsort()]


def scales(weight: Tensor, grid: Grid, clip: Clip | None, weigh: Tensor) -> Tensor:
    single = grid if grid.group_size else Grid(bits=grid.bits, kind=grid.kind)
    if clip is None:
        return scale_of(weight, single, dtype=BF16)
    importance = weigh.float() if clip.hessian_weighted else None
    return clipped_scale(weight, single, clip, dtype=BF16, importance_I=importance)


@pytest.mark.parametrize("shape", [(5, 24), (1, 8), (17, 40)])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("grid", [CHANNEL, GROUPED], ids=["channel", "group"])
@pytest.mark.parametrize("ordering", ["none", "weight", "group"])
def test_gptq_is_the_papers(ordering: str, grid: Grid, clip: str, shape: tuple[int, int]) -> None:
    weight, inputs = normal(*shape), inputs_of(shape[1])
    chosen = Gptq(clip=CLIPS[clip], ordering=ordering, block_size=16)  # type: ignore[arg-type]
    found = gptq(weight, grid, chosen, stats_of(inputs), dtype=BF16)
    expected = naive_gptq(weight, grid, chosen, inputs)
    torch.testing.assert_close(found.weight().double(), expected, rtol=0, atol=1e-4)


def test_the_block_size_changes_nothing() -> None:
    weight, stats = normal(6, 40), stats_of(inputs_of(40))
    for grid in (CHANNEL, GROUPED):
        first, *others = (
            gptq(weight, grid, Gptq(ordering="weight", block_size=size), stats, dtype=BF16).weight()
            for size in (1, 7, 32, 128)
        )
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ordering", ["none", "weight"])
@pytest.mark.parametrize("clip", [None, CLIPS["hessian"]])
@pytest.mark.parametrize("grid", [CHANNEL, GROUPED, FP8])
def test_without_correlation_gptq_is_rounding_to_nearest(grid: Grid, clip: Clip | None, ordering: str) -> None:
    weight = normal(6, 24)
    stats = stats_of(torch.diag(torch.linspace(1, 3, 24)))
    found = gptq(weight, grid, Gptq(clip=clip, ordering=ordering), stats, dtype=F32)  # type: ignore[arg-type]
    nearest = rtn(weight, grid, clip, stats, dtype=F32)
    assert torch.equal(found.scale_OG, nearest.scale_OG)
    assert torch.equal(found.codes_OI, nearest.codes_OI)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["none", "weight", "group"]), st.sampled_from([CHANNEL, GROUPED]))
def test_codes_and_scales_are_what_a_checkpoint_can_hold(seed: int, ordering: str, grid: Grid) -> None:
    weight, stats = normal(4, 24, seed=seed), stats_of(inputs_of(24, seed=seed))
    found = gptq(weight, grid, Gptq(ordering=ordering), stats, dtype=torch.bfloat16)  # type: ignore[arg-type]
    assert torch.equal(found.codes_OI, found.codes_OI.round().clamp(-8, 7))
    assert torch.equal(found.scale_OG, found.scale_OG.to(torch.bfloat16).float())
    if found.group_of_I is not None:
        assert found.group_of_I.bincount().tolist() == [8, 8, 8]


def test_gptq_loses_less_at_the_output_than_rounding() -> None:
    weight, stats = normal(32, 64), stats_of(inputs_of(64, tokens=1000))
    losses = {
        name: lost(weight, rounded.weight(), stats)
        for name, rounded in {
            "rtn": rtn(weight, GROUPED, None, stats, dtype=F32),
            "none": gptq(weight, GROUPED, Gptq(), stats, dtype=F32),
            "weight": gptq(weight, GROUPED, Gptq(ordering="weight"), stats, dtype=F32),
        }.items()
    }
    assert losses["weight"] < losses["none"] < losses["rtn"]


@pytest.mark.parametrize("grid", [NVFP4, MXFP4])
def test_gptq_loses_less_on_fp4_too(grid: Grid) -> None:
    """At the layer's output: error feedback and each sweep help, and scales stay what is stored.

    Clipping helps NVFP4; MXFP4's three candidates leave it little, and the Hessian's diagonal may mistake that.
    """
    weight, stats = normal(32, 128), stats_of(inputs_of(128, tokens=1000))
    stored = scale_type(weight, grid, BF16)

    def loss(rounded: Rounded) -> float:
        assert torch.equal(stored.read_back(rounded.scale_OG), rounded.scale_OG)
        assert set(rounded.codes_OI.abs().unique().tolist()) <= {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}
        return lost(weight, rounded.weight(), stats)

    nearest = loss(rtn(weight, grid, None, stats, dtype=stored))
    clipped = loss(rtn(weight, grid, CLIPS["hessian"], stats, dtype=stored))
    for ordering in ("none", "weight"):
        chosen = Gptq(clip=CLIPS["hessian"], ordering=ordering)  # type: ignore[arg-type]
        spread = loss(gptq(weight, grid, chosen, stats, dtype=stored))
        swept = [loss(gptq(weight, grid, replace(chosen, sweeps=sweeps), stats, dtype=stored)) for sweeps in (1, 2)]
        assert swept[1] < swept[0] < spread < min(clipped, nearest)
    assert clipped < nearest * (1 if grid is NVFP4 else 1.01)


@pytest.mark.slow(beside=True)
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([NVFP4, MXFP4, GROUPED]), st.floats(1, 1.8), st.floats(0, 30))
def test_no_sweep_makes_a_row_lose(seed: int, grid: Grid, wide: float, mean: float) -> None:
    """From codes that GPTQ never saw, under scales that are too wide, on inputs that are mostly their mean."""
    weight, inputs = normal(6, 64, seed=seed), inputs_of(64, seed=seed) + mean
    stats = stats_of(inputs)
    hessian, stored = stats.hessian_II, scale_type(weight, grid, BF16)
    scale = as_stored(scale_of(weight, grid) * wide, stored)
    codes = round_to_grid(weight, scale, grid)

    def lost_by_row(codes_OI: Tensor, scale_OG: Tensor) -> Tensor:
        delta = (from_codes(codes_OI, scale_OG) - weight).double()
        return ((delta @ hessian.double()) * delta).sum(1)

    losses = [lost_by_row(codes, scale)]
    for sweeps in (1, 2, 3):
        losses.append(lost_by_row(*refine(weight, codes, scale, grid, hessian, sweeps, dtype=stored)))
    assert all((after <= before * (1 + 1e-4)).all() for before, after in pairwise(losses))


def test_systems_of_many_rows_are_solved_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = normal(50, 64), stats_of(inputs_of(64)).hessian_II
    scale = scale_of(weight, GROUPED)
    codes = round_to_grid(weight, scale, GROUPED)
    whole = refine(weight, codes, scale, GROUPED, hessian, 1, dtype=F32)
    monkeypatch.setattr(sys.modules["bitworth.quantizers.refine"], "_SYSTEMS", 7 * 8 * 8)
    parts = refine(weight, codes, scale, GROUPED, hessian, 1, dtype=F32)
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])


@pytest.mark.parametrize("grid", [NVFP4, MXFP4])
def test_awq_helps_fp4(grid: Grid) -> None:
    weight, inputs = normal(32, 64), inputs_of(64, tokens=1000) * torch.logspace(-1, 1, 64)
    stats = stats_of(inputs)
    scale = awq_scale(weight, grid, stats, Awq(), dtype=BF16)

    def loss(scale_I: Tensor) -> float:
        scaled = weight * scale_I
        return lost(
            weight, rtn(scaled, grid, None, None, dtype=scale_type(scaled, grid, BF16)).weight() / scale_I, stats
        )

    assert loss(scale) < loss(torch.ones(64))


def test_a_stack_shares_its_global_scales() -> None:
    """Those of weights and of inputs, which vLLM wants alike for layers that it merges; the parts share no memory."""
    recipe, stats = recipes.recipe("nvfp4-gptq"), stats_of(inputs_of(32))
    weight = torch.cat([normal(4, 32), 10 * normal(8, 32, seed=1)])
    parts = round_weight(weight, recipe, stats, dtype=BF16).split([4, 8])
    layout = schemes.layout_of(recipe.scheme)
    made = [layout.encode(part.codes_OI, part.scale_OG, part.dtype) | part.beside for part in parts]
    assert made[0]["weight_global_scale"].item() == pytest.approx(448 * 6 / weight.abs().max().item())
    assert made[0]["input_global_scale"].item() == pytest.approx(448 * 6 / stats.max_abs_I.max().item())
    for name in ("weight_global_scale", "input_global_scale"):
        assert torch.equal(made[0][name], made[1][name])
        assert made[0][name].data_ptr() != made[1][name].data_ptr()


def test_inputs_that_calibration_never_saw_get_a_global_scale_of_one_and_a_note() -> None:
    found = round_weight(normal(4, 32), recipes.recipe("nvfp4-rtn"), None, dtype=BF16)
    assert found.beside["input_global_scale"].tolist() == [1.0]
    assert found.notes == ["calibration never reached it, so the global scale of its inputs is 1"]


def test_inputs_are_left_alone() -> None:
    weight, stats = normal(4, 24), stats_of(inputs_of(24))
    before = weight.clone(), stats.hessian_II
    gptq(weight, GROUPED, Gptq(clip=CLIPS["hessian"], ordering="group"), stats, dtype=F32)
    assert torch.equal(weight, before[0])
    assert torch.equal(stats.hessian_II, before[1])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12) | st.integers(193, 420), st.integers(0, 10**6))
def test_the_factor_is_that_of_the_inverse(columns: int, seed: int) -> None:
    inputs = normal(3 * columns, columns, seed=seed).double()
    hessian = inputs.T @ inputs + torch.eye(columns)
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
    upper = inverse_factor(hessian, order)
    assert upper is not None
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(hessian[order][:, order]))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["none", "weight", "group"]), st.sampled_from([CHANNEL, GROUPED, FP8]))
def test_every_sweep_lowers_what_is_lost(seed: int, ordering: str, grid: Grid) -> None:
    weight, stats = normal(6, 40, seed=seed), stats_of(inputs_of(40, seed=seed))
    chosen = Gptq(ordering=ordering)  # type: ignore[arg-type]
    damping = 0.01 * stats.hessian_II.diagonal().mean()

    def loss(sweeps: int) -> float:
        found = gptq(weight, grid, replace(chosen, sweeps=sweeps), stats, dtype=F32)
        delta = found.weight() - weight
        return lost(weight, found.weight(), stats) + float(damping * delta.square().sum())

    losses = [loss(sweeps) for sweeps in range(4)]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(losses))
    assert losses[3] < losses[0]


def test_refitted_scales_are_the_least_squares_solution() -> None:
    """Against numpy's solver on the layer's outputs themselves; a group without codes keeps its scale."""
    inputs, weight = inputs_of(24), normal(3, 24)
    scale = scale_of(weight, GROUPED)
    codes = round_to_grid(weight, scale, GROUPED)
    codes[1, 8:16] = 0
    hessian = stats_of(inputs).hessian_II
    pull, left = pull_of(weight, codes, scale, hessian), systems(codes, 3, hessian)
    found = refit_scale(pull, codes, scale, left, dtype=F32)
    for row in range(3):
        kept = [group for group in range(3) if codes[row, group * 8 : group * 8 + 8].any()]
        basis = torch.stack([inputs[:, g * 8 : g * 8 + 8] @ codes[row, g * 8 : g * 8 + 8] for g in kept], dim=1)
        expected, *_ = np.linalg.lstsq(basis.double().numpy(), (inputs @ weight[row]).double().numpy(), rcond=None)
        torch.testing.assert_close(found[row, kept].double(), torch.from_numpy(expected), rtol=1e-4, atol=0)
    assert found[1, 1] == scale[1, 1]


def test_a_sweep_gives_each_column_in_its_turn_its_best_code() -> None:
    """Brute force: every code of every column tried."""
    weight, hessian = normal(4, 40), stats_of(inputs_of(40)).hessian_II
    scale = scale_of(weight, GROUPED, dtype=BF16)
    codes = round_to_grid(weight, scale, GROUPED)
    expected = codes.clone()
    for column in range(40):
        tried = []
        for code in range(-8, 8):
            expected[:, column] = code
            delta = (from_codes(expected, scale) - weight).double()
            tried.append(((delta @ hessian.double()) * delta).sum(1))
        expected[:, column] = torch.stack(tried).argmin(0) - 8.0
    pull = pull_of(weight, codes, scale, hessian)
    assert torch.equal(sweep_codes(codes, scale, GROUPED, hessian, pull), expected)
    torch.testing.assert_close(pull, pull_of(weight, expected, scale, hessian), rtol=0, atol=1e-5)


# --- Hessians that are not what one hopes for -----------------------------------------------------------------------


def test_fewer_tokens_than_columns_need_no_more_than_the_damping() -> None:
    weight, stats = normal(6, 40), stats_of(inputs_of(40, tokens=3))
    found = gptq(weight, GROUPED, Gptq(), stats, dtype=F32)
    assert found.notes == []
    assert lost(weight, found.weight(), stats) < lost(
        weight, rtn(weight, GROUPED, None, None, dtype=F32).weight(), stats
    )


def test_a_singular_hessian_without_damping_gets_some_and_says_so() -> None:
    found = gptq(normal(6, 40), GROUPED, Gptq(damping=0.0), stats_of(inputs_of(40, tokens=3)), dtype=F32)
    assert torch.isfinite(found.weight()).all()
    assert len(found.notes) == 1
    assert "damping was raised from 0 to 0.0" in found.notes[0]


def test_an_indefinite_hessian_is_given_up() -> None:
    stats = stats_of(inputs_of(8))
    stats._sum_II.neg_()
    with pytest.raises(WorkFailed, match="singular under any damping"):
        gptq(normal(2, 8), GROUPED, Gptq(), stats, dtype=F32)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_named(bad: float) -> None:
    inputs = inputs_of(8)
    inputs[3, 2] = bad
    with pytest.raises(WorkFailed, match="NaN or infinity"):
        gptq(normal(2, 8), GROUPED, Gptq(), stats_of(inputs), dtype=F32)


@pytest.mark.parametrize("dead", [[3], [0, 1, 2, 3, 4, 5, 6, 7], list(range(24))])
@pytest.mark.parametrize("clip", [None, CLIPS["hessian"]])
def test_dead_columns_are_rounded_to_nearest_and_noted(dead: list[int], clip: Clip | None) -> None:
    weight, inputs = normal(5, 24), inputs_of(24)
    inputs[:, dead] = 0
    found = gptq(weight, GROUPED, Gptq(clip=clip, ordering="weight"), stats_of(inputs), dtype=F32)
    nearest = round_to_grid(weight, found.scale_OG, GROUPED)
    assert torch.equal(found.codes_OI[:, dead], nearest[:, dead])
    assert found.notes[0].startswith(f"{len(dead)} input columns were zero")


def test_a_layer_that_calibration_never_reached_is_rounded_without_data() -> None:
    recipe = recipes.recipe("w4a16-int-gptq", group_size=8)
    for stats in (None, InputStats(24)):
        found = round_weight(normal(5, 24), recipe, stats, dtype=F32)
        assert isinstance(recipe.rounding, Gptq)
        expected = rtn(normal(5, 24), GROUPED, recipe.rounding.clip, None, dtype=F32)
        assert torch.equal(found.codes_OI, expected.codes_OI)
        assert found.notes == ["calibration never reached it, so it was rounded without data"]


# --- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3, 8, 30])
def test_statistics_of_parts_are_those_of_the_whole(columns: int) -> None:
    inputs = normal(60, columns)
    stats = InputStats(columns)
    for part in inputs.view(3, 4, 5, columns):
        stats.add(part)
    torch.testing.assert_close(stats.hessian_II, inputs.T @ inputs / 60)
    torch.testing.assert_close(stats.mean_abs_I, inputs.abs().mean(0))
    assert torch.equal(stats.max_abs_I, inputs.abs().amax(0))
    assert stats.tokens == 60


@pytest.mark.parametrize("columns", [7, 600, 1100])
def test_rounded_factors_are_added_up_in_float32(columns: int) -> None:
    """Exactly where the processor multiplies bfloat16; elsewhere torch multiplies what it was given."""
    inputs = normal(300, columns)
    stats = InputStats(columns, factors=torch.bfloat16)
    for part in inputs.split(150):
        stats.add(part)
    rounded = inputs.bfloat16().double()
    exact, unrounded = (made.T @ made / 300 for made in (rounded, inputs.double()))
    error = min((stats.hessian_II.double() - one).abs().max() for one in (exact, unrounded))
    assert error < 1e-6 * exact.abs().max()
    assert torch.equal(stats.hessian_II, stats.hessian_II.T)
    assert torch.equal(stats.mean_square_I, stats.hessian_II.diagonal())
    assert torch.equal(stats.max_abs_I, inputs.abs().amax(0))
    torch.testing.assert_close(inputs.T @ inputs / 300, unrounded.float())  # other products stay as they were


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_halves_share_no_token_and_are_as_large_as_each_other(rows: list[int]) -> None:
    """Each token has a column of its own, so that which half it is in shows."""
    tokens = sum(rows)
    stats = InputStats(max(1, tokens))
    for part in torch.eye(max(1, tokens))[:tokens].split(rows):
        stats.add(part)
    sizes = stats.half_max_abs_2I.sum(1).tolist()
    assert stats.half_max_abs_2I.sum(0)[:tokens].tolist() == [1.0] * tokens
    assert sizes[1] - sizes[0] in (0, 1)


def test_halves_are_the_first_and_second_rows_of_each_chunk() -> None:
    inputs = normal(2, 6, 5)
    stats = InputStats(5)
    for chunk in inputs:
        stats.add(chunk)
    expected = torch.stack([inputs[:, :3].abs().amax((0, 1)), inputs[:, 3:].abs().amax((0, 1))])
    assert torch.equal(stats.half_max_abs_2I, expected)


@pytest.mark.parametrize("spend", [False, True])
@pytest.mark.parametrize("settled", [False, True])
def test_scaled_statistics_are_those_of_scaled_inputs(spend: bool, settled: bool) -> None:
    inputs, scale = normal(60, 9), torch.linspace(0.5, 2, 9)
    stats, expected = stats_of(inputs), stats_of(inputs / scale)
    before = stats.hessian_II if settled else None
    found = stats.divided_by(scale, spend=spend)
    torch.testing.assert_close(found.hessian_II, expected.hessian_II)
    assert torch.equal(found.hessian_II, found.hessian_II.T)
    torch.testing.assert_close(found.mean_square_I, expected.mean_square_I)
    if before is not None and not spend:
        assert torch.equal(stats.hessian_II, before)
    torch.testing.assert_close(found.mean_abs_I, expected.mean_abs_I)
    torch.testing.assert_close(found.max_abs_I, expected.max_abs_I)
    torch.testing.assert_close(found.half_max_abs_2I, expected.half_max_abs_2I)
    assert found.tokens == expected.tokens


def test_a_stack_is_split_into_its_layers() -> None:
    weight, stats = normal(9, 24), stats_of(inputs_of(24))
    whole = gptq(weight, GROUPED, Gptq(ordering="group"), stats, dtype=BF16)
    for part, rows in zip(whole.split([2, 7]), torch.split(weight, [2, 7]), strict=True):
        alone = gptq(rows, GROUPED, Gptq(ordering="group"), stats, dtype=BF16)
        torch.testing.assert_close(part.weight(), alone.weight(), rtol=0, atol=1e-5)


# --- scaling before rounding ----------------------------------------------------------------------------------------


def test_awq_takes_the_exponent_that_loses_least_in_a_forward() -> None:
    """Every exponent tried by running the layer on the inputs themselves."""
    weight, inputs = normal(12, 24), inputs_of(24)
    magnitude = inputs.abs().mean(0)
    losses, tried = [], []
    for step in range(20):
        scale = magnitude ** (step / 20)
        scale = scale / (scale.max() * scale.min()).sqrt()
        steps = scale_of(weight * scale, GROUPED)
        rounded = from_codes(round_to_grid(weight * scale, steps, GROUPED), steps)
        losses.append(float(((inputs / scale) @ rounded.T - inputs @ weight.T).double().square().sum()))
        tried.append(scale)
    best = min(range(20), key=losses.__getitem__)
    assert 0 < best < 19
    found = awq_scale(weight, GROUPED, stats_of(inputs), Awq(), dtype=F32)
    torch.testing.assert_close(found, tried[best])


def test_a_sample_of_rows_finds_as_good_a_scale() -> None:
    weight, stats = normal(1500, 24) * torch.linspace(0.2, 2, 1500).unsqueeze(1), stats_of(inputs_of(24))

    def loss(scale: Tensor) -> float:
        return lost(weight, rtn(weight * scale, GROUPED, None, None, dtype=F32).weight() / scale, stats)

    tried = [stats.mean_abs_I ** (step / 20) for step in range(20)]
    least = min(loss(scale / (scale.max() * scale.min()).sqrt()) for scale in tried)
    assert loss(awq_scale(weight, GROUPED, stats, Awq(), dtype=F32)) < 1.02 * least


def test_awq_survives_inputs_that_are_always_zero() -> None:
    inputs = inputs_of(24)
    inputs[:, 5] = 0
    scale = awq_scale(normal(12, 24), GROUPED, stats_of(inputs), Awq(), dtype=F32)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


def test_smoothing_is_equation_four() -> None:
    weight, inputs = normal(12, 24), inputs_of(24)
    found = smoothing_scale(weight, stats_of(inputs), SmoothQuant(strength=0.3))
    expected = inputs.abs().amax(0) ** 0.3 / weight.abs().amax(0) ** 0.7
    torch.testing.assert_close(found, expected)
    half = smoothing_scale(weight, stats_of(inputs), SmoothQuant(strength=0.5))
    torch.testing.assert_close((inputs / half).abs().amax(0), (weight * half).abs().amax(0))


# --- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_rounds(name: str) -> None:
    recipe = recipes.recipe(name, group_size=8)
    grid = recipe.scheme.weight
    assert grid is not None
    assert recipe.name == name
    weight = normal(6, 96)
    found = round_weight(weight, recipe, stats_of(inputs_of(96)), dtype=torch.bfloat16)
    assert (found.weight() - weight).abs().max() < (1.2 if grid.bits == 4 else 0.3)
    assert found.scale_OG.shape == (6, 96 // (grid.group_size or 96))
    assert torch.equal(found.dtype.read_back(found.scale_OG), found.scale_OG)


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BitworthError, match=r"w2-int.*w4a16-int-gptq"):
        recipes.recipe("w2-int")


def test_calibration_is_asked_for_where_a_step_reads_activations() -> None:
    needing = {name for name in recipes.NAMES if recipes.recipe(name).needs_calibration}
    rounding = {name for name in recipes.NAMES if name == "w8a8-fp" or name.endswith("-rtn")}
    stored = {"nvfp4-rtn", "w8a8-int-static-rtn"}  # whose inputs have a scale of their own
    assert set(recipes.NAMES) - needing == rounding - stored
    assert recipes.recipe("w8a8-fp+kv-fp8").needs_calibration
    scheme = recipes.recipe("w4a16-int-rtn").scheme
    assert Recipe(name="x", scheme=scheme, rounding=Rtn(clip=CLIPS["hessian"]), transforms=(Awq(),)).needs_calibration
