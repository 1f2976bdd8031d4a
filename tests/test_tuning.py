"""Learning on after rounding: steps against a naive reference, what is gained, what is left alone, who agrees."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, save_tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from bitworth import recipes, tuning
from bitworth.blocks import BlockResult
from bitworth.calibration import calibration_tokens
from bitworth.devices import quantize_on
from bitworth.engines.torch import load_exact
from bitworth.kv_cache import cache_as_it_is, watching
from bitworth.model import Arguments, Decoder, call
from bitworth.quantization import quantize
from bitworth.schemes import FP8_CACHE
from bitworth.sequential import BlockPass
from bitworth.states import InFiles, InMemory, States
from bitworth.tuning import Beginning, beginnings, relative_error, run_tuned
from bitworth.types import Calibration, Recipe, Tuning

CPU = torch.device("cpu")
TUNED = recipes.recipe("w4a16-int-gptq-tuned", group_size=32)
UNTUNED = replace(TUNED, tuning=None)
WIDTH, LENGTH = 64, 96


@pytest.fixture(scope="module")
def decoder(tiny_llama: Path) -> Decoder:
    return Decoder(tiny_llama)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"The {number}th brown fox jumps over {number * 7} lazy dogs." for number in range(200)))
    return Calibration(source=str(text), samples=8, length=64)


def tokens_of(seed: int) -> Tensor:
    return torch.randint(0, 250, (4, LENGTH), generator=torch.Generator().manual_seed(seed))


def beginning(decoder: Decoder, recipe: Recipe, seed: int = 0) -> Beginning:
    assert recipe.tuning is not None
    with torch.inference_mode():
        return beginnings(decoder, recipe.tuning, tokens_of(seed)[:1])[0]


def begun(decoder: Decoder, *, noise: float = 0.0, seed: int = 0) -> tuple[States, States, Arguments]:
    """What the first block receives, in chunks of 3 and 1 sequences: disturbed by `noise`, and as it was."""
    tokens = tokens_of(seed)
    states, teacher = InMemory(CPU, CPU), InMemory(CPU, CPU)
    apart = torch.Generator().manual_seed(1)

    def take(hidden: Tensor) -> None:
        teacher.append(hidden)
        states.append((hidden + noise * hidden.std() * torch.randn(hidden.shape, generator=apart)).to(hidden.dtype))

    with torch.inference_mode():
        kwargs = decoder.first_inputs(list(tokens.split([3, 1])), take)
    return states, teacher, kwargs[0]


@torch.inference_mode()
def run(decoder: Decoder, recipe: Recipe, states: States, teacher: States, kwargs: Arguments) -> BlockResult:
    with decoder.loaded(0) as block:
        walk = BlockPass(block, [recipe], decoder.dtype)
        if recipe.tuning is None:
            walk.run(states, kwargs)
        else:
            run_tuned(walk, states, teacher, kwargs, beginning(decoder, recipe))
    return walk.results[0]


def error(states: States, teacher: States) -> float:
    return float(torch.cat([relative_error(states.made(i), teacher.made(i)).flatten() for i in range(2)]).mean())


# --- the steps --------------------------------------------------------------------------------------------------------


class Nearest(torch.autograd.Function):
    """Rounding whose derivative is 1."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round().clamp(-8, 7)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


