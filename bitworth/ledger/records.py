"""One finished cell as bytes: JSON whose first line is the checksum of all that follows it.

    {"sha256":"<64 hex digits>",
    "schema":2,"key":"<20 hex digits>","finished":"<ISO time>","seconds":1.5,
    "cell":{...},
    "result":{...}}

The file is plain JSON, and whether it is whole is known from its bytes, without parsing what may be a hundred thousand
answers. Schema 1 (versions up to 0.1) had the checksum of the result alone, in indented JSON; it is still read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import json_of
from bitworth.guard.keys import redacted
from bitworth.ledger.values import HALVES, canonical, key_of
from bitworth.types import Cell

SCHEMA = 2
_ENVELOPE = re.compile(rb'\{"sha256":"([0-9a-f]{64})",\n"schema":(\d+),"key":"([0-9a-f]{20})",')
_TOOK = re.compile(_ENVELOPE.pattern + rb'"finished":"[^"\\]*","seconds":(\d+(?:\.\d+)?),\n')
_FIRST_LINE = 78
"""Bytes of the checksum's line."""
_ENDLESS_S = 1e15
"""No cell takes so long; JSON may hold integers that no float does."""


def now() -> str:
    """The time as ISO 8601 in UTC, to the second. It informs; nothing is decided by it, since clocks jump."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def encode(cell: Cell, result: Mapping[str, Any], *, seconds: float, finished: str) -> bytes:
    """A record of the present schema, without keys of the environment; `seconds` below zero, or none, count as zero.

    Raises:
        TypeError: the result holds something that JSON lacks.
    """
    took = round(max(seconds, 0.0), 3) if math.isfinite(seconds) else 0.0
    rows = [
        f'"schema":{SCHEMA},"key":"{key_of(cell)}","finished":{_text(finished)},"seconds":{took}',
        # Keys of the environment go before the checksum is taken, not when the file is written.
        f'"cell":{_text(redacted(asdict(cell)))}',
        f'"result":{_text(redacted(dict(result)))}}}\n',
    ]
    rest = ",\n".join(rows).encode(errors=HALVES)
    return b'{"sha256":"' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest


def is_whole(raw: bytes, key: str | None = None) -> bool:
    """Whether bytes are a record that was written whole and is unchanged since; of the cell with that key, if given.

    Raises:
        BitworthError: it is whole, and of a later schema.
    """
    found = _ENVELOPE.match(raw)
    if found is None:
        return _older(raw, key) is not None
    if hashlib.sha256(memoryview(raw)[_FIRST_LINE:]).hexdigest().encode() != found[1]:
        return False
    if int(found[2]) > SCHEMA:
        raise BitworthError(
            f"A result here was written by a later bitworth (schema {int(found[2])}, this one reads up to {SCHEMA}); "
            "update bitworth, or name another folder."
        )
    return key is None or found[3].decode() == key


def is_current(raw: bytes) -> bool:
    """Whether a whole record is of the present schema."""
    return _ENVELOPE.match(raw) is not None


def decode(raw: bytes, key: str | None = None) -> dict[str, Any] | None:
    """The record `{schema, finished, seconds, cell, result, ...}`; None where the bytes are not whole.

    Raises:
        BitworthError: it is whole, and of a later schema.
    """
    if _ENVELOPE.match(raw) is None:
        return _older(raw, key)
    return _object(raw) if is_whole(raw, key) else None


def migrated(raw: bytes) -> bytes:
    """A whole record as one of the present schema, with its own date and duration."""
    record = None if _ENVELOPE.match(raw) else _older(raw, None)
    if record is None:
        return raw
    cell = Cell(**{**record["cell"], "needs": tuple(record["cell"].get("needs", ()))})
    return encode(cell, record["result"], seconds=took(record), finished=record["finished"])


def seconds_in(raw: bytes) -> float:
    """What the cell of a whole record took; its answers are not parsed."""
    found = _TOOK.match(raw)
    return float(found[4]) if found is not None else took(decode(raw) or {})


def took(record: Mapping[str, Any]) -> float:
    """A record's `seconds`; zero where it is no length of time."""
    seconds = record.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < _ENDLESS_S else 0.0


def _older(raw: bytes, key: str | None) -> dict[str, Any] | None:
    """A record of schema 1."""
    try:
        record = _object(raw)
        if record is None or not record["finished"] or not _matches(record["sha256"], record["result"]):
            return None
        return record if key is None or key_of(Cell(**{**record["cell"], "needs": ()})) == key else None
    except (KeyError, TypeError, ValueError, RecursionError):  # a key may be a number too long for Python
        return None


def _object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in bytes, if its result is one too."""
    try:
        record = json_of(raw)
        return record if isinstance(record, dict) and isinstance(record["result"], dict) else None
    except (ValueError, KeyError):
        return None


def _matches(digest: str, result: Any) -> bool:
    """Schema 1 hashed a result before it was JSON, when numbers that stand as keys were still in numeric order."""
    return any(
        hashlib.sha256(canonical(value).encode(errors=HALVES)).hexdigest() == digest
        for value in (result, _numbered(result))
    )


def _numbered(value: Any) -> Any:
    if isinstance(value, dict):
        numbers = bool(value) and all(re.fullmatch(r"\d+", name) for name in value)
        return {int(name) if numbers else name: _numbered(inner) for name, inner in value.items()}
    return [_numbered(inner) for inner in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
