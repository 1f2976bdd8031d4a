from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.scales import E4M3, POWERS_OF_TWO, ScaleType, global_divisor, scale_type
from bitworth.types import Grid

NVFP4 = Grid(bits=4, kind="float", granularity="group", group_size=16, scales="e4m3")
TYPES = {
    "float32": ScaleType(torch.float32),
    "bfloat16": ScaleType(torch.bfloat16),
    "float16": ScaleType(torch.float16),
    "e4m3": ScaleType(E4M3, torch.tensor([731.25])),
    "e8m0": POWERS_OF_TWO,
}


@pytest.mark.parametrize("name", TYPES)
@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(2**-9, 2.0**9, width=32), min_size=1, max_size=20))
def test_what_is_read_back_is_what_was_stored_and_stays(name: str, values: list[float]) -> None:
    kind, scale = TYPES[name], torch.tensor(values)
    read = kind.read_back(scale)
    assert torch.equal(kind.decode(kind.encode(scale)), read)
    assert torch.equal(kind.read_back(read), read)
    assert torch.equal(kind.encode(read), kind.encode(scale))
    assert (read > 0).all()
    assert kind.encode(scale).dtype == kind.dtype


@pytest.mark.parametrize("name", TYPES)
def test_a_scale_of_zero_is_stored_as_one(name: str) -> None:
    kind = TYPES[name]
    stored = kind.encode(torch.zeros(1))
    assert stored.float().item() == (127 if name == "e8m0" else 1)
    assert torch.equal(kind.read_back(torch.zeros(1)), torch.ones(1) / (1.0 if kind.divisor is None else kind.divisor))


def test_e4m3_saturates_instead_of_overflowing() -> None:
    assert TYPES["e4m3"].encode(torch.tensor([1e9])).float().item() == 448


def test_powers_of_two_are_the_formats() -> None:
    """OCP Microscaling Formats 1.0, E8M0: 2**(code - 127); a peak of 7 still has the scale 1, saturating at 6."""
    assert POWERS_OF_TWO.encode(torch.tensor([1.0, 2.0, 0.25])).tolist() == [127, 128, 125]
    peaks = torch.tensor([4.0, 6.0, 6.96875, 7.0, 8.0])
    assert POWERS_OF_TWO.read_back(peaks / 6).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert POWERS_OF_TWO.read_back(torch.tensor([1e-45, 1e37])).tolist() == [2.0**-126, 2.0**123]


def test_the_global_scale_is_compressed_tensors() -> None:
    from compressed_tensors.quantization.utils import generate_gparam

    for seed in range(20):
        weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed - 10)
        kind = scale_type(weight, NVFP4, torch.bfloat16)
        assert kind.divisor is not None
        assert torch.equal(kind.divisor, generate_gparam(weight.amin(), weight.amax()))
    assert global_divisor(torch.zeros(())).tolist() == [1.0]


def test_only_coarse_types_say_so() -> None:
    assert [name for name, kind in TYPES.items() if kind.coarse] == ["e4m3", "e8m0"]
