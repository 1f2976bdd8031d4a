"""Mixtures of experts: taken apart, measured, written and run, each against transformers' own fused modules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from oracle import reference
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitworth import recipes, sequential
from bitworth.checkpoint import Reader
from bitworth.engines.torch import load_exact
from bitworth.errors import BitworthError
from bitworth.experts import Experts, unfuse
from bitworth.footprint import footprint
from bitworth.model import Arguments, Decoder, call
from bitworth.naming import Names
from bitworth.quantization import quantize
from bitworth.quantizers import InputStats, Rounded, round_weight
from bitworth.sequential import BlockPass
from bitworth.stages import trace
from bitworth.types import Calibration, StageAudit

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {
    "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 16,
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1},
    "qwen3_moe": {**_EXPERTS, "head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "deepseek_v2": {**_LATENT, "n_shared_experts": 1},
    "deepseek_v3": _LATENT,
    "glm4_moe": {
        "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    },
    "ernie4_5_moe": {"moe_intermediate_size": 32, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 32, "head_dim": 16},
}  # fmt: skip
#: Ones that differ in what matters: names, biases, interleaving, transposition, shared experts, a dense first block.
DISTINCT = ("qwen2_moe", "mixtral", "granitemoe", "gpt_oss", "deepseek_v3")
LAYOUTS = {"as-on-the-hub": True, "fused": False}
QUICK = (("qwen2_moe", "as-on-the-hub"), ("gpt_oss", "fused"))


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@torch.inference_mode()
def save_mixture(folder: Path, family: str, *, as_on_the_hub: bool = True, **overrides: Any) -> Any:
    """A tiny random mixture in bfloat16, and transformers' own float32 model of it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 259, "max_position_embeddings": 512, "initializer_range": 0.2,
        "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**shape, **FAMILIES[family], **overrides}))
    for name, parameter in model.named_parameters():
        if "expert" in name or "router" in name:  # biases start at zero
            parameter.normal_(0, 0.2)
    model.to(torch.bfloat16).save_pretrained(folder, save_original_format=as_on_the_hub)
    byte_tokenizer().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()


def tokens(batch: int = 1, length: int = 60) -> Tensor:
    return torch.randint(0, 250, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"The {number}th brown fox jumps over {number * 7} lazy dogs." for number in range(200)))
    return Calibration(source=str(text), samples=8, length=64)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("qwen") / "model"
    save_mixture(folder, "qwen3_moe")
    return folder


def chunked(decoder: Decoder, sizes: list[int], length: int = 24) -> tuple[list[Tensor], list[Arguments]]:
    hidden: list[Tensor] = []
    return hidden, decoder.first_inputs(list(torch.split(tokens(sum(sizes), length), sizes)), hidden.append)


# --- taken apart ------------------------------------------------------------------------------------------------------


@pytest.mark.slow(beside=True)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_walk_is_transformers_own_forward(family: str, layout: str, tmp_path: Path) -> None:
    """From either layout, block by block."""
    whole = save_mixture(tmp_path, family, as_on_the_hub=LAYOUTS[layout])
    decoder = Decoder(tmp_path)
    expected: list[Tensor] = []
    for block in whole.get_submodule(decoder.prefix):
        block.register_forward_hook(
            lambda _m, _a, out: expected.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    whole(tokens(3, 20), use_cache=False)
    hidden: list[Tensor] = []
    kwargs = decoder.first_inputs([tokens(3, 20)], hidden.append)
    state = hidden[0]
    for index in range(len(decoder)):
        with decoder.loaded(index) as block:
            state = call(block.module, state, kwargs[index][3])
            assert any(isinstance(part, Experts) for part in block.module.modules()) or index == 0
        assert expected[index].abs().max() > 0.1
        torch.testing.assert_close(state, expected[index], rtol=1e-4, atol=1e-4 * float(expected[index].abs().max()))


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in DISTINCT else pytest.mark.slow(beside=True)) for name in FAMILIES]
)
def test_the_hubs_names_are_written_from_either_layout(family: str, tmp_path: Path) -> None:
    """Oracle: what transformers itself writes."""
    written = []
    for layout, as_on_the_hub in LAYOUTS.items():
        save_mixture(tmp_path / layout, family, as_on_the_hub=as_on_the_hub)
        decoder = Decoder(tmp_path / layout)
        inside = decoder.names.under(decoder.prefix)
        written.append({decoder.names.written(name): decoder.tensor(name) for name in inside})
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(value, written[1][name]) for name, value in written[0].items())
    hub = load_file(tmp_path / "as-on-the-hub" / "model.safetensors")
    if any(".experts.0." in name for name in hub):  # else fused on the hub too
        assert written[0].keys() <= hub.keys()
        assert all(torch.equal(value, hub[name]) for name, value in written[0].items())


