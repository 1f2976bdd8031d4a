"""Several sources, made ones, BOS and the chat template; `test_calibration.py` pins what one text file gives."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny_llama
from hypothesis import given
from hypothesis import strategies as st
from test_audit import with_bos

from bitworth.calibration import calibrate, calibration_tokens, load_tokenizer
from bitworth.calibration.cutting import cut, largest_remainder
from bitworth.calibration.synthetic import write
from bitworth.engines.torch import load_exact
from bitworth.errors import BitworthError
from bitworth.types import Calibration, CalibrationSource

BOS, EOS, PAD = 256, 257, 258


@pytest.fixture(scope="module")
def bos_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that starts texts with BOS."""
    folder = tmp_path_factory.mktemp("bos") / "llama"
    shutil.copytree(tiny_llama, folder)
    with_bos(load_tokenizer(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "cache"))


def spec(*parts: str | tuple[str, float], **wanted: Any) -> Calibration:
    named = [part if isinstance(part, tuple) else (part, 1.0) for part in parts]
    mix = tuple(CalibrationSource(source=source, weight=weight) for source, weight in named)
    return Calibration(sources=mix, **{"samples": 12, "length": 16, **wanted})


def tokens_of(model: Path, *parts: str | tuple[str, float], **wanted: Any) -> list[list[int]]:
    notes: list[str] = []
    tokens = calibration_tokens(model, spec(*parts, **wanted), notes.append)
    assert notes == []
    rows: list[list[int]] = tokens.tolist()
    return rows


def numbers(path: Path, letter: str, count: int = 200) -> str:
    """Text whose every four characters stand in it once."""
    path.write_text("".join(f"{letter}{number:03d}" for number in range(count)))
    return str(path)


def text(model: Path, row: list[int]) -> str:
    return str(load_tokenizer(model).decode(row))


