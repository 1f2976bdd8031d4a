"""Values as text, text as values, and the key that a cell's result is kept under."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bitworth.errors import BitworthError
from bitworth.types import Cell

HALVES = "backslashreplace"
"""How half a surrogate pair, which servers send in the end, is encoded: as JSON writes it inside a string."""

Noun = TypeVar("Noun")
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=True)


def encodable(text: str) -> str:
    """The text with half a surrogate pair written out, as JSON writes it inside a string."""
    return text.encode(errors=HALVES).decode()


def key_of(cell: Cell) -> str:
    """Twenty hex digits of the SHA-256 of the cell's kind and inputs; its title and needs do not count."""
    return hashlib.sha256(canonical({"kind": cell.kind, "inputs": cell.inputs}).encode(errors=HALVES)).hexdigest()[:20]


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
