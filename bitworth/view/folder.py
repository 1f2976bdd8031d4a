"""A results folder that is looked at again and again, of which only what changed is read.

A look costs one `stat` a folder of cells; a folder that changed is listed again; a result file is read once for each
state it is in (inode, size, time). What is kept of answers is what an assembly takes: no samples, no further measures.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitworth.assembly import assemble
from bitworth.ledger import Ledger, key_of, revive
from bitworth.progress import RunProgress, read_progress
from bitworth.types import Answer, Cell, StudyResult

_SHARED = ("task", "item", "prediction", "group", "cluster")
"""Fields whose values many answers have in common."""
_OWN = ("score", "logprobs", "text")
_SETTLED_S = 2.0
"""A folder changed so lately may change again within the same tick of its clock, so it is listed at the next look."""

Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a study is; `version` changes when any of its results does."""

    name: str
    model: str
    total: int
    done: int
    failed: int
    progress: RunProgress | None
    version: int


class RememberingLedger(Ledger):
    """A ledger that reads a result file again only when it is another file, of another size or time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._records: dict[Path, tuple[tuple[Any, ...], dict[str, Any] | None]] = {}
        self._plan: tuple[Signature | None, tuple[Cell, ...]] = (None, ())
        self.reads = 0

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """As `Ledger.record`, with answers as values that hold no more than recoveries take."""
        path = self.path(cell)
        now = self.state(cell)
        if now is None:
            self._records.pop(path, None)
            return None
        known = self._records.get(path)
        if known is None or known[0] != now:
            self.reads += 1
            known = self._records[path] = (now, _slim(super().record(cell)))
        return known[1]

    def read_plan(self) -> tuple[Cell, ...]:
        """As `Ledger.read_plan`."""
        now = signature(self.root / "plan.json")
        if now is None or now != self._plan[0]:
            self._plan = (now, super().read_plan())
        return self._plan[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """A folder's files at a time of its own; `settled` where no later change can bear the same time."""

    changed: int
    settled: bool
    names: frozenset[str]


_NOTHING = _Listing(changed=0, settled=False, names=frozenset())


class Folder:
    """A results folder and what was seen of it; one thread may call `look` while another calls `result`."""

    def __init__(self, root: Path) -> None:
        """Look at the folder for the first time.

        Raises:
            BitworthError: it holds no study.
        """
        self.root = root
        self._ledger = RememberingLedger(root)
        self._listings: dict[Path, _Listing] = {}
        self._seen: tuple[Any, ...] = ()
        self._version = 0
        self._study: dict[str, Any] = {}
        self._planned: tuple[tuple[Cell, ...], dict[str, list[str]]] = ((), {})
        self._counts = (0, 0, 0)
        self.look()

    @property
    def reads(self) -> int:
        """How many result files have been read so far."""
        return self._ledger.reads

    def look(self) -> Standing:
        """Where the study stands now.

        Raises:
            BitworthError: the folder holds no study any more.
        """
        names = self._names_by_kind()
        seen = (*(signature(self.root / name) for name in ("study.json", "plan.json", "model.json")), *names.values())
        if seen != self._seen:
            self._study = self._ledger.read_study()
            self._counts = _counted(self._files(), {kind: found.names for kind, found in names.items()})
            self._seen, self._version = seen, self._version + 1
        total, done, failed = self._counts
        return Standing(
            name=str(self._study.get("name", "study")),
            model=str(self._study.get("model", "")),
            total=total,
            done=done,
            failed=failed,
            progress=read_progress(self.root),
            version=self._version,
        )

    def result(self) -> StudyResult:
        """What the results say now; files that were read before are not read again.

        Raises:
            BitworthError: see `bitworth.assembly.assemble`.
        """
        return assemble(self.root, ledger=self._ledger)

    def _names_by_kind(self) -> dict[str, _Listing]:
        """What lies in the folder of each kind of cell, and among the failures (no kind)."""
        packed: dict[str, set[str]] = {}
        for name in self._ledger.packs.newest():
            packed.setdefault(name.split("/")[1], set()).add(name.split("/")[2])
        found = {kind: self._listing(self.root / "cells" / kind) for kind in self._files()}
        found = {kind: replace(one, names=one.names | packed.get(kind, set())) for kind, one in found.items()}
        return {**found, "": self._listing(self.root / "failures")}

    def _files(self) -> dict[str, list[str]]:
        """Names of the result files that the plan asks for, by kind; ten thousand keys are hashed once."""
        plan = self._ledger.read_plan()
        if plan is not self._planned[0]:
            files: dict[str, list[str]] = {}
            for cell in plan:
                files.setdefault(cell.kind, []).append(f"{key_of(cell)}.json")
            self._planned = (plan, files)
        return self._planned[1]

    def _listing(self, folder: Path) -> _Listing:
        """The folder's files; listed again only when its time is another, or too recent to be told from another."""
        try:
            changed = folder.stat().st_mtime_ns
            known = self._listings.get(folder, _NOTHING)
            if known.settled and known.changed == changed:
                return known
            names = frozenset(entry.name for entry in os.scandir(folder))
        except OSError:
            return _NOTHING
        settled = time.time() - changed / 1e9 > _SETTLED_S
        self._listings[folder] = _Listing(changed=changed, settled=settled, names=names)
        return self._listings[folder]


def _counted(files: Mapping[str, list[str]], there: Mapping[str, frozenset[str]]) -> tuple[int, int, int]:
    """Cells in all, with a result, and without one but with a failure."""
    missing = [name for kind, names in files.items() for name in names if name not in there[kind]]
    total = sum(map(len, files.values()))
    return total, total - len(missing), sum(name in there[""] for name in missing)


def signature(path: Path) -> Signature | None:
    """What tells a state of a file from another; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _slim(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record with its answers cut to what an assembly takes; one that is not of their shape is left to it."""
    if record is not None and _holds_rows(record["result"].get("answers")):
        record["result"]["answers"] = revive(list[Answer], [_kept(row) for row in record["result"]["answers"]])
    return record


def _holds_rows(answers: Any) -> bool:
    return isinstance(answers, list) and all(isinstance(row, dict) for row in answers)


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that count; equal strings are one string."""
    shared = {name: sys.intern(v) if isinstance(v := row[name], str) else v for name in _SHARED if name in row}
    return {**shared, **{name: row[name] for name in _OWN if name in row}}
