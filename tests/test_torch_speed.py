from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny_llama
from safetensors.torch import load_file, save_file
from torch import nn

from bitworth.engines import torch_speed
from bitworth.engines.generator import Generator
from bitworth.engines.kernels import Kernel
from bitworth.engines.torch import load_exact
from bitworth.engines.torch_load import FusedNorm, Part, Reordered, Shared
from bitworth.engines.torch_speed import TorchGenerator, batches, compute_dtype, open_torch
from bitworth.errors import BitworthError, Unsupported, WorkFailed
from bitworth.quantization import quantize
from bitworth.recipes import recipe
from bitworth.types import Load

ALONE = Load(kind="synchronous")
PROMPTS = [[(31 * row + 7 * column) % 250 for column in range(20)] for row in range(5)]
TOKENS = torch.tensor(PROMPTS)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not quantized stays in float32, so that comparisons are tight."""
    monkeypatch.setattr(torch_speed, "compute_dtype", lambda *_: torch.float32)


@pytest.fixture(scope="module")
def quantized(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model by a recipe's name, groups of 32."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("quantized") / name
            made[name] = quantize(tiny_llama, [recipe(name, group_size=32)], out)[0].path
        return made[name]

    return make


def _reference(folder: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    """transformers' own greedy decoding, without an end."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return [row[len(prompts[0]) :] for row in out.tolist()]


# --- the baseline against transformers ----------------------------------------------------------------------------


def test_baseline_decodes_as_transformers_does(tiny_llama: Path, float32: None) -> None:
    engine: Generator = open_torch(tiny_llama, "cpu")
    assert isinstance(engine, TorchGenerator)
    assert engine.generate(PROMPTS, 24)[0] == _reference(tiny_llama, PROMPTS, 24)
    torch.testing.assert_close(engine.logits(TOKENS), load_exact(tiny_llama).logits(TOKENS), rtol=1e-4, atol=1e-4)
    assert engine.facts.kernel == "float32"
    assert engine.facts.engine == "torch"
    assert engine.facts.versions["torch"] == torch.__version__


def _save(folder: Path, config: Any) -> Path:
    """A random model whose biases and norms are not what they are initialized to."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return folder


_SIDES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 250,
}


@pytest.mark.parametrize("kind", ["biased llama", "sliding mistral", "qwen3", "gemma2", "gpt2"])
def test_other_architectures_decode_as_in_transformers(kind: str, tmp_path: Path, float32: None) -> None:
    import transformers as t

    config = {
        "biased llama": lambda: t.LlamaConfig(**_SIDES, attention_bias=True, mlp_bias=True),
        "sliding mistral": lambda: t.MistralConfig(**_SIDES, sliding_window=8),
        "qwen3": lambda: t.Qwen3Config(**_SIDES),
        "gemma2": lambda: t.Gemma2Config(**_SIDES, sliding_window=8, attn_logit_softcapping=2.0),
        "gpt2": lambda: t.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=250),
    }[kind]()
    folder = _save(tmp_path / "model", config)
    assert open_torch(folder, "cpu").generate(PROMPTS[:2], 16)[0] == _reference(folder, PROMPTS[:2], 16)


# --- quantized against the exact engine ---------------------------------------------------------------------------


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _worst_layer(folder: Path, engine: TorchGenerator) -> float:
    """Largest relative error of a quantized layer's output, each given what the exact engine's own layer is given."""
    exact = load_exact(folder)
    names = [name for name, module in exact.model.named_modules() if name.endswith("proj")]
    worst = 0.0

    def compare(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            nonlocal worst
            worst = max(worst, _relative(engine.model.get_submodule(name)(inputs[0]), output))

        return hook

    for name in names:
        exact.model.get_submodule(name).register_forward_hook(compare(name))
    exact.logits(TOKENS)
    assert len(names) == 2 * 7
    return worst


@pytest.mark.parametrize("bias", [False, True])
def test_int8_layers_are_the_exact_engine_s(bias: bool, tmp_path: Path, float32: None) -> None:
    """Logits are compared loosely: float32's last bit now and then moves an activation over a tie to the next code."""
    save_tiny_llama(tmp_path / "base", attention_bias=bias)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(".bias")]:
        tensors[name] = torch.randn(tensors[name].shape).bfloat16()
    save_file(tensors, path, metadata={"format": "pt"})
    folder = quantize(tmp_path / "base", [recipe("w8a8-int-rtn")], tmp_path / "out")[0].path
    engine = open_torch(folder, "cpu")
    assert _worst_layer(folder, engine) < 1e-6
    assert _relative(engine.logits(TOKENS), load_exact(folder).logits(TOKENS)) < 5e-3
    assert "int8" in engine.facts.kernel
    assert engine.facts.kernel.endswith("rest float32")


