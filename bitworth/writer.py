"""Writes a checkpoint beside its final name, piece by piece, and moves it there when it is whole.

Pieces (a block's tensors) survive a killed run, so that the next one goes on after the last that its journal lists; at
the end neighbouring pieces become shards.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bitworth.checkpoint import INDEX, PROVENANCE
from bitworth.errors import BitworthError, Interrupted, WorkFailed, disk_reason
from bitworth.fingerprint import TOKENIZER_FILES
from bitworth.guard.folders import own_file
from bitworth.shards import bytes_in, join, listed

SHARD_BYTES = 5_000_000_000  # pieces are joined up to this size
#: Files that make a folder a usable model besides its weights.
COMPANIONS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    *TOKENIZER_FILES,
)
_LOCK = "lock"


class Writer:
    """Use as a context: an error that the input must change for removes what was written, any other end leaves it."""

    def __init__(self, folder: Path, source: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self._source, self._limit = folder, source, shard_bytes
        self.scratch = scratch_of(folder)
        """Where pieces lie, and what else a run keeps to go on from."""
        self._aside = folder.with_name(f".{folder.name}.replaced")
        self._lock: int | None = None
        self._pieces: list[int] = []  # their bytes
        self._begun = False  # until then what lies in the scratch folder is an earlier run's

    def __enter__(self) -> Writer:
        """Make or take up the scratch folder.

        Raises:
            BitworthError: the final name is taken by something that is not a checkpoint of bitworth's, or another
                process is writing it.
            WorkFailed: the disk is full or cannot be written.
        """
        check_replaceable(self.folder, self._source)
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.scratch / _LOCK)
            if self._aside.exists():  # a killed run had moved the old checkpoint aside
                if self.folder.exists():
                    shutil.rmtree(self._aside, ignore_errors=True)
                else:
                    self._aside.rename(self.folder)
        except OSError as error:
            raise WorkFailed(f"{self.folder} cannot be written: {disk_reason(error)}.") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Clean up, unless the work is to be taken up again."""
        failed = kind is not None and issubclass(kind, BitworthError) and not issubclass(kind, Interrupted)
        empty = not self._begun and not self._left()
        if empty or (self._begun and (failed or not self._pieces)):
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def take_up(self, pieces: int) -> bool:
        """Go on after so many pieces of an earlier run, dropping what came after; False where they are not there."""
        paths = [self._piece(number) for number in range(pieces)]
        try:
            self._pieces = [bytes_in(path) for path in paths]
        except OSError:
            return False
        self._begun = True
        return True

    def clear(self) -> None:
        """Drop what an earlier run left."""
        for path in self._left():
            path.unlink()
        self._pieces, self._begun = [], True

    def _left(self) -> list[Path]:
        """What lies in the scratch folder."""
        return [path for path in self.scratch.glob("*") if path.name != _LOCK]

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write a piece.

        Raises:
            Interrupted: the disk is full or cannot be written.
        """
        self._begun = True
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._save(held, self._piece(len(self._pieces)))
        self._pieces.append(_size(held))

    @property
    def pieces(self) -> int:
        """How many pieces are written."""
        return len(self._pieces)

    @property
    def size(self) -> int:
        """Bytes of the tensors written so far."""
        return sum(self._pieces)

    def finish(self, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Join pieces into shards and rename into place, replacing what was there.

        Raises:
            Interrupted: the disk is full or cannot be written; the pieces stay.
        """
        try:
            shards = self._join()
            for name in COMPANIONS:
                if (self._source / name).is_file():
                    shutil.copyfile(own_file(self._source, name), self.scratch / name)
            _write_json(self.scratch / "config.json", config)
            files = {name: (self.scratch / name).stat().st_size for name in shards}
            _write_json(self.scratch / PROVENANCE, {**provenance, "files": files})
            self._swap(keep={*shards, *COMPANIONS, "config.json", PROVENANCE, INDEX})
        except OSError as error:
            raise Interrupted(f"{self.folder} could not be written: {disk_reason(error)}.") from error

    def _join(self) -> list[str]:
        """Shards out of pieces, which stay until the swap, so that a killed run can go on; the shards' names."""
        groups = list(_groups(self._pieces, self._limit))
        names = [f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors" for number in range(len(groups))]
        names = names if len(names) > 1 else ["model.safetensors"]
        weight_map = {}
        for name, group in zip(names, groups, strict=True):
            pieces = [self._piece(number) for number in group]
            (self.scratch / name).unlink(missing_ok=True)
            tensors = join(pieces, self.scratch / name) if len(pieces) > 1 else listed(pieces[0])
            if len(pieces) == 1:
                _same_file(pieces[0], self.scratch / name)
            weight_map.update(dict.fromkeys(tensors, name))
        if len(names) > 1:
            index = {"metadata": {"total_size": self.size}, "weight_map": weight_map}
            _write_json(self.scratch / INDEX, index)
        return names

    def _swap(self, keep: set[str]) -> None:
        """Move the scratch folder into place; the old one is moved aside first, so that no fault costs it.

        Pieces and what else a run goes on from are dropped once that is done, so that none costs them either.
        """
        if self.folder.exists():
            self.folder.rename(self._aside)
        try:
            self.scratch.rename(self.folder)
        except OSError:
            if self._aside.exists():
                self._aside.rename(self.folder)
            raise
        for path in self.folder.iterdir():
            if path.name not in keep:
                path.unlink()
        shutil.rmtree(self._aside, ignore_errors=True)

    def _piece(self, number: int) -> Path:
        return self.scratch / f"piece-{number:06d}"

    def _save(self, tensors: dict[str, Tensor], path: Path) -> None:
        try:
            save_file(tensors, path, metadata={"format": "pt"})
            with path.open("rb") as file:
                os.fsync(file.fileno())
        except (SafetensorError, OSError) as error:
            reason = disk_reason(error) if isinstance(error, OSError) else _safetensors_reason(error)
            raise Interrupted(f"{self.folder} could not be written: {reason}.") from error


@dataclass(frozen=True, slots=True)
class Onlooker:
    """Stands for a `Writer` in a process that works on a checkpoint which another one writes."""

    folder: Path
    pieces: int = 0
    size: int = 0

    @property
    def scratch(self) -> Path:
        """Where the writer's pieces lie, and what else a run keeps to go on from."""
        return scratch_of(self.folder)

    def clear(self) -> None:
        """Nothing: the writer does."""


def scratch_of(folder: Path) -> Path:
    """The hidden folder beside a checkpoint that is being written."""
    return folder.with_name(f".{folder.name}.partial")


def check_replaceable(folder: Path, source: Path) -> None:
    """Refuse to write a checkpoint over anything but an earlier checkpoint of bitworth's.

    Raises:
        BitworthError: `folder` is the model itself or holds it, is a file, or holds files of another kind.
    """
    final, base = folder.resolve(), source.resolve()
    if final == base or final in base.parents:
        raise BitworthError(f"{folder} holds the model being quantized; name another output folder.")
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / PROVENANCE).is_file()):
        raise BitworthError(
            f"{folder} exists and is not a checkpoint that bitworth wrote; name a new or an empty folder."
        )


def _locked(path: Path) -> int:
    """An open, locked file, free again when closed or when the process is gone."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BitworthError(
            f"Another process is writing {path.parent.with_name(path.parent.name[1:].removesuffix('.partial'))}; wait "
            "for it, or name another folder."
        ) from error
    return handle


def _groups(sizes: list[int], limit: int) -> Iterator[list[int]]:
    """Runs of neighbouring pieces of at most `limit` bytes together, each of at least one piece."""
    group: list[int] = []
    held = 0
    for number, size in enumerate(sizes):
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(number)
        held += size
    yield group


def _same_file(path: Path, name: Path) -> None:
    """Give a file a second name, or copy it where the file system knows no links."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _safetensors_reason(error: Exception) -> str:
    full = "No space left" in str(error)
    return "the disk is full; free some space and run the same command again" if full else str(error)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
