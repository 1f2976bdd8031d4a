from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitworth import recipes
from bitworth.audit import expert_coverage
from bitworth.blocks import round_block, skipped
from bitworth.errors import WorkFailed
from bitworth.model import Arguments, Block, Decoder, call
from bitworth.quantizers import InputStats, round_weight
from bitworth.sequential import BlockPass
from bitworth.stages import Producers, find_producer, one_sequence, trace
from bitworth.types import Awq, ExpertAudit, Grid, Recipe, Rtn, Scheme, SmoothQuant

GPTQ = replace(recipes.recipe("w4a16-int-gptq", group_size=32), transforms=())
#: So fine a grid that rounding changes nothing but what a transform would.
FINE = Scheme(name="w4a16-int", weight=Grid(bits=16, granularity="channel"))


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def decoder(tiny_llama: Path) -> Decoder:
    return Decoder(tiny_llama)


def inputs_of(decoder: Decoder, batch: int = 6) -> tuple[list[Tensor], list[Arguments]]:
    tokens = torch.randint(0, 250, (batch, 24), generator=torch.Generator().manual_seed(0))
    hidden: list[Tensor] = []
    return hidden, decoder.first_inputs([tokens], hidden.append)


def chunked(decoder: Decoder, sizes: list[int]) -> tuple[list[Tensor], list[Arguments]]:
    tokens = torch.randint(0, 250, (sum(sizes), 24), generator=torch.Generator().manual_seed(0))
    hidden: list[Tensor] = []
    return hidden, decoder.first_inputs(list(torch.split(tokens, sizes)), hidden.append)


# --- true sequential order ------------------------------------------------------------------------------------------


def test_each_stage_sees_what_the_rounded_stages_before_it_produce(decoder: Decoder) -> None:
    """Oracle: one stage after the other, the block run anew with the weights rounded so far put in place."""
    hidden, kwargs = inputs_of(decoder)
    with decoder.loaded(0) as block:
        walk = BlockPass(block, [GPTQ], decoder.dtype)
        outputs = list(hidden)
        walk.run(outputs, kwargs[0])
    with decoder.loaded(0) as block:
        linears = block.linears()
        for stage in (["q", "k", "v"], ["o"], ["gate", "up"], ["down"]):
            names = [name for name in linears if name.rpartition(".")[2].removesuffix("_proj") in stage]
            stats = InputStats(linears[names[0]].in_features)
            handle = linears[names[0]].register_forward_pre_hook(lambda _m, args, stats=stats: stats.add(args[0]))
            call(block.module, hidden[0], kwargs[0][6])
            handle.remove()
            for name in names:
                expected = round_weight(linears[name].weight, GPTQ, stats, dtype=decoder.dtype)
                assert torch.equal(walk.results[0].rounded[name].codes_OI, expected.codes_OI), name
                linears[name]._parameters["weight"] = nn.Parameter(expected.weight(), requires_grad=False)
        expected_output = call(block.module, hidden[0], kwargs[0][6])
    torch.testing.assert_close(outputs[0], expected_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["w4a16-int-gptq", "w8a8-int-smoothquant-gptq", "w4a16-int-gptq-published"])
@pytest.mark.parametrize("together", [True, False])
def test_weights_dropped_as_they_are_rounded_are_not_missed(decoder: Decoder, name: str, together: bool) -> None:
    recipe = recipes.recipe(name, group_size=32)
    results = []
    for spend in (False, True):
        hidden, kwargs = chunked(decoder, [2, 2, 2])
        with decoder.loaded(0) as block:
            walk = BlockPass(block, [recipe], decoder.dtype, together=together, spend=spend)
            walk.run(hidden, kwargs[0])
            results.append((torch.cat(hidden), walk.results[0]))
            assert {layer.weight.is_meta for layer in block.linears().values()} == {spend}
    (kept, first), (dropped, second) = results
    assert torch.equal(kept, dropped)
    for layer, rounded in first.rounded.items():
        assert torch.equal(second.rounded[layer].codes_OI, rounded.codes_OI)
        assert torch.equal(second.rounded[layer].scale_OG, rounded.scale_OG)
    assert first.changed.keys() == second.changed.keys()
    assert all(torch.equal(second.changed[key], value) for key, value in first.changed.items())


