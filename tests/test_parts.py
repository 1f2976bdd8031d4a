"""A task in parts gives the answers of the task in one piece, in its order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bitworth.execute.parts import join, of_part, split
from bitworth.ledger import key_of
from bitworth.planning import plan_cells
from bitworth.study import parse_study
from bitworth.types import Cell
from bitworth.work import work


@given(st.lists(st.integers()), st.integers(1, 12))
def test_parts_one_after_another_are_the_whole(items: list[int], count: int) -> None:
    parts = [of_part(items, f"{at}/{count}") for at in range(count)]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def asked(name: str = "mmlu", limit: int | None = None, **inputs: Any) -> Cell:
    inputs = {"task": {"name": name, "limit": limit}, **inputs}
    return Cell(kind="evaluate", title="t", format="f", inputs=inputs)


def test_only_large_tasks_are_split_and_keep_their_key() -> None:
    assert len(split(asked(), 2000)) == 8  # 14,042 questions
    assert split(asked(limit=2000), 2000) == [asked(limit=2000)]
    assert len(split(asked(limit=2001), 2000)) == 2
    assert len(split(asked(batch=[0, 5000]), 2000)) == 1
    other = replace(asked(), kind="diverge")
    assert split(other, 1) == [other]
    parts = split(asked(), 2000)
    assert {key_of(part) for part in parts} == {key_of(asked())}
    assert len({part.title for part in parts}) == 8


def test_the_parts_answers_are_the_tasks(tiny_study: dict[str, Any], tmp_path: Any) -> None:
    cell = next(
        one for one in plan_cells(parse_study(tiny_study)) if one.kind == "evaluate" and one.format == "baseline"
    )
    whole = work(cell, str(tmp_path), lambda *_: None)
    parts = [work(part, str(tmp_path), lambda *_: None) for part in split(cell, 7)]
    joined = join(parts)
    assert [len(part["answers"]) for part in parts] == [6, 7, 7]
    assert [part["questions"] for part in joined["parts"]] == [6, 7, 7]
    assert {name: joined[name] for name in ("task", "facts", "prompts", "machine")} == {
        name: whole[name] for name in ("task", "facts", "prompts", "machine")
    }
    for ours, theirs in zip(joined["answers"], whole["answers"], strict=True):
        assert {**ours, "logprobs": None} == {**theirs, "logprobs": None}
        assert all(abs(a - b) < 1e-4 for a, b in zip(ours["logprobs"], theirs["logprobs"], strict=True))