def test_mixtrals_projections_have_the_hubs_names(tmp_path: Path) -> None:
    save_mixture(tmp_path, "mixtral", as_on_the_hub=False)
    decoder = Decoder(tmp_path)
    assert decoder.linear_shapes()["model.layers.1.mlp.experts.3.w2"] == (64, 64)
    assert decoder.names.layer("model.layers.1.mlp.experts.3.w2") == "model.layers.1.block_sparse_moe.experts.3.w2"


class Odd(nn.Module):
    """A fused mixture; `twist` is what its attributes do not tell."""

    def __init__(self, twist: float = 1.0) -> None:
        super().__init__()
        self.num_experts, self.twist, self.act_fn = 3, twist, nn.SiLU()
        self.up_proj = nn.Parameter(torch.empty(3, 24, 8, device="meta"), requires_grad=False)
        self.down_proj = nn.Parameter(torch.empty(3, 8, 24, device="meta"), requires_grad=False)

    def forward(self, hidden: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        middle = self.act_fn(torch.einsum("td,eid->tei", hidden, self.up_proj)) * self.twist
        every = torch.einsum("tei,edi->ted", middle, self.down_proj)
        return (every.gather(1, chosen[..., None].expand(-1, -1, 8)) * weight[..., None]).sum(1)


def test_a_mixture_is_taken_apart_only_when_the_parts_give_the_whole() -> None:
    model = nn.Sequential(Odd())
    assert unfuse(model).keys() == {"0"}
    assert isinstance(model[0], Experts)
    assert [name for name, part in model.named_modules() if isinstance(part, nn.Linear)][:2] == [
        "0.0.up_proj",
        "0.0.down_proj",
    ]
    with pytest.raises(BitworthError, match=r"in a way that bitworth cannot take apart \(Odd at 0\)"):
        unfuse(nn.Sequential(Odd(twist=1.1)))


def test_mixtures_without_an_interface_are_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("llama4_text", hidden_size=64, num_hidden_layers=1, vocab_size=259, head_dim=16)
    config.architectures = ["Llama4ForCausalLM"]
    config.save_pretrained(tmp_path)
    save_file({"x.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BitworthError, match=r"Llama4TextExperts at model\.layers\.0\.feed_forward\.experts"):
        Decoder(tmp_path)


def test_a_missing_expert_is_named(qwen: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.0.mlp.experts.2.up_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors")
    decoder = Decoder(tmp_path / "model")
    missing = r"no tensor 'model\.layers\.0\.mlp\.experts\.2\.up_proj\.weight'"
    with pytest.raises(BitworthError, match=missing), decoder.loaded(0):
        pass
    with pytest.raises(BitworthError, match=r"experts\.2\.up_proj\.weight is missing"):
        load_exact(tmp_path / "model", device="cpu")


# --- the walk ---------------------------------------------------------------------------------------------------------


def seen_by_hooks(whole: Any, hidden: list[Tensor], kwargs: Arguments) -> dict[str, InputStats]:
    """What each expert of transformers' own fused module receives, recomputed from the module's inputs."""
    block = whole.model.layers[0]
    stats = {f"{number}.{part}": InputStats(width) for number in range(4) for part, width in (("up", 64), ("down", 32))}

    def see(module: Any, args: tuple[Tensor, ...]) -> None:
        rows, chosen, _ = args
        for number in range(4):
            own = rows[(chosen == number).any(1)]
            gate, up = (own @ module.gate_up_proj[number].T).chunk(2, dim=-1)
            stats[f"{number}.up"].add(own)
            stats[f"{number}.down"].add(nn.functional.silu(gate) * up)

    handle = block.mlp.experts.register_forward_pre_hook(see)
    for chunk in hidden:
        call(block, chunk, kwargs[chunk.shape[0]])
    handle.remove()
    return stats


@pytest.mark.parametrize("sizes", [[6], [2, 2, 2], [5, 1]])
def test_each_expert_is_measured_by_what_reaches_it(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = save_mixture(tmp_path, "qwen3_moe")
    decoder = Decoder(tmp_path)
    seen: dict[str, InputStats] = {}
    audit = sequential.audit_stage

    def spy(prefix: str, layers: list[str], stats: InputStats) -> StageAudit:
        seen.update(dict.fromkeys(layers, deepcopy(stats)))  # they are spent afterwards
        return audit(prefix, layers, stats)

    monkeypatch.setattr(sequential, "audit_stage", spy)
    hidden, kwargs = chunked(decoder, sizes)
    expected = seen_by_hooks(whole, hidden, kwargs[0])
    with decoder.loaded(0) as block:
        chosen = [recipes.recipe("w4a16-int-awq", group_size=32)]
        BlockPass(block, chosen, decoder.dtype, propagate=False).run(hidden, kwargs[0])
    for number in range(4):
        for part, projection in (("up", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            one, other = seen[f"mlp.experts.{number}.{projection}"], expected[f"{number}.{part}"]
            assert one.tokens == other.tokens > 0
            torch.testing.assert_close(one.hessian_II, other.hessian_II, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(one.max_abs_I, other.max_abs_I, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["w4a16-int-gptq-published", "w8a8-int-gptq"])
def test_several_chunks_give_what_one_gives(qwen: Path, name: str) -> None:
    """Gate and up of all experts before down, each seeing what the rounded ones before it produce."""
    decoder = Decoder(qwen)
    recipe = recipes.recipe(name, group_size=32)
    results = []
    for sizes in ([6], [2, 2, 2]):
        hidden, kwargs = chunked(decoder, sizes)
        with decoder.loaded(0) as block:
            walk = BlockPass(block, [recipe], decoder.dtype)
            walk.run(hidden, kwargs[0])
        results.append((torch.cat(hidden), walk.results[0].rounded))
    (whole, first), (parts, second) = results
    assert first.keys() == second.keys()
    for layer, rounded in first.items():
        assert (second[layer].codes_OI.float() - rounded.codes_OI).abs().mean() < 5e-3, layer
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-2 * float(whole.abs().max()))


def test_gptq_is_better_than_rounding_on_an_experts_objective(qwen: Path) -> None:
    decoder = Decoder(qwen)
    hidden, kwargs = chunked(decoder, [16], length=64)
    inputs: list[Tensor] = []
    with decoder.loaded(0) as block:
        layer = block.linears()["mlp.experts.1.down_proj"]
        walk = BlockPass(block, [recipes.recipe("w4a16-int-gptq-published", group_size=32)], decoder.dtype)
        handle = layer.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
        walk.run(list(hidden), kwargs[0])
        handle.remove()
        rtn = round_weight(layer.weight, recipes.recipe("w4a16-int-rtn", group_size=32), None, dtype=decoder.dtype)

        def loss(rounded: Rounded) -> float:
            return float((inputs[-1] @ (rounded.weight() - layer.weight).T).square().sum())

        assert loss(walk.results[0].rounded["mlp.experts.1.down_proj"]) < 0.8 * loss(rtn)


def test_experts_that_nothing_reaches_are_rounded_without_data_and_named(
    calibration: Calibration, tmp_path: Path
) -> None:
    save_mixture(tmp_path / "model", "gpt_oss")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.0.mlp.router.bias"][2] = -1e4
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    recipe = recipes.recipe("w4a16-int-gptq", group_size=32)
    [result] = quantize(tmp_path / "model", [recipe], tmp_path / "out", calibration=calibration)
    unreached = [note for note in result.notes if "never reached" in note]
    assert [note.split(": ")[0].removeprefix("model.layers.0.mlp.") for note in unreached] == [
        f"experts.2.{part}_proj" for part in ("gate", "up", "down")
    ]
    assert result.audit is not None
    assert [mixture.unreached for mixture in result.audit.experts] == [(2,), ()]
    assert result.audit.experts[0].tokens[2] == 0
    torch.testing.assert_close(
        load_exact(tmp_path / "out", device="cpu").logits(tokens()), reference(tmp_path / "out")(tokens()).logits,
        rtol=0, atol=1e-4,
    )  # fmt: skip


def unreached_experts_scales(family: str, name: str, calibration: Calibration, folder: Path) -> dict[str, Tensor]:
    """Input scales of the first block's experts by layer; no token chooses the third of four."""
    save_mixture(folder / "model", family)
    weights = load_file(folder / "model" / "model.safetensors")
    weights["model.layers.0.mlp.router.bias"][2] = -1e4
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    [result] = quantize(folder / "model", [recipes.recipe(name)], folder / "out", calibration=calibration)
    [note] = [note for note in result.notes if "experts.2.down_proj: calibration never reached it, so the" in note]
    assert note.endswith("of its inputs is that of the largest input of the other experts")
    assert any("vLLM 0.32 will refuse the checkpoint" in note for note in result.notes) is ("static" in name)
    made = load_file(folder / "out" / "model.safetensors")
    inside = "model.layers.0.mlp.experts."
    return {key.removeprefix(inside): made[key].float() for key in made if key.startswith(inside) and "input_" in key}


@pytest.mark.parametrize(
    ("name", "stored", "largest"),
    [
        ("w8a8-fp-static", "input_scale", torch.amax),
        ("w8a8-int-static-gptq", "input_scale", torch.amax),
        ("nvfp4-rtn", "input_global_scale", torch.amin),  # 448 * 6 over the largest input
    ],
)
def test_an_expert_that_nothing_reaches_takes_the_largest_input_of_the_others(
    name: str, stored: str, largest: Any, calibration: Calibration, tmp_path: Path
) -> None:
    scales = unreached_experts_scales("gpt_oss", name, calibration, tmp_path)
    assert len(scales) == 4 * 3
    for part in ("gate_proj", "up_proj", "down_proj"):
        others = torch.stack([scales[f"{number}.{part}.{stored}"] for number in (0, 1, 3)])
        assert torch.equal(scales[f"2.{part}.{stored}"], largest(others, dim=0))
        assert len(others.unique()) > 1
        assert not (others == 1).any()


def test_an_experts_down_is_scaled_by_its_own_up(qwen: Path) -> None:
    """Experts that the traced sequence does not reach are treated like those that it does."""
    decoder = Decoder(qwen)
    hidden, kwargs = chunked(decoder, [1], length=1)  # one token: two of four experts
    with decoder.loaded(0) as block:
        stages = trace(block.module, list(block.linears()), hidden[0], kwargs[0][1], producers={})
    of_experts = {tuple(stage.layers): stage.producer for stage in stages if "experts" in stage.layers[0]}
    assert of_experts == {
        **{(f"mlp.experts.{n}.gate_proj", f"mlp.experts.{n}.up_proj"): None for n in range(4)},
        **{(f"mlp.experts.{n}.down_proj",): f"mlp.experts.{n}.up_proj" for n in range(4)},
    }


# --- checkpoints ------------------------------------------------------------------------------------------------------

NAMES = ("w4a16-int-gptq", "w4a16-int-awq", "w8a8-int-smoothquant-gptq", "w8a8-fp")


def assert_runs_alike(family: str, layout: str, calibration: Calibration, folder: Path) -> None:
    """The exact engine gives what transformers' fused modules and formulas by hand give."""
    save_mixture(folder / "model", family, as_on_the_hub=LAYOUTS[layout])
    baseline = load_exact(folder / "model", device="cpu").logits(tokens())
    chosen = [recipes.recipe(name, group_size=32) for name in NAMES]
    quantize(folder / "model", chosen, folder / "out", calibration=calibration)
    for name in NAMES:
        logits = load_exact(folder / "out" / name, device="cpu").logits(tokens())
        expected = reference(folder / "out" / name)(tokens()).logits
        # a last bit decides a step of an input now and then: the bulk is compared closely, the whole by its mean
        difference = (logits - expected).abs()
        assert difference.median() < 1e-4, name
        assert difference.mean() < 2e-2 * expected.abs().mean(), name
        assert (logits - baseline).abs().mean() > 1e-3, name


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow(beside=True))
        for case in product(DISTINCT, LAYOUTS)
    ],
)
def test_the_exact_engine_runs_quantized_mixtures(
    family: str, layout: str, calibration: Calibration, tmp_path: Path
) -> None:
    assert_runs_alike(family, layout, calibration, tmp_path)


@pytest.mark.slow(beside=True)
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(DISTINCT)))
def test_the_exact_engine_runs_every_quantized_mixture(family: str, calibration: Calibration, tmp_path: Path) -> None:
    assert_runs_alike(family, "as-on-the-hub", calibration, tmp_path)


def test_routers_stay_and_are_named(tmp_path: Path) -> None:
    """By the checkpoint's name, which vLLM reads, and by transformers'."""
    save_mixture(tmp_path / "model", "mixtral")
    quantize(tmp_path / "model", [recipes.recipe("w8a8-fp")], tmp_path / "out")
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert {f"model.layers.1.{path}.gate" for path in ("block_sparse_moe", "mlp")} <= set(ignored)
    made, base = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "model"))
    router = "model.layers.1.block_sparse_moe.gate.weight"
    assert torch.equal(made[router], base[router])
    expert = "model.layers.1.block_sparse_moe.experts.3.w2"
    assert made[f"{expert}.weight"].dtype == torch.float8_e4m3fn
    assert made[f"{expert}.weight_scale"].shape == (64, 1)
    assert made.keys() - {name for name in made if name.endswith("_scale")} == base.keys()