def by_hand(
    walk: BlockPass, settings: Tuning, drawn: list[tuple[int, int]], kwargs: Arguments, states: States, teacher: States
) -> dict[str, Tensor]:  # fmt: skip
    """Oracle: every learnt thing a parameter of its own, derivatives by autograd through rounding and scaling alike."""
    [result] = walk.results
    module = copy.deepcopy(walk.block.module)
    latents, drifts, norms = {}, {}, {}
    for name, made in result.rounded.items():
        scale = made.scale_OG.clone().repeat_interleave(32, 1)
        codes = made.codes_OI.clone()
        latents[name] = (walk.folded_weight(name) / scale).clone().clamp(codes - 0.49, codes + 0.49).requires_grad_()
        drifts[name] = torch.zeros_like(made.scale_OG).clone().requires_grad_()
    for name, value in module.named_parameters():
        if "norm" in name:
            norms[name] = result.changed.get(name, value).detach().clone().requires_grad_()

    def weights() -> dict[str, Tensor]:
        return {
            f"{name}.weight": Nearest.apply(latents[name])
            * (made.scale_OG.clone() * (1 + drifts[name])).repeat_interleave(32, 1)
            for name, made in result.rounded.items()
        }

    def plain(value: Any) -> Any:
        return tuple(map(plain, value)) if isinstance(value, tuple) else getattr(value, "clone", lambda: value)()

    read = round(settings.share * LENGTH)
    one = {key: plain(value) for key, value in kwargs[1].items() if key != "args"}
    for step in range(settings.steps):
        for index, row in drawn[step * settings.batch : (step + 1) * settings.batch]:
            hidden, aim = states[index][row : row + 1].clone(), teacher.made(index)[row : row + 1].clone()
            out = torch.func.functional_call(module, weights() | norms, (hidden,), one)
            out = out[0] if isinstance(out, tuple) else out
            # the whole sequence, of which only the beginning counts
            ((out - aim).square().sum(-1) / aim.square().sum(-1))[:, :read].mean().backward()
        rest = 1 - step / settings.steps
        with torch.no_grad():
            for group, rate in ((latents, settings.code_rate), (drifts, settings.scale_rate)):
                for value in group.values():
                    assert value.grad is not None
                    value -= rate * rest * value.grad.sign()
                    value.grad = None
            for value in norms.values():
                assert value.grad is not None
                value -= settings.norm_rate * rest * value.abs() * value.grad.sign()
                value.grad = None
    return {name: value.detach() for name, value in (weights() | norms).items()}


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_steps_are_those_of_autograd_by_hand(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    chosen = Tuning(steps=6, batch=2, share=share, least=1, code_rate=0.05, scale_rate=0.01, norm_rate=0.02)
    recipe = replace(TUNED, tuning=chosen)
    states, teacher, kwargs = begun(decoder, noise=0.1)
    drawn: list[tuple[int, int]] = []
    real = tuning._draws

    def noted(*arguments: Any) -> Any:
        for place in real(*arguments):
            drawn.append(place)
            yield place

    monkeypatch.setattr(tuning, "_draws", noted)
    with decoder.loaded(0) as block:
        walk = BlockPass(block, [recipe], decoder.dtype)
        with torch.inference_mode():
            tuning._teach(block, teacher, kwargs)
            walk.run(states, kwargs)
            learning = tuning._Learning(walk)
            learning.learn(states, teacher, beginning(decoder, recipe), walk.ranks)
            learnt = learning.result(walk.ranks)
        expected = by_hand(walk, chosen, drawn, kwargs, states, teacher)
    assert set(drawn) == {(0, 0), (0, 1), (0, 2), (1, 0)}
    for name, made in learnt.rounded.items():
        weight, hand = made.weight(), expected[f"{name}.weight"]
        assert (made.codes_OI != walk.results[0].rounded[name].codes_OI).any(), name
        # scales are stored in bfloat16; a derivative that is almost 0 may have either sign
        apart = (weight - hand).abs() > 2**-7 * hand.abs() + 1e-6
        assert apart.float().mean() < 2e-3, name
    for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
        torch.testing.assert_close(learnt.changed[name], expected[name], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("length", "read"), [(1, 1), (200, 200), (256, 256), (400, 256), (512, 256), (2048, 1024)])
def test_a_step_reads_half_of_a_sequence_but_not_too_little(length: int, read: int) -> None:
    assert Tuning().read(length) == read


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 2**31))
def test_a_tokens_error_is_relative_to_its_own_size(batch: int, length: int, seed: int) -> None:
    made, aim = torch.randn(2, batch, length, 7, generator=torch.Generator().manual_seed(seed))
    found = relative_error(made, aim)
    for row in range(batch):
        for token in range(length):
            lost = sum((float(a) - float(b)) ** 2 for a, b in zip(made[row, token], aim[row, token], strict=True))
            assert float(found[row, token]) == pytest.approx(lost / sum(float(b) ** 2 for b in aim[row, token]), 1e-4)
    torch.testing.assert_close(relative_error(1000 * made, 1000 * aim), found)


