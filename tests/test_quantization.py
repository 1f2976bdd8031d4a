from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, save_tiny_llama
from oracle import reference
from safetensors.torch import load_file, save_file

from bitworth import recipes, writer
from bitworth.calibration import calibration_tokens
from bitworth.checkpoint import Reader, read_config
from bitworth.engines.exact import Activation, QuantLinear, inputs_as_they_are
from bitworth.engines.torch import load_exact
from bitworth.errors import BitworthError, Interrupted, WorkFailed
from bitworth.forecast import forecast
from bitworth.quantization import quantize
from bitworth.quantizers import InputStats, round_weight
from bitworth.sequential import BlockPass
from bitworth.types import Awq, Calibration, Clip, Gptq, QuantizeResult, Recipe, SmoothQuant
from bitworth.writer import Writer

NAMES = [name for name in recipes.NAMES if "-paper-" not in name]  # those differ from others by settings alone
EVERY = [recipes.recipe(name, group_size=32) for name in NAMES]
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
    "phi3": {},
    "gpt_neox": {},
    "olmo2": {},
    "granite": {},
    "smollm3": {},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16},
    "cohere": {},
    "cohere2": {"head_dim": 16},
    "exaone4": {"sliding_window": 64},
    "falcon": {},
    "falcon_": {"new_decoder_architecture": True},
    "gemma3_text": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16},
    "lfm2": {},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4},
    "nemotron": {},
    "olmo": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi": {},
    "stablelm": {},
    "starcoder2": {},
}
#: What transformers with compressed-tensors cannot run: FalconLinear and GPT-BigCode's initialization read a weight
#: that is still packed, and of OPT's two-dimensional activations compressed-tensors takes each element for a token.
BY_HAND = ("falcon", "falcon_", "gpt_bigcode", "opt")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"The {number}th brown fox jumps over {number * 7} lazy dogs." for number in range(200)))
    return Calibration(source=str(text), samples=8, length=64)