def test_a_router_stays_wherever_its_name_says_so(tmp_path: Path) -> None:
    """Hunyuan's is `gate.wg`."""
    save_mixture(tmp_path / "model", "hunyuan_v1_moe")
    quantize(tmp_path / "model", [recipes.recipe("w8a8-fp")], tmp_path / "out")
    made, base = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "model"))
    routers = [name for name in base if "gate.wg" in name]
    assert routers
    assert all(torch.equal(made[name], base[name]) for name in routers)
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert {name.removesuffix(".weight") for name in routers} <= set(ignored)


def test_halves_that_engines_merge_share_what_a_whole_layer_has(tmp_path: Path) -> None:
    """NVFP4's global scale, of experts that go by `w1` and `w3` as by gate and up."""
    save_mixture(tmp_path / "model", "mixtral")
    quantize(tmp_path / "model", [recipes.recipe("nvfp4a16-rtn")], tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    first = [name for name in made if name.endswith("w1.weight_global_scale")]
    assert first
    assert all(torch.equal(made[name], made[name.replace(".w1.", ".w3.")]) for name in first)


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("name", ["w4a16-int-gptq", "w8a8-fp"])
@pytest.mark.parametrize("family", ["mixtral", pytest.param("qwen3_moe", marks=pytest.mark.slow(beside=True))])
def test_transformers_loads_the_experts(
    family: str, name: str, dequantize: bool, calibration: Calibration, tmp_path: Path
) -> None:
    """Dequantized in the scales' bfloat16; it knows FP8 and INT4 experts."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    save_mixture(tmp_path / "model", family)
    quantize(tmp_path / "model", [recipes.recipe(name, group_size=32)], tmp_path / "out", calibration=calibration)
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, **how)
    ours = dict(reference(tmp_path / "out").named_parameters())
    experts = {path: value for path, value in theirs.named_parameters() if "experts" in path or dequantize}
    assert experts
    for path, value in experts.items():
        torch.testing.assert_close(value.float(), ours[path], rtol=2**-7, atol=0)


def test_names_of_a_quantized_mixture_are_those_of_its_model(qwen: Path, tmp_path: Path) -> None:
    from bitworth.model import skeleton

    quantize(qwen, [recipes.recipe("w8a8-fp")], tmp_path / "out")
    weights = Reader(tmp_path / "out").weights()
    model = skeleton(tmp_path / "out")
    names = Names(model, weights.names)
    assert {names.of(f"{layer}.weight").removesuffix(".weight") for layer in weights.quantized} <= {
        name for name, part in model.named_modules() if type(part) is nn.Linear
    }


def test_many_experts_take_memory_where_calibration_takes_several_chunks(tmp_path: Path) -> None:
    """All experts' moments of one level: width squared for each."""
    sizes = {}
    for experts in (4, 64):
        save_mixture(tmp_path / str(experts), "qwen3_moe", num_experts=experts)
        decoder = Decoder(tmp_path / str(experts))
        for chunk in (4096, 1024):
            one = [recipes.recipe("w8a8-int-gptq")]
            sizes[experts, chunk] = footprint(
                decoder, one, tokens=4096, length=64, chunk_tokens=chunk, shared=False
            ).moments_mib
    assert sizes[4, 4096] == sizes[64, 4096]
    assert sizes[64, 1024] == pytest.approx((64 + 5) * 64**2 * 4 / 2**20, abs=0.1)


def test_the_speed_engine_refuses_mixtures(tmp_path: Path) -> None:
    from bitworth.engines.torch_load import load

    for family in ("mixtral", "qwen3_moe"):
        save_mixture(tmp_path / family, family)
        quantize(tmp_path / family, [recipes.recipe("w8a8-fp")], tmp_path / f"{family}-fp8")
        for folder in (tmp_path / family, tmp_path / f"{family}-fp8"):
            with pytest.raises(BitworthError):
                load(folder, Reader(folder), torch.float32, torch.device("cpu"), None)
