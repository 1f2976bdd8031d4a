"""What an assembly takes for granted of a stored cell and its result, checked before it does.

A checksum says that a result is as it was written, not that a study wrote it: folders are passed on, and an older
version wrote other fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from bitworth.errors import BitworthError
from bitworth.types import Answer, Cell

_Kinds = type | tuple[type, ...]
_INPUTS: dict[str, dict[str, _Kinds]] = {
    "evaluate": {"task": dict},
    "benchmark": {"use_case": dict, "load": dict},
}
_FIELDS: dict[str, dict[str, _Kinds]] = {
    "evaluate": {"answers": list, "facts": dict},
    "benchmark": {"unsupported": (str, type(None))},
    "diverge": {"divergence": dict},
    "quantize": {"path": str},
}
_TIMED: dict[str, _Kinds] = {"timings": list, "facts": dict}

_OPTIONAL: dict[str, _Kinds] = {"machine": dict, "rates": list}


def check_cell(cell: Cell) -> None:
    """Raise where a planned cell lacks what its kind is known by.

    Raises:
        BitworthError: names the cell and the field.
    """
    _require(cell, cell.inputs, _INPUTS.get(cell.kind, {}))
    if cell.kind == "evaluate":
        _require(cell, cell.inputs["task"], {"name": str})


def check_record(cell: Cell, record: Mapping[str, Any]) -> None:
    """Raise where a result, or what lies beside it, is not of the shape that its kind has.

    Raises:
        BitworthError: names the cell and the field.
    """
    result = record["result"]
    if not isinstance(result, Mapping):
        raise _unreadable(cell, "it is no object")
    _require(cell, result, {name: kind for name, kind in _OPTIONAL.items() if name in result})
    if not all(isinstance(text, str) for text in result.get("machine", {}).values()):
        raise _unreadable(cell, "machine")
    _require(cell, result, _FIELDS.get(cell.kind, {}))
    if cell.kind == "benchmark" and result["unsupported"] is None:
        _require(cell, result, _TIMED)
    seconds = record.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise _unreadable(cell, "seconds")


def check_answers(cell: Cell, answers: Iterable[Answer]) -> None:
    """Raise where an answer's score is no share.

    Raises:
        BitworthError: names the cell.
    """
    if not all(0 <= answer.score <= 1 for answer in answers):
        raise _unreadable(cell, "a score outside [0, 1]")


def _require(cell: Cell, fields: Mapping[str, Any], kinds: Mapping[str, _Kinds]) -> None:
    for name, kind in kinds.items():
        if name not in fields or not isinstance(fields[name], kind):
            raise _unreadable(cell, name)


def _unreadable(cell: Cell, what: str) -> BitworthError:
    return BitworthError(
        f"What is stored of '{cell.title[:200]}' does not read back ({what}); run the study again in another folder."
    )
