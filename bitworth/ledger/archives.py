"""A results folder as one file, and such a file merged into a folder.

The archive is a tar of `study.json`, `plan.json`, `model.json`, every whole result under its name, and `manifest.json`
at the end with the SHA-256 of each. Equal results give equal bytes. What comes in is a stranger's: names are matched
against the few that may be, nothing but plain files is taken, and a result has to be of the cell that its name says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.ledger.compaction import Named, write_packs
from bitworth.ledger.files import replacing, write_atomic
from bitworth.ledger.folder import Ledger
from bitworth.ledger.packs import MEMBER
from bitworth.ledger.records import decode, is_whole, migrated
from bitworth.ledger.tar import Member, check_members, write_members
from bitworth.ledger.values import canonical, key_of, revive
from bitworth.types import Cell

MANIFEST = "manifest.json"
DOCUMENTS = ("study.json", "plan.json", "model.json")
LARGEST = 1 << 30
"""Bytes of one member; a larger one is no result of ours and would have to be held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An archive that was written: its results, its size in bytes, and the results left out as damaged."""

    path: Path
    results: int
    size: int
    sha256: str
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of an archive's members; `kept` are those that the folder had whole, `different` some of these."""

    added: int
    kept: int
    different: int
    damaged: tuple[str, ...]
    documents: tuple[str, ...]


def export(ledger: Ledger, path: Path) -> Exported:
    """Write every whole result, and the study, into one file; checkpoints stay.

    Raises:
        BitworthError: the folder holds no results, or `path` is a folder.
        WorkFailed: the disk is full or cannot be written.
    """
    names = ledger.names()
    if not names:
        raise BitworthError(f"{ledger.root} holds no results to export; name a folder that bitworth wrote.")
    if path.is_dir():
        raise BitworthError(f"{path} is a folder; name the file that the archive is to be.")
    sums: dict[str, str] = {}

    def members() -> Iterator[Named]:
        for name, raw in _contents(ledger, names):
            sums[name] = hashlib.sha256(raw).hexdigest()
            yield name, raw
        yield MANIFEST, (json.dumps({"schema": 1, "sha256": sums}, indent=1) + "\n").encode()

    with replacing(path) as file:
        write_members(file, members())
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    damaged = tuple(name for name in names if name not in sums)
    return Exported(
        path=path, results=len(names) - len(damaged), size=path.stat().st_size, sha256=digest, damaged=damaged
    )


def import_archive(ledger: Ledger, path: Path) -> Imported:
    """Add what the folder does not have whole; the caller holds its lock.

    A result that is there whole is never replaced, and a damaged one of the archive is left out and named. The study's
    files are taken only where the folder has none.

    Raises:
        BitworthError: the archive is not one of ours, is cut short, tries to write elsewhere, or has a result of a
            later schema; nothing is changed.
        WorkFailed: the disk is full or cannot be written.
    """
    members = _listed(path)
    sums = _sums(members, path)
    # All of it is looked at before any of it is written: a result of a later schema stops the import here.
    sound = [name for name, member in members.items() if _is_sound(name, member.read(), sums[name])]
    damaged = [name for name in sums if name not in members] + sorted(members.keys() - set(sound))
    documents = [name for name in DOCUMENTS if name in sound and not (ledger.root / name).exists()]
    for name in documents:
        write_atomic(ledger.root / name, members[name].read())
    kept, different = 0, 0

    def absent() -> Iterator[Named]:
        nonlocal kept, different
        for name in sound:
            if name in DOCUMENTS:
                continue
            raw, ours = members[name].read(), ledger.read(name)
            if ours is None:
                yield name, raw
            else:
                kept += 1
                different += _result_text(ours) != _result_text(raw)

    added = len(write_packs(ledger, absent()))
    return Imported(added=added, kept=kept, different=different, damaged=tuple(damaged), documents=tuple(documents))


def _contents(ledger: Ledger, names: list[str]) -> Iterator[Named]:
    for name in DOCUMENTS:
        if (ledger.root / name).is_file():
            yield name, (ledger.root / name).read_bytes()
    for name in names:
        raw = ledger.read(name)
        if raw is not None:
            yield name, migrated(raw)


def _listed(path: Path) -> dict[str, Member]:
    """The archive's members, if every one of them may be there."""
    found: dict[str, Member] = {}
    for member in check_members(path):
        if member.name not in (*DOCUMENTS, MANIFEST) and MEMBER.fullmatch(member.name) is None:
            raise BitworthError(f"{path} holds '{member.name}', which no results folder has; nothing was imported.")
        if member.name in found:
            raise BitworthError(f"{path} holds '{member.name}' twice; nothing was imported.")
        if member.size > LARGEST:
            raise BitworthError(f"{path} holds '{member.name}' of {member.size:,} bytes; nothing was imported.")
        found[member.name] = member
    return found


def _sums(members: dict[str, Member], path: Path) -> dict[str, str]:
    """The manifest's checksums; it is taken out of the members."""
    try:
        manifest = json.loads(members.pop(MANIFEST).read())
        sums = {str(name): str(digest) for name, digest in manifest["sha256"].items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BitworthError(f"{path} has no manifest that reads, so nothing in it can be checked.") from error
    unlisted = members.keys() - sums.keys()
    if unlisted:
        raise BitworthError(f"{path} holds '{min(unlisted)}', which its manifest lacks; nothing was imported.")
    return sums


def _is_sound(name: str, raw: bytes, digest: str) -> bool:
    """Whether a member is what the manifest says, and what its name says.

    Raises:
        BitworthError: it is a whole result of a later schema.
    """
    if hashlib.sha256(raw).hexdigest() != digest:
        return False
    return _reads(name, raw) if name in DOCUMENTS else _is_of(name, raw)


def _reads(name: str, raw: bytes) -> bool:
    """Whether a study's file is one: a list of cells, or an object."""
    try:
        value = json_of(raw, nested=MOST_NESTED)
        if name == "plan.json":
            return isinstance(value, list) and all(isinstance(revive(Cell, row), Cell) for row in value)
        return isinstance(value, dict)
    except (ValueError, BitworthError):
        return False


def _is_of(name: str, raw: bytes) -> bool:
    """Whether bytes are a whole record of the very cell that the name says."""
    found = MEMBER.fullmatch(name)
    if found is None or not is_whole(raw, found["key"]):
        return False
    try:
        record = decode(raw)
        if record is None or not isinstance(record["result"], dict):
            return False
        cell = revive(Cell, record["cell"])
        return (cell.kind, key_of(cell)) == (found["kind"], found["key"])
    except (KeyError, ValueError, TypeError, RecursionError, BitworthError):
        return False


def _result_text(raw: bytes) -> str:
    record = decode(raw)
    return canonical(None if record is None else record["result"])