def test_a_token_of_zeros_is_finite() -> None:
    zeros = torch.zeros(1, 2, 3)
    assert relative_error(zeros, zeros).tolist() == [[0, 0]]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 99))
def test_every_sequence_is_drawn_before_any_comes_again(sizes: list[int], seed: int) -> None:
    states = InMemory(CPU, CPU)
    for size in sizes:
        states.append(torch.zeros(size, 2, 2))
    draws = tuning._draws(states, torch.Generator().manual_seed(seed))
    rounds = [sorted(next(draws) for _ in range(sum(sizes))) for _ in range(2)]
    assert rounds[0] == rounds[1] == [(index, row) for index, size in enumerate(sizes) for row in range(size)]


# --- what is gained and what is left ----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_block_comes_nearer_to_the_unquantized_models_also_where_it_starts_astray(
    decoder: Decoder, noise: float
) -> None:
    found = {}
    for recipe in (UNTUNED, TUNED):
        states, teacher, kwargs = begun(decoder, noise=noise)
        with decoder.loaded(0) as block, torch.inference_mode():
            tuning._teach(block, teacher, kwargs)
        aims = [teacher.made(index) for index in range(2)]
        result = run(decoder, recipe, states, teacher, kwargs)
        assert all(torch.equal(teacher.made(index), aims[index]) for index in range(2))
        assert not result.notes
        found[recipe.name, recipe.tuning] = error(states, teacher)
    before, after = found.values()
    assert after < 0.9 * before


def test_norms_move_where_their_dtype_is_too_coarse_for_a_step(tiny_llama: Path) -> None:
    """As a GPU computes, in bfloat16: a step of 0.002 is half of what a norm's weight of 1 can change by."""
    decoder = Decoder(tiny_llama, compute=torch.bfloat16)
    found = {}
    for recipe in (UNTUNED, TUNED):
        states, teacher, kwargs = begun(decoder, noise=0.1)
        with decoder.loaded(0) as block, torch.inference_mode():
            tuning._teach(block, teacher, kwargs)
        result = run(decoder, recipe, states, teacher, kwargs)
        found[recipe.tuning] = error(states, teacher), result.changed["input_layernorm.weight"].float()
    (before, started), (after, ended) = found.values()
    assert after < 0.9 * before
    assert 0.01 < float(((ended - started) / started).abs().max()) < 0.07  # 60 steps of 0.002 that fall to 0


def test_outputs_are_those_of_the_block_as_stored(decoder: Decoder) -> None:
    states, teacher, kwargs = begun(decoder, noise=0.1)
    result = run(decoder, TUNED, states, teacher, kwargs)
    with decoder.loaded(0) as block, torch.inference_mode():
        own = dict(block.module.named_parameters())
        for name, made in result.rounded.items():
            block.module.get_submodule(name)._parameters["weight"] = nn.Parameter(made.weight(), requires_grad=False)
        for name, value in result.changed.items():
            own[name].copy_(value.to(decoder.dtype))
        for index in range(2):
            expected = call(block.module, states[index], kwargs[states[index].shape[0]])
            torch.testing.assert_close(states.made(index), expected, rtol=0, atol=1e-5)


def test_a_block_that_gains_nothing_stays_as_it_was_rounded(decoder: Decoder) -> None:
    wild = replace(TUNED, tuning=Tuning(steps=3, code_rate=5.0, scale_rate=0.9, norm_rate=0.9))
    states, teacher, kwargs = begun(decoder)
    left = run(decoder, wild, states, teacher, kwargs)
    plain, _, _ = begun(decoder)
    rounded = run(decoder, UNTUNED, plain, teacher, kwargs)
    assert left.notes == ["model.layers.0: tuning gained nothing, so it stays as it was rounded"]
    for name, made in rounded.rounded.items():
        assert torch.equal(left.rounded[name].codes_OI, made.codes_OI)
        assert torch.equal(left.rounded[name].scale_OG, made.scale_OG)
    assert left.changed.keys() == rounded.changed.keys()
    for index in range(2):  # scales as stored on one side, folded into the weight on the other
        apart = (states.made(index) - plain.made(index)).norm() / plain.made(index).norm()
        assert 0 < float(apart) < 2**-7


