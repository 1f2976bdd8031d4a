"""What is wrong with a results folder, what lies there for nothing, and how the latter goes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bitworth.errors import BitworthError, WorkFailed, disk_reason
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.ledger.compaction import compact
from bitworth.ledger.files import is_temporary, may_be_written
from bitworth.ledger.folder import PARTS, Ledger, name_of
from bitworth.ledger.index import Index
from bitworth.ledger.records import decode, is_current, is_whole
from bitworth.ledger.values import key_of
from bitworth.types import Cell

What = Literal[
    "damaged",
    "unreadable",
    "damaged copy",
    "temporary",
    "orphan checkpoint",
    "lost checkpoint",
    "orphan parts",
    "superseded",
    "unplanned",
    "schema 1",
    "index",
]
FAULTS: frozenset[What] = frozenset({"damaged", "unreadable"})
"""What costs something: a cell that is run again, a study that cannot be read."""
_REMOVABLE: frozenset[What] = frozenset(
    {"damaged copy", "temporary", "orphan checkpoint", "orphan parts", "superseded", "unplanned"}
)
_PLACES = ("cells/*", "failures", "packs", "index", "checkpoints", "parts/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found: `path` is relative to the results folder, `says` what it means, `size` its bytes."""

    what: What
    path: str
    says: str
    size: int = 0

    @property
    def fault(self) -> bool:
        """Whether something is lost by it."""
        return self.what in FAULTS


def check(ledger: Ledger) -> list[Finding]:
    """Everything that `bitworth ledger check` tells; nothing is changed.

    Raises:
        BitworthError: the folder is not there, or a later version wrote it.
    """
    if not ledger.root.is_dir():
        raise BitworthError(f"There is no folder {ledger.root}; name one that bitworth wrote results into.")
    return [
        *_results(ledger),
        *_documents(ledger),
        *_temporaries(ledger),
        *_superseded(ledger),
        *_checkpoints(ledger, kept=ledger.names()),
        *_parts(ledger),
        *_index(ledger),
    ]


def removable(ledger: Ledger, *, unplanned: bool = False) -> list[Finding]:
    """What `gc` would remove.

    Args:
        ledger: the folder.
        unplanned: also results of cells that are not in the plan, and their checkpoints.

    Raises:
        BitworthError: with `unplanned`, the folder has no plan that reads.
    """
    extra = _unplanned(ledger) if unplanned else []
    gone = {found.path for found in extra}
    found = [entry for entry in check(ledger) if entry.what != "orphan checkpoint"]
    found += _checkpoints(ledger, kept=[name for name in ledger.names() if name not in gone])
    return [entry for entry in [*found, *extra] if entry.what in _REMOVABLE]


def gc(ledger: Ledger, *, unplanned: bool = False) -> list[Finding]:
    """Remove what `removable` lists; what was removed. The caller holds the folder's lock.

    Raises:
        BitworthError: as for `removable`.
        WorkFailed: something cannot be removed.
    """
    found = removable(ledger, unplanned=unplanned)
    names = [entry.path for entry in found if entry.what == "unplanned"]
    if names or any(entry.what == "superseded" for entry in found):
        compact(ledger, without=names)
    for entry in found:
        if entry.what in ("temporary", "damaged copy", "orphan checkpoint", "orphan parts"):
            _remove(ledger.root / entry.path)
    return found


def _results(ledger: Ledger) -> Iterator[Finding]:
    for name in ledger.names():
        path, raw = ledger.root / name, ledger.read(name)
        if raw is None:
            yield Finding(what="damaged", path=name, says="does not match its checksum; its cell is run again")
        elif path.exists() and not is_whole(path.read_bytes()):
            says = "does not match its checksum; a pack has the result whole"
            yield Finding(what="damaged copy", path=name, says=says, size=_size(path))
        elif not is_current(raw):
            yield Finding(what="schema 1", path=name, says="an older version wrote it; `compact` writes it anew")


def _documents(ledger: Ledger) -> Iterator[Finding]:
    for name in ("study.json", "plan.json", "model.json"):
        path = ledger.root / name
        try:
            if path.exists():
                json_of(path.read_text(encoding="utf-8"), nested=MOST_NESTED)
        except (OSError, ValueError):
            says = "cannot be read; `bitworth run` with the same study and folder writes it again"
            yield Finding(what="unreadable", path=name, says=says)