@pytest.mark.parametrize("name", ["w4a16-int-gptq", "w4a16-int-awq", "w8a8-int-smoothquant-gptq"])
@pytest.mark.parametrize(("sizes", "together"), [([2, 2, 2], True), ([4, 2], True), ([2, 2, 2], False)])
def test_several_chunks_give_what_one_gives(decoder: Decoder, name: str, sizes: list[int], together: bool) -> None:
    recipe = recipes.recipe(name, group_size=32)
    results = []
    for split in ([6], sizes):
        hidden, kwargs = chunked(decoder, split)
        with decoder.loaded(0) as block:
            walk = BlockPass(block, [recipe], decoder.dtype, together=together)
            walk.run(hidden, kwargs[0])
            results.append((torch.cat(hidden), walk.results[0]))
    (whole, first), (parts, second) = results
    for layer, rounded in first.rounded.items():
        torch.testing.assert_close(second.rounded[layer].scale_OG, rounded.scale_OG, rtol=1e-2, atol=0)
        steps = (second.rounded[layer].codes_OI.float() - rounded.codes_OI).abs()
        assert steps.max() <= 1  # sums in another order decide a tie the other way
        turned = steps.sum(1).argmax()  # a tie may turn the rest of its row, no other row
        assert steps.sum() - steps[turned].sum() < 1e-3 * steps.numel(), layer
        if layer == "mlp.down_proj":  # whose rows are the output's columns
            parts[..., turned] = whole[..., turned]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-2 * float(whole.abs().max()))
    assert first.changed.keys() == second.changed.keys()


def test_products_of_bfloat16_change_no_more_than_their_rounding(decoder: Decoder) -> None:
    """Factors of 8 bits of mantissa, added up in float32."""
    results = []
    for factors in (torch.float32, torch.bfloat16):
        hidden, kwargs = inputs_of(decoder)
        with decoder.loaded(0) as block:
            walk = BlockPass(replace(block, factors=factors), [recipes.recipe("w8a8-int-rtn")], decoder.dtype)
            outputs = list(hidden)
            walk.run(outputs, kwargs[0])
            results.append((outputs[0] - hidden[0], walk.results[0]))
    (exact, first), (rounded, second) = results
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).norm() / exact.norm()) < 1 / 64  # a factor is off by 1/512 at most
    for layer, expected in first.rounded.items():
        assert torch.equal(second.rounded[layer].codes_OI, expected.codes_OI), layer


def test_a_block_is_left_as_it_was(decoder: Decoder) -> None:
    hidden, kwargs = inputs_of(decoder)
    with decoder.loaded(0) as block:
        before = {name: value.clone() for name, value in block.module.state_dict().items()}
        expected = call(block.module, hidden[0], kwargs[0][6])
        BlockPass(block, [recipes.recipe("w4a16-int-awq", group_size=32)], decoder.dtype).run(list(hidden), kwargs[0])
        assert torch.equal(call(block.module, hidden[0], kwargs[0][6]), expected)
        assert all(torch.equal(value, before[name]) for name, value in block.module.state_dict().items())


