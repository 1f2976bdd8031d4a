"""Hidden states of the calibration data between two blocks: in memory, or in files where a budget says so.

Either way there are two sets, what a block receives and what it makes of it, until they `turn`. What a block received
can be kept on disk while the next is under way, so that a killed run goes on from the last block whose states were
kept. Files hold raw float32, one chunk after another.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from bitworth.errors import Interrupted, disk_reason

#: States in memory are kept on disk as often as that costs less than this part of the time.
_SAVING_SHARE = 0.1

#: What the files are called, before the number of the one of two.
LABEL, TEACHER = "states", "teacher"

Shape = tuple[int, int, int]


class InMemory:
    """States held as tensors."""

    def __init__(
        self,
        device: torch.device,
        store: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        label: str = LABEL,
    ) -> None:
        self._device, self._store, self._dtype, self._label = device, store, dtype, label
        self._chunks: list[Tensor] = []
        self._made: dict[int, Tensor] = {}
        self._last = 0  # the file saved last, which stays until the other one is whole
        self._saved_at, self._cost = -float("inf"), 0.0

    def append(self, hidden: Tensor) -> None:
        """Take in the first block's input of one more chunk."""
        self._chunks.append(hidden.to(self._store))

    def __len__(self) -> int:
        """How many chunks."""
        return len(self._chunks)

    def __getitem__(self, index: int) -> Tensor:
        """A chunk (B, T, D), on the device that computes."""
        return self._chunks[index].to(self._device)

    def __setitem__(self, index: int, hidden: Tensor) -> None:
        """What the next block will read."""
        self._made[index] = hidden.to(self._store)

    def made(self, index: int) -> Tensor:
        """What the block made of a chunk."""
        return self._made[index].to(self._device)

    def rows(self, index: int) -> int:
        """How many sequences a chunk holds."""
        return self._chunks[index].shape[0]

    def sequence(self, index: int, row: int) -> Tensor:
        """One sequence (1, T, D) of a chunk."""
        return self._chunks[index][row : row + 1].to(self._device)

    def made_sequence(self, index: int, row: int) -> Tensor:
        """What the block made of one sequence."""
        return self._made[index][row : row + 1].to(self._device)

    def due(self) -> bool:
        """Whether it is time to keep the states."""
        return time.monotonic() - self._saved_at >= self._cost / _SAVING_SHARE

    def turn(self, folder: Path, *, due: bool | None = None) -> str | None:
        """Call when a block is done: the name of the file that now holds the states, or None when it was not time.

        `due`: whether it is time, where that is agreed with others.
        """
        began = time.monotonic()
        for index, hidden in self._made.items():
            self._chunks[index] = hidden
        self._made.clear()
        if not (self.due() if due is None else due):
            return None
        self._last = 1 - self._last
        name = f"{self._label}-{self._last}"
        with writing(folder / name) as file:
            for chunk in self._chunks:
                chunk.float().cpu().numpy().tofile(file)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began
        return name

    def load(self, path: Path, shapes: Sequence[Shape]) -> None:
        """Take states up again from the file that `turn` named."""
        self._chunks, self._last = [], _number(path)
        for shape, offset in zip(shapes, _offsets(shapes), strict=True):
            self.append(_read(path, shape, offset).to(self._dtype))


class InFiles:
    """States in two files that take turns: a block reads one and writes the other."""

    def __init__(
        self,
        device: torch.device,
        folder: Path,
        shapes: Sequence[Shape],
        dtype: torch.dtype = torch.float32,
        *,
        label: str = LABEL,
    ) -> None:
        self._device, self._folder, self._shapes, self._dtype = device, folder, list(shapes), dtype
        self._label = label
        self._offsets = _offsets(shapes)
        self._now, self._filled = 0, 0

    def append(self, hidden: Tensor) -> None:
        """Take in the first block's input of one more chunk."""
        self._write(self._now, self._filled, hidden)
        self._filled += 1

    def __len__(self) -> int:
        """How many chunks."""
        return len(self._shapes)

    def __getitem__(self, index: int) -> Tensor:
        """A chunk (B, T, D), on the device that computes."""
        return self._read(self._now, index)

    def __setitem__(self, index: int, hidden: Tensor) -> None:
        """What the next block will read."""
        self._write(1 - self._now, index, hidden)

    def made(self, index: int) -> Tensor:
        """What the block made of a chunk."""
        return self._read(1 - self._now, index)

    def rows(self, index: int) -> int:
        """How many sequences a chunk holds."""
        return self._shapes[index][0]

    def sequence(self, index: int, row: int) -> Tensor:
        """One sequence (1, T, D) of a chunk."""
        return self._read(self._now, index, row)

    def made_sequence(self, index: int, row: int) -> Tensor:
        """What the block made of one sequence."""
        return self._read(1 - self._now, index, row)

    def due(self) -> bool:
        """Files are kept after every block."""
        return True

    def turn(self, folder: Path, *, due: bool | None = None) -> str | None:
        """Call when a block is done: the name of the file that the next block reads."""
        self._now = 1 - self._now
        with writing(self._path(self._now), mode="ab"):
            pass  # on the disk before anyone says so
        return self._path(self._now).name

    def load(self, path: Path, shapes: Sequence[Shape]) -> None:
        """Take states up again from the file that `turn` named."""
        self._now = _number(path)

    def _path(self, which: int) -> Path:
        return self._folder / f"{self._label}-{which}"

    def _read(self, which: int, index: int, row: int | None = None) -> Tensor:
        shape, offset = self._shapes[index], self._offsets[index]
        if row is not None:
            shape, offset = (1, *shape[1:]), offset + _size((row, *shape[1:]))
        return _read(self._path(which), shape, offset).to(self._device, self._dtype)

    def _write(self, which: int, index: int, hidden: Tensor) -> None:
        path = self._path(which)
        path.touch()
        with writing(path, mode="r+b", sync=False) as file:
            file.seek(self._offsets[index])
            hidden.float().cpu().numpy().tofile(file)


States = InMemory | InFiles


@contextmanager
def writing(path: Path, *, mode: str = "wb", sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a file for writing; with `sync` it is on the disk when left.

    Raises:
        Interrupted: the disk is full or cannot be written.
    """
    try:
        with path.open(mode) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise Interrupted(f"{path.parent} could not be written: {disk_reason(error)}.") from error


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _offsets(shapes: Sequence[Shape]) -> list[int]:
    return [0, *accumulate(_size(shape) for shape in shapes)][:-1]


def _size(shape: Shape) -> int:
    return 4 * math.prod(shape)


def _read(path: Path, shape: Shape, offset: int) -> Tensor:
    values = np.fromfile(path, dtype=np.float32, count=shape[0] * shape[1] * shape[2], offset=offset)
    return torch.from_numpy(values).reshape(shape)
