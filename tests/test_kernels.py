from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitworth import schemes
from bitworth.engines import kernels, kernels_cuda
from bitworth.engines.exact import Activation
from bitworth.engines.kernels import Int4Cpu, Int8Cpu, Int8CpuHalves, kernel_for, oracle, self_test
from bitworth.errors import Unsupported
from bitworth.types import Grid

CPU = torch.device("cpu")
INT8, INT4 = schemes.get("w8a8-int"), schemes.get("w4a16-int", group_size=64)


def _exact_kinds() -> list[type[Int8Cpu]]:
    """The INT8 kernels that this CPU runs exactly: halves always, whole codes where it has VNNI."""
    fits = self_test(lambda *layer: Int8Cpu(*layer, scratches={}), INT8, CPU) is None
    return [Int8Cpu, Int8CpuHalves] if fits else [Int8CpuHalves]


EXACT = _exact_kinds()


def _codes(rows: int, columns: int, bits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    edge = 2 ** (bits - 1)
    codes = torch.randint(-edge, edge, (rows, columns), generator=generator).float()
    codes[0] = edge - 1
    codes[-1] = -edge
    return codes


def _naive(left: Tensor, right: Tensor) -> Tensor:
    """Integer product in int64, one row of the left at a time."""
    return torch.stack([(row.long() * right.long()).sum(-1) for row in left])


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 40), rows=st.integers(1, 50), columns=st.integers(1, 300), seed=st.integers(0, 9))
def test_int8_accumulators_are_the_integers(
    kind: type[Int8Cpu], tokens: int, rows: int, columns: int, seed: int
) -> None:
    weight = _codes(rows, columns, 8, seed)
    x = _codes(tokens, columns, 8, seed + 1).clamp(min=-127)
    x[:, 0] = 127  # every token's scale is 1
    layer = kind(weight, torch.ones(rows, 1), None, scratches={})
    assert torch.equal(layer(x).long(), _naive(x, weight))


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_activations_get_the_codes_of_the_format(kind: type[Int8Cpu], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 64, generator=generator) * torch.logspace(-20, 20, 200)[:, None]
    x[3] = 0.0
    x[4, 5] = 1e6
    x[5] = torch.arange(-32, 32) + 0.5  # ties, once scaled
    x[5, 0] = 127.0
    x[6] = torch.nextafter(x[5], torch.zeros(64))
    layer = kind(torch.eye(64), torch.ones(64, 1), None, scratches={})
    values = x.to(dtype)
    assert torch.equal(layer(values), Activation("int")(values.float()).to(dtype))


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 20), rows=st.integers(1, 50), columns=st.integers(1, 300), seed=st.integers(0, 9))
def test_int8_is_the_format_times_scales_plus_bias(
    kind: type[Int8Cpu], tokens: int, rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows, 1, generator=generator) + 1e-3
    bias = torch.randn(rows, generator=generator)
    x = torch.randn(2, tokens, columns, generator=generator)
    x[..., :1] *= 1000
    weight = _codes(rows, columns, 8, seed)
    found = kind(weight, scale, bias, scratches={})(x)
    expected = oracle(weight, scale, x.view(-1, columns), INT8) + bias.double()
    assert found.shape == (2, tokens, rows)
    assert found.dtype == torch.float32
    bound = 4e-7 * (expected.abs().amax().item() if tokens else 1)
    torch.testing.assert_close(found.double().view(-1, rows), expected, rtol=1e-6, atol=bound)


def test_layers_share_a_scratch_whatever_their_batches() -> None:
    scratches: dict[int, kernels.Scratch] = {}
    first = EXACT[0](_codes(8, 40, 8, 0), torch.ones(8, 1), None, scratches=scratches)
    second = EXACT[0](_codes(6, 40, 8, 1), torch.ones(6, 1), None, scratches=scratches)
    assert len(scratches) == 1
    for tokens in (3, 17, 1, 17, 5):
        x = torch.randn(tokens, 40)
        before = first(x).clone()
        second(x * 9)
        assert torch.equal(first(x), before)


_WITHOUT_VNNI = """
import torch
from bitworth import schemes
from bitworth.engines.kernels import Int8Cpu, kernel_for, self_test
scheme, cpu = schemes.get("w8a8-int"), torch.device("cpu")
print(self_test(lambda *layer: Int8Cpu(*layer, scratches={}), scheme, cpu))
title, make = kernel_for(scheme, cpu)
print(title)
"""