@pytest.fixture(scope="module")
def every(tiny_llama: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama by each recipe, made in one walk."""
    out = tmp_path_factory.mktemp("every") / "out"
    quantize(tiny_llama, EVERY, out, calibration=calibration)
    return out


def tokens() -> torch.Tensor:
    return torch.randint(0, 250, (1, 60), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def assert_loads_alike(folder: Path) -> torch.Tensor:
    """transformers with compressed-tensors gives the logits of the exact engine, to 1e-4 of logits to 10.

    compressed-tensors divides INT8 activations by 127.5, vLLM and the engine by 127: the engine is set to its rule. It
    also decodes FP4 weights to bfloat16 only, so the engine's are rounded to it, and its are then run in float32.
    """
    from transformers import AutoModelForCausalLM

    engine = load_exact(folder, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if "fp4" in read_config(folder)["quantization_config"]["format"]:
        theirs.hf_quantizer.compressor.decompress_model(theirs)
        torch.nn.Module.float(theirs)  # transformers refuses what it holds to be quantized still
        for name in Reader(folder).weights().quantized:
            weight = engine.model.get_submodule(name).weight
            weight.copy_(weight.bfloat16())
    for layer in engine.model.modules():
        if isinstance(layer, QuantLinear) and isinstance(layer.activation, Activation):
            layer.activation = Activation(layer.activation.kind, half_range=127.5)
    logits = engine.logits(tokens())
    torch.testing.assert_close(logits, theirs(tokens()).logits, rtol=0, atol=1e-4)
    return logits


# --- checkpoints that load --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_loads_in_transformers(every: Path, tiny_llama: Path, name: str) -> None:
    logits = assert_loads_alike(every / name)
    baseline = load_exact(tiny_llama, device="cpu").logits(tokens())
    assert (logits - baseline).abs().max() > 0
    apart = (baseline.log_softmax(-1).exp() * (baseline.log_softmax(-1) - logits.log_softmax(-1))).sum(-1).mean()
    assert apart < (0.05 if name.startswith("w8a8-int") else 0.2 if name == "w8a8-fp" else 4)


MERGED = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))


@pytest.mark.parametrize("name", ["nvfp4-rtn", "nvfp4-gptq", "nvfp4a16-rtn", "nvfp4a16-gptq"])
def test_layers_that_engines_merge_share_their_global_scales(every: Path, name: str) -> None:
    made = load_file(every / name / "model.safetensors")
    kinds = ["weight_global_scale"] if "a16" in name else ["weight_global_scale", "input_global_scale"]
    for parent, children in MERGED:
        for kind in kinds:
            found = [made[f"model.layers.1.{parent}.{child}.{kind}"] for child in children]
            assert (found[0].dtype, found[0].shape) == (torch.float32, (1,))
            assert all(torch.equal(scale, found[0]) for scale in found)


@torch.inference_mode()
@pytest.mark.parametrize("transform", [None, Awq(steps=4), SmoothQuant()])
def test_global_scales_of_inputs_are_those_of_the_quantized_model(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path, transform: Awq | SmoothQuant | None
) -> None:
    """Oracle: what reaches each layer when the checkpoint itself runs the calibration text, inputs unquantized."""
    recipe = replace(recipes.recipe("nvfp4-gptq"), transforms=() if transform is None else (transform,))
    quantize(tiny_llama, [recipe], tmp_path / "out", calibration=calibration)
    assert_loads_alike(tmp_path / "out")
    engine, made = load_exact(tmp_path / "out", device="cpu"), load_file(tmp_path / "out" / "model.safetensors")
    peaks: dict[str, float] = {}
    for name, layer in engine.model.named_modules():
        if isinstance(layer, QuantLinear):
            layer.register_forward_pre_hook(lambda _, args, name=name: peaks.update({name: float(args[0].abs().max())}))
    with inputs_as_they_are(engine.model):
        engine.logits(calibration_tokens(tmp_path / "out", calibration, lambda _: None))
    assert len(peaks) == 14
    for name, peak in peaks.items():
        assert made[f"{name}.input_global_scale"].item() == pytest.approx(448 * 6 / peak, rel=0.02)


def test_coarse_scales_are_not_divided(tiny_llama: Path, calibration: Calibration, tmp_path: Path) -> None:
    """AWQ scales what norms make; down_proj and o_proj keep their inputs, since up_proj and v_proj cannot give way."""
    plain, scaled = (
        replace(recipes.recipe("mxfp4a16-rtn"), name=name, transforms=(transform,))
        for name, transform in (("one", Awq(steps=1)), ("many", Awq(steps=8)))
    )
    quantize(tiny_llama, [plain, scaled], tmp_path, calibration=calibration)
    one, many = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "many"))
    same = {
        name.rpartition(".")[0] for name in one if name.endswith("weight_packed") and torch.equal(one[name], many[name])
    }
    assert {"down_proj", "o_proj"} == {name.rpartition(".")[2] for name in same} - {"gate_proj", "up_proj"}
    assert any(not torch.equal(one[name], many[name]) for name in one if "q_proj.weight_packed" in name)
    for name in ("one", "many"):
        assert_loads_alike(tmp_path / name)


@pytest.mark.parametrize("name", ["nvfp4-gptq", "mxfp4a16-gptq", "w4a8-int-gptq"])
def test_groups_in_activation_order_are_refused_where_no_loader_knows_them(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path, name: str
) -> None:
    recipe = replace(recipes.recipe(name, group_size=32), rounding=Gptq(ordering="group"))
    with pytest.raises(BitworthError, match=rf"{name}: \S+ stores no group a column.*use ordering: weight"):
        quantize(tiny_llama, [recipe], tmp_path / "out", calibration=calibration)


def test_a_formats_own_groups_have_no_fallback(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "model", intermediate_size=136)
    for name, size in (("nvfp4a16-rtn", 16), ("mxfp4a16-rtn", 32)):
        with pytest.raises(
            BitworthError, match=rf"groups of {size} do not divide .*down_proj.*; the format has no others"
        ):
            quantize(tmp_path / "model", [recipes.recipe(name)], tmp_path / "out", allow_group_fallback=True)


def test_groups_that_vllm_cannot_load_are_written_and_said(tiny_llama: Path, tmp_path: Path) -> None:
    """In the result, in the checkpoint's own page, and by a dry run."""
    chosen = [recipes.recipe("w4a8-fp-rtn", group_size=32), recipes.recipe("w4a16-int-rtn", group_size=32)]
    said = "vLLM 0.32 has no kernel for w4a8-fp in groups of 32; groups of 128 would load"
    refused, taken = quantize(tiny_llama, chosen, tmp_path)
    assert (refused.notes, taken.notes) == ((said,), ())
    assert json.loads((refused.path / "bitworth.json").read_text())["notes"] == [said]
    assert forecast(tiny_llama, chosen, device="cpu").notes == (said,)


def test_groups_in_activation_order_store_each_columns_group(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path
) -> None:
    """Compressed-tensors dropped this ordering in August 2026, so its own decompression is the formula, by hand."""
    recipe = recipes.recipe("w4a16-int-gptq", group_size=32)
    recipe = replace(recipe, rounding=Gptq(clip=Clip(), ordering="group"))
    [result] = quantize(tiny_llama, [recipe], tmp_path / "out", calibration=calibration)
    assert "which newer compressed-tensors refuses" in result.notes[0]
    made = load_file(tmp_path / "out" / "model.safetensors")
    engine = load_exact(tmp_path / "out", device="cpu")
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        packed, scale, group = (made[f"{name}.{part}"] for part in ("weight_packed", "weight_scale", "weight_g_idx"))
        assert group.bincount().tolist() == [32] * scale.shape[1]
        codes = torch.stack([(packed >> shift & 15) - 8 for shift in range(0, 32, 4)], dim=-1).flatten(1)
        weight = engine.model.get_submodule(name).weight
        torch.testing.assert_close(weight, codes * scale.float()[:, group.long()], rtol=0, atol=0)


@pytest.mark.slow(beside=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_in_transformers(family: str, calibration: Calibration, tmp_path: Path) -> None:
    """Or, where transformers cannot run the checkpoint, computes what its modules give with the formulas by hand."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 512, "initializer_range": 0.2,
        "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
    }  # fmt: skip
    config = AutoConfig.for_model(family.rstrip("_"), **{**shape, **FAMILIES[family]})
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    names = [
        "w4a16-int-gptq", "w4a16-int-gptq-tuned", "w4a16-int-awq", "w8a8-int-smoothquant-gptq", "w8a8-fp", "nvfp4-gptq",
        "mxfp4-gptq",
    ]  # fmt: skip
    chosen = [recipes.recipe(name, group_size=32) for name in names]
    quantize(tmp_path / "model", chosen, tmp_path / "out", calibration=calibration)
    for name in names:
        if family not in BY_HAND:
            assert_loads_alike(tmp_path / "out" / name)
            continue
        if "fp4" in name:  # the formulas by hand are those of 8-bit inputs
            continue
        with torch.inference_mode():
            expected = reference(tmp_path / "out" / name)(tokens()).logits
        logits = load_exact(tmp_path / "out" / name, device="cpu").logits(tokens())
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)


# --- the walk ---------------------------------------------------------------------------------------------------------


def test_recipes_walked_together_are_recipes_walked_alone(
    tiny_llama: Path, calibration: Calibration, every: Path, tmp_path: Path
) -> None:
    for name in ("w4a16-int-gptq", "w4a16-int-awq", "w8a8-fp"):
        [result] = quantize(tiny_llama, [recipes.recipe(name, group_size=32)], tmp_path / name, calibration=calibration)
        assert result.path == tmp_path / name
        assert_same_weights(result.path, every / name)


def test_what_was_made_says_how(every: Path, tiny_llama: Path, calibration: Calibration) -> None:
    page = json.loads((every / "w4a16-int-gptq" / "bitworth.json").read_text())
    assert page["recipe"]["scheme"]["weight"]["group_size"] == 32
    assert page["calibration"]["samples"] == calibration.samples
    assert page["versions"].keys() == {"bitworth", "torch", "transformers"}
    assert page["audit"]["text"]["samples"] == calibration.samples
    stages = page["audit"]["stages"]
    assert [stage["layers"][0].removeprefix("model.layers.") for stage in stages[:4]] == [
        "0.self_attn.q_proj",
        "0.self_attn.o_proj",
        "0.mlp.gate_proj",
        "0.mlp.down_proj",
    ]
    assert len(stages) == 8
    assert {stage["tokens"] for stage in stages} == {calibration.samples * calibration.length}
    free = json.loads((every / "w8a8-fp" / "bitworth.json").read_text())
    assert (free["calibration"], free["audit"]) == (None, None)


def test_results_count_bits_and_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    [result] = quantize(tiny_llama, [recipes.recipe("w4a16-int-rtn", group_size=32)], tmp_path / "out")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert result.size_mib == pytest.approx(size / 2**20, abs=0.02)
    linear, rest = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3), 259 * 64 + 64
    expected = (linear * (4 + 16 / 32) + 14 * 16 * 8 + (rest + 4 * 64) * 16) / (linear + rest)
    assert result.bits_per_weight == pytest.approx(expected, abs=0.02)
    assert (result.format, result.notes) == ("w4a16-int-rtn", ())
    assert result.peak_rss_mib > 50


def test_embeddings_norms_and_heads_are_copied(every: Path, tiny_llama: Path) -> None:
    base = load_file(tiny_llama / "model.safetensors")
    made = load_file(every / "w4a16-int-gptq-published" / "model.safetensors")
    kept = [name for name in base if not name.endswith("_proj.weight")]
    assert len(kept) == 6
    assert all(torch.equal(base[name], made[name]) for name in kept)


def test_memory_is_bounded_by_chunks(
    tiny_llama: Path, calibration: Calibration, every: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitworth.quantization.CHUNK_TOKENS", 150)
    quantize(tiny_llama, [EVERY[5]], tmp_path / "out", calibration=calibration)
    whole = load_exact(every / EVERY[5].name, device="cpu").logits(tokens())
    parts = load_exact(tmp_path / "out", device="cpu").logits(tokens())
    assert (whole - parts).abs().mean() < 0.1 * whole.std()


# --- group sizes ------------------------------------------------------------------------------------------------------


def test_groups_that_do_not_divide_are_refused_with_what_would(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "odd", hidden_size=96, intermediate_size=192)
    recipe = recipes.recipe("w4a16-int-rtn")
    with pytest.raises(BitworthError) as caught:
        quantize(tmp_path / "odd", [recipe], tmp_path / "out")
    assert str(caught.value) == (
        "w4a16-int-rtn: groups of 128 do not divide the inputs of model.layers.0.self_attn.q_proj, "
        "model.layers.0.self_attn.k_proj, model.layers.0.self_attn.v_proj and 11 more; --group-size 32 "
        "(group_size in a study) would, or allow the fallback."
    )
    [result] = quantize(tmp_path / "odd", [recipe], tmp_path / "out", allow_group_fallback=True)
    assert result.notes[0].endswith("groups of 32 were used throughout")
    assert load_exact(tmp_path / "out", device="cpu")


def test_groups_that_nothing_divides_are_refused_either_way(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "odd", hidden_size=80, intermediate_size=144)
    for allow in (False, True):
        with pytest.raises(BitworthError, match=r"none of \(128, 64, 32\) does"):
            quantize(tmp_path / "odd", [recipes.recipe("w4a16-int-rtn")], tmp_path / "out", allow_group_fallback=allow)


def test_formats_without_groups_take_any_width(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "odd", hidden_size=80, intermediate_size=144)
    quantize(tmp_path / "odd", [recipes.recipe("w8a8-fp")], tmp_path / "out")
    assert_loads_alike(tmp_path / "out")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_calibration_is_asked_for(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="w4a16-int-gptq needs calibration text"):
        quantize(tiny_llama, [recipes.recipe("w4a16-int-gptq", group_size=32)], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_too_little_calibration_text_is_noted(tiny_llama: Path, calibration: Calibration, tmp_path: Path) -> None:
    wanting = replace(calibration, samples=9999)
    results = quantize(tiny_llama, [EVERY[0], EVERY[5]], tmp_path / "out", calibration=wanting)
    assert results[0].notes == ()
    assert "not 9999 of 64" in results[1].notes[0]


@pytest.mark.parametrize("recipe", [recipes.recipe("w4a16-int-gptq", group_size=32), recipes.recipe("w8a8-fp")])
def test_weights_that_are_not_finite_leave_nothing(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path, recipe: Recipe
) -> None:
    model = tmp_path / "broken"
    shutil.copytree(tiny_llama, model)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkFailed, match=r"model\.layers\.1\.mlp\.down_proj: its weights hold NaN"):
        quantize(model, [recipe], tmp_path / "out", calibration=calibration)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_a_full_disk_leaves_nothing(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    with pytest.raises(WorkFailed, match="the disk is full"):
        quantize(tiny_llama, EVERY[:2], tmp_path / "out", calibration=calibration)
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.suffix == ".partial"] == []


# --- killed and taken up ----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from bitworth.quantization import quantize
from bitworth.recipes import recipe
from bitworth.types import Calibration
model, out, text = sys.argv[1:]
def stop(what, done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
calibration = Calibration(source=text, samples=8, length=64)
quantize(Path(model), [recipe("w8a8-int-gptq")], Path(out), calibration=calibration, states_mib=0, progress=stop)
"""


@pytest.fixture(scope="module")
def deep_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("deep") / "llama"
    save_tiny_llama(folder, num_hidden_layers=4)
    return folder


def blocks_walked(model: Path, chosen: list[Recipe], out: Path, *, until: int = 99, **options: Any) -> list[int]:
    """The blocks that a run starts; it is interrupted when it starts block `until`."""
    seen: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if done == until:
            raise KeyboardInterrupt
        seen.append(done)

    quantize(model, chosen, out, progress=progress, **options)
    return seen


@pytest.mark.parametrize(
    ("names", "stream", "states_mib"),
    [
        (["w8a8-fp", "w4a16-int-gptq"], "own", 0),
        *(
            pytest.param(
                ["w8a8-fp", "w4a16-int-gptq", "w4a16-int-gptq-tuned", "w4a16-int-awq", "w8a8-int-gptq"], *how,
                marks=pytest.mark.slow(beside=True),
            )
            for how in product(("own", "shared"), (1000, 0))
        ),
    ],
)  # fmt: skip
def test_an_interrupted_run_goes_on_after_the_last_block(
    deep_llama: Path, calibration: Calibration, tmp_path: Path, names: list[str], stream: Any, states_mib: int
) -> None:
    """The checkpoints are those of an undisturbed run to the last bit; only the blocks left are walked."""
    chosen = [recipes.recipe(name, group_size=32) for name in names]
    spec = replace(calibration, stream=stream)
    with pytest.raises(KeyboardInterrupt):
        blocks_walked(deep_llama, chosen, tmp_path / "out", until=4, calibration=spec, states_mib=states_mib)
    assert not any((tmp_path / "out" / name).exists() for name in names)
    walked = blocks_walked(deep_llama, chosen, tmp_path / "out", calibration=spec, states_mib=states_mib)
    assert walked[-1] == 4
    assert walked[0] == 4 if states_mib == 0 else walked[0] >= 2  # states in memory are not saved after every block
    blocks_walked(deep_llama, chosen, tmp_path / "undisturbed", calibration=spec)
    for name in names:
        assert_same_weights(tmp_path / "out" / name, tmp_path / "undisturbed" / name)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)


@pytest.mark.slow(beside=True)
def test_a_killed_run_goes_on_and_another_calibration_starts_afresh(
    deep_llama: Path, calibration: Calibration, tmp_path: Path
) -> None:
    recipe = recipes.recipe("w8a8-int-gptq")
    arguments = [deep_llama, tmp_path / "out", calibration.source]
    ended = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".out.partial"]
    shutil.copytree(tmp_path / ".out.partial", tmp_path / ".other.partial")
    assert blocks_walked(deep_llama, [recipe], tmp_path / "out", calibration=calibration, states_mib=0) == [3, 4]
    other = replace(calibration, samples=4)
    assert blocks_walked(deep_llama, [recipe], tmp_path / "other", calibration=other, states_mib=0) == [1, 2, 3, 4]
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