# --- counts and cuts ----------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_parts_add_up_and_are_within_one_of_their_share(total: int, weights: list[float]) -> None:
    counts = largest_remainder(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6


@given(st.integers(0, 500), st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_more_weight_never_gives_less(total: int, weights: list[int]) -> None:
    counts = largest_remainder(total, weights)
    for one, other in zip(range(len(weights)), range(1, len(weights)), strict=False):
        if weights[one] > weights[other]:
            assert counts[one] >= counts[other]
    assert counts == largest_remainder(total, [weight * 8 for weight in weights])


@pytest.mark.parametrize(
    ("total", "weights", "expected"),
    [(256, [2, 1], [171, 85]), (3, [1, 1], [2, 1]), (1, [1, 1, 1], [1, 0, 0]), (10, [1e300, 1e300], [5, 5])],
)
def test_splits_by_hand(total: int, weights: list[float], expected: list[int]) -> None:
    assert largest_remainder(total, weights) == expected


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(2, 9))
def test_a_cut_with_bos_keeps_every_token_once(ids: list[int], length: int) -> None:
    pieces = cut(ids, length, bos=0)
    assert all(len(piece) == length and piece[0] == 0 for piece in pieces)
    at = 0
    for piece in pieces:
        body = piece if ids[at] == 0 else piece[1:]
        assert ids[at : at + len(body)] == body
        at += len(body)
    assert len(ids) - at < length


# --- mixes --------------------------------------------------------------------------------------------------------


def test_a_mix_has_exact_counts_in_a_seeded_order(tiny_llama: Path, tmp_path: Path) -> None:
    one, other = numbers(tmp_path / "a.txt", "a"), numbers(tmp_path / "b.txt", "b")
    rows = tokens_of(tiny_llama, (one, 2), (other, 1))
    found = [text(tiny_llama, row)[0] for row in rows]
    assert Counter(found) == {"a": 8, "b": 4}
    assert found != sorted(found)
    assert rows == tokens_of(tiny_llama, (one, 2), (other, 1))
    assert rows != tokens_of(tiny_llama, (one, 2), (other, 1), seed=1)
    pieces = [text(tiny_llama, row)[at : at + 4] for row in rows for at in range(0, 16, 4)]
    assert len(set(pieces)) == 12 * 4  # no overlap


def test_a_single_source_is_what_it_always_was(tiny_llama: Path, tmp_path: Path) -> None:
    source = numbers(tmp_path / "a.txt", "a")
    plain = calibration_tokens(tiny_llama, Calibration(source=source, samples=12, length=16), pytest.fail)
    assert plain.tolist() == tokens_of(tiny_llama, source)
    first = [text(tiny_llama, row)[:4] for row in plain.tolist()]
    starts = list(range(0, 800, 16))
    import random

    random.Random(0).shuffle(starts)
    assert first == [f"a{start // 4:03d}" for start in starts[:12]]


def test_the_audit_says_where_sequences_came_from(tiny_llama: Path, tmp_path: Path) -> None:
    source = numbers(tmp_path / "a.txt", "a", count=20)
    notes: list[str] = []
    tokens, audit = calibrate(tiny_llama, spec(source, ("random", 3), samples=40), notes.append)
    assert [(row.source, row.weight, row.samples) for row in audit.sources] == [("a.txt", 1.0, 5), ("random", 3.0, 30)]
    assert tokens.shape == (35, 16)
    assert notes == ["the calibration text a.txt gives 5 samples of 16 tokens, not 10 of 16; all of it was used"]


def test_a_source_too_light_for_a_sample_is_noted(tiny_llama: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    source = numbers(tmp_path / "a.txt", "a")
    assert len(calibration_tokens(tiny_llama, spec((source, 0.001), "random"), notes.append)) == 12
    assert notes == ["the calibration source a.txt has too small a weight for one of the samples"]


def test_a_dataset_of_the_hub_is_a_source(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"text": f"{number:015d}"} for number in range(40)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(rows))
    tokens, audit = calibrate(tiny_llama, spec("hub:org/name@v1:en", "random"), pytest.fail)
    assert [(row.source, row.samples) for row in audit.sources] == [("hub:org/name@v1:en", 6), ("random", 6)]
    assert sum(text(tiny_llama, row).endswith("<eos>") for row in tokens.tolist()) == 6


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((), "names no source"),
        ((("random", 0.0), "self"), "source random has weight 0"),
        ((("random", float("nan")), "self"), "source random has weight nan"),
        (("random", "random"), "source random is named twice"),
        (("short.txt", "random"), "source short.txt holds 4 tokens, which is less than one sequence of 16"),
    ],
)
def test_mixes_that_make_no_sense(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("abcd")
    with pytest.raises(BitworthError, match=said):
        tokens_of(tiny_llama, *parts)


# --- BOS ----------------------------------------------------------------------------------------------------------


def test_each_sequence_starts_with_bos_where_the_tokenizer_does(
    tiny_llama: Path, bos_llama: Path, tmp_path: Path
) -> None:
    source = numbers(tmp_path / "a.txt", "a")
    without = tokens_of(tiny_llama, source)
    assert all(BOS not in row for row in without)
    assert tokens_of(bos_llama, source, bos="never") == without
    rows = tokens_of(bos_llama, source)
    assert all(row[0] == BOS and BOS not in row[1:] and len(row) == 16 for row in rows)
    assert tokens_of(tiny_llama, source, bos="always") == rows
    body = "".join(f"a{number:03d}" for number in range(200))
    assert all(body.index(text(tiny_llama, row[1:])) % 15 == 0 for row in rows)


def test_a_template_that_writes_bos_gives_no_second_one(bos_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(bos_llama, model)
    template = model / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    chats = [{"messages": [{"role": "user", "content": f"{number:06d}"}]} for number in range(20)]
    source = tmp_path / "chat.jsonl"
    source.write_text("\n".join(json.dumps(chat) for chat in chats))
    rows = tokens_of(model, str(source), length=17)  # <bos><|user|>000000\n<eos>
    assert all(row[0] == BOS and row[-1] == EOS and row.count(BOS) == 1 for row in rows)


def test_bos_that_does_not_exist_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    tokenizer = load_tokenizer(model)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(model)
    with pytest.raises(BitworthError, match="has no BOS token"):
        tokens_of(model, "random", bos="always")


# --- the chat template --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("auto", ["plain", "<|user|>hi\n<|assistant|>ho\n", "add\n3"]),
        ("always", ["<|user|>plain\n", "<|user|>hi\n<|assistant|>ho\n", "<|user|>add\n<|assistant|>3\n"]),
        ("never", ["plain", "hi\nho", "add\n3"]),
    ],
)
def test_what_goes_through_the_template(tiny_llama: Path, tmp_path: Path, rule: Any, expected: list[str]) -> None:
    rows = [
        {"text": "plain"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"instruction": "add", "output": "3"},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    wanted = Calibration(source=str(source), samples=1, length=1000, chat_template=rule)
    [row] = calibration_tokens(tiny_llama, wanted, lambda _: None).tolist()
    assert text(tiny_llama, row) == "".join(f"{part}<eos>" for part in expected)


def test_paragraphs_of_plain_text_become_turns(tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("one\n\n\n\ntwo\nlines\n\n")
    wanted = Calibration(source=str(source), samples=1, length=1000, chat_template="always")
    [row] = calibration_tokens(tiny_llama, wanted, lambda _: None).tolist()
    assert text(tiny_llama, row) == "<|user|>one\n<eos><|user|>two\nlines\n<eos>"


def test_messages_without_text_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}]}))
    with pytest.raises(BitworthError, match="line 1: a message's `content` is no text"):
        tokens_of(tiny_llama, str(source), chat_template="never")
    source.write_text(json.dumps({"prompt": "add", "response": None}))
    with pytest.raises(BitworthError, match="line 1: `response` is no text"):
        tokens_of(tiny_llama, str(source))


# --- random tokens ------------------------------------------------------------------------------------------------