@pytest.mark.slow
def test_saturating_16_bit_sums_are_found_and_avoided() -> None:
    """FBGEMM held to AVX2 adds pairs of products in 16 bits, as on a CPU that has no more."""
    environment = {**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_VNNI], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    wrong, title = done.stdout.splitlines()
    assert wrong.startswith("off by")
    assert title == Int8CpuHalves.title


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(0, 20),
    sixteens=st.integers(1, 5),
    group=st.sampled_from([32, 64, 128, 256]),
    groups=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_int4_is_the_dequantized_weight_in_bfloat16(
    tokens: int, sixteens: int, group: int, groups: int, seed: int
) -> None:
    rows, columns = 16 * sixteens, group * groups
    weight = _codes(rows, columns, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    scale = (torch.rand(rows, groups, generator=generator) + 0.1).bfloat16().float()
    x = torch.randn(tokens, columns, generator=generator).bfloat16()
    found = Int4Cpu(weight, scale, None)(x)
    expected = oracle(weight, scale, x, INT4)
    assert found.dtype == torch.bfloat16
    # bfloat16 output, and products summed in an order of the kernel's own with the weight rounded to bfloat16
    size = x.double().abs() @ (weight.abs() * scale.repeat_interleave(group, 1)).double().T
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 2**-9 * size).all()


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_int4_packing_keeps_every_code(group: int) -> None:
    weight = _codes(48, 256, 4, 3)
    scale = torch.exp2(torch.randint(-6, 3, (48, 256 // group)).float())
    found = Int4Cpu(weight, scale, None)(torch.eye(256, dtype=torch.bfloat16))
    assert torch.equal(found.float().T, weight * scale.repeat_interleave(group, 1))


def test_int4_in_a_float32_model_keeps_the_model_s_dtype_and_adds_the_bias_there() -> None:
    bias = torch.full((16,), 1000.25)
    found = Int4Cpu(torch.zeros(16, 64), torch.ones(16, 1), bias)(torch.randn(3, 64))
    assert found.dtype == torch.float32
    assert (found == 1000.25).all()


@pytest.mark.parametrize(("rows", "columns", "group"), [(24, 64, 32), (16, 48, 48), (16, 512, 512), (16, 32, 16)])
def test_int4_names_a_layer_that_it_cannot_take(rows: int, columns: int, group: int) -> None:
    with pytest.raises(Unsupported, match=f"{rows} x {columns} in groups of {group}"):
        Int4Cpu(torch.zeros(rows, columns), torch.ones(rows, columns // group), None)


@pytest.mark.parametrize("scheme", [INT8, INT4])
def test_a_kernel_is_chosen_and_named(scheme: Any) -> None:
    title, make = kernel_for(scheme, CPU)
    assert self_test(make, scheme, CPU) is None
    assert "int8" in title or "int4" in title


def test_no_kernel_is_a_reason_not_an_imitation() -> None:
    with pytest.raises(Unsupported, match="no matrix kernel for w8a8-fp on CPUs"):
        kernel_for(schemes.get("w8a8-fp"), CPU)
    with pytest.raises(Unsupported, match="not for 'meta'"):
        kernel_for(INT8, torch.device("meta"))
    for name in ("w4a8-fp", "w4a8-int", "nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16"):
        with pytest.raises(Unsupported, match=f"no matrix kernel for {name} on CPUs, so timing it"):
            kernel_for(schemes.get(name), CPU)
        with pytest.raises(Unsupported, match=f"no torch kernel for {name} on GPUs"):
            kernels_cuda.candidates(schemes.get(name), torch.device("cuda"))
    static = replace(INT8, activation=Grid(bits=8, granularity="tensor"))
    with pytest.raises(Unsupported, match="per tensor"):
        kernel_for(static, CPU)


class _OffByOne(Int4Cpu):
    def multiply(self, x_MI: Tensor) -> Tensor:
        return super().multiply(x_MI).roll(1, 0)


class _Fails(Int4Cpu):
    def multiply(self, x_MI: Tensor) -> Tensor:
        raise RuntimeError("no such instruction\nat line 1")


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_candidates", lambda *_: [("first", _OffByOne), ("second", _Fails)])
    with pytest.raises(Unsupported, match=r"first: off by .* second: no such instruction\)"):
        kernel_for(INT4, CPU)
    monkeypatch.setattr(kernels, "_candidates", lambda *_: [("first", _OffByOne), ("right", Int4Cpu)])
    assert kernel_for(INT4, CPU)[0] == "right"
