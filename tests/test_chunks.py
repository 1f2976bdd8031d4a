"""Packed chunks come back to the microsecond; gaps add up, against a loop over the tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitworth.load.chunks import pack, token_gaps, unpack

CHUNKS = st.lists(st.tuples(st.integers(0, 10_000_000), st.integers(1, 9)), max_size=50)


@given(CHUNKS)
def test_chunks_come_back(rows: list[tuple[int, int]]) -> None:
    offsets = np.cumsum([micros for micros, _ in rows]) / 1e6
    totals = np.cumsum([tokens for _, tokens in rows])
    found, tokens = unpack(pack(offsets.tolist(), totals.tolist()))
    assert found == pytest.approx(offsets, abs=1e-9)
    assert tokens.tolist() == [tokens for _, tokens in rows]


@given(CHUNKS)
def test_a_chunks_gap_is_shared_by_its_tokens(rows: list[tuple[int, int]]) -> None:
    offsets = np.cumsum([micros for micros, _ in rows]) / 1e6
    totals = np.cumsum([tokens for _, tokens in rows])
    naive = [micros / 1e6 / tokens for micros, tokens in rows[1:] for _ in range(tokens)]
    gaps = token_gaps(pack(offsets.tolist(), totals.tolist()))
    assert gaps == pytest.approx(naive, abs=1e-9)
    if rows:
        assert gaps.sum() == pytest.approx(offsets[-1] - offsets[0], abs=1e-6)


def test_a_long_answer_takes_few_bytes() -> None:
    generator = np.random.default_rng(0)
    offsets = np.cumsum(generator.normal(0.02, 0.001, 1000))
    assert len(pack(offsets.tolist(), range(1, 1001))) < 4 * 1000


def test_the_clock_may_not_go_back() -> None:
    offsets, tokens = unpack(pack([0.5, 0.4], [1, 2]))
    assert offsets.tolist() == [0.5, 0.5]
    assert tokens.tolist() == [1, 1]
