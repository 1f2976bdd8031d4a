"""The results under one folder, cell by cell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.guard.folders import is_within
from bitworth.guard.keys import without_secrets
from bitworth.guard.text import visible
from bitworth.ledger import locks, records
from bitworth.ledger.files import write_atomic, write_json
from bitworth.ledger.packs import MEMBER, Packs, check_lost
from bitworth.ledger.records import decode, encode, is_whole, seconds_in
from bitworth.ledger.values import key_of, revive
from bitworth.types import Cell

PARTS = "parts"
"""Below it, a folder a task (by its cell's key) with the results of those of its parts that are done."""


class Ledger:
    """The results under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packs = Packs(root)
        self._whole: dict[str, tuple[int, int, int]] = {}
        """Files that were found whole, by what changes when one is written again."""

    def path(self, cell: Cell) -> Path:
        """Where the cell's result is written; it may lie in a pack instead."""
        return self.root / name_of(cell)

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, or None when it is not finished or does not match its checksum."""
        record = self.record(cell)
        return None if record is None else record["result"]

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's `result`, when it was `finished` and the `seconds` it took; None as for `get`."""
        raw = self.read(name_of(cell))
        return None if raw is None else decode(raw)

    def done(self, cell: Cell) -> bool:
        """Whether `get` gives a result; its checksum is compared once while it is unchanged, and it is not parsed."""
        return self._is_whole(name_of(cell))

    def seconds(self, cell: Cell) -> float | None:
        """What a finished cell took, without parsing its answers; None as for `get`."""
        raw = self.read(name_of(cell))
        return None if raw is None else seconds_in(raw)

    def state(self, cell: Cell) -> tuple[Any, ...] | None:
        """What changes when the cell's stored result does, from its file or its pack; None where there is none."""
        name = name_of(cell)
        loose = stamp_of(self.root / name)
        if loose is not None:
            return loose
        packed = self.packs.find(name)
        return None if packed is None else (packed.path.name, packed.offset, packed.size)

    def names(self) -> list[str]:
        """`cells/KIND/KEY.json` of every result that lies here, packed or not, whole or not; sorted."""
        return sorted({*_loose(self.root / "cells"), *self.packs.newest()})

    def read(self, name: str) -> bytes | None:
        """The bytes of a whole record of that name: of its file, else of its pack; None where neither is whole.

        Raises:
            BitworthError: a later version wrote it, or it cannot be read.
        """
        found = MEMBER.fullmatch(name)
        key = found["key"] if found else None
        raw = _bytes_of(self.root / name)
        if raw is not None and is_whole(raw, key):
            return raw
        raw = self.packs.read(name)
        return raw if raw is not None and is_whole(raw, key) else None

    def all(self) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Every finished cell that lies here, with its result, whatever study or verb made it."""
        for name in self.names():
            raw = self.read(name)
            record = None if raw is None else decode(raw)
            if record is not None:
                yield revive(Cell, record["cell"]), record["result"]

    def put(self, cell: Cell, result: Mapping[str, Any], *, seconds: float = 0.0) -> None:
        """Keep a finished cell's result, what it took and when, and forget its earlier failure; keys are left out.

        Raises:
            WorkFailed: the disk is full or cannot be written; what was there stays.
        """
        write_atomic(self.path(cell), encode(cell, result, seconds=seconds, finished=records.now()))
        self._failure_path(cell).unlink(missing_ok=True)

    def fail(self, cell: Cell, cause: str) -> None:
        """Keep why a cell could not be finished."""
        said = visible(without_secrets(cause))
        write_atomic(self._failure_path(cell), json.dumps({"title": cell.title, "cause": said}) + "\n")

    def failure(self, cell: Cell) -> str | None:
        """Why the cell failed last time, if it did."""
        try:
            return str(json_of(self._failure_path(cell).read_text(encoding="utf-8"))["cause"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return "why it failed does not read back"

    def damaged(self) -> list[Path]:
        """Results of which no copy matches its checksum; their cells will be run again."""
        return [self.root / name for name in self.names() if not self._is_whole(name)]

    def _is_whole(self, name: str) -> bool:
        stamp = stamp_of(self.root / name)
        if stamp is not None and self._whole.get(name) == stamp:
            return True
        if self.read(name) is None:
            return False
        if stamp is not None:
            self._whole[name] = stamp
        return True

    def write_study(
        self, study: Mapping[str, Any], cells: Iterable[Cell], config: Mapping[str, Any] | None = None
    ) -> None:
        """Keep the study, its plan and its model's config beside its results: later verbs need no more."""
        write_json(self.root / "plan.json", [asdict(cell) for cell in cells])
        if config is not None:
            write_json(self.root / "model.json", config)
        write_json(self.root / "study.json", study)

    def read_plan(self) -> tuple[Cell, ...]:
        """The cells of the study last run here.

        Raises:
            BitworthError: the folder holds no study.
        """
        rows = self._read_json("plan.json")
        if not isinstance(rows, list):
            raise BitworthError(f"{self.root}/plan.json is no list of cells; run the study again.")
        cells = tuple(revive(Cell, row) for row in rows)
        outs = (cell.where["out"] for cell in cells if "out" in cell.where)
        astray = next((out for out in outs if not is_within(out)), None)
        if astray is not None:
            raise BitworthError(f"{self.root}/plan.json would write to {astray}, outside its folder; do not use it.")
        return cells

    def read_study(self) -> dict[str, Any]:
        """The study whose results these are.

        Raises:
            BitworthError: the folder holds no study.
        """
        return self._read_object("study.json")

    def read_config(self) -> dict[str, Any] | None:
        """The config of the study's model; None where an earlier version ran it."""
        return self._read_object("model.json") if (self.root / "model.json").is_file() else None

    def _read_object(self, name: str) -> dict[str, Any]:
        found = self._read_json(name)
        if not isinstance(found, dict):
            raise BitworthError(f"{self.root / name} holds no JSON object; run the study again.")
        return found

    def _read_json(self, name: str) -> Any:
        try:
            return json_of((self.root / name).read_bytes(), nested=MOST_NESTED)
        except (OSError, ValueError) as error:
            raise BitworthError(
                f"{self.root} holds no readable {name}; name a folder that `bitworth run STUDY --out FOLDER` wrote."
            ) from error

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for one driver; the lock goes with the process, however it ends.

        Raises:
            BitworthError: another driver holds it, here or on another machine.
        """
        return locks.hold(self.root)

    def held(self) -> bool:
        """True while a driver holds the folder."""
        return locks.is_held(self.root)

    def _failure_path(self, cell: Cell) -> Path:
        return self.root / "failures" / f"{key_of(cell)}.json"


def name_of(cell: Cell) -> str:
    """The cell's file under the results folder."""
    return f"cells/{cell.kind}/{key_of(cell)}.json"


def stamp_of(path: Path | str) -> tuple[int, int, int] | None:
    """What changes when a file is written again; None where there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _loose(folder: Path) -> Iterator[str]:
    """The results that have a file of their own; by `scandir`, since ten thousand paths take a while to make.

    A file that somebody put beside them under another name, a copy say, is none: no pack or archive could hold it.
    """
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as kinds:
        for kind in sorted(entry.name for entry in kinds if entry.is_dir()):
            with os.scandir(folder / kind) as entries:
                names = (f"cells/{kind}/{entry.name}" for entry in entries)
                yield from (name for name in names if MEMBER.fullmatch(name))


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        check_lost(path, error)
        return None
