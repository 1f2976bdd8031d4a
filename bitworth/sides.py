"""One side of a comparison: what a results folder holds, as far as another can be held against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitworth.assembly import costs_of
from bitworth.errors import BitworthError
from bitworth.ledger import Ledger, revive
from bitworth.study import Study, parse_study
from bitworth.types import Answer, Cell, QueryCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A format's answers to a task by item, and the fingerprint of the rows that they are about."""

    answers: Mapping[str, Answer]
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One results folder: its cells with their results, and its study where it has one."""

    root: Path
    results: tuple[tuple[Cell, Mapping[str, Any]], ...]
    study: Study | None

    def formats(self) -> list[str]:
        """The formats that have results, in order."""
        return list(dict.fromkeys(cell.format for cell, _ in self.results))

    def answered(self) -> dict[tuple[str, str], Answered]:
        """By (format, task); batches of one task are put together.

        Raises:
            BitworthError: `evaluate --out` kept two checkpoints, or two ways to ask, under one name here.
        """
        found: dict[tuple[str, str], Answered] = {}
        origins: dict[tuple[str, str], Any] = {}
        for cell, result in self.results:
            if cell.kind != "evaluate" or cell.is_repeat:
                continue
            key, data = (cell.format, cell.inputs["task"]["name"]), _asked(cell)
            origin = (cell.inputs.get("checkpoint"), data)
            if origins.setdefault(key, origin) != origin:
                raise BitworthError(
                    f"{self.root} holds answers to {key[1]} of two checkpoints called {key[0]}, or asked in two ways; "
                    "evaluate each into a folder of its own."
                )
            rows = {answer.item: answer for answer in revive(list[Answer], result["answers"])}
            if key in found:
                rows = {**found[key].answers, **rows}
            found[key] = Answered(answers=rows, data=data)
        return found

    def costs(self) -> tuple[QueryCost, ...]:
        """What was timed, at the study's prices."""
        return () if self.study is None else costs_of(self.results, self.study.hardware_values())


def read_side(root: Path) -> Side:
    """A folder that `run` or `evaluate --out` wrote.

    Raises:
        BitworthError: it holds no results.
    """
    ledger = Ledger(root)
    study = None
    if (root / "study.json").is_file():
        study = parse_study(ledger.read_study(), where=f"{root}/study.json")
        pairs = [(cell, ledger.get(cell)) for cell in ledger.read_plan()]
        results = [(cell, result) for cell, result in pairs if result is not None]
    else:
        results = list(ledger.all())
    if not results:
        raise BitworthError(f"{root} holds no results; name a folder that `bitworth run` or `evaluate --out` wrote.")
    return Side(root=root, results=tuple(results), study=study)


def _asked(cell: Cell) -> Any:
    """What must agree for two items of a name to be one question: the rows, the shots and how they are put."""
    task = cell.inputs["task"]
    how = tuple(task.get(name) for name in ("shots", "chat", "samples", "temperature"))
    return cell.inputs.get("data"), how, task["name"]
