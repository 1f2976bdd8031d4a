from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitworth.shards import bytes_in, join, listed

PIECES: list[dict[str, Tensor]] = [
    {"b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "packed": torch.arange(5, dtype=torch.uint8)},
    {"a": torch.arange(4, dtype=torch.float32), "scalar": torch.tensor(7), "none": torch.empty(0, 3)},
    {"é": torch.ones(3, dtype=torch.int8), "f8": torch.ones(7).to(torch.float8_e4m3fn)},
]


def written(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.safetensors" for number in range(len(PIECES))]
    for piece, path in zip(PIECES, paths, strict=True):
        save_file(piece, path, metadata={"format": "pt"})
    return paths


def test_joined_files_are_what_safetensors_reads(tmp_path: Path) -> None:
    everything = {name: tensor for piece in PIECES for name, tensor in piece.items()}
    tensors = join(written(tmp_path), tmp_path / "joined")
    assert tensors.keys() == everything.keys()
    read = load_file(tmp_path / "joined")
    assert read.keys() == everything.keys()
    for name, tensor in everything.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())
    with safe_open(tmp_path / "joined", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_bytes_are_where_safetensors_puts_them(tmp_path: Path) -> None:
    """Each tensor starts at a multiple of its numbers' width, which readers that map a file rely on."""
    everything = {name: tensor for piece in PIECES for name, tensor in piece.items()}
    join(written(tmp_path), tmp_path / "joined")
    save_file(everything, tmp_path / "saved", metadata={"format": "pt"})
    begin = int.from_bytes((tmp_path / "joined").read_bytes()[:8], "little")
    assert begin % 8 == 0
    for name, entry in listed(tmp_path / "joined").items():
        assert entry["data_offsets"][0] % everything[name].element_size() == 0 or not everything[name].numel()
    assert bytes_in(tmp_path / "joined") == bytes_in(tmp_path / "saved")


def test_a_file_that_is_cut_or_no_such_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="cut short"):
        bytes_in(path)
    path.write_bytes(b"not one")
    with pytest.raises(OSError, match="not a safetensors file"):
        bytes_in(path)
    with pytest.raises(FileNotFoundError):
        bytes_in(tmp_path / "missing")