# --- transforms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transforms", [(SmoothQuant(),), (Awq(),), (SmoothQuant(), Awq())])
def test_folded_scales_leave_the_function_unchanged(decoder: Decoder, transforms: tuple[Any, ...]) -> None:
    """With 16-bit weights in float32 nothing is lost to rounding: the new block must compute what the old one did."""
    recipe = Recipe(name="fine", scheme=FINE, rounding=Rtn(), transforms=transforms)
    hidden, kwargs = inputs_of(decoder)
    with decoder.loaded(0) as block:
        before = call(block.module, hidden[0], kwargs[0][6])
        walk = BlockPass(block, [recipe], torch.float32)
        walk.run(list(hidden), kwargs[0])
        assert "input_layernorm.weight" in walk.results[0].changed
        assert not torch.allclose(
            walk.results[0].changed["input_layernorm.weight"], block.module.input_layernorm.weight
        )
        state = {f"{name}.weight": rounded.weight() for name, rounded in walk.results[0].rounded.items()}
        for name, value in {**state, **walk.results[0].changed}.items():
            owner, _, leaf = name.rpartition(".")
            block.module.get_submodule(owner)._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        after = call(block.module, hidden[0], kwargs[0][6])
    torch.testing.assert_close(after, before, rtol=0, atol=5e-3 * float(before.abs().max()))


def test_llamas_producers_are_found(decoder: Decoder) -> None:
    """Its v_proj makes o_proj's input only where each query head has a value head of its own."""
    hidden, kwargs = inputs_of(decoder)
    with decoder.loaded(0) as block:
        stages = trace(
            block.module, list(block.linears()), *one_sequence(block.module, hidden[0], kwargs[0][6])[1:], producers={}
        )
    assert [(stage.layers, stage.producer) for stage in stages] == [
        (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "input_layernorm"),
        (["self_attn.o_proj"], None),
        (["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm"),
        (["mlp.down_proj"], "mlp.up_proj"),
    ]


class Norm(nn.Module):
    def __init__(self, width: int, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.linspace(0.5, 1.5, width)), offset

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * hidden.square().mean(-1, keepdim=True).rsqrt() * (self.weight + self.offset)


class TinyBlock(nn.Module):
    """Two layers behind a norm; `shared`: the second reads it too, `offset`: the norm holds weight - offset."""

    def __init__(self, *, offset: float = 0.0, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.shared = Norm(16, offset), shared
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        middle = self.first(normed)
        result: Tensor = hidden + self.second(torch.tanh(middle) + (normed if self.shared else 0))
        return result


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "norm"), ({"offset": 1.0}, None), ({"shared": True}, None)],
    ids=["plain", "one-plus-weight", "read-by-others"],
)
def test_only_what_can_be_divided_is_a_producer(settings: dict[str, Any], expected: str | None) -> None:
    module, sample = TinyBlock(**settings).eval(), torch.randn(1, 5, 16)
    before = module(sample)
    assert find_producer(module, ["first"], before, sample, {}) == expected
    assert find_producer(module, ["second"], before, sample, {}) is None  # a tanh lies between


def test_what_an_earlier_block_had_is_tried_first_and_checked() -> None:
    """A wrong guess costs a trial; where there was none the search is not repeated."""
    module, sample = TinyBlock().eval(), torch.randn(2, 5, 16)
    known: Producers = {("first",): "second"}
    first, second = trace(module, ["first", "second"], sample, {}, known)
    assert (first.producer, second.producer) == ("norm", None)
    assert known == {("first",): "norm", ("second",): None}
    assert trace(module, ["first"], sample, {}, {("first",): None})[0].producer is None