def test_random_tokens_are_uniform_and_never_special(tiny_llama: Path, bos_llama: Path) -> None:
    rows = tokens_of(tiny_llama, "random", samples=100, length=64)
    counts = Counter(token for row in rows for token in row)
    assert set(counts) == set(range(256))
    assert sum((count - 25) ** 2 / 25 for count in counts.values()) < 360  # chi-square, 255 degrees, p < 1e-5
    assert rows == tokens_of(tiny_llama, "random", samples=100, length=64)
    assert rows != tokens_of(tiny_llama, "random", samples=100, length=64, seed=1)
    with_start = tokens_of(bos_llama, "random")
    assert all(row[0] == BOS and max(row[1:]) < BOS for row in with_start)


def test_random_tokens_stay_inside_the_models_vocabulary(tiny_llama: Path, tmp_path: Path) -> None:
    """Some tokenizers know more ids than the model has embeddings."""
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert max(max(row) for row in tokens_of(model, "random", samples=50)) == 99


# --- the model's own text -----------------------------------------------------------------------------------------


def test_own_text_is_seeded_and_starts_with_bos(tiny_llama: Path, tmp_path: Path) -> None:
    rows = tokens_of(tiny_llama, "self", samples=40)
    assert all(len(row) == 16 and row[0] == BOS for row in rows)
    assert len({tuple(row) for row in rows}) == 40
    shutil.rmtree(tmp_path / "cache")
    assert tokens_of(tiny_llama, "self", samples=40) == rows
    assert tokens_of(tiny_llama, "self", samples=40, seed=1) != rows
    bare = tokens_of(tiny_llama, "self", samples=40, length=15, bos="never")
    assert bare == [row[1:] for row in rows]


def test_own_text_is_written_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokens_of(tiny_llama, "self")
    monkeypatch.setattr("bitworth.calibration.synthetic.load_exact", pytest.fail)
    assert tokens_of(tiny_llama, "self") == first


def test_own_text_follows_the_models_distribution(tiny_llama: Path) -> None:
    """The second token, against the softmax of a plain forward; a chi-square over the 20 likeliest tokens."""
    engine = load_exact(tiny_llama, device="cpu")
    count = 4000
    tokens = write(engine, engine.tokenizer, samples=count, length=2, seed=0)
    chances = engine.logits(torch.tensor([[BOS]]))[0, -1].double().softmax(-1)
    likely = chances.topk(20).indices
    counted = torch.bincount(tokens[:, 1], minlength=len(chances)).double()
    expected = count * chances[likely]
    assert float(((counted[likely] - expected) ** 2 / expected).sum()) < 60  # 20 degrees, p < 1e-5


def test_own_text_is_the_same_however_many_are_asked_for(tiny_llama: Path) -> None:
    engine = load_exact(tiny_llama, device="cpu")
    few, many = (write(engine, engine.tokenizer, samples=count, length=12, seed=3) for count in (5, 40))
    assert torch.equal(many[:5], few)


def test_own_text_reads_what_it_has_written(tiny_llama: Path) -> None:
    """Drawn again from plain forwards without a cache: the likeliest token is what luck of almost nothing draws."""
    engine = load_exact(tiny_llama, device="cpu")
    tokens = write(engine, engine.tokenizer, samples=3, length=10, seed=5)
    luck = torch.rand(3, 10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for at in range(1, 10):
        before = tokens[:, at - 1]
        reached = engine.logits(tokens[:, :at])[:, -1].double().softmax(-1).cumsum(-1)
        for row in range(3):
            if before[row] != EOS:
                token = int(tokens[row, at])
                below = float(reached[row, token - 1]) if token else 0.0
                assert below - 1e-6 <= float(luck[row, at]) <= float(reached[row, token]) + 1e-6


def test_a_text_that_ends_is_followed_by_another(tmp_path: Path) -> None:
    """A model whose head knows EOS only: after each EOS comes BOS."""
    save_tiny_llama(tmp_path / "model", tie_word_embeddings=False)
    engine = load_exact(tmp_path / "model", device="cpu")
    with torch.no_grad():
        engine.model.lm_head.weight.zero_()
        engine.model.model.norm.weight.fill_(1)
        engine.model.lm_head.bias = torch.nn.Parameter(torch.zeros(259))
        engine.model.lm_head.bias[EOS] = 100.0
    tokens = write(engine, engine.tokenizer, samples=2, length=6, seed=0)
    assert tokens.tolist() == [[BOS, EOS, BOS, EOS, BOS, EOS]] * 2
    engine.tokenizer.bos_token = None
    tokens = write(engine, engine.tokenizer, samples=1, length=4, seed=0)
    assert tokens.tolist() == [[EOS, EOS, EOS, EOS]]


def test_own_text_longer_than_the_context_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(BitworthError, match=r"sequences of 600 tokens: its context is 512"):
        tokens_of(tiny_llama, "self", length=600)
