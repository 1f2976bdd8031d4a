"""Traces as files give them, mixes against their weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.errors import BitworthError
from bitworth.load.traces import Workload, mixed, read_trace
from bitworth.types import Shape, UseCase
from bitworth.workloads import use_case


def written(folder: Path, *rows: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


ROW = st.tuples(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(1, 10**4))


@settings(max_examples=50)
@given(rows=st.lists(ROW, min_size=1, max_size=20))
def test_requests_come_in_order_the_first_at_zero(rows: list[tuple[int, int, int]], tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    path = written(
        tmp_path_factory.mktemp("trace"),
        *({"time_s": at / 8, "prompt_tokens": prompt, "output_tokens": output} for at, prompt, output in rows),
    )
    found = read_trace(path)
    first = min(at for at, _, _ in rows)
    naive = sorted(((at - first) / 8, index) for index, (at, _, _) in enumerate(rows))
    assert [(s.at_s, s.prompt_tokens, s.output_tokens) for s in found] == [
        (at, rows[index][1], rows[index][2]) for at, index in naive
    ]


def test_published_names_and_milliseconds_do_as_well(tmp_path: Path) -> None:
    rows = ({"timestamp": 3000, "input_length": 7, "output_length": 2, "hash_ids": [1]},)
    path = written(tmp_path, *rows, "", {"timestamp": 4500, "input_length": 8, "output_length": 3})
    assert read_trace(path) == (
        Shape(prompt_tokens=7, output_tokens=2, at_s=0.0),
        Shape(prompt_tokens=8, output_tokens=3, at_s=1.5),
    )


GOOD = {"time_s": 0, "prompt_tokens": 4, "output_tokens": 4}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not an object"),
        ({**GOOD, "time_s": -1}, "line 2: the time must not be negative"),
        ({**GOOD, "prompt_tokens": 0}, "whole numbers above 0"),
        ({**GOOD, "output_tokens": 1.5}, "whole numbers above 0"),
        ({**GOOD, "output_tokens": "4"}, "output_tokens is not a number"),
        ({**GOOD, "time_s": True}, "time_s is not a number"),
        ('{"time_s": NaN, "prompt_tokens": 1, "output_tokens": 1}', "time_s is not a number"),
        ({"time_s": 0, "prompt_tokens": 4}, "output_tokens is missing"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(BitworthError, match=said):
        read_trace(written(tmp_path, GOOD, row))


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none")
    with pytest.raises(BitworthError, match="has no requests"):
        read_trace(written(tmp_path, ""))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(BitworthError, match="not UTF-8"):
        read_trace(tmp_path / "bytes")


def test_a_mix_draws_by_weight() -> None:
    parts = ((use_case("rag"), 3.0), (use_case("docstring"), 1.0))
    drawn = Counter(shape.prompt_tokens for shape in mixed(parts, 20_000, seed=1))
    assert drawn[1024] / 20_000 == pytest.approx(0.75, abs=0.01)
    assert drawn[1024] + drawn[768] == 20_000
    assert mixed(parts, 50, seed=1) == mixed(parts, 50, seed=1) != mixed(parts, 50, seed=2)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(BitworthError, match="weights above 0"):
        mixed(((use_case("rag"), weight),), 1, seed=0)
    with pytest.raises(BitworthError, match="weights above 0"):
        mixed((), 1, seed=0)


@pytest.mark.parametrize("weight", [1e-308, 1.0, 1.7e308])
def test_only_ratios_of_weights_count(weight: float) -> None:
    """Also where a sum of them, or one times its tokens, is more than a float holds."""
    parts = tuple((use_case(name), weight) for name in ("rag", "docstring", "docstring"))
    plain = tuple((case, 1.0) for case, _ in parts)
    assert mixed(parts, 100, seed=1) == mixed(plain, 100, seed=1)
    assert Workload(name="m", parts=parts).use_case == Workload(name="m", parts=plain).use_case


def test_a_workload_knows_its_mean_and_its_longest() -> None:
    short, long = (UseCase(name=name, prompt_tokens=p, output_tokens=o) for name, p, o in (("a", 10, 2), ("b", 40, 6)))
    mix = Workload(name="both", parts=((short, 2.0), (long, 1.0)))
    assert (mix.use_case.prompt_tokens, mix.use_case.output_tokens) == (20, 3)
    assert (mix.use_case.name, mix.context_tokens) == ("both", 46)
    assert Workload(name="one", parts=((long, 5.0),)).use_case == UseCase(name="one", prompt_tokens=40, output_tokens=6)
    trace = Workload(
        name="day", trace=(Shape(prompt_tokens=5, output_tokens=1), Shape(prompt_tokens=2, output_tokens=9))
    )
    assert trace.context_tokens == 11
    assert (trace.use_case.prompt_tokens, trace.use_case.output_tokens) == (4, 5)
    assert trace.shapes(1, seed=0) == trace.trace
