from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import left_in as left
from conftest import some_tensors as tensors
from conftest import write_checkpoint as write
from safetensors.torch import load_file

from bitworth import writer as module
from bitworth.checkpoint import INDEX, Reader
from bitworth.errors import BitworthError, Interrupted
from bitworth.writer import Writer


def test_a_checkpoint_is_whole(tiny_llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    of_images = {"preprocessor_config.json", "video_preprocessor_config.json"}
    for name in of_images:
        (model / name).write_text("{}")
    write(tmp_path / "out", model)
    assert left(tmp_path) == ["model", "out"]
    wanted = {"config.json", "bitworth.json", "model.safetensors", "tokenizer.json", *of_images}
    assert wanted <= set(left(tmp_path / "out"))
    reader = Reader(tmp_path / "out")
    assert reader.names == tensors().keys()
    for name, tensor in tensors().items():
        assert torch.equal(reader.get(name), tensor)
        assert reader.shape(name) == (4, 8)


def test_shards_are_indexed_as_the_hub_does(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama, shard_bytes=260)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == 3 * 4 * 8 * 4
    assert sorted(set(index["weight_map"].values())) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)
    assert Reader(tmp_path / "out").names == tensors().keys()


@pytest.mark.parametrize(("error", "kept"), [(BitworthError, False), (RuntimeError, True), (MemoryError, True)])
def test_only_what_the_input_must_change_for_leaves_nothing(
    tiny_llama: Path, tmp_path: Path, error: type[Exception], kept: bool
) -> None:
    def half() -> None:
        with Writer(tmp_path / "out", tiny_llama) as writer:
            writer.add(tensors())
            raise error("halfway")

    with pytest.raises(error, match="halfway"):
        half()
    assert left(tmp_path) == ([".out.partial"] if kept else [])


def test_an_error_before_anything_is_taken_up_costs_an_earlier_run_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    def interrupted() -> None:
        with Writer(tmp_path / "out", tiny_llama) as writer:
            writer.add(tensors())
            raise Interrupted("the disk is full")

    def refused() -> None:
        with Writer(tmp_path / "out", tiny_llama):
            raise RuntimeError("another recipe's folder is taken")

    with pytest.raises(RuntimeError):
        refused()
    assert left(tmp_path) == []  # nothing was there
    with pytest.raises(Interrupted):
        interrupted()
    with pytest.raises(RuntimeError):
        refused()
    with Writer(tmp_path / "out", tiny_llama) as writer:
        assert writer.take_up(1)
        writer.finish({}, {})


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from bitworth.writer import Writer
with Writer(Path(sys.argv[1]), Path(sys.argv[2]), shard_bytes=1) as writer:
    writer.add({"a": torch.zeros(8)})
    writer.add({"b": torch.zeros(8)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow(beside=True)
def test_a_killed_run_leaves_no_checkpoint_and_the_next_one_tidies_up(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILLED, out, tiny_llama], timeout=120, check=False)
    assert not out.exists()
    assert len(left(tmp_path)) == 1
    write(out, tiny_llama)
    assert left(tmp_path) == ["out"]


def test_two_processes_do_not_write_one_folder(tiny_llama: Path, tmp_path: Path) -> None:
    with Writer(tmp_path / "out", tiny_llama) as first:
        first.add(tensors())
        with pytest.raises(BitworthError, match=r"Another process is writing .*out; wait for it"):
            write(tmp_path / "out", tiny_llama)
        first.finish({}, {})
    assert Reader(tmp_path / "out").names == tensors().keys()


def test_pieces_are_taken_up_as_far_as_they_are_known(tiny_llama: Path, tmp_path: Path) -> None:
    """An interruption keeps them; a piece that came after the last known one is written anew."""
    rows = list(tensors().items())

    def interrupted() -> None:
        with Writer(tmp_path / "out", tiny_llama) as writer:
            for name, tensor in rows:
                writer.add({name: tensor + 1})
            raise Interrupted("the disk is full")

    with pytest.raises(Interrupted):
        interrupted()
    assert not (tmp_path / "out").exists()
    with Writer(tmp_path / "out", tiny_llama) as writer:
        assert not writer.take_up(4)
        assert writer.take_up(1)
        for name, tensor in rows[1:]:
            writer.add({name: tensor})
        writer.finish({}, {})
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out")[-1] == "tokenizer_config.json"
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert [float(made[name].mean() - tensor.mean()) for name, tensor in rows] == [1, 0, 0]


def test_an_earlier_checkpoint_is_replaced_only_by_a_whole_one(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama)
    (tmp_path / "out" / "stale").touch()
    with pytest.raises(RuntimeError), Writer(tmp_path / "out", tiny_llama):
        raise RuntimeError
    assert (tmp_path / "out" / "stale").exists()
    write(tmp_path / "out", tiny_llama)
    assert not (tmp_path / "out" / "stale").exists()


@pytest.mark.parametrize("step", ["save_file", "copyfile", "rename"])
def test_a_full_disk_leaves_no_checkpoint_and_loses_no_piece(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"save_file": module, "copyfile": shutil, "rename": Path}[step]
    with monkeypatch.context() as patched:
        patched.setattr(target, step, full)
        with pytest.raises(Interrupted, match="out could not be written: the disk is full"):
            write(tmp_path / "out", tiny_llama)
    assert left(tmp_path) == ([] if step == "save_file" else [".out.partial"])
    write(tmp_path / "out", tiny_llama)
    assert left(tmp_path) == ["out"]


def test_safetensors_own_error_for_a_full_disk_is_understood(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(Interrupted, match="the disk is full"):
        write(tmp_path / "out", tiny_llama)
    assert left(tmp_path) == []


def test_a_swap_that_fails_brings_the_old_checkpoint_back(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", tiny_llama)
    (tmp_path / "out" / "old").touch()
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(Interrupted, match="Input/output error"):
            write(tmp_path / "out", tiny_llama)
    assert left(tmp_path) == [".out.partial", "out"]
    assert (tmp_path / "out" / "old").exists()


def test_a_checkpoint_that_a_killed_run_had_moved_aside_comes_back(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama)
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    with pytest.raises(RuntimeError), Writer(tmp_path / "out", tiny_llama):
        raise RuntimeError
    assert left(tmp_path) == ["out"]
    assert Reader(tmp_path / "out").names == tensors().keys()


def test_what_is_not_ours_is_not_overwritten(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "nested" / "model"
    shutil.copytree(tiny_llama, model)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    (tmp_path / "file").touch()
    for folder, message in {
        "photos": "not a checkpoint that bitworth wrote",
        "file": "not a checkpoint that bitworth wrote",
        "nested": "holds the model being quantized",
        "nested/model": "holds the model being quantized",
    }.items():
        with pytest.raises(BitworthError, match=message):
            write(tmp_path / folder, model)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", model)