def test_a_block_is_left_as_it_was_loaded(decoder: Decoder) -> None:
    states, teacher, kwargs = begun(decoder)
    with decoder.loaded(0) as block, torch.inference_mode():
        before = {name: value.clone() for name, value in block.module.state_dict().items()}
        run_tuned(BlockPass(block, [TUNED], decoder.dtype), states, teacher, kwargs, beginning(decoder, TUNED))
        assert all(torch.equal(value, before[name]) for name, value in block.module.state_dict().items())
        assert not any("forward" in vars(layer) for layer in block.linears().values())


def test_states_in_files_give_what_states_in_memory_give(decoder: Decoder, tmp_path: Path) -> None:
    results = []
    for kind in ("memory", "files"):
        states, teacher, kwargs = begun(decoder, noise=0.1)
        if kind == "files":
            shapes = [(3, LENGTH, WIDTH), (1, LENGTH, WIDTH)]
            held = [InFiles(CPU, tmp_path, shapes, label=label) for label in ("states", "teacher")]
            for old, new in zip((states, teacher), held, strict=True):
                for index in range(2):
                    new.append(old[index])
            states, teacher = held
        results.append(run(decoder, TUNED, states, teacher, kwargs))
    for name, made in results[0].rounded.items():
        assert torch.equal(made.codes_OI, results[1].rounded[name].codes_OI)
        assert torch.equal(made.scale_OG, results[1].rounded[name].scale_OG)


def test_codes_stay_on_their_grid(decoder: Decoder) -> None:
    far = replace(TUNED, tuning=Tuning(steps=4, code_rate=3.0, scale_rate=0.01))
    states, teacher, kwargs = begun(decoder, noise=0.1)
    with decoder.loaded(0) as block, torch.inference_mode():
        tuning._teach(block, teacher, kwargs)
        walk = BlockPass(block, [far], decoder.dtype)
        walk.run(states, kwargs)
        learning = tuning._Learning(walk)
        learning.learn(states, teacher, beginning(decoder, far), walk.ranks)
    for made in learning.result(walk.ranks).rounded.values():
        assert made.codes_OI.min() == -8
        assert made.codes_OI.max() == 7
        assert torch.equal(made.codes_OI, made.codes_OI.round())
        assert torch.equal(made.scale_OG, made.scale_OG.bfloat16().float())


def test_codes_start_where_the_weight_lies(decoder: Decoder) -> None:
    """Between its code's borders; those of E2M1 codes, which lie unevenly, included."""
    states, _, kwargs = begun(decoder)
    for name in ("w4a16-int-gptq", "mxfp4a16-gptq"):
        recipe = recipes.recipe(name, group_size=32)
        with decoder.loaded(0) as block, torch.inference_mode():
            walk = BlockPass(block, [recipe], decoder.dtype)
            walk.run(states, kwargs)
            assert recipe.scheme.weight is not None
            for layer, made in walk.results[0].rounded.items():
                weight = walk.folded_weight(layer)
                latent = tuning._latent(made, weight, recipe.scheme.weight)
                assert torch.equal(tuning.to_codes(latent, recipe.scheme.weight), made.codes_OI), (name, layer)
                exact = weight / made.scale_OG.repeat_interleave(32, 1)
                inside = (exact - made.codes_OI).abs() < 0.24
                torch.testing.assert_close(latent[inside], exact[inside])


# --- whole models -----------------------------------------------------------------------------------------------------