@pytest.mark.parametrize("again", [0, 1], ids=["all-of-them", "the-one-that-failed"])
def test_a_fault_while_a_checkpoint_is_joined_costs_no_walk(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: int
) -> None:
    """The first recipe of the stream is finished by then, and what the others need lies with them."""
    chosen = [recipes.recipe(name, group_size=32) for name in ("w4a16-int-gptq", "w4a16-int-awq", "w8a8-int-gptq")]
    spec = replace(calibration, stream="shared")
    finish = Writer.finish

    def fail(self: Writer, *args: Any) -> None:
        if self.folder.name == chosen[1].name:
            raise Interrupted(f"{self.folder} could not be written: Input/output error.")
        finish(self, *args)

    monkeypatch.setattr(Writer, "finish", fail)
    with pytest.raises(Interrupted, match="Input/output error"):
        blocks_walked(tiny_llama, chosen, tmp_path / "out", calibration=spec)
    monkeypatch.undo()
    folders = {recipe.name: tmp_path / "out" / recipe.name for recipe in chosen}
    seen: list[object] = []
    results = quantize(
        tiny_llama, chosen[again:], folders, calibration=spec, progress=lambda *step: seen.append(step[0])
    )
    assert "blocks" not in seen
    quantize(tiny_llama, chosen, tmp_path / "undisturbed", calibration=spec)
    for recipe, result in zip(chosen[again:], results, strict=True):
        assert_same_weights(result.path, tmp_path / "undisturbed" / recipe.name)
        assert result.audit is not None
        assert result.audit.stages
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(folders)