def test_gemmas_norms_are_refused(tmp_path: Path) -> None:
    from conftest import byte_tokenizer
    from transformers import AutoModelForCausalLM, GemmaConfig

    config = GemmaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        head_dim=16, vocab_size=259,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    decoder = Decoder(tmp_path)
    hidden, kwargs = inputs_of(decoder)
    with decoder.loaded(0) as block:
        stages = trace(
            block.module, list(block.linears()), *one_sequence(block.module, hidden[0], kwargs[0][6])[1:], producers={}
        )
    assert [stage.producer for stage in stages] == [None, "self_attn.v_proj", None, "mlp.up_proj"]


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("recipe", ["w4a16-int-gptq", "w8a8-int-rtn"])
def test_weights_that_are_not_finite_are_named(decoder: Decoder, bad: float, recipe: str) -> None:
    chosen = recipes.recipe(recipe, group_size=32)
    hidden, kwargs = inputs_of(decoder)
    with decoder.loaded(1) as block:
        block.module.mlp.up_proj.weight[3, 5] = bad
        walk = BlockPass(block, [chosen], decoder.dtype)
        rounding: Callable[[], object] = partial(walk.run, hidden, kwargs[1])
        if not chosen.needs_calibration:
            rounding = partial(round_block, block, chosen, decoder.dtype)
        with pytest.raises(WorkFailed, match=r"model\.layers\.1\.mlp\.up_proj: its weights hold NaN or infinity"):
            rounding()


@pytest.mark.parametrize("recipe", ["w4a16-int-gptq", "w4a16-int-awq", "w8a8-int-smoothquant-gptq"])
@pytest.mark.parametrize("sizes", [[6], [3, 3]])
def test_inputs_that_are_not_finite_are_named(decoder: Decoder, recipe: str, sizes: list[int]) -> None:
    hidden, kwargs = chunked(decoder, sizes)
    hidden[0][2, 3, 4] = math.nan
    with decoder.loaded(0) as block:
        walk = BlockPass(block, [recipes.recipe(recipe, group_size=32)], decoder.dtype)
        with pytest.raises(WorkFailed, match=r"model\.layers\.0\.self_attn\.q_proj: .*NaN or infinity"):
            walk.run(hidden, kwargs[0])


class Experts(nn.Module):
    """A mixture whose router sends every token to the first expert until `hidden` is large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(32, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        chosen = (hidden[..., 0] > 50).long()
        output = hidden.clone()
        for index, expert in enumerate(self.experts):
            if bool((chosen == index).any()):
                output[chosen == index] += expert(hidden[chosen == index])
        return output


def test_experts_are_rounded_with_the_data_that_reaches_them() -> None:
    """The first is traced, the second sees one token of a later sequence, the third none; the router stays."""
    hidden = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0))
    hidden[2, 1, 0] = 100
    block = Block(0, "layers.0", Experts().eval())
    walk = BlockPass(block, [GPTQ], torch.bfloat16)
    walk.run([hidden], {3: {}})
    assert set(walk.results[0].rounded) == {"experts.0", "experts.1", "experts.2"}
    assert walk.results[0].notes == ["layers.0.experts.2: calibration never reached it, so it was rounded without data"]
    seen = InputStats(32)
    seen.add(hidden[2, 1])
    expected = round_weight(block.linears()["experts.1"].weight, GPTQ, seen, dtype=torch.bfloat16)
    assert torch.equal(walk.results[0].rounded["experts.1"].codes_OI, expected.codes_OI)
    [coverage] = expert_coverage(walk.results[0].audit)
    assert coverage == ExpertAudit(module="layers.0.experts", tokens={0: 23, 1: 1, 2: 0}, unreached=(2,))


def test_experts_see_every_chunk() -> None:
    hidden = torch.randn(4, 8, 32, generator=torch.Generator().manual_seed(0))
    hidden[2:, 1:5, 0] = 100
    results = []
    for parts in ([hidden], [hidden[:1], hidden[1:3], hidden[3:]]):
        walk = BlockPass(Block(0, "layers.0", Experts().eval()), [GPTQ], torch.bfloat16)
        walk.run(list(parts), {size: {} for size in (1, 2, 4)})
        results.append(walk.results[0])
    for name, rounded in results[0].rounded.items():
        assert torch.equal(results[1].rounded[name].codes_OI, rounded.codes_OI), name


def test_routers_are_skipped() -> None:
    assert skipped("mlp.gate")
    assert skipped("block_sparse_moe.router")
    assert skipped("mlp.shared_expert_gate")
    assert not skipped("mlp.gate_proj")
