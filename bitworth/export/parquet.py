"""The tables as Parquet files, which DuckDB, pandas, Polars and Spark read: a file a table, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import bitworth
from bitworth.assembly import assemble
from bitworth.errors import WorkFailed, disk_reason
from bitworth.export.tables import Kind, Row, Table, tables_of
from bitworth.ledger import Ledger
from bitworth.ledger.values import encodable

_ROWS_AT_ONCE = 20_000
_TYPES: Mapping[str, pa.DataType] = {
    "text": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "time": pa.timestamp("ms", tz="UTC"),
    "texts": pa.list_(pa.string()),
    "floats": pa.list_(pa.float64()),
    "named texts": pa.map_(pa.string(), pa.string()),
    "named floats": pa.map_(pa.string(), pa.float64()),
}


def write_parquet(root: Path, out: Path) -> dict[str, int]:
    """Write each table of the results under `root` to `out/NAME.parquet`; returns rows by table.

    All are written beside their places first and put there last, so that a failure leaves an earlier export as it was.

    Raises:
        BitworthError: `root` holds no study.
        WorkFailed: `out` cannot be written.
    """
    result = assemble(root)
    about = {"bitworth": bitworth.__version__, "study": result.name, "model": result.model}
    scratch = out / f".export-{os.getpid()}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        written = {table.name: _write(table, scratch, about) for table in tables_of(Ledger(root), result)}
        for name in written:
            os.replace(scratch / f"{name}.parquet", out / f"{name}.parquet")
    except OSError as error:
        raise WorkFailed(f"The export to {out} could not be written: {disk_reason(error)}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return written


def _write(table: Table, folder: Path, about: Mapping[str, str]) -> int:
    """The table's file; so many rows in memory at once."""
    schema = pa.schema([(name, _type(kind)) for name, kind in table.columns.items()], metadata=dict(about))
    count = 0
    with pq.ParquetWriter(folder / f"{table.name}.parquet", schema, compression="zstd") as writer:
        for rows in _pieces(table.rows()):
            writer.write_table(_made([_cells(row, table.columns) for row in rows], schema))
            count += len(rows)
    return count


def _made(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except UnicodeEncodeError:  # half a surrogate pair, which servers send in the end
        return pa.Table.from_pylist([_encodable(row) for row in rows], schema=schema)


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {name: _encodable(part) for name, part in value.items()}
    # a pair of a map stays a tuple, which is what Arrow takes
    return type(value)(map(_encodable, value)) if isinstance(value, list | tuple) else value


def _pieces(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while piece := list(islice(rows, _ROWS_AT_ONCE)):
        yield piece


def _type(kind: Kind) -> pa.DataType:
    if isinstance(kind, str):
        return _TYPES[kind]
    return pa.list_(pa.struct([(name, _TYPES[part]) for name, part in kind.items()]))


def _cells(row: Row, columns: Mapping[str, Kind]) -> dict[str, Any]:
    """The row as Arrow takes it: a map is a list of pairs, whose values are text where the column's are."""
    return {name: _cell(row[name], kind) for name, kind in columns.items()}


def _cell(value: Any, kind: Kind) -> Any:
    if value is None or kind not in ("named texts", "named floats"):
        return value
    return [(str(key), str(part) if kind == "named texts" else part) for key, part in value.items()]
