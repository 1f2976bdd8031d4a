"""How a load is written on the command line, for every verb that takes one.

>>> parse_load("poisson:0.5") == parse_load("poisson@0.5") == parse_foretold("0.5")
True
"""

from __future__ import annotations

from dataclasses import replace

from bitworth.errors import BitworthError
from bitworth.ledger import revive
from bitworth.types import Limits, Load

_KINDS = ("synchronous", "throughput", "constant", "poisson", "sweep")
_MEASURED = "synchronous, throughput, constant:RATE, poisson:RATE (requests a second) and sweep"
_FORETOLD = "synchronous, throughput, RATE, constant:RATE, poisson:RATE (queries a second)"


def parse_load(text: str, streams: int | None = None, limits: Limits | None = None) -> Load:
    """`synchronous`, `throughput`, `constant:4`, `poisson:0.5` (or with @), `sweep` with limits.

    Raises:
        BitworthError: none of these, a rate that is missing or not positive, or a sweep without limits.
    """
    from bitworth.load.goodput import check

    found = _parsed(text)
    if found is None:
        raise BitworthError(f"load '{text}' is none of {_MEASURED}.")
    if found.kind == "sweep":
        check(limits)
        return replace(found, limits=limits)
    return replace(found, streams=streams) if found.kind == "throughput" else found


def parse_foretold(text: str, streams: int | None = None) -> Load:
    """What can be predicted: the same without sweeps, and a rate alone, which is that of Poisson arrivals.

    Raises:
        BitworthError: none of these, or streams without throughput.
    """
    found = _parsed(f"poisson:{text}" if _number(text) is not None else text)
    if found is None or found.kind == "sweep":
        raise BitworthError(f"load '{text}' is none of {_FORETOLD}.")
    check_streams(found, streams)
    return replace(found, streams=streams)


def check_streams(load: Load, streams: int | None) -> None:
    """Refuse streams without throughput.

    Raises:
        BitworthError: the load has none.
    """
    if streams is not None and load.kind != "throughput":
        raise BitworthError(f"--streams is for --load throughput; {load.kind} has no streams.")


def _parsed(text: str) -> Load | None:
    """A kind with its rate, None where it is neither."""
    kind, _, rate = text.replace("@", ":").partition(":")
    value = _number(rate)
    rated = kind in ("constant", "poisson")
    if kind not in _KINDS or rated != bool(rate) or (rated and (value is None or not 0 < value < 1e6)):
        return None
    return revive(Load, {"kind": kind, "rate": value, "streams": None, "limits": None})


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
