"""Fitting the constants on the paper's tables, and how far they stray on groups they have not seen.

Residuals are log(predicted / printed) over what is expected: 3 % (8 % for rates under load) and the rounding of the
printed digits, in a soft L1 loss, so that one odd row does not bend the rest. A rate is that of a simulated run as
the paper's were: its server's limits, its load generator's streams, its length. A group is a (model size, GPU) pair;
held out, all its cells are, in both tables.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace

from bitworth.prediction.constants import Constants
from bitworth.prediction.evidence import RUN_S, SERVER, STREAMS, Cell
from bitworth.prediction.serving import Fleet, fleets
from bitworth.prediction.simulation import simulated
from bitworth.types import Load, UseCase

_FLOOR = 0.03
_START = Constants(
    bandwidth_share=0.9,
    block_kilocycles=140.0,
    rounding_kilocycles=80.0,
    unpack_gb_s=15.0,
    compute16_share=0.48,
    compute8_share=0.4,
    stage_s=0.003,
    serving16_share=0.6,
    serving8_share=0.5,
    host_s=2e-4,
)
_UNDER_LOAD = ("serving16_share", "serving8_share", "host_s")
_ALONE = tuple(field.name for field in fields(Constants) if field.name not in _UNDER_LOAD)
#: What a printed rate is expected to miss by beside its rounding.
_LOADED_FLOOR = 0.08
_CLOSED = Load(kind="throughput", streams=STREAMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A cell, and what constants that never saw its group say of it (`value`, in the cell's unit)."""

    cell: Cell
    value: float

    @property
    def error(self) -> float:
        """Predicted / printed - 1."""
        return self.value / self.cell.value - 1


def predicted(cell: Cell, constants: Constants) -> float:
    """A cell's prediction: seconds, or queries a second of the best split in a run of the paper's length."""
    deployment = cell.deployment.with_constants(constants)
    if cell.table == "synchronous":
        return deployment.latency_seconds(cell.case)
    return max(_run_rate(fleet, cell.case) for fleet in fleets(deployment, cell.case, SERVER))


def _run_rate(fleet: Fleet, case: UseCase) -> float:
    """Queries a second as GuideLLM 0.1 counts them: those answered in the run over the time of the last answer.

    Half a query in the run's length where none is answered: all requests begin together.
    """
    ended = simulated(fleet, case, _CLOSED, seconds=RUN_S).ended
    return fleet.copies * len(ended) / float(ended[-1]) if len(ended) else 0.5 / RUN_S


def fit(cells: Sequence[Cell], start: Constants = _START) -> Constants:
    """The constants that suit both tables' cells best: those of single requests first, from table 5 alone."""
    alone = [cell for cell in cells if cell.table == "synchronous"]
    loaded = [cell for cell in cells if cell.table == "throughput"]
    constants = _fit_alone(alone, start)
    return _fit_loaded(loaded, constants) if loaded else constants


def _fit_alone(cells: Sequence[Cell], start: Constants) -> Constants:
    """The constants of single requests, the others as they are; shares stay at or below 1."""
    from scipy.optimize import least_squares

    first = [math.log(getattr(start, name)) for name in _ALONE]
    top = [0.0 if name.endswith("_share") else value + 3 for name, value in zip(_ALONE, first, strict=True)]
    found = least_squares(
        lambda logs: residuals(cells, _with(start, _ALONE, logs)),
        first,
        loss="soft_l1",
        bounds=([value - 3 for value in first], top),
    )
    return _with(start, _ALONE, found.x)


def _fit_loaded(cells: Sequence[Cell], start: Constants) -> Constants:
    """The constants of full batches, the others as they are.

    A run finishes whole requests, so rates move in steps, and a simplex search needs no slopes.
    """
    from scipy.optimize import minimize

    first = [math.log(getattr(start, name)) for name in _UNDER_LOAD]
    top = [0.0 if name.endswith("_share") else value + 3 for name, value in zip(_UNDER_LOAD, first, strict=True)]
    corners = [first, *([*first[:at], first[at] + 0.25, *first[at + 1 :]] for at in range(len(first)))]

    def loss(logs: Sequence[float]) -> float:
        """Soft L1, as least_squares has it."""
        found = residuals(cells, _with(start, _UNDER_LOAD, logs))
        return sum(2 * (math.sqrt(1 + residual**2) - 1) for residual in found)

    options = {"initial_simplex": corners, "xatol": 3e-3, "fatol": 1e-2, "maxfev": 200}
    found = minimize(loss, first, method="Nelder-Mead", bounds=[(None, value) for value in top], options=options)
    return _with(start, _UNDER_LOAD, found.x)


def residuals(cells: Iterable[Cell], constants: Constants) -> list[float]:
    """log(predicted / printed) over what is expected."""
    return [math.log(predicted(cell, constants) / cell.value) / doubt(cell) for cell in cells]


def _with(start: Constants, names: Sequence[str], logs: Iterable[float]) -> Constants:
    return replace(start, **dict(zip(names, map(math.exp, logs), strict=True)))


def doubt(cell: Cell) -> float:
    """The standard deviation of log(predicted / printed) that is expected of a cell."""
    floor = _FLOOR if cell.table == "synchronous" else _LOADED_FLOOR
    return math.hypot(floor, cell.half_digit / math.sqrt(3) / cell.value)


def held_out(
    cells: Sequence[Cell],
    key: Callable[[Cell], object] = lambda cell: cell.group,
    only: Collection[object] | None = None,
    *,
    processes: int = 1,
) -> tuple[list[Guess], dict[object, Constants]]:
    """Every cell as constants see it that were fitted without its group, and those constants by group.

    `key` says what a group is; `only` holds out these groups alone. `processes` groups are fitted at once.
    """
    groups = [group for group in dict.fromkeys(map(key, cells)) if only is None or group in only]
    seen = [[cell for cell in cells if key(cell) != group] for group in groups]
    found = dict(zip(groups, _fit_all(seen, processes), strict=True))
    guesses = [
        Guess(cell=cell, value=predicted(cell, constants))
        for group, constants in found.items()
        for cell in cells
        if key(cell) == group
    ]
    return guesses, found


def _fit_all(parts: Sequence[Sequence[Cell]], processes: int) -> list[Constants]:
    if processes == 1:
        return [fit(part) for part in parts]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(fit, parts))


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
