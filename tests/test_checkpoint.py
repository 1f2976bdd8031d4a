from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitworth import checkpoint as module
from bitworth import schemes
from bitworth.checkpoint import Reader, Writer, read_config
from bitworth.errors import BitworthError, WorkFailed
from bitworth.schemes.config import quantization_config, scheme_from_config


def tensors(count: int = 3) -> dict[str, torch.Tensor]:
    return {f"layer.{index}.weight": torch.full((4, 8), float(index)) for index in range(count)}


def write(folder: Path, source: Path, *, shard_bytes: int = 10**9) -> None:
    with Writer(folder, source, shard_bytes=shard_bytes) as writer:
        for name, tensor in tensors().items():
            writer.add({name: tensor})
        writer.finish(read_config(source), {"format": "test"})


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- writing ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_whole(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama)
    assert left(tmp_path) == ["out"]
    assert {"config.json", "bitworth.json", "model.safetensors", "tokenizer.json"} <= set(left(tmp_path / "out"))
    reader = Reader(tmp_path / "out")
    assert reader.names == tensors().keys()
    for name, tensor in tensors().items():
        assert torch.equal(reader.get(name), tensor)
        assert reader.shape(name) == (4, 8)


def test_shards_are_indexed_as_the_hub_does(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama, shard_bytes=260)
    index = json.loads((tmp_path / "out" / module.INDEX).read_text())
    assert index["metadata"]["total_size"] == 3 * 4 * 8 * 4
    assert sorted(set(index["weight_map"].values())) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)
    assert Reader(tmp_path / "out").names == tensors().keys()


def test_leaving_by_an_exception_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    def half() -> None:
        with Writer(tmp_path / "out", tiny_llama) as writer:
            writer.add(tensors())
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        half()
    assert left(tmp_path) == []


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from bitworth.checkpoint import Writer
with Writer(Path(sys.argv[1]), Path(sys.argv[2]), shard_bytes=1) as writer:
    writer.add({"a": torch.zeros(8)})
    writer.add({"b": torch.zeros(8)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_no_checkpoint_and_the_next_one_tidies_up(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILLED, out, tiny_llama], timeout=120, check=False)
    assert not out.exists()
    assert len(left(tmp_path)) == 1
    write(out, tiny_llama)
    assert left(tmp_path) == ["out"]


def test_the_unfinished_folder_of_a_living_run_is_left_alone(tiny_llama: Path, tmp_path: Path) -> None:
    other = tmp_path / f".out.{os.getppid()}.partial"
    other.mkdir()
    write(tmp_path / "out", tiny_llama)
    assert other.is_dir()


def test_an_earlier_checkpoint_is_replaced_only_by_a_whole_one(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama)
    (tmp_path / "out" / "stale").touch()
    with pytest.raises(RuntimeError), Writer(tmp_path / "out", tiny_llama):
        raise RuntimeError
    assert (tmp_path / "out" / "stale").exists()
    write(tmp_path / "out", tiny_llama)
    assert not (tmp_path / "out" / "stale").exists()


@pytest.mark.parametrize("step", ["save_file", "copyfile", "rename"])
def test_a_full_disk_leaves_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"save_file": module, "copyfile": shutil, "rename": Path}[step]
    with monkeypatch.context() as patched:
        patched.setattr(target, step, full)
        with pytest.raises(WorkFailed, match="out could not be written: the disk is full"):
            write(tmp_path / "out", tiny_llama)
    assert left(tmp_path) == []


def test_safetensors_own_error_for_a_full_disk_is_understood(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(WorkFailed, match="the disk is full"):
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
        with pytest.raises(WorkFailed, match="Input/output error"):
            write(tmp_path / "out", tiny_llama)
    assert left(tmp_path) == ["out"]
    assert (tmp_path / "out" / "old").exists()


def test_a_checkpoint_that_a_killed_run_had_moved_aside_comes_back(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama)
    (tmp_path / "out").rename(tmp_path / ".out.999999999.replaced")
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


# --- reading ------------------------------------------------------------------------------------------------------


def test_damage_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama, shard_bytes=260)
    shard = tmp_path / "out" / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    for length in (0, 5, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(BitworthError, match=r"model-00002-of-00002\.safetensors is truncated or damaged"):
            Reader(tmp_path / "out")
    shard.unlink()
    with pytest.raises(BitworthError, match=r"model-00002-of-00002\.safetensors is listed in .* but is not there"):
        Reader(tmp_path / "out")


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / module.INDEX).write_text(index)
    with pytest.raises(BitworthError, match="is not a safetensors index"):
        Reader(tmp_path)


def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file(tensors(), tmp_path / "secret.safetensors")
    (tmp_path / "model" / module.INDEX).write_text('{"weight_map": {"layer.0.weight": "../secret.safetensors"}}')
    with pytest.raises(BitworthError, match="is not there"):
        Reader(tmp_path / "model")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(BitworthError, match="pickled weights are not read"):
        Reader(tmp_path)


def test_a_tensor_that_is_not_there_is_named(tiny_llama: Path) -> None:
    with pytest.raises(BitworthError, match="no tensor 'nonsense'"):
        Reader(tiny_llama).get("nonsense")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no model folder"),
        ("{", "cannot be read as JSON"),
        ("{}", r"not a decoder .*none named"),
        ('{"architectures": ["BertModel"]}', "BertModel"),
        ('{"architectures": ["XForCausalLM"], "auto_map": {}}', "code of its own"),
        ("[]", "cannot be read as JSON"),
    ],
)
def test_folders_that_are_no_decoder_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BitworthError, match=message):
        read_config(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="There is no model folder"):
        read_config(tmp_path / "nowhere")


# --- the quantization config --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", schemes.NAMES)
def test_the_config_is_valid_for_compressed_tensors_and_reads_back(name: str) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    scheme = schemes.get(name, group_size=64)
    config = quantization_config(scheme, ["lm_head"], "weight" if name == "w4a16-int" else None)
    parsed = QuantizationConfig.model_validate(config)
    assert parsed.format == schemes.layout_of(scheme).name
    weights = parsed.config_groups["group_0"].weights
    assert scheme.weight is not None
    assert (weights.num_bits, weights.group_size) == (scheme.weight.bits, scheme.weight.group_size)
    assert weights.symmetric
    assert scheme_from_config(config) == scheme


def test_configs_of_others_are_refused() -> None:
    ours = quantization_config(schemes.get("w4a16-int"), [], None)
    for change, message in (
        ({"quant_method": "awq"}, "quantized by 'awq'"),
        ({"config_groups": {}}, "mixes 0 quantization schemes"),
    ):
        with pytest.raises(BitworthError, match=message):
            scheme_from_config({**ours, **change})
    ours["config_groups"]["group_0"]["weights"]["symmetric"] = False
    with pytest.raises(BitworthError, match="w4a16-int here does not cover"):
        scheme_from_config(ours)