def test_what_was_made_is_not_made_again(tiny_llama: Path, tmp_path: Path) -> None:
    """Unless it is damaged or something differs."""
    steps: list[int] = []
    fp8, rtn = recipes.recipe("w8a8-fp"), recipes.recipe("w4a16-int-rtn", group_size=32)

    def make(recipe: Recipe) -> QuantizeResult:
        steps.clear()
        [result] = quantize(tiny_llama, [recipe], tmp_path / "out", progress=lambda *_: steps.append(1))
        return result

    first = make(fp8)
    assert make(fp8) == first
    assert not steps
    make(rtn)
    assert steps
    made = tmp_path / "out" / "model.safetensors"
    made.write_bytes(made.read_bytes()[:-1])
    make(rtn)
    assert steps


# --- one stream for many ----------------------------------------------------------------------------------------------


@pytest.mark.slow(beside=True)
def test_recipes_on_one_stream_are_the_same_alone(deep_llama: Path, calibration: Calibration, tmp_path: Path) -> None:
    spec = replace(calibration, stream="shared")
    names = [
        "w8a8-fp", "w8a8-int-gptq", "w4a16-int-gptq", "w4a16-int-gptq-tuned", "w4a16-int-awq",
        "w8a8-int-smoothquant-gptq",
    ]  # fmt: skip
    chosen = [recipes.recipe(name, group_size=32) for name in names]
    quantize(deep_llama, chosen, tmp_path / "together", calibration=spec)
    for recipe in chosen:
        if recipe.needs_calibration:
            quantize(deep_llama, [recipe], tmp_path / recipe.name, calibration=spec)
            assert_same_weights(tmp_path / recipe.name, tmp_path / "together" / recipe.name)


