"""RULER's texts: as long as asked, solvable by a reader that only reads, the same from the same seed."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bitworth import tasks
from bitworth.tasks.ruler import MAX_TOKENS, TASKS, fitting_units
from bitworth.tasks.ruler_text import FAMILIES, Hidden
from bitworth.types import Completion, Message, TaskSpec

ESSAY = (
    "It was a long day. Nobody knew why! The work went on, as work does. Was it worth it? Perhaps.\n\nWe shall see.\n"
)
SENTENCES = tuple(re.split(r"(?<=[.!?])\s+", " ".join(ESSAY.split())))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "ruler" / "essays").mkdir(parents=True)
    (tmp_path / "ruler" / "essays" / "one.txt").write_text(ESSAY)
    return tmp_path


def words(text: str) -> int:
    return len(text.split())


def load(data: Path, **fields: Any) -> tasks.LoadedOpen:
    spec = TaskSpec(**{"name": "ruler_4k", "limit": 22, **fields})
    found = tasks.load(spec, data, chat=fields.get("seed") != 7, measure=words)
    assert isinstance(found, tasks.LoadedOpen)
    return found


def read(family: str, question: Hidden) -> set[str]:
    """The answers, found by reading the text alone."""
    if family == "cwe":
        counts = Counter(re.findall(r"\d+\. (\w+)", question.context))
        return {word for word, _ in counts.most_common(10)}
    if family == "fwe":
        return {word for word, _ in Counter(question.context.splitlines()[-1].split()).most_common(3)}
    if family == "vt":
        value = re.search(r"value (\d+)", question.ask)
        assert value is not None
        steps = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", question.context))
        known = {name for name, source in steps.items() if source == value[1]}
        while more := {name for name, source in steps.items() if source in known} - known:
            known |= more
        return known
    asked = re.search(r"codes? of (.*) in the text above", question.ask)
    assert asked is not None
    codes = re.findall(r"The secret code of (\S+) is (\S+)\.(?:\s|$)", question.context)
    return {code for name, code in codes if name in asked[1].split(", ")}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("units", [0, 3, 400])
def test_a_reader_finds_the_answers_and_no_others(family: str, units: int) -> None:
    for at in range(5):
        question = FAMILIES[family].write(random.Random(at), units, SENTENCES)
        assert read(family, question) == set(question.answers)


def test_families_are_rulers_thirteen_but_two() -> None:
    shapes = {name: len(family.write(random.Random(0), 9, SENTENCES).answers) for name, family in FAMILIES.items()}
    assert shapes == {
        "niah_single_1": 1,
        "niah_single_2": 1,
        "niah_single_3": 1,
        "niah_multikey_1": 1,
        "niah_multikey_2": 1,
        "niah_multikey_3": 1,
        "niah_multivalue": 4,
        "niah_multiquery": 4,
        "vt": 5,
        "cwe": 10,
        "fwe": 3,
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [2048, 4096])
def test_questions_fill_their_length_and_no_more(family: str, length: int) -> None:
    units = fitting_units(family, length, SENTENCES, words)
    for at in range(3):
        question = FAMILIES[family].write(random.Random(at), units, SENTENCES)
        used = words(f"{question.text} {question.lead}") + MAX_TOKENS
        assert 0.9 * length < used <= length


def test_the_same_seed_writes_the_same_and_prefixes_begin_the_reply(data: Path) -> None:
    one, two = load(data), load(data)
    assert [q.prompt for q in one.questions] == [q.prompt for q in two.questions]
    assert one.facts["rows"] == 5500 == tasks.get("ruler_4k").questions
    turns = one.questions[0].prompt
    assert [turn.role for turn in turns if isinstance(turn, Message)] == ["user", "assistant"]
    plain = load(data, seed=7).questions[0].prompt
    assert isinstance(plain, str)
    assert "\n\nAnswer: The" in plain


def test_a_batch_is_a_stretch_of_the_order(data: Path) -> None:
    whole = tasks.load(TaskSpec(name="ruler_4k"), data, batch=(0, 12), measure=words)
    part = tasks.load(TaskSpec(name="ruler_4k"), data, batch=(4, 8), measure=words)
    assert [q.item for q in part.questions] == [q.item for q in whole.questions][4:8]
    assert {q.item for q in load(data, limit=12).questions} == {q.item for q in whole.questions}


def test_the_score_is_the_share_of_answers_held(data: Path) -> None:
    question = next(q for q in load(data, limit=200).questions if q.item.startswith("niah_multivalue"))
    (turn, _) = question.prompt
    assert isinstance(turn, Message)
    name = re.search(r"codes of (\S+) in", turn.content)
    assert name is not None
    codes = re.findall(rf"The secret code of {name[1]} is (\d+)", turn.content)
    for held in range(5):
        answer = question.grade([Completion(text=" and ".join(codes[:held]), finish="stop")])
        assert answer.score == held / 4
        assert answer.group == "niah_multivalue"


def test_essays_are_needed_and_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(tasks.RowsAbsent, match=r"essays.*ruler/"):
        tasks.load(TaskSpec(name="ruler_8k"), tmp_path / "ruler")
    assert tasks.is_here("ruler_8k", data)
    before = tasks.data_fingerprint("ruler_8k", data)
    (data / "ruler" / "two.txt").write_text("Another one.")
    assert tasks.data_fingerprint("ruler_8k", data) != before


def test_lengths() -> None:
    assert [task.length for task in TASKS] == [4096, 8192, 16384, 32768, 65536, 131072]
