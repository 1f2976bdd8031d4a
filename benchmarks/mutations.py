"""Documents made wrong: valid ones with some of their values or bytes changed, by a seeded generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

Mutate = Callable[[random.Random, Sequence[bytes]], bytes]
"""A new document, from the valid ones of its kind."""

_DEEP: Any = json.loads("[" * 200 + "]" * 200)
#: What readers trip over: edges of number types, what is no number, other types, paths, text that is not seen.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "0", "1e9", "nan", "\0", "\n", "a\nb\r\nc", "\u2028", "\u202egnp.exe", "\ud800", "x" * 5000),
    *("../x", "/etc/passwd", "~", "file:///etc/passwd", "{{ 7 * 7 }}", "${HOME}", "%s%n", "<script>", "[red]", "a,b"),
    *("baseline", "int", "float", "group", "Infinity", "1/1", "hub:a/b", "random", "torch.float16"),
    *([], {}, [[]], [None], [0], [""], [{}], {"": None}, {"x": []}, [1, 2, 3], _DEEP),
)
_PIECES = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b"\n", b"\r", b"\0", b"\xff", b"\xc3"),
    *(b"null", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 1500),
    *(b"data:", b"data: [DONE]\n\n", b"event: error\n", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"&a ", b"*a"),
    *(b"- ", b"? ", b"| ", b"<<: ", b"%TAG ", b"---\n", b"\t", b"2001-13-45", b"0o9", b"1:60"),
    *(b"!!python/name:os.system ", b"!!binary x", b"!!timestamp 2"),
)  # fmt: skip


def other_bytes(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One to four edits of a document's bytes, or now and then bytes at random."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(64))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        _edit(rng, data, seeds)
    return bytes(data)


def other_json(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A JSON document with other values, or with other bytes."""
    if rng.random() < 0.3:
        return other_bytes(rng, seeds)
    return written(other_value(rng, json.loads(rng.choice(seeds))))


def other_lines(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """JSON Lines of which one is changed, or dropped, or is there twice."""
    lines = rng.choice(seeds).split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.1:
        lines[at:] = rng.choice((lines[at:] + lines, lines[at + 1 :]))
    elif lines[at].startswith(b"data: {"):
        lines[at] = b"data: " + other_json(rng, [lines[at][6:]])
    else:
        lines[at] = other_json(rng, [lines[at]]) if lines[at].startswith(b"{") else other_bytes(rng, seeds)
    return b"\n".join(lines)


def other_tensors(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A safetensors file with another header (of the right length, mostly), or with other bytes."""
    if rng.random() < 0.3:
        return other_bytes(rng, seeds)
    data = rng.choice(seeds)
    size = int.from_bytes(data[:8], "little")
    header = other_json(rng, [data[8 : 8 + size]])
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(header) + 1))
    return length.to_bytes(8, "little") + header + data[8 + size :]


def other_value(rng: random.Random, value: Any) -> Any:
    """One to three edits of a JSON value, in place."""
    holder = [value]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(rng, holder)
    return holder[0]


def written(value: Any) -> bytes:
    """A value as JSON, with what Python allows beyond it."""
    return json.dumps(value, ensure_ascii=True).encode()


def wild_value(rng: random.Random, depth: int = 4) -> Any:
    """A value of no document in particular."""
    kind = rng.randrange(6 if depth else 4)
    if kind < 4:
        return _value(rng)
    inner = [wild_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return inner if kind == 4 else {str(rng.choice(VALUES))[:20]: part for part in inner}


def _edit(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at, kind = rng.randint(0, len(data)), rng.randrange(7)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 200)))
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:end]
    elif kind == 2:
        data[at:at] = data[at:end] * rng.choice((1, 1, 2, 50))
    elif kind == 3:
        data[at:end] = rng.randbytes(end - at)
    elif kind == 4:
        del data[at:]
    elif kind == 5:
        other = rng.choice(seeds)
        begin = rng.randint(0, len(other))
        data[at:end] = other[begin : begin + rng.choice((4, 16, 200))]
    else:
        data[at : rng.choice((at, end))] = rng.choice(_PIECES)


def _change(rng: random.Random, holder: list[Any]) -> None:
    """Replace, drop, repeat, rename or move one part of what `holder` holds."""
    places = list(_places(holder))
    box, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0 and box is not holder:
        del box[key]
    elif kind == 1 and isinstance(box, dict):
        box[str(rng.choice(VALUES))[:40]] = box.pop(key)
    elif kind == 1 and box is not holder:
        box.insert(key, box[key])
    elif kind == 2:
        other, name = rng.choice(places)
        box[key] = json.loads(json.dumps(other[name] if other is not holder else None))
    elif kind == 3 and isinstance(box[key], int | float):
        box[key] = rng.choice((-box[key], box[key] + 1, box[key] - 1, str(box[key]), box[key] * 1000))
    elif kind == 4 and isinstance(box[key], str):
        box[key] = other_bytes(rng, [box[key].encode(errors="replace")]).decode(errors="replace")
    else:
        box[key] = _value(rng)


def _value(rng: random.Random) -> Any:
    """One of `VALUES`, to be changed further without harm to it."""
    return deepcopy(rng.choice(VALUES))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(list or mapping, index or key) of every part."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 5000:
        box = waiting.pop()
        for key in box if isinstance(box, dict) else range(len(box)):
            found.append((box, key))
            if isinstance(box[key], dict | list):
                waiting.append(box[key])
    return found
