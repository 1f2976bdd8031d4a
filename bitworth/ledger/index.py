"""The results as columns, so that a question about half a million answers need not read them all.

    index/manifest.json             {"schema", "entries": {"cells/KIND/KEY.json": [stamp, segment]},
                                     "sha256": {file: digest}}
    index/SEGMENT-cells.parquet     a row a result
    index/SEGMENT-answers.parquet   a row an answer

It is made from the results and never the other way round: an entry whose file has changed is read again, a folder
without an index, or with a damaged one, gets another. Nothing that decides what is run reads it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bitworth.errors import WorkFailed, disk_reason
from bitworth.ledger.files import replacing, write_json
from bitworth.ledger.folder import Ledger, stamp_of
from bitworth.ledger.records import decode, took
from bitworth.ledger.values import encodable

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 1
SEGMENT_ANSWERS = 100_000
"""Answers that are held in memory at once."""
SEGMENT_CELLS = 20_000
_LARGEST_INTEGER = 2**53
"""Larger ones are not all floats."""
MOST_SEGMENTS = 16
"""Beyond so many, all are made anew as few."""

Entries = dict[str, tuple[str, str]]
"""By its name, a result's stamp and the segment that holds its rows; no segment where it is damaged."""
Record = Mapping[str, Any]
Named = tuple[str, Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """The files that hold the columns."""

    cells: tuple[Path, ...]
    answers: tuple[Path, ...]

    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.cells, *self.answers)


class Index:
    """The columns of a results folder."""

    def __init__(self, ledger: Ledger, folder: Path | None = None) -> None:
        self._ledger, self._folder = ledger, folder or ledger.root / "index"

    def behind(self) -> int:
        """How many results it has not seen as they are; 0 where none was ever asked for."""
        if not (self._folder / "manifest.json").exists():
            return 0
        known, present = self._known(), self._stamps()
        names = known.keys() | present.keys()
        return sum(name not in known or known[name][0] != present.get(name) for name in names)

    @contextmanager
    def opened(self) -> Iterator[Segments]:
        """The columns as the results are now; they stay where they are until the end of the block.

        Those of results that may only be read are made for the block alone.

        Raises:
            WorkFailed: the folder cannot be written though it may be.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = (self._folder / "lock").open("a")
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                with TemporaryDirectory(prefix="bitworth-index-") as scratch:
                    apart = Index(self._ledger, Path(scratch))
                    yield apart._segments(apart._refresh())
                return
            raise WorkFailed(f"The index in {self._folder} cannot be written: {disk_reason(error)}.") from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield self._segments(self._refresh())

    def _refresh(self) -> Entries:
        known, present = self._known(), self._stamps()
        fresh = {name: entry for name, entry in known.items() if entry[0] == present.get(name)}
        stale = {segment for name, (_, segment) in known.items() if name not in fresh}
        kept = {name: entry for name, entry in fresh.items() if entry[1] not in stale}
        if len({segment for _, segment in kept.values()}) > MOST_SEGMENTS:
            kept = {}
        if kept.keys() == present.keys():
            return kept
        entries = {**kept, **self._write([name for name in present if name not in kept], present)}
        sums = {path.name: _digest(path) for path in self._segments(entries).files()}
        write_json(self._folder / "manifest.json", {"schema": SCHEMA, "entries": entries, "sha256": sums})
        self._sweep(entries)
        return entries

    def _known(self) -> Entries:
        """What the manifest lists; nothing where it does not read or a segment is not as it was written."""
        try:
            manifest = json.loads((self._folder / "manifest.json").read_text(encoding="utf-8"))
            entries = {str(name): (str(stamp), str(at)) for name, (stamp, at) in manifest["entries"].items()}
            sums = dict(manifest["sha256"])
            current = manifest["schema"] == SCHEMA
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        files = self._segments(entries).files()
        return entries if current and all(sums.get(path.name) == _digest(path) for path in files) else {}

    def _stamps(self) -> dict[str, str]:
        """What tells whether a result has changed since: of its file, else of its place in a pack."""
        found = {}
        packed = self._ledger.packs.newest()
        for name in self._ledger.names():
            facts = stamp_of(f"{self._ledger.root}/{name}")
            member = packed.get(name)
            place = f"{member.path.name}:{member.offset}" if member is not None else ""
            found[name] = f"{facts} {place}"
        return found

    def _segments(self, entries: Entries) -> Segments:
        names = sorted({segment for _, segment in entries.values() if segment})
        return Segments(
            cells=tuple(self._folder / f"{name}-cells.parquet" for name in names),
            answers=tuple(self._folder / f"{name}-answers.parquet" for name in names),
        )

    def _write(self, names: Sequence[str], stamps: Mapping[str, str]) -> Entries:
        """Read these results and write their columns, a segment at a time."""
        entries: Entries = {name: (stamps[name], "") for name in names}
        for batch in self._batches(names):
            segment = secrets.token_hex(6)
            _write_table(self._folder / f"{segment}-cells.parquet", _cells_table(batch))
            _write_table(self._folder / f"{segment}-answers.parquet", _answers_table(batch))
            entries |= {name: (stamps[name], segment) for name, _ in batch}
        return entries

    def _batches(self, names: Sequence[str]) -> Iterator[list[Named]]:
        batch: list[Named] = []
        answers = 0
        for name in names:
            raw = self._ledger.read(name)
            record = None if raw is None else decode(raw)
            if record is None or not _is_of_a_cell(record):
                continue
            batch.append((name, _needed(record)))
            answers += len(batch[-1][1]["result"]["answers"])
            if answers >= SEGMENT_ANSWERS or len(batch) >= SEGMENT_CELLS:
                yield batch
                batch, answers = [], 0
        if batch:
            yield batch

    def _sweep(self, entries: Entries) -> None:
        for path in set(self._folder.glob("*.parquet")) - set(self._segments(entries).files()):
            path.unlink(missing_ok=True)


def _is_of_a_cell(record: Record) -> bool:
    """Whether what lies beside a result is of a cell's shape; a checksum that fits says nothing of who wrote it."""
    cell = record.get("cell")
    if not isinstance(cell, dict) or not isinstance(cell.get("inputs"), dict):
        return False
    return all(isinstance(cell.get(name), str) for name in ("kind", "title", "format"))