def logits_apart(folder: Path, model: Path, calibration: Calibration) -> float:
    """On the calibration data: a random model learns nothing that other text shares."""
    tokens = calibration_tokens(model, calibration, print)
    exact, found = (load_exact(path, device="cpu").logits(tokens).log_softmax(-1) for path in (model, folder))
    return float((exact.exp() * (exact - found)).sum(-1).mean())


def test_the_cache_is_scaled_for_what_was_learnt(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales of keys and values are those of the stored model's on the calibration data."""
    monkeypatch.setattr("bitworth.quantization._fast_factors", lambda compute: compute)
    recipe = recipes.recipe("w4a16-int-gptq-tuned+kv-fp8", group_size=32)
    quantize(tiny_llama, [recipe], tmp_path / "out", calibration=calibration)
    tokens = calibration_tokens(tiny_llama, calibration, print)
    engine = load_exact(tmp_path / "out", device="cpu")
    stored = {
        name: value for name, value in load_file(tmp_path / "out" / "model.safetensors").items() if "k_scale" in name
    }
    assert stored
    with torch.inference_mode(), cache_as_it_is(engine.model):
        with watching(engine.model, FP8_CACHE, torch.bfloat16) as scales:
            engine.model(tokens)
        for name, value in stored.items():
            torch.testing.assert_close(scales[name].float(), value.float(), rtol=2**-7, atol=0)


@pytest.mark.slow(beside=True)
def test_mixtures_learn_too(calibration: Calibration, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=259, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    for name, recipe in (("untuned", UNTUNED), ("tuned", TUNED)):
        quantize(tmp_path / "model", [recipe], tmp_path / name, calibration=calibration)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("untuned", "tuned"))
    assert before.keys() == after.keys()
    packed = [name for name in before if ".experts." in name and name.endswith("weight_packed")]
    learnt = {name.split(".")[2] for name in packed if not torch.equal(before[name], after[name])}
    assert learnt  # a block whose routes tip over may gain nothing
    for block in learnt:
        own = [name for name in packed if name.split(".")[2] == block]
        assert len(own) == 12
        assert not any(torch.equal(before[name], after[name]) for name in own)
    routers = [name for name in before if name.endswith("mlp.gate.weight")]
    assert routers
    assert all(torch.equal(before[name], after[name]) for name in routers)


@pytest.mark.slow
def test_two_devices_learn_the_same_and_as_much(calibration: Calibration, tmp_path: Path) -> None:
    """Each draws sequences of its own, so codes are not those of one device; what is gained is."""
    save_tiny_llama(tmp_path / "model", num_hidden_layers=3)
    quantize(tmp_path / "model", [UNTUNED], tmp_path / "untuned", calibration=calibration)
    quantize(tmp_path / "model", [TUNED], tmp_path / "one", calibration=calibration)
    quantize_on(2, tmp_path / "model", [TUNED], tmp_path / "two", calibration=calibration, device="cpu", spread="data")
    untuned, one, two = (
        logits_apart(tmp_path / name, tmp_path / "model", calibration) for name in ("untuned", "one", "two")
    )
    assert one < 0.9 * untuned
    assert two < 0.9 * untuned
    assert two < 1.25 * one


@pytest.mark.slow
def test_a_real_model_loses_less_on_text_it_was_not_calibrated_on(smollm2: Path, shared: Path, tmp_path: Path) -> None:
    from bitworth.divergence import diverge_models

    spec = Calibration(source=str(shared / "data/wikitext2/wikitext2_train_5k.txt"), samples=8, length=256)
    text = (shared / "data/wikitext2/wiki.test.raw").read_text()
    baseline = load_exact(smollm2)
    found = {}
    for name in ("w4a16-int-gptq", "w4a16-int-gptq-tuned"):
        recipe = recipes.recipe(name, group_size=64)
        quantize(smollm2, [recipe], tmp_path / name, calibration=spec)
        apart = diverge_models(load_exact(tmp_path / name), baseline, text, window=256, limit_windows=8)
        found[name] = apart.kl_nats
    assert found["w4a16-int-gptq-tuned"] < 0.92 * found["w4a16-int-gptq"]
