"""The published tables as they are printed: every figure with the interval of unrounded values that print so.

>>> figure("2.9").span
Span(low=2.85, high=2.95)
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.types import BASELINE

KEYS = ("model", "size", "gpu", "num_gpus", "hardware", "format", "method", "use_case")
"""Columns that say what a row is about; the others hold figures."""
PER_USD = "_q_per_usd"
"""Columns that may be printed in thousands, which the data files hold in units."""
ABSENT = ("NA", "-", "")
BASELINE_FORMAT = "BF16"
_SHORT = {"INT8": "W8A8-INT", "FP8": "W8A8-FP", "INT4": "W4A16-INT", "GPTQ": "W4A16-INT"}
_SLACK = 1e-9  # of a value: what binary fractions lose of decimal ones


@dataclass(frozen=True, slots=True)
class Span:
    """A closed interval."""

    low: float
    high: float

    def meets(self, other: Span) -> bool:
        """Whether some value lies in both."""
        slack = _SLACK * max(1.0, abs(self.low), abs(other.low))
        return self.low <= other.high + slack and other.low <= self.high + slack

    def shared(self, other: Span) -> Span | None:
        """The values in both."""
        return Span(max(self.low, other.low), min(self.high, other.high)) if self.meets(other) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """A figure: the value as printed, and half a unit of its last printed place."""

    value: float
    half: float

    @property
    def span(self) -> Span:
        """What the unrounded figure may have been; halves may have gone either way."""
        return Span(self.value - self.half, self.value + self.half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A printed row: its texts by key column and its figures by column; a cell without a figure is not there."""

    keys: Mapping[str, str]
    figures: Mapping[str, Printed]

    @property
    def size(self) -> str:
        """`8B`, `Llama-8B`."""
        return self.keys.get("size") or self.keys.get("model", "")

    @property
    def format(self) -> str:
        """`BF16`, `W8A8-FP`, `W8A8-INT` or `W4A16-INT`; or a method of the same column, such as `AWQ`."""
        name = self.keys.get("format") or self.keys.get("method", "")
        return _SHORT.get(name, name)

    @property
    def name(self) -> str:
        """The format as studies name it: `baseline`, `w8a8-int`."""
        return BASELINE if self.format == BASELINE_FORMAT else self.format.lower()

    @property
    def gpu(self) -> str:
        """`A100`."""
        return self.keys.get("gpu") or self._hardware[1]

    @property
    def count(self) -> int:
        """How many of them."""
        return int(self.keys.get("num_gpus") or self._hardware[0])

    @property
    def _hardware(self) -> tuple[str, str]:
        count, _, name = self.keys.get("hardware", "1x").partition("x")
        return count, name

    @property
    def label(self) -> str:
        """`70B 4xA100 INT8`, with the format's name as printed."""
        place = f"{self.count}x{self.gpu}" if self.gpu else ""
        named = self.keys.get("format") or self.keys.get("method", "")
        return " ".join(part for part in (self.size, place, named) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; `columns` are those with figures, in the order printed."""

    number: int
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """`Table 5`."""
        return title(self.number)

    def row(self, size: str, format: str) -> Row | None:
        """The row of that size and format, or None."""
        return next((row for row in self.rows if (row.size, row.format) == (size, format)), None)

    def baseline(self, of: Row) -> Row | None:
        """The unquantized row that a row is compared with: the same size, on the same kind of GPU."""
        return next(
            (row for row in self.rows if (row.size, row.gpu) == (of.size, of.gpu) and row.format == BASELINE_FORMAT),
            None,
        )

    def groups(self) -> dict[tuple[str, str], tuple[Row, ...]]:
        """Rows by size and GPU."""
        found: dict[tuple[str, str], tuple[Row, ...]] = {}
        for row in self.rows:
            found[row.size, row.gpu] = (*found.get((row.size, row.gpu), ()), row)
        return found


Tables = Mapping[int, Table]
"""By number; 0 is Figure 1, whose figures are printed in the picture."""


def title(number: int) -> str:
    """`Table 5`, `Figure 1`."""
    return f"Table {number}" if number else "Figure 1"


def read_tables(folder: Path | None = None) -> Tables:
    """The tables in a folder of `tableNN_*.csv` and `figure01_*.csv`; the published ones unless it is given.

    Raises:
        BitworthError: the folder holds none, or a file is not such a table.
    """
    source: Traversable = folder if folder is not None else files("bitworth.paper").joinpath("tables")
    try:
        names = sorted(entry.name for entry in source.iterdir())
    except OSError as error:
        raise BitworthError(f"The folder of tables {folder} cannot be read: {error.strerror}.") from error
    found = {number: _read(source.joinpath(name), number) for name in names if (number := _number(name)) is not None}
    if not found:
        raise BitworthError(f"{source} holds no table; a table is a file named like table05_synchronous.csv.")
    return found


def figure(text: str, *, unit: float | None = None) -> Printed:
    """A printed figure: 2.9 stands for 2.85 to 2.95; `unit` says what its last place is worth where it is not seen."""
    number = Decimal(text)
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return Printed(value=float(number), half=(10.0**exponent if unit is None else unit) / 2)


def _number(name: str) -> int | None:
    if name.startswith("figure01") and name.endswith(".csv"):
        return 0
    found = re.fullmatch(r"table(\d\d)_.*\.csv", name)
    return int(found[1]) if found else None


def _read(file: Traversable, number: int) -> Table:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        raw = list(csv.DictReader(lines))
        columns = tuple(name for name in (raw[0] if raw else {}) if name not in KEYS)
        return Table(number=number, columns=columns, rows=tuple(_row(row, columns) for row in raw))
    except (OSError, UnicodeDecodeError, InvalidOperation, TypeError, AttributeError, AssertionError) as error:
        raise BitworthError(f"{file} is not a table of the paper: a row of it holds something else.") from error


def _row(raw: Mapping[str, str], columns: tuple[str, ...]) -> Row:
    keys = {name: raw[name] for name in KEYS if name in raw}
    texts = {name: raw[name].strip() for name in columns if raw[name].strip() not in ABSENT}
    unit = _thousands(text for name, text in texts.items() if name.endswith(PER_USD))
    units = {name: unit if name.endswith(PER_USD) else None for name in texts}
    return Row(keys=keys, figures={name: figure(text, unit=units[name]) for name, text in texts.items()})


def _thousands(texts: Iterator[str]) -> float | None:
    """What the last place of queries per dollar is worth: 100 in a row printed in thousands with one decimal."""
    shared = 0
    for text in texts:
        number = Decimal(text)
        if number != int(number):
            return None
        shared = math.gcd(shared, int(number))
    return 100.0 if shared and shared % 100 == 0 else 1.0
