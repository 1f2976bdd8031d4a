"""Whatever a document of somebody else holds, its reader returns a value or says in one sentence why not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from documents import CONFIG, GUIDELLM, MIXTURE, OBSERVED, STUDY, cells_of_a_study
from fuzz import fuzz
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from mutations import VALUES, other_bytes, other_value, wild_value, written
from parsers import Parser, parsers, read

from bitworth.errors import BitworthError

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()))
WILD = st.recursive(_LEAVES, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=9), part))


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    return {reader.name: reader for reader in parsers(tmp_path_factory.mktemp("documents"))}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_document_is_read_or_refused_in_a_sentence(readers: dict[str, Parser], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(readers)))
    reader = readers[name]
    changed = st.integers(0, 2**32).map(lambda seed: reader.mutate(random.Random(seed), reader.seeds))
    document = data.draw(changed | WILD.map(written) | st.binary(max_size=200))
    note(f"{name}: {document[:2000]!r}")
    read(reader, document)


def test_valid_documents_are_read(readers: dict[str, Parser]) -> None:
    assert {
        name for name, reader in readers.items() for seed in reader.seeds if read(reader, seed) is not None
    } == set()


def changed(document: Any, *path: Any, to: Any) -> bytes:
    """The document with another value at the path."""
    document = deepcopy(document)
    box = document
    for key in path[:-1]:
        box = box[key]
    box[path[-1]] = to
    return written(document)


def stored(field: str, value: Any, number: int = 0) -> bytes:
    """A result of a study with another value of a field."""
    return written({"at": number, "result": {**cells_of_a_study()[number][1], field: value}})


ANSWER = cells_of_a_study()[0][1]["answers"][0]
TIMES = ("benchmarks", 0, "requests", "successful", 0, "info", "timings")
#: What crashed or hung a reader once.
FOUND = {
    "vocabulary beyond any memory": ("config.json", changed(CONFIG, "vocab_size", to=10**12)),
    "blocks without end": ("config.json", changed(MIXTURE, "num_hidden_layers", to=10**12)),
    "dense blocks without end": ("config.json", changed(MIXTURE, "first_k_dense_replace", to=10**10)),
    "every half block": ("config.json", changed(MIXTURE, "decoder_sparse_step", to="x")),
    "a token that is text": ("config.json", changed(CONFIG, "eos_token_id", to="</s>")),
    "tokens in lists in lists": ("config.json", changed(CONFIG, "eos_token_id", to=[[2]])),
    "a text_config that is text": ("config.json", changed(CONFIG, "text_config", to="llama")),
    "a group that is a list": (
        "quantization_config",
        written({"quant_method": "compressed-tensors", "config_groups": [1]}),
    ),
    "a config that is a list": ("quantization_config", b"[1]"),
    "a grid without bits": (
        "quantization_config",
        written({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"type": "int"}}}}),
    ),
    "a method of two lines": ("quantization_config", written({"quant_method": "gptq\nmarlin"})),
    "devices beyond counting": (
        "study, as a mapping",
        changed(STUDY, "hardware", 0, to={"name": "local", "count": 10**400}),
    ),
    "half a surrogate pair": ("study, as a mapping", changed(STUDY, "formats", 2, "name", to="\ud800")),
    "a negative seed": ("study, as a mapping", changed(STUDY, "tasks", 0, "seed", to=-1)),
    "an endless rate": ("study, as a mapping", changed(STUDY, "loads", 2, "rate", to=float("inf"))),
    "a key of two lines": ("study, as YAML", b'"a\\nb": 1\nmodel: m\nformats: [baseline]\n'),
    "a time beyond floats": ("trace", b'{"time_s": 1%s, "prompt_tokens": 8, "output_tokens": 4}' % (b"0" * 400)),
    "tokens without end": ("trace", b'{"time_s": 1, "prompt_tokens": 1e300, "output_tokens": 4}'),
    "a start beyond floats": ("GuideLLM report", changed(GUIDELLM, *TIMES, "request_start", to=10**400)),
    "a start that is no number": ("GuideLLM report", changed(GUIDELLM, *TIMES, "request_start", to=float("nan"))),
    "an endless count": (
        "GuideLLM report",
        changed(GUIDELLM, "benchmarks", 0, "requests", "successful", 0, "output_tokens", to=float("inf")),
    ),
    "streams without end": ("constants' observation", changed(OBSERVED, "streams", to=float("inf"))),
    "no time at all": ("constants' observation", changed(OBSERVED, "latency_s", to=0)),
    "a name beyond any file system": ("safetensors index", written({"weight_map": {"a": "x" * 5000}})),
    "a name that is half a pair": ("safetensors index", written({"weight_map": {"a": "\ud800"}})),
    "an answer that is a number": ("stored result", stored("answers", 3)),
    "a reason that is a number": ("stored result", stored("unsupported", 3, 1)),
    "rates that are a number": ("stored result", stored("rates", 3, 1)),
    "a machine that is a list": ("stored result", stored("machine", ["x"])),
    "a machine whose processor is a number": ("stored result", stored("machine", {"processor": 3})),
    "a score beyond squares": ("stored result", stored("answers", [{**ANSWER, "score": 1e200}])),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_is_refused(readers: dict[str, Parser], case: str) -> None:
    name, document = FOUND[case]
    assert isinstance(read(readers[name], document), BitworthError)


def test_counts_of_a_stream_that_are_no_counts_are_none(readers: dict[str, Parser]) -> None:
    for count in (b"9" * 30, b"-4", b"true", b"1e9"):
        event = b'data: {"choices": [{"text": "a"}], "usage": {"completion_tokens": %s}}\n' % count
        read(readers["stream"], event * 2 + b"data: [DONE]\n")


def reader_that(does: Callable[[bytes], object]) -> Parser:
    return Parser(name="made up", seeds=(b"{}",), mutate=other_bytes, read=does)


@pytest.mark.slow(beside=True)
def test_the_fuzzer_sees_a_crash_a_hang_and_sentences_of_two_lines(tmp_path: Path) -> None:
    """On readers that are wrong on purpose, of all documents but the valid one."""

    def crash(data: bytes) -> None:
        if data != b"{}":
            raise KeyError("x")

    def hang(data: bytes) -> None:
        while data != b"{}":
            pass

    found = fuzz([reader_that(crash)], 20, 60, 0, tmp_path)
    assert found.crashes.total() > 10
    assert found.inputs["made up"] == 20
    assert len(list(tmp_path.glob("*.txt"))) == 1  # one document of each kind
    assert fuzz([reader_that(hang)], 2, 60, 1, None).hangs.total() >= 1

    class TwoLines(BitworthError):
        def __str__(self) -> str:
            return "one\ntwo"

    def say(data: bytes) -> None:
        if data != b"{}":
            raise TwoLines("")

    assert fuzz([reader_that(say)], 5, 60, 0, None).crashes.total() >= 4


@given(seed=st.integers(0, 2**32))
def test_documents_are_made_again_by_their_seed_and_values_stay_as_they_are(seed: int) -> None:
    before = repr(VALUES)
    made = [(other_value(rng, deepcopy(STUDY)), wild_value(rng)) for rng in (random.Random(seed), random.Random(seed))]
    assert repr(made[0]) == repr(made[1])
    assert repr(VALUES) == before


def test_an_error_is_one_line_of_bounded_length() -> None:
    sentence = str(BitworthError("The file a\nb\u2028c is wrong. " + "x" * 10**6))
    assert sentence.startswith("The file a b c is wrong.")
    assert len(sentence) < 5000
    assert json.loads(json.dumps(sentence)) == sentence
