from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth import recipes, schemes
from bitworth.engines import packing
from bitworth.engines.exact import Activation, QuantLinear, activation_of
from bitworth.engines.scorer import Scorer
from bitworth.engines.torch import TorchModel, load_exact
from bitworth.errors import BitworthError, Unsupported
from bitworth.quantization import quantize
from bitworth.types import Grid

PRESETS = {"W4A16": "pack-quantized", "W8A8": "int-quantized", "FP8_DYNAMIC": "float-quantized"}
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "under", "over", "red", "blue", "sun", "and", "then", "it", "never")


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> TorchModel:
    return load_exact(tiny_llama, device="cpu")


@pytest.fixture(scope="module")
def compressed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in each format, written by compressed-tensors itself."""
    root = tmp_path_factory.mktemp("compressed")
    return {preset: _compress(tiny_llama, root / preset, preset) for preset in PRESETS}


def _compress(source: Path, out: Path, preset: str) -> Path:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    scheme = preset_name_to_scheme(preset, ["Linear"])
    if preset == "W4A16":
        scheme.weights.group_size = 32
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format=PRESETS[preset],
        quantization_status=QuantizationStatus.FROZEN,
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            weight = module.weight.detach()
            grouped = weight.unflatten(1, (-1, 32)) if preset == "W4A16" else weight.unsqueeze(1)
            scale, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
            module.weight_scale.data = scale.reshape(module.weight_scale.shape)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=PRESETS[preset])
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, out)
    return out


def _as_compressed_tensors(engine: TorchModel) -> TorchModel:
    """compressed-tensors' own INT8 convention for activations, in place of vLLM's."""
    for layer in engine.model.modules():
        if isinstance(layer, QuantLinear):
            layer.activation = Activation(layer.activation.kind, half_range=127.5)
    return engine


def _requests(count: int, *, shared: str = "", seed: int = 0) -> list[tuple[str, str]]:
    """Questions of four choices, some repeated, some a prefix of another."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        context = shared + " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        found += [(context, " " + " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))) for _ in range(3)]
        found.append((context, found[-1][1] + " more"))
    return [*found, found[0]]


def _one_by_one(engine: TorchModel, requests: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """The definition: the whole sequence through the model, log-softmax, the continuation's tokens."""
    scores = []
    for context, continuation in requests:
        before, whole = engine.encode(context), engine.encode(context + continuation)
        kept = whole[-(engine.max_length + 1) :]
        targets = torch.tensor(whole[len(before) :])
        logp = engine.logits(torch.tensor([kept[:-1]]))[0].log_softmax(-1)[-len(targets) :]
        scores.append((float(logp.gather(1, targets[:, None]).sum()), bool((logp.argmax(-1) == targets).all())))
    return scores


# --- number formats -----------------------------------------------------------------------------------------------


def test_plain_checkpoint_gives_the_logits_of_transformers(tiny: TorchModel, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    tokens = torch.randint(0, 250, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(tiny.logits(tokens), oracle(tokens).logits, rtol=0, atol=1e-5)
    assert isinstance(tiny, Scorer)


@pytest.mark.parametrize("preset", PRESETS)
def test_compressed_checkpoint_gives_the_logits_of_compressed_tensors(compressed: dict[str, Path], preset: str) -> None:
    """Oracle: transformers loading the checkpoint through compressed-tensors, float32; tolerance 1e-4, logits to 6."""
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(compressed[preset], dtype=torch.float32).eval()
    engine = _as_compressed_tensors(load_exact(compressed[preset], device="cpu"))
    tokens = torch.randint(0, 250, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = oracle(tokens).logits
    torch.testing.assert_close(engine.logits(tokens), expected, rtol=0, atol=1e-4)
    quantized = [layer for layer in engine.model.modules() if isinstance(layer, QuantLinear)]
    assert len(quantized) == (0 if preset == "W4A16" else 14)


def test_int8_activations_are_vllms() -> None:
    """scale = max/127, round half to even, no code beyond -127..127; an all-zero token stays zero."""
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5, -127.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[127.0, 0.0, 2.0, -2.0, -127.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(Activation("int")(x), expected, rtol=0, atol=1e-5)


def test_fp8_activations_are_vllms() -> None:
    """scale = max/448 with a floor; values land on E4M3 times the scale."""
    x = torch.tensor([[448.0, 17.0, 0.3], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[448.0, 16.0, 0.3125], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(Activation("float")(x), expected, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["NVFP4", "MXFP4"]), st.integers(0, 2**31), st.floats(0, 4))
def test_fp4_inputs_are_compressed_tensors(preset: str, seed: int, spread: float) -> None:
    """Oracle: its dynamic group scales and its fake quantization; groups of zeros and very small ones included."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 5, 64, generator=generator) * 10 ** (spread * torch.rand(2, 5, 64, generator=generator))
    x = x.to(torch.bfloat16).float()
    x[0, 0], x[1, 1, :32], x[0, 2, 32:] = 0, 0, x[0, 2, 32:] * 1e-8
    divisor = torch.tensor([448 * 6 / 3000.0]) if preset == "NVFP4" else None  # some groups exceed it
    args = preset_name_to_scheme(preset, ["Linear"]).input_activations
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module(), global_scale=divisor)
    expected = fake_quantize(x, scale, zero, args, global_scale=divisor)
    grid = schemes.get(preset.lower()).activation
    assert grid is not None
    torch.testing.assert_close(activation_of(grid, divisor)(x), expected.nan_to_num(0.0), rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_nvfp4_inputs_are_vllms_but_for_ties(seed: int) -> None:
    """vLLM's emulation multiplies by reciprocals: max/6 and x/scale may differ in float32's last digit."""
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(seed))
    divisor = 448 * 6 / x.abs().max().reshape(1)
    groups = x.view(50, 4, 16)
    stored = (divisor * (groups.abs().amax(-1, keepdim=True) * (1 / 6))).clamp(max=448).to(torch.float8_e4m3fn).float()
    codes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    scaled = (groups * (1 / (stored * (1 / divisor)))).clamp(-6, 6)
    nearest = codes[(scaled.abs().unsqueeze(-1) - codes).abs().argmin(-1)] * scaled.sign()
    grid = schemes.get("nvfp4").activation
    assert grid is not None
    found = activation_of(grid, divisor)(x)
    apart = (found - (nearest * (stored / divisor)).view(50, 64)).abs() > 1e-5
    assert apart.float().mean() < 0.01


def test_fp4_inputs_without_a_global_scale_are_refused() -> None:
    grid = schemes.get("nvfp4").activation
    assert grid is not None
    with pytest.raises(Unsupported, match="no global scale for the inputs"):
        activation_of(grid)


def test_quantizing_leaves_the_input_alone() -> None:
    x = torch.randn(3, 32)
    before = x.clone()
    Activation("int")(x)
    Activation("float")(x)
    for name in ("nvfp4", "mxfp4"):
        activation_of(schemes.get(name).activation, torch.ones(1))(x)  # type: ignore[arg-type]
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(bits=8, granularity="token", dynamic=False),
        Grid(bits=8, granularity="tensor", dynamic=True),
        Grid(bits=4, granularity="token", dynamic=True),
    ],
)
def test_other_activation_grids_are_refused(grid: Grid) -> None:
    with pytest.raises(Unsupported, match="dynamic symmetric per-token 8 bits"):
        activation_of(grid)


# --- scoring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_at_once", [1, 24, 100, 4096])
@pytest.mark.parametrize("shared", ["", "a long prefix that every single question of this subject shares. "])
def test_packed_scores_are_those_of_each_sequence_alone(tiny: TorchModel, tokens_at_once: int, shared: str) -> None:
    engine = TorchModel(tiny.model, tiny.tokenizer)
    engine.tokens_at_once = tokens_at_once
    requests = _requests(6, shared=shared)
    assert engine.packs()
    for got, expected in zip(engine.loglikelihoods(requests), _one_by_one(engine, requests), strict=True):
        assert got.logprob == pytest.approx(expected[0], abs=1e-4)
        assert got.greedy == expected[1]


@pytest.mark.parametrize("preset", ["W8A8", "FP8_DYNAMIC"])
def test_packing_does_not_change_per_token_quantization(compressed: dict[str, Path], preset: str) -> None:
    """A rounding tie may fall the other way when the sum order changes, so the bound is one code's worth, not 1e-4."""
    engine = load_exact(compressed[preset], device="cpu")
    requests = _requests(4)
    for got, expected in zip(engine.loglikelihoods(requests), _one_by_one(engine, requests), strict=True):
        assert got.logprob == pytest.approx(expected[0], rel=0.02)


@pytest.mark.slow
def test_a_real_model_that_quantizes_its_inputs_is_packed(smollm2: Path, tmp_path: Path) -> None:
    """Over thirty layers quantized inputs tip over in both ways of running it; that is no fault of packing."""
    from bitworth.quantization import quantize
    from bitworth.recipes import recipe

    for name in ("w8a8-fp", "w8a8-int-rtn"):
        quantize(smollm2, [recipe(name)], tmp_path / name)
        engine = load_exact(tmp_path / name, device="cpu")
        assert engine.packs()
        assert any(isinstance(layer, QuantLinear) for layer in engine.model.modules())


def test_an_architecture_that_cannot_be_packed_is_run_one_by_one(tiny: TorchModel) -> None:
    engine = TorchModel(tiny.model, tiny.tokenizer)
    engine._packs = False
    requests = _requests(2)
    for got, expected in zip(engine.loglikelihoods(requests), _one_by_one(engine, requests), strict=True):
        assert got.logprob == pytest.approx(expected[0], abs=1e-4)


def test_longest_contexts_are_cut_from_the_left(tiny: TorchModel) -> None:
    requests = [("word " * 200 + "x", " end"), ("word " * 200 + "x", " stop")]
    assert len(tiny.encode(requests[0][0])) > tiny.max_length
    for got, expected in zip(tiny.loglikelihoods(requests), _one_by_one(tiny, requests), strict=True):
        assert got.logprob == pytest.approx(expected[0], abs=1e-3)


def test_progress_reaches_the_total_and_no_request_is_no_work(tiny: TorchModel) -> None:
    told: list[tuple[int, int]] = []
    requests = _requests(5)
    tiny.loglikelihoods(requests, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(requests), len(requests))
    assert told == sorted(told)
    assert tiny.loglikelihoods([]) == []


def test_empty_continuation_is_refused(tiny: TorchModel) -> None:
    with pytest.raises(BitworthError, match="adds no token"):
        tiny.loglikelihoods([("context", "")])


def _hflm(engine: TorchModel) -> object:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=4)


@pytest.mark.slow
def test_scores_are_those_of_lm_eval(tiny: TorchModel, stories: Path) -> None:
    """Whitespace at the context's end, an empty context, BOS tokenizers and cuts, against lm-eval's HF backend."""
    from lm_eval.api.instance import Instance

    odd = [("", "hello there"), ("ends in spaces  ", "next"), ("tab\t", " x"), ("word " * 300, " cut"), ("a", "b")]
    for engine in (tiny, load_exact(stories, device="cpu")):
        requests = [*odd, *_requests(10)]
        instances = [Instance(request_type="loglikelihood", doc={}, arguments=request, idx=0) for request in requests]
        expected = _hflm(engine).loglikelihood(instances, disable_tqdm=True)  # type: ignore[attr-defined]
        for got, (logprob, greedy) in zip(engine.loglikelihoods(requests), expected, strict=True):
            assert got.logprob == pytest.approx(logprob, abs=1e-3)
            assert got.greedy == greedy


# --- packing ------------------------------------------------------------------------------------------------------


def test_pack_shares_prefixes_and_masks_other_branches() -> None:
    row = packing.pack([[1, 2, 3], [1, 2, 3, 4], [1, 5]], depth=0)
    assert row.tokens == [1, 2, 3, 4, 5]
    assert row.positions == [0, 1, 2, 3, 1]
    assert row.paths == [[0, 1, 2], [0, 1, 2, 3], [0, 4]]
    assert row.mask().astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]


def test_pack_below_a_prefix_starts_at_its_depth() -> None:
    row = packing.pack([[9, 9, 1], [9, 9, 2]], depth=2)
    assert (row.tokens, row.positions, row.parents) == ([1, 2], [2, 2], [-1, -1])
    assert row.mask().astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 1]]
    assert packing.size([[9, 9, 1], [9, 9, 2]], 2) == 2


def test_families_are_cut_where_little_is_shared() -> None:
    sequences = [[1, 1, 1], [1, 1, 2], [3, 1, 1], [3, 1, 1]]
    assert [list(run) for run in packing.families(sequences, 2)] == [[0, 1], [2, 3]]


# --- what is refused ----------------------------------------------------------------------------------------------


def _copy(source: Path, out: Path, **config: object) -> Path:
    shutil.copytree(source, out)
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return out


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="nowhere"):
        load_exact(tmp_path / "nowhere")


def test_truncated_safetensors(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_llama, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BitworthError, match="truncated or damaged"):
        load_exact(folder)


def test_weights_that_do_not_fit(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_llama, tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(BitworthError, match="do not fit"):
        load_exact(folder)
    folder = _copy(tiny_llama, tmp_path / "wider", hidden_size=128)
    with pytest.raises(BitworthError, match="do not fit"):
        load_exact(folder)


def test_encoder_only_model(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_llama, tmp_path / "encoder", architectures=["BertModel"], model_type="bert")
    with pytest.raises(BitworthError, match="BertModel"):
        load_exact(folder)


def test_encoder_decoder_model(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_llama, tmp_path / "t5", architectures=["T5ForConditionalGeneration"], model_type="t5")
    with pytest.raises(BitworthError, match="T5ForConditionalGeneration"):
        load_exact(folder)


def test_model_with_code_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    remote = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.X"}
    folder = _copy(tiny_llama, tmp_path / "remote", auto_map=remote, model_type="x")
    with pytest.raises(BitworthError, match="code of its own"):
        load_exact(folder)


def test_code_beside_an_architecture_of_transformers_is_not_run(tiny_llama: Path, tmp_path: Path) -> None:
    """As the hub's Phi-3 and DeepSeek have it: transformers' own class runs, and a checkpoint asks for no code."""
    remote = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.X"}
    folder = _copy(tiny_llama, tmp_path / "remote", auto_map=remote)
    (folder / "modeling_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    sequence = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(load_exact(folder).logits(sequence), load_exact(tiny_llama).logits(sequence))
    [made] = quantize(folder, [recipes.recipe("w8a8-fp")], tmp_path / "out")
    assert "auto_map" not in json.loads((made.path / "config.json").read_text())
    assert not (tmp_path / "ran").exists()


def test_another_methods_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_llama, tmp_path / "gptq", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(BitworthError, match="gptq"):
        load_exact(folder)


def test_missing_tokenizer(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_llama, tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(BitworthError, match="tokenizer"):
        load_exact(folder)