def test_the_shared_stream_is_the_unquantized_model(
    deep_llama: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: GPTQ of the last block alone on what transformers' own model gives it; one chunk and several agree."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("bitworth.quantization._fast_factors", lambda compute: compute)  # transformers' is float32
    recipe = recipes.recipe("w8a8-int-gptq")
    spec = replace(calibration, stream="shared")
    quantize(deep_llama, [recipe], tmp_path / "one", calibration=spec)
    tokens = calibration_tokens(deep_llama, spec, print)
    model = AutoModelForCausalLM.from_pretrained(deep_llama, dtype=torch.float32)
    stats = InputStats(64)
    name = "model.layers.3.self_attn.o_proj"
    layer = model.get_submodule(name)
    layer.register_forward_pre_hook(lambda _m, args: stats.add(args[0]))
    with torch.inference_mode():
        model(tokens)
        expected = round_weight(layer.weight, recipe, stats, dtype=torch.bfloat16)
    made = load_file(tmp_path / "one" / "model.safetensors")[f"{name}.weight"].float()
    assert (made != expected.codes_OI).float().mean() < 1e-3
    monkeypatch.setattr("bitworth.quantization.CHUNK_TOKENS", 150)
    quantize(deep_llama, [recipe], tmp_path / "several", calibration=spec)
    several = load_file(tmp_path / "several" / "model.safetensors")[f"{name}.weight"].float()
    assert (several != made).float().mean() < 1e-3


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in first)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_the_model_itself_is_never_overwritten(tiny_llama: Path) -> None:
    with pytest.raises(BitworthError, match="holds the model being quantized"):
        quantize(tiny_llama, [recipes.recipe("w8a8-fp")], tiny_llama)


