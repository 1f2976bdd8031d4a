"""Fitting the constants on the paper's tables, and how far they stray on groups they have not seen.

Residuals are log(predicted / printed) over 3 % and the printed digits' rounding together, in a soft L1 loss, so that one
odd row does not bend the rest. A group is a (model size, GPU) pair; held out, all its cells are, in both tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields

from bitworth.prediction.constants import Constants
from bitworth.prediction.evidence import Cell

_FLOOR = 0.03
_START = Constants(
    bandwidth_share=0.9,
    block_kilocycles=140.0,
    rounding_kilocycles=80.0,
    unpack_gb_s=15.0,
    compute16_share=0.48,
    compute8_share=0.4,
    stage_s=0.003,
)
_NAMES = [field.name for field in fields(Constants)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A cell, and what constants that never saw its group say of it (`value`, in the cell's unit)."""

    cell: Cell
    value: float

    @property
    def error(self) -> float:
        """Predicted / printed - 1."""
        return self.value / self.cell.value - 1


def latency_of(cell: Cell, constants: Constants) -> float:
    """A synchronous cell's prediction, seconds."""
    return cell.deployment.with_constants(constants).latency_seconds(cell.case)


def fit(cells: Sequence[Cell], start: Constants = _START) -> Constants:
    """The constants that suit synchronous cells best; shares stay at or below 1."""
    from scipy.optimize import least_squares

    ready = [(cell.deployment, cell) for cell in cells]

    def residuals(logs: Iterable[float]) -> list[float]:
        constants = Constants(**dict(zip(_NAMES, map(math.exp, logs), strict=True)))
        return [
            math.log(deployment.with_constants(constants).latency_seconds(cell.case) / cell.value) / doubt(cell)
            for deployment, cell in ready
        ]

    first = [math.log(value) for value in astuple(start)]
    most = [0.0 if name.endswith("_share") else value + 3 for name, value in zip(_NAMES, first, strict=True)]
    found = least_squares(residuals, first, loss="soft_l1", bounds=([value - 3 for value in first], most))
    return Constants(**dict(zip(_NAMES, map(math.exp, found.x), strict=True)))


def doubt(cell: Cell) -> float:
    """The standard deviation of log(predicted / printed) that is expected of a cell."""
    return math.hypot(_FLOOR, cell.half_digit / math.sqrt(3) / cell.value)


def held_out(
    cells: Sequence[Cell], key: Callable[[Cell], object] = lambda cell: cell.group
) -> tuple[list[Guess], dict[object, Constants]]:
    """Every synchronous cell as constants see it that were fitted without its group, and those constants by group."""
    guesses, found = [], {}
    for group in dict.fromkeys(key(cell) for cell in cells):
        constants = fit([cell for cell in cells if key(cell) != group])
        found[group] = constants
        guesses += [Guess(cell=cell, value=latency_of(cell, constants)) for cell in cells if key(cell) == group]
    return guesses, found


def ratio_errors(guesses: Sequence[Guess]) -> list[tuple[Guess, float]]:
    """Errors of value / value of BF16, for the other formats of the same group, device count aside."""
    baseline = {(*g.cell.group, g.cell.case.name): g for g in guesses if g.cell.format == "bf16"}
    rows = []
    for guess in guesses:
        other = baseline.get((*guess.cell.group, guess.cell.case.name))
        if other is not None and guess.cell.format != "bf16":
            rows.append((guess, guess.value / other.value / (guess.cell.value / other.cell.value) - 1))
    return rows


def winners(guesses: Sequence[Guess], margin: float = 0.05) -> list[tuple[Cell, str, str]]:
    """(a cell, the printed winner, the predicted one) for each group and use case won by more than `margin`.

    The winner answers most queries a dollar.
    """
    found = []
    for place in dict.fromkeys((g.cell.group, g.cell.case) for g in guesses):
        rivals = [guess for guess in guesses if (guess.cell.group, guess.cell.case) == place]
        printed = sorted(rivals, key=lambda guess: -guess.cell.queries_per_usd)
        if len(printed) > 1 and printed[0].cell.queries_per_usd > (1 + margin) * printed[1].cell.queries_per_usd:
            best = max(rivals, key=lambda g: g.cell.queries_per_usd * _gain(g))
            found.append((printed[0].cell, printed[0].cell.format, best.cell.format))
    return found


def _gain(guess: Guess) -> float:
    """Predicted over printed queries a dollar."""
    ratio = guess.value / guess.cell.value
    return 1 / ratio if guess.cell.table == "synchronous" else ratio
