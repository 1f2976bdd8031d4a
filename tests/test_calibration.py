from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from torch import Tensor

from bitworth.calibration import calibration_tokens, load_tokenizer
from bitworth.calibration.cutting import parts_of
from bitworth.errors import BitworthError
from bitworth.types import Calibration

EOS = 257


def tokens_of(model: Path, source: Path, notes: list[str] | None = None, **wanted: int) -> Tensor:
    spec = Calibration(source=str(source), **{"samples": 4, "length": 16, **wanted})
    return calibration_tokens(model, spec, (notes if notes is not None else []).append)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def read(model: Path, tokens: Tensor) -> str:
    return str(load_tokenizer(model).decode(tokens.flatten().tolist()))


def test_plain_text_is_cut_without_overlap(tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    text = "".join(f"{number:04d}" for number in range(100))
    source.write_text(text)
    tokens = tokens_of(tiny_llama, source, samples=25)
    assert tokens.shape == (25, 16)
    pieces = sorted(read(tiny_llama, row) for row in tokens)
    assert pieces == [text[at : at + 16] for at in range(0, 400, 16)]


def test_the_seed_alone_decides_the_samples(tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("".join(f"{number:04d}" for number in range(500)))
    first, again, other = (tokens_of(tiny_llama, source, seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "as it is"}, "as it is"),
        ({"content": "as it is"}, "as it is"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}, None),
        ({"instruction": "add", "output": "3"}, "add\n3"),
        ({"instruction": "add", "input": "1, 2", "output": "3"}, "add\n1, 2\n3"),
        ({"instruction": "add", "input": "", "output": "3"}, "add\n3"),
        ({"prompt": "add", "response": "3"}, "add\n3"),
        ({"question": "add", "answer": 3}, "add\n3"),
    ],
)
def test_a_row_is_read_by_its_keys_and_ends_in_end_of_text(
    tiny_llama: Path, tmp_path: Path, row: dict[str, object], expected: str | None
) -> None:
    found = tokens_of(tiny_llama, jsonl(tmp_path / "rows.jsonl", row), samples=1, length=1000)
    text = expected if expected is not None else "<|user|>hi\n<|assistant|>ho\n"
    assert found[0, -1] == EOS
    assert read(tiny_llama, found[0, :-1]) == text


def test_too_little_text_gives_all_of_it_and_a_note(tiny_llama: Path, tmp_path: Path) -> None:
    source, notes = tmp_path / "short.txt", list[str]()
    source.write_text("x" * 40)
    assert tokens_of(tiny_llama, source, notes).shape == (2, 16)
    assert tokens_of(tiny_llama, source, notes, length=100).shape == (1, 40)
    assert "short.txt gives 2 samples of 16 tokens, not 4 of 16" in notes[0]
    assert "gives 1 samples of 40 tokens, not 4 of 100" in notes[1]


def test_enough_text_gives_no_note(tiny_llama: Path, tmp_path: Path) -> None:
    source, notes = tmp_path / "text.txt", list[str]()
    source.write_text("x" * 64)
    assert tokens_of(tiny_llama, source, notes).shape == (4, 16)
    assert notes == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"text": "good"}\n{"text": \n', "line 2: not valid JSON"),
        (b'{"txet": "typo"}\n', "line 1: no `text`"),
        (b"[1, 2]\n", "line 1: no `text`"),
    ],
)
def test_files_that_hold_no_text_are_refused(tiny_llama: Path, tmp_path: Path, content: bytes, message: str) -> None:
    source = tmp_path / "bad.jsonl"
    source.write_bytes(content)
    with pytest.raises(BitworthError, match=message):
        tokens_of(tiny_llama, source)


def test_a_missing_file_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match=r"nowhere\.txt cannot be read: No such file"):
        tokens_of(tiny_llama, tmp_path / "nowhere.txt")


def test_a_conversation_without_a_template_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "mute"
    shutil.copytree(tiny_llama, model)
    (model / "chat_template.jinja").unlink()
    source = jsonl(tmp_path / "chat.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(BitworthError, match=r"line 1.*chat template"):
        tokens_of(model, source)


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_long_text_is_tokenized_in_parts_that_give_the_tokens_of_the_whole() -> None:
    text = " ".join(f"word{'s' * (number % 3)} {number} we go \n \n = on =" for number in range(40_000))

    def words(part: str) -> list[int]:
        return [hash(word) for word in re.findall(r" ?[a-z]+| ?[0-9]+|\s+(?!\S)|\s+|\S+", part)]  # as GPT-2 splits

    parts = list(parts_of(text, words))
    assert len(parts) > 2
    assert max(map(len, parts)) < len(text) / 2
    assert "".join(parts) == text
    assert [token for part in parts for token in words(part)] == words(text)


def test_a_text_stays_whole_for_a_tokenizer_that_treats_its_beginning_in_its_own_way() -> None:
    text = "some words in a row and " * 30_000

    def prefixed(part: str) -> list[int]:
        return [0, *map(hash, part.split())]

    assert list(parts_of(text, prefixed)) == [text]