def _needed(record: Record) -> Record:
    """A record with what the columns need of its result: the facts and, of an evaluation, what is an answer."""
    facts, rows = record["result"].get("facts"), record["result"].get("answers")
    asked = record["cell"]["kind"] == "evaluate" and isinstance(rows, list)
    answers = [row for row in rows if _is_answer(row)] if asked else []
    return {**record, "result": {"facts": facts if isinstance(facts, dict) else {}, "answers": answers}}


def _is_answer(row: Any) -> bool:
    """Whether it is an object whose values are of the columns' types."""
    if not isinstance(row, dict) or not _is_number(row.get("score")):
        return False
    measures, logprobs = row.get("measures"), row.get("logprobs")
    if not isinstance(measures, dict | None) or not isinstance(logprobs, list | None):
        return False
    texts = (row.get(name) for name in ("task", "item", "prediction", "group", "cluster", "text"))
    numbers = (value for value in (*(measures or {}).values(), *(logprobs or ())) if value is not None)
    return all(value is None or isinstance(value, str) for value in texts) and all(map(_is_number, numbers))


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST_INTEGER)


def _cells_table(batch: Sequence[Named]) -> pa.Table:
    import pyarrow as pa

    rows = [_cell_row(name, record) for name, record in batch]
    fields = [
        *((name, pa.string()) for name in ("key", "kind", "format", "task", "title", "finished")),
        ("seconds", pa.float64()),
        ("answers", pa.int64()),
        ("score", pa.float64()),
        *((name, pa.string()) for name in ("engine", "kernel", "device")),
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _cell_row(name: str, record: Record) -> dict[str, Any]:
    cell, facts = record["cell"], record["result"]["facts"]
    scores = [float(row["score"]) for row in record["result"]["answers"]]
    return {
        "key": name[-25:-5],
        "kind": _text(cell["kind"]),
        "format": _text(cell["format"]),
        "task": _task(cell),
        "title": _text(cell["title"]),
        "finished": _text(record.get("finished")),
        "seconds": took(record),
        "answers": len(scores),
        "score": sum(scores) / len(scores) if scores else None,
        **{field: _text(facts.get(field)) for field in ("engine", "kernel", "device")},
    }


def _answers_table(batch: Sequence[Named]) -> pa.Table:
    """A row an answer; the programs of a code task are left in its record."""
    import pyarrow as pa

    whole = [(name, record["cell"], record["result"]["answers"]) for name, record in batch]
    counts = [len(rows) for _, _, rows in whole]
    rows = [row for _, _, some in whole for row in some]

    def repeated(values: Sequence[str | None]) -> pa.Array:
        index = pa.array([at for at, count in enumerate(counts) for _ in range(count)], pa.int32())
        return pa.array(list(map(_text, values)), pa.string()).dictionary_encode().take(index)

    def column(field: str, kind: pa.DataType) -> pa.Array:
        values = [row.get(field) for row in rows]
        try:
            return pa.array(values, kind, from_pandas=False)
        except UnicodeEncodeError:  # half a surrogate pair, which servers send in the end
            return pa.array(list(map(_text, values)), kind, from_pandas=False)

    measures = [[(_text(name), value) for name, value in (row.get("measures") or {}).items()] for row in rows]
    return pa.table(
        {
            "key": repeated([name[-25:-5] for name, _, _ in whole]),
            "format": repeated([cell["format"] for _, cell, _ in whole]),
            "task": column("task", pa.string()),
            "item": column("item", pa.string()),
            "prediction": column("prediction", pa.string()),
            "score": column("score", pa.float64()),
            "subject": column("group", pa.string()),
            "cluster": column("cluster", pa.string()),
            "text": column("text", pa.string()),
            "logprobs": column("logprobs", pa.list_(pa.float64())),
            "measures": pa.array(measures, pa.map_(pa.string(), pa.float64())),
        }
    )


def _task(cell: Mapping[str, Any]) -> str | None:
    task = cell["inputs"].get("task")
    return _text(task.get("name") if isinstance(task, dict) else task)


def _text(value: Any) -> str | None:
    return None if value is None else encodable(str(value))


def _write_table(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
