"""Many small files into few, so that no moment of it, nor a kill in it, is without every result.

A pack is written beside its name, flushed, renamed, read back; only then do the files go that it holds. Killed before
the rename there is a temporary file too many, killed after it some results lie in two places with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bitworth.errors import WorkFailed, disk_reason
from bitworth.ledger.files import replacing, sync_folder
from bitworth.ledger.folder import Ledger
from bitworth.ledger.records import is_whole, migrated
from bitworth.ledger.tar import find_members, write_members

PACK_BYTES = 64 << 20
"""Results are gathered into packs of about so many bytes, which is also what packing holds in memory."""
MOST_PACKS = 16
"""From so many packs on, compaction joins them too."""

Named = tuple[str, bytes]
"""A record's `cells/KIND/KEY.json` and its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What a compaction did: results packed, how many of them came from schema 1, packs made, files removed."""

    results: int
    migrated: int
    packs: int
    removed_files: int


def compact(ledger: Ledger, *, without: Collection[str] = ()) -> Compaction:
    """Pack the results that have a file each, in the present schema; join packs that are many or hold superseded ones.

    Args:
        ledger: the folder; the caller holds its lock.
        without: names of results that are to go; they are in no pack afterwards, nor a file.

    Raises:
        WorkFailed: the disk is full or cannot be written; every result is still there.
    """
    old = ledger.packs.paths()
    whole = bool(without) or len(old) >= MOST_PACKS or bool(ledger.packs.superseded())
    names = [name for name in ledger.names() if name not in without and (whole or (ledger.root / name).exists())]
    records = [0, 0]

    def present() -> Iterator[Named]:
        for name in names:
            raw = ledger.read(name)
            if raw is not None:
                new = migrated(raw)
                records[0] += 1
                records[1] += new is not raw
                yield name, new

    packed = write_packs(ledger, present())
    gone = [ledger.root / name for name in (*packed, *without)]
    removed = _remove(path for path in (*gone, *(old if whole else ())) if path.exists())
    ledger.packs.forget()
    return Compaction(results=records[0], migrated=records[1], packs=len(ledger.packs.paths()), removed_files=removed)


def write_packs(ledger: Ledger, records: Iterable[Named]) -> list[str]:
    """Keep whole records in new packs of about `PACK_BYTES`; the names of those that are on disk now.

    Raises:
        WorkFailed: the disk is full or cannot be written.
    """
    written: list[str] = []
    for batch in _batches(records):
        written += _write_pack(ledger, batch)
    return written


def _batches(records: Iterable[Named]) -> Iterator[list[Named]]:
    batch: list[Named] = []
    held = 0
    for name, raw in records:
        batch.append((name, raw))
        held += len(raw)
        if held >= PACK_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _write_pack(ledger: Ledger, batch: list[Named]) -> list[str]:
    digest = hashlib.sha256()
    for name, raw in batch:
        digest.update(f"{name} {len(raw)}\n".encode() + raw)
    folder = ledger.packs.folder
    path = folder / f"{ledger.packs.next_number():06d}-{digest.hexdigest()[:12]}.tar"
    with replacing(path) as file:
        write_members(file, batch)
    sync_folder(folder)
    sync_folder(ledger.root)
    ledger.packs.forget()
    _read_back(path, len(batch))
    return [name for name, _ in batch]


def _read_back(path: Path, count: int) -> None:
    """A disk that takes writes and gives back something else must not cost the files that were packed."""
    found = find_members(path)
    if len(found) != count or not all(is_whole(member.read()) for member in found):
        path.unlink()
        raise WorkFailed(f"{path} does not read back as it was written, so nothing was removed; check the disk.")


def _remove(paths: Iterable[Path]) -> int:
    count = 0
    for path in paths:
        try:
            path.unlink()
            count += 1
        except OSError as error:
            raise WorkFailed(f"{path} could not be removed: {disk_reason(error)}.") from error
    return count
