"""The verb `review`: what the published tables give when computed again, where they disagree, what they advise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitworth.paper.defects import Defect, defects
from bitworth.paper.guidelines import Guideline, guidelines
from bitworth.paper.printed import Tables, read_tables, title
from bitworth.paper.recomputed import Check, checks
from bitworth.paper.repeats import Repeat, repeats
from bitworth.paper.results import MODELS, result_of
from bitworth.paper.statements import Statement, statements
from bitworth.report import write_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """The tables and everything found in them."""

    tables: Tables
    checks: tuple[Check, ...]
    repeats: tuple[Repeat, ...]
    statements: tuple[Statement, ...]
    defects: tuple[Defect, ...]
    guidelines: tuple[Guideline, ...]


def review(tables: Tables | None = None) -> Review:
    """Compute the derived figures again, find the defects, derive the guidelines.

    Raises:
        BitworthError: the tables cannot be read, or lack a price.
    """
    given = read_tables() if tables is None else tables
    return Review(
        tables=given,
        checks=tuple(checks(given)),
        repeats=tuple(repeats(given)),
        statements=tuple(statements(given)),
        defects=tuple(defects(given)),
        guidelines=tuple(guidelines(given)),
    )


def write_reports(found: Review, folder: Path, *, min_recovery_pct: float) -> list[Path]:
    """The report that a study gets, a size each, in `folder/llama-3.1-SIZE`; returns the pages' paths.

    Raises:
        WorkFailed: the folder cannot be written.
    """
    results = {
        size: result_of(found.tables, size, min_recovery_pct=min_recovery_pct, defects=found.defects) for size in MODELS
    }
    return [write_report(result, folder / f"llama-3.1-{size.lower()}") for size, result in results.items()]


def review_as_json(found: Review) -> dict[str, Any]:
    """The review as one document."""
    return {
        "summary": {
            "derived": len(found.checks),
            "agreeing": sum(check.agrees for check in found.checks),
            "printed_twice": len(found.repeats),
            "agreeing_twice": sum(repeat.agrees for repeat in found.repeats),
            "statements": len(found.statements),
            "borne_out": sum(not one.against for one in found.statements),
            "defects": len(found.defects),
        },
        "cells": [_check(check) for check in found.checks],
        "repeats": [_repeat(repeat) for repeat in found.repeats],
        "statements": [_statement(one) for one in found.statements],
        "defects": [_defect(one) for one in found.defects],
        "guidelines": [_guideline(one) for one in found.guidelines],
    }


def _check(check: Check) -> dict[str, Any]:
    return {
        "table": title(check.table),
        "row": check.row,
        "column": check.column,
        "printed": check.printed.value,
        "recomputed": check.recomputed,
        "least": check.span.low,
        "greatest": check.span.high,
        "agrees": check.agrees,
        "formula": check.formula,
    }


def _repeat(repeat: Repeat) -> dict[str, Any]:
    return {**dict(_places(repeat)), "agrees": repeat.agrees, "last_place": repeat.slip}


def _places(repeat: Repeat) -> Iterator[tuple[str, Any]]:
    for name, cell in (("first", repeat.first), ("second", repeat.second)):
        place = {"table": title(cell.table), "row": cell.row, "column": cell.column}
        yield name, {**place, "printed": cell.printed.value}


def _statement(one: Statement) -> dict[str, Any]:
    return {
        "where": one.where,
        "says": one.says,
        "claimed": [one.claimed.low, one.claimed.high],
        "holds": not one.against,
        "figures": [
            {"name": each.name, "value": each.value, "least": each.span.low, "greatest": each.span.high}
            for each in one.figures
        ],
    }


def _defect(one: Defect) -> dict[str, Any]:
    cells = [{"table": title(table), "row": row, "column": column} for table, row, column in one.cells]
    return {"kind": one.kind, "says": one.says, "cells": cells, "evidence": one.evidence}


def _guideline(one: Guideline) -> dict[str, Any]:
    return {
        "size": one.size,
        "gpu": one.gpu,
        "load": one.load,
        "winner": one.winner,
        "runner_up": one.runner_up,
        "margin_pct": one.margin_pct,
        "margin_least_pct": one.margin_span.low,
        "margin_greatest_pct": one.margin_span.high,
        "settled": one.settled,
        "times_baseline": one.gains,
        "use_cases_won": one.wins,
        "paper": one.advised,
        "agrees": one.agrees,
    }
