from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from bitworth import fingerprint
from bitworth.errors import BitworthError


def test_a_files_hash_is_remembered_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = tmp_path / "weights", tmp_path / "memory"
    path.write_bytes(b"one")
    first = fingerprint.of_file(path, memory)
    assert first == hashlib.sha256(b"one").hexdigest()
    opened: list[object] = []
    real = hashlib.file_digest
    monkeypatch.setattr(fingerprint.hashlib, "file_digest", lambda *a: opened.append(a) or real(*a))
    assert fingerprint.of_file(path, memory) == first
    assert not opened
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert fingerprint.of_file(path, memory) == hashlib.sha256(b"two").hexdigest()
    assert len(opened) == 1


def test_a_damaged_memory_is_not_believed(tmp_path: Path) -> None:
    path, memory = tmp_path / "weights", tmp_path / "memory"
    path.write_bytes(b"one")
    expected = fingerprint.of_file(path, memory)
    for note in memory.rglob("*.json"):
        note.write_text("[")
    assert fingerprint.of_file(path, memory) == expected


def test_a_memory_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert fingerprint.of_file(path, path / "no folder") == hashlib.sha256(b"one").hexdigest()


def test_a_models_hash_follows_its_weights_and_not_its_place(tiny_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    assert fingerprint.of_model(copy) == fingerprint.of_model(tiny_llama)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert fingerprint.of_model(copy) != fingerprint.of_model(tiny_llama)


def test_folders_without_weights_and_files_that_are_gone(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="holds no"):
        fingerprint.of_model(tmp_path)
    with pytest.raises(BitworthError, match="cannot be read: No such file"):
        fingerprint.of_file(tmp_path / "gone")
