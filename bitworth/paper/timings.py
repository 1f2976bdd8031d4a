"""Timings that do not fit their neighbours.

How a row's seven use cases compare with each other changes little from row to row, since they ask for the same tokens
everywhere. Median polish (Tukey, Exploratory Data Analysis, 1977) takes each row's level and each use case's out of the
logarithms; what is left is near nothing, but for a cell that was measured or printed otherwise. One such cell moves no
median, so it hides neither itself nor its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitworth import workloads
from bitworth.paper.costs import SYNCHRONOUS, LoadTable
from bitworth.paper.printed import Printed, Row, Tables

DEVIATIONS = 5.0
"""How many robust standard deviations of its table a cell must be away, and"""
LEAST_FACTOR = 1.15
"""by what factor at least: formats differ a little in how prefill compares with decoding."""
_ROUNDS = 20
_LEAST_ROWS = 4  # fewer say nothing about how use cases compare


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A timing out of line: printed over expected, how many deviations that is, and what contradicts it outright."""

    table: int
    row: str
    group: tuple[str, str]
    column: str
    printed: Printed
    factor: float
    deviations: float
    slower: tuple[str, ...]
    """Use cases of the same row that ask for no more of either kind of token and yet take longer."""


def strays(tables: Tables, load: LoadTable) -> Iterator[Stray]:
    """The load's cells out of line; a cell whose rounding would bring it back into line is none."""
    rows = [row for row in tables[load.number].rows if _whole(row, load)] if load.number in tables else []
    if len(rows) < _LEAST_ROWS:
        return
    columns = [name + load.timing for name in workloads.NAMES]
    left_RU = polish(np.array([[math.log(row.figures[name].value) for name in columns] for row in rows]))
    deviation = 1.4826 * float(np.median(np.abs(left_RU)))
    for row, left_U in zip(rows, left_RU, strict=True):
        for name, left in zip(workloads.NAMES, left_U.tolist(), strict=True):
            cell = row.figures[name + load.timing]
            beyond = abs(left) - math.log(1 + cell.half / cell.value)
            if beyond > max(DEVIATIONS * deviation, math.log(LEAST_FACTOR)):
                yield Stray(
                    table=load.number, row=row.label, group=(row.size, row.gpu), column=name + load.timing,
                    printed=cell, factor=math.exp(left), deviations=left / deviation,
                    slower=tuple(_slower(row, name)) if load is SYNCHRONOUS else (),
                )  # fmt: skip


def polish(values_RU: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left of a table (rows, use cases) without its rows' and columns' medians."""
    left = values_RU.copy()
    for _ in range(_ROUNDS):
        left -= np.median(left, 1, keepdims=True)
        left -= np.median(left, 0, keepdims=True)
    return left


def _whole(row: Row, load: LoadTable) -> bool:
    return all(name + load.timing in row.figures for name in workloads.NAMES)


def _slower(row: Row, name: str) -> Iterator[str]:
    shape, mine = workloads.use_case(name), row.figures[name + SYNCHRONOUS.timing].span
    for other in workloads.NAMES:
        less = workloads.use_case(other)
        asks_less = less.prompt_tokens <= shape.prompt_tokens and less.output_tokens <= shape.output_tokens
        if other != name and asks_less and row.figures[other + SYNCHRONOUS.timing].span.low > mine.high:
            yield other
