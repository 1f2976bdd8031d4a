"""Cells on disk: one file a finished cell, written to a temporary name and renamed, so that no kill leaves half of one.

    OUT/
      study.json            the study as it was run
      plan.json             its cells, so that what follows needs this folder alone
      cells/KIND/KEY.json   {"schema", "cell", "finished", "seconds", "result", "sha256"}; the key hashes all that could
                            change the result
      failures/KEY.json     why a cell could not be finished; removed when it is
      checkpoints/NAME/     what the quantize cells made
      lock                  held by the one driver that may write
      progress.json         while it runs: how far it is (`bitworth.progress`)

A file whose checksum does not match is treated as absent (the cell is run again) and reported by `damaged`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bitworth.errors import BitworthError, WorkFailed, disk_reason
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.guard.folders import is_within
from bitworth.guard.keys import redacted, without_keys, without_secrets
from bitworth.guard.text import visible
from bitworth.types import Cell

SCHEMA = 1
HALVES = "backslashreplace"
"""How half a surrogate pair, which servers send in the end, is encoded: as JSON writes it inside a string."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=True)


Noun = TypeVar("Noun")
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def revive(kind: type[Noun], row: Any) -> Noun:
    """The noun that `dataclasses.asdict` made a row of; lists become tuples, strings become paths, as its fields ask.

    Raises:
        BitworthError: the row is of another shape, as an older ledger's may be.
    """
    try:
        if kind not in _adapters:
            _adapters[kind] = TypeAdapter(kind)
        found: Noun = _adapters[kind].validate_python(row)
        return found
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BitworthError(
            f"A stored {kind.__name__} does not read back ({place}: {first['msg']}); run the study again."
        ) from error


def key_of(cell: Cell) -> str:
    """Twenty hex digits of the SHA-256 of the cell's kind and inputs; its title and needs do not count."""
    return hashlib.sha256(canonical({"kind": cell.kind, "inputs": cell.inputs}).encode(errors=HALVES)).hexdigest()[:20]


def write_atomic(path: Path, text: str) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename; no key of the environment is written.

    Raises:
        WorkFailed: the disk is full or cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", errors=HALVES) as file:
            file.write(without_keys(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # the first fault is the one to tell
            temporary.unlink(missing_ok=True)
        raise WorkFailed(f"{path} could not be written: {disk_reason(error)}.") from error


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a value as indented JSON; what JSON lacks is written as text."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


class Ledger:
    """The results under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, cell: Cell) -> Path:
        """Where the cell's result lives."""
        return self.root / "cells" / cell.kind / f"{key_of(cell)}.json"

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, or None when it is not finished or its file does not match its checksum."""
        return _read(self.path(cell))

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's `result`, when it was `finished` and the `seconds` it took; None as for `get`."""
        return _record(self.path(cell))

    def all(self) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """Every finished cell that lies here, with its result, whatever study or verb made it."""
        for path in sorted(self.root.glob("cells/*/*.json")):
            record = _record(path)
            if record is not None:
                yield revive(Cell, record["cell"]), record["result"]

    def put(self, cell: Cell, result: Mapping[str, Any], *, seconds: float = 0.0) -> None:
        """Keep a finished cell's result, what it took and when, and forget its earlier failure; keys are left out."""
        result = redacted(dict(result))
        record = {
            "schema": SCHEMA,
            "cell": asdict(cell),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "result": result,
            "sha256": _digest(result),
        }
        write_json(self.path(cell), record)
        self._failure_path(cell).unlink(missing_ok=True)

    def fail(self, cell: Cell, cause: str) -> None:
        """Keep why a cell could not be finished."""
        write_atomic(
            self._failure_path(cell), json.dumps({"title": cell.title, "cause": visible(without_secrets(cause))}) + "\n"
        )

    def failure(self, cell: Cell) -> str | None:
        """Why the cell failed last time, if it did."""
        path = self._failure_path(cell)
        try:
            return str(json_of(path.read_text(encoding="utf-8"))["cause"]) if path.is_file() else None
        except (OSError, ValueError, KeyError, TypeError):
            return "why it failed does not read back"

    def damaged(self) -> list[Path]:
        """Result files that do not match their checksum; their cells will be run again."""
        return [path for path in sorted(self.root.glob("cells/*/*.json")) if _read(path) is None]

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

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one driver; the lock goes with the process, however it ends.

        Raises:
            BitworthError: another driver holds it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = (self.root / "lock").open("a")
        except OSError as error:
            raise BitworthError(f"The folder {self.root} cannot be used for results: {disk_reason(error)}.") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BitworthError(
                    f"Another bitworth is already running on {self.root}; wait for it, or choose another --out."
                ) from error
            yield

    def held(self) -> bool:
        """True while a driver holds the folder."""
        try:
            with self.lock():
                return False
        except BitworthError:
            return True

    def _failure_path(self, cell: Cell) -> Path:
        return self.root / "failures" / f"{key_of(cell)}.json"


def _digest(result: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(result).encode(errors=HALVES)).hexdigest()


def _record(path: Path) -> dict[str, Any] | None:
    """A result file's content, or None where it is absent or does not match its checksum."""
    try:
        record: dict[str, Any] = json_of(path.read_bytes())
        whole = record["sha256"] == _digest(record["result"]) and record["finished"]
        return record if whole and isinstance(record["result"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    record = _record(path)
    return None if record is None else record["result"]