def test_int4_logits_differ_by_bfloat16_alone(
    quantized: Callable[[str], Path], tiny_llama: Path, float32: None
) -> None:
    folder = quantized("w4a16-int-rtn")
    exact, engine = load_exact(folder).logits(TOKENS), open_torch(folder, "cpu")
    assert _worst_layer(folder, engine) < 5e-3
    assert _relative(engine.logits(TOKENS), exact) < 0.02
    assert _relative(load_exact(tiny_llama).logits(TOKENS), exact) > 0.1  # what quantizing itself changed
    assert "int4" in engine.facts.kernel


@pytest.mark.parametrize("name", ["w8a8-int-rtn", "w4a16-int-rtn"])
def test_everything_else_may_run_in_bfloat16(
    name: str, quantized: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_speed, "compute_dtype", lambda *_: torch.bfloat16)
    engine = open_torch(quantized(name), "cpu")
    assert _relative(engine.logits(TOKENS), load_exact(quantized(name)).logits(TOKENS)) < 0.08
    assert engine.facts.kernel.endswith("rest bfloat16")


def test_columns_ordered_by_group_are_put_in_order(
    quantized: Callable[[str], Path], tmp_path: Path, float32: None
) -> None:
    folder = tmp_path / "ordered"
    shutil.copytree(quantized("w4a16-int-rtn"), folder)
    tensors = load_file(folder / "model.safetensors")
    for packed in [name for name in tensors if name.endswith("weight_packed")]:
        layer = packed.removesuffix(".weight_packed")
        columns = int(tensors[f"{layer}.weight_shape"][1])
        together = "q_proj" in layer or "k_proj" in layer or "v_proj" in layer
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(5 if together else len(layer)))
        tensors[f"{layer}.weight_g_idx"] = (order // 32).int()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    engine = open_torch(folder, "cpu")
    assert any(isinstance(module, Reordered) for module in engine.model.modules())
    assert _relative(engine.logits(TOKENS), load_exact(folder).logits(TOKENS)) < 0.02
    assert _relative(engine.logits(TOKENS), load_exact(quantized("w4a16-int-rtn")).logits(TOKENS)) > 0.1


@pytest.mark.parametrize("name", ["w8a8-int-rtn", "w4a16-int-rtn"])
def test_projections_are_merged_and_nothing_is_held_twice(name: str, quantized: Callable[[str], Path]) -> None:
    model = open_torch(quantized(name), "cpu").model
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(Part) == 2 * 5
    assert kinds.count(Shared) == 2 * 2
    assert kinds.count(FusedNorm) == 2 * 2 + 1
    assert [name for name, module in model.named_modules() if type(module) is nn.Linear] == ["lm_head"]
    assert sum(isinstance(module, Kernel) for module in model.modules()) == 2 * 4
    assert model.lm_head.weight is model.model.embed_tokens.weight
    floats = sum(p.numel() for p in model.parameters())
    assert floats == 259 * 64 + 5 * 64  # embeddings, which are the head, and norms


# --- running ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baseline", "w8a8-int-rtn"])
def test_a_batch_decodes_what_each_prompt_decodes_alone(
    name: str, tiny_llama: Path, quantized: Callable[[str], Path], float32: None
) -> None:
    engine = open_torch(tiny_llama if name == "baseline" else quantized(name), "cpu")
    together, _ = engine.generate(PROMPTS, 16)
    assert together == [engine.generate([prompt], 16)[0][0] for prompt in PROMPTS]


def test_a_request_alone_starts_when_the_one_before_ends(tiny_llama: Path) -> None:
    seen: list[tuple[int, int]] = []
    timings = open_torch(tiny_llama, "cpu").run(PROMPTS, 6, ALONE, lambda *done: seen.append(done))
    assert seen == [(count, 5) for count in range(1, 6)]
    clock = 0.0
    for timing in timings:
        assert timing.first_token_s is not None
        assert clock <= timing.start_s < timing.first_token_s < timing.end_s
        assert (timing.prompt_tokens, timing.output_tokens, timing.error) == (20, 6, None)
        clock = timing.end_s


def test_one_token_ends_when_it_comes(tiny_llama: Path) -> None:
    (timing,) = open_torch(tiny_llama, "cpu").run(PROMPTS[:1], 1, ALONE)
    assert timing.first_token_s is not None
    assert timing.first_token_s <= timing.end_s < timing.first_token_s + 0.1


def test_exactly_the_tokens_asked_for_though_the_model_says_stop(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_torch(tiny_llama, "cpu")
    engine.model.generation_config.eos_token_id = list(range(259))
    assert [len(row) for row in engine.generate(PROMPTS, 9)[0]] == [9] * 5
    steps: list[int] = []
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda **k: steps.append(k["input_ids"].shape[1]) or forward(**k))
    engine.run(PROMPTS[:1], 9, ALONE)
    assert steps == [20] + [1] * 8


def test_streams_run_together_by_length_and_answer_in_order(tiny_llama: Path) -> None:
    prompts = [PROMPTS[0], PROMPTS[1][:7], PROMPTS[2], PROMPTS[3], PROMPTS[4][:7]]
    timings = open_torch(tiny_llama, "cpu").run(prompts, 3, Load(kind="throughput", streams=2))
    assert [timing.prompt_tokens for timing in timings] == [20, 7, 20, 20, 7]
    assert timings[0] == timings[2]
    assert timings[1] == timings[4]
    assert timings[3].start_s >= timings[0].end_s
    assert timings[1].start_s >= timings[3].end_s
    assert list(batches(prompts, 2)) == [[0, 2], [3], [1, 4]]
    assert list(batches(prompts, 9)) == [[0, 2, 3], [1, 4]]


# --- refusals -----------------------------------------------------------------------------------------------------


def test_requests_at_a_rate_are_sent_elsewhere(tiny_llama: Path) -> None:
    engine = open_torch(tiny_llama, "cpu")
    with pytest.raises(Unsupported, match=r"constant@2.*--engine vllm"):
        engine.run(PROMPTS, 2, Load(kind="constant", rate=2.0))


@pytest.mark.parametrize(("prompt", "count"), [([], 2), ([259], 2), ([-1], 2), ([1], 0)])
def test_bad_requests_are_named(prompt: list[int], count: int, tiny_llama: Path) -> None:
    with pytest.raises(BitworthError, match=r"from 0 to 258|at least one token, not 0"):
        open_torch(tiny_llama, "cpu").run([prompt], count, ALONE)


def test_a_request_longer_than_the_context_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(Unsupported, match=r"500 \+ 13 tokens exceeds the model's context of 512"):
        open_torch(tiny_llama, "cpu").run([[1] * 500], 13, ALONE)


def test_torch_out_of_memory_is_one_sentence(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_torch(tiny_llama, "cpu")

    def fail(**_: Any) -> None:
        raise RuntimeError("not enough memory: you tried to allocate 9 bytes.\nstack")

    monkeypatch.setattr(engine.model, "forward", fail)
    with pytest.raises(WorkFailed, match=r"batch of 1: not enough memory: you tried to allocate 9 bytes\.$"):
        engine.run(PROMPTS[:1], 2, ALONE)


def test_fp8_on_a_cpu_has_no_kernel(quantized: Callable[[str], Path]) -> None:
    with pytest.raises(Unsupported, match="no matrix kernel for w8a8-fp"):
        open_torch(quantized("w8a8-fp"), "cpu")


def test_a_layer_that_int4_cannot_take_is_refused(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "base", intermediate_size=96, hidden_size=96, num_attention_heads=6, vocab_size=259)
    folder = quantize(tmp_path / "base", [recipe("w4a16-int-rtn", group_size=16)], tmp_path / "out")[0].path
    with pytest.raises(Unsupported, match="groups of 16"):
        open_torch(folder, "cpu")


def test_devices_that_are_not_there(tiny_llama: Path) -> None:
    with pytest.raises(BitworthError, match="'gpu9' is no device"):
        open_torch(tiny_llama, "gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(BitworthError, match="torch sees 0 GPUs"):
            open_torch(tiny_llama, "cuda")


def test_damage_is_named(tiny_llama: Path, quantized: Callable[[str], Path], tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(tiny_llama, lost)
    tensors = load_file(lost / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, lost / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BitworthError, match=r"no tensor 'model\.norm\.weight'"):
        open_torch(lost, "cpu")
    for name, source in (("plain", tiny_llama), ("packed", quantized("w4a16-int-rtn"))):
        shutil.copytree(source, tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 160}))
        with pytest.raises(BitworthError, match=r"gate_proj.*has shape \(128, 64\).*asks for \(160, 64\)"):
            open_torch(tmp_path / name, "cpu")


def test_the_dtype_is_tried_once() -> None:
    assert compute_dtype(64, 128) in (torch.float32, torch.bfloat16)
    hits = compute_dtype.cache_info().hits
    compute_dtype(64, 128)
    assert compute_dtype.cache_info().hits == hits + 1
