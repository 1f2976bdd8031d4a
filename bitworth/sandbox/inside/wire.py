"""Values between a candidate and its checker: plain data only, so that what is read back is never code.

Numbers, texts, lists, tuples, sets, dictionaries, fractions, decimals and numpy arrays travel by value, whatever
subclass the candidate made of them; anything else stays where it is and travels as a number that stands for it.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

LONGEST = 64 << 20
"""Bytes of one message."""
_EXACT = 1 << 53


class Ended(Exception):
    """The other end is gone, or sends what cannot be read."""


def encode(value: Any, stand_in: Callable[[Any], int]) -> Any:
    """A value as what JSON can hold; `stand_in` gives a number for what cannot be told by value."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        exact = int.__index__(value)
        return exact if -_EXACT < exact < _EXACT else {"i": hex(exact)}
    if isinstance(value, float):
        return float.__pos__(value)
    return _compound(value, stand_in)


def _compound(value: Any, stand_in: Callable[[Any], int]) -> Any:
    def each(items: Any) -> list[Any]:
        return [encode(item, stand_in) for item in items]

    if isinstance(value, list):
        return each(list.__iter__(value))
    if isinstance(value, tuple):
        return {"t": each(tuple.__iter__(value))}
    if isinstance(value, dict):
        return {"d": [each(pair) for pair in dict.items(value)]}
    if isinstance(value, set):
        return {"s": each(set.__iter__(value))}
    if isinstance(value, frozenset):
        return {"z": each(frozenset.__iter__(value))}
    if isinstance(value, (type({}.keys()), type({}.items()))):
        return {"s": each(value)}
    if isinstance(value, (bytes, bytearray)):
        return {"b" if isinstance(value, bytes) else "B": bytes(value).hex()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, range):
        return {"r": each([value.start, value.stop, value.step])}
    if isinstance(value, Fraction):
        return {"q": each([value.numerator, value.denominator])}
    if isinstance(value, Decimal):
        return {"m": str(value)}
    return _array(value, each) or {"o": stand_in(value)}


def _array(value: Any, each: Callable[[Any], list[Any]]) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)) or value.dtype.kind not in "biufcU":
        return None
    return {"n": [value.dtype.str, each([value.tolist()])[0]]}


def decode(value: Any, stood_for: Callable[[int], Any]) -> Any:
    """What `encode` made, as values; raises `Ended` for anything else."""
    if isinstance(value, list):
        return [decode(item, stood_for) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        ((kind, inner),) = value.items()
        return _DECODERS[kind](inner, stood_for)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise Ended("what it sends cannot be read") from error


def _many(inner: Any, stood_for: Callable[[int], Any]) -> list[Any]:
    return [decode(item, stood_for) for item in list(inner)]


def _numpy(inner: Any, stood_for: Callable[[int], Any]) -> Any:
    import numpy

    kind, items = inner
    made = numpy.array(decode(items, stood_for), dtype=numpy.dtype(kind))
    return made if made.ndim else made[()]


_DECODERS: dict[str, Callable[[Any, Callable[[int], Any]], Any]] = {
    "i": lambda inner, _: int(inner, 16),
    "t": lambda inner, stood_for: tuple(_many(inner, stood_for)),
    "d": lambda inner, stood_for: dict(_many(inner, stood_for)),
    "s": lambda inner, stood_for: set(_many(inner, stood_for)),
    "z": lambda inner, stood_for: frozenset(_many(inner, stood_for)),
    "b": lambda inner, _: bytes.fromhex(inner),
    "B": lambda inner, _: bytearray.fromhex(inner),
    "c": lambda inner, _: complex(*inner),
    "r": lambda inner, stood_for: range(*_many(inner, stood_for)),
    "q": lambda inner, stood_for: Fraction(*_many(inner, stood_for)),
    "m": lambda inner, _: Decimal(inner),
    "n": _numpy,
    "o": lambda inner, stood_for: stood_for(int(inner)),
}


def send(out: int, message: Any) -> None:
    """Write one message; raises `Ended` when nobody reads, ValueError or RecursionError when it cannot be told."""
    text = json.dumps(message).encode()
    if len(text) > LONGEST:
        raise ValueError("a message is too long")
    data = memoryview(struct.pack("!Q", len(text)) + text)
    try:
        while data:
            data = data[os.write(out, data) :]
    except OSError as error:
        raise Ended("the other end is gone") from error


def receive(source: int) -> Any:
    """Read one message."""
    (length,) = struct.unpack("!Q", _exactly(source, 8))
    if length > LONGEST:
        raise Ended("a message is too long")
    try:
        return json.loads(_exactly(source, length))
    except (ValueError, RecursionError) as error:
        raise Ended("what it sends cannot be read") from error


def _exactly(source: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.read(source, min(count, 1 << 20))
        if not part:
            raise Ended("it ended early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