@pytest.mark.slow
def test_gptq_beats_rounding_on_a_real_model(smollm2: Path, shared: Path, tmp_path: Path) -> None:
    """WikiText-2, little calibration: round-to-nearest loses several times what GPTQ with clipping does."""
    from bitworth.evaluation import diverge

    source = shared / "data" / "wikitext2" / "wikitext2_train_5k.txt"
    text = (shared / "data" / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    names = ("w4a16-int-rtn", "w4a16-int-gptq")
    wanted = [recipes.recipe(name, group_size=64) for name in names]
    calibration = Calibration(source=str(source), samples=16, length=256)
    made = quantize(smollm2, wanted, tmp_path, calibration=calibration)
    baseline = load_exact(smollm2)
    rtn, gptq = (diverge(load_exact(m.path), baseline, text, window=512, limit_windows=8) for m in made)
    assert gptq.baseline_perplexity is not None
    assert gptq.baseline_perplexity < gptq.perplexity < rtn.perplexity
    assert (gptq.kl_nats or 0) < 0.6 * (rtn.kl_nats or 0)


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"), MemoryError()])
def test_memory_that_ends_costs_no_finished_block(
    tiny_llama: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    recipe, walked, run = recipes.recipe("w4a16-int-gptq", group_size=32), [], BlockPass.run

    def short(self: BlockPass, *arguments: Any) -> None:
        walked.append(self.block.index)
        if walked == [0, 1]:
            raise error
        run(self, *arguments)

    monkeypatch.setattr(BlockPass, "run", short)
    with pytest.raises(Interrupted, match="finished blocks are kept"):
        quantize(tiny_llama, [recipe], tmp_path / "out", calibration=calibration)
    quantize(tiny_llama, [recipe], tmp_path / "out", calibration=calibration)
    assert walked == [0, 1, 1]