def _temporaries(ledger: Ledger) -> Iterator[Finding]:
    now = time.time()
    folders = [ledger.root, *(folder for place in _PLACES for folder in ledger.root.glob(place))]
    paths = (path for folder in folders for path in folder.glob(".*.tmp"))
    for path in sorted(paths):
        if is_temporary(path) and not may_be_written(path, now):
            says = "left by a write that was not finished"
            yield Finding(what="temporary", path=_relative(ledger, path), says=says, size=_size(path))


def _superseded(ledger: Ledger) -> Iterator[Finding]:
    for member in ledger.packs.superseded():
        says = "an earlier copy of a result that a later pack has"
        path = f"{_relative(ledger, member.path)}:{member.name}"
        yield Finding(what="superseded", path=path, says=says, size=member.size)


def _checkpoints(ledger: Ledger, kept: Sequence[str]) -> list[Finding]:
    """Checkpoint folders that no planned cell makes and no kept result names; without a plan nothing is an orphan."""
    named = _made_by(ledger, kept)
    lost = [
        Finding(what="lost checkpoint", path=name, says="is gone; it is made again when a cell needs it")
        for name in sorted(named)
        if not (ledger.root / name).exists()
    ]
    plan = _plan(ledger)
    if plan is None:
        return lost
    named |= {cell.where["out"] for cell in plan if cell.kind == "quantize" and "out" in cell.where}
    found = sorted((ledger.root / "checkpoints").glob("*"))
    orphans = [path for path in found if f"checkpoints/{_final_name(path)}" not in named]
    says = "no cell of the plan makes it and no result names it"
    return lost + [
        Finding(what="orphan checkpoint", path=_relative(ledger, path), says=says, size=_size(path))
        for path in orphans
        if not is_temporary(path)
    ]


def _parts(ledger: Ledger) -> Iterator[Finding]:
    """Parts of tasks that will not be joined: the task has its result, or the plan does not ask for it."""
    found = sorted(path for path in (ledger.root / PARTS).glob("*") if path.is_dir())
    if not found:
        return
    done = {Path(name).stem for name in ledger.names() if ledger.read(name) is not None}
    plan = _plan(ledger)
    planned = None if plan is None else {key_of(cell) for cell in plan}
    for path in found:
        if path.name in done or (planned is not None and path.name not in planned):
            says = "the task is whole" if path.name in done else "no cell of the plan is the task"
            yield Finding(what="orphan parts", path=_relative(ledger, path), says=says, size=_size(path))


def _plan(ledger: Ledger) -> tuple[Cell, ...] | None:
    """The plan's cells; None without a plan that reads, which says nothing about what is an orphan."""
    try:
        return ledger.read_plan() if (ledger.root / "plan.json").is_file() else None
    except BitworthError:
        return None


def _made_by(ledger: Ledger, kept: Sequence[str]) -> set[str]:
    """The checkpoints that results of quantize cells name."""
    records = (ledger.read(name) for name in kept if name.startswith("cells/quantize/"))
    decoded = (decode(raw) for raw in records if raw is not None)
    return {str(record["result"]["path"]) for record in decoded if record is not None and "path" in record["result"]}


def _final_name(path: Path) -> str:
    """The checkpoint that a folder becomes or was: `.NAME.partial` and `.NAME.replaced` are NAME's."""
    if path.name.startswith("."):
        return path.name[1:].removesuffix(".partial").removesuffix(".replaced")
    return path.name


def _index(ledger: Ledger) -> Iterator[Finding]:
    behind = Index(ledger).behind()
    if behind:
        says = f"knows {behind} results less or otherwise than they are; the next query mends it"
        yield Finding(what="index", path="index", says=says)


def _unplanned(ledger: Ledger) -> list[Finding]:
    planned = {name_of(cell) for cell in ledger.read_plan()}
    sizes = {name: member.size for name, member in ledger.packs.newest().items()}
    return [
        Finding(
            what="unplanned",
            path=name,
            says="its cell is not in the plan",
            size=sizes.get(name, _size(ledger.root / name)),
        )
        for name in ledger.names()
        if name not in planned
    ]


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size if path.exists() or path.is_symlink() else 0
    return sum(inner.lstat().st_size for inner in path.rglob("*") if inner.is_file())


def _relative(ledger: Ledger, path: Path) -> str:
    return path.relative_to(ledger.root).as_posix()


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise WorkFailed(f"{path} could not be removed: {disk_reason(error)}.") from error
