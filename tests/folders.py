"""Results folders made up of given scores and seconds, as `bitworth run` would have written them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitworth.ledger import Ledger
from bitworth.study import Study, parse_study
from bitworth.types import Answer, Cell, EngineFacts, Timing
from bitworth.workloads import use_case as shape_of

FACTS = EngineFacts(engine="fake", kernel="none", device="none", versions={"torch": "1"})
Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Format to task to scores, in the order of the questions."""


def write_results(
    root: Path,
    scores: Scores,
    seconds: Mapping[str, Sequence[float]] | None = None,
    *,
    data: str = "rows",
    **changes: Any,
) -> Study:
    """A study's folder; `seconds` are each format's requests under one synchronous use case."""
    tasks = list(dict.fromkeys(task for columns in scores.values() for task in columns))
    raw = {
        "name": "made up",
        "model": "model",
        "formats": list(scores),
        "tasks": tasks,
        "use_cases": ["rag"],
        "hardware": [{"name": "local", "usd_per_hour": 3.6}],
        "constraints": {"min_recovery_pct": 95},
        **changes,
    }
    study = parse_study(raw)
    cells = [
        *(_answers(format, task, row, data) for format, columns in scores.items() for task, row in columns.items()),
        *(_timings(study, format, row) for format, row in (seconds or {}).items()),
    ]
    ledger = Ledger(root)
    ledger.write_study(study.model_dump(mode="json"), [cell for cell, _ in cells])
    for cell, result in cells:
        ledger.put(cell, {**result, "machine": {"processor": "made up"}}, seconds=50.0)
    return study


def _answers(format: str, task: str, scores: Sequence[float], data: str) -> tuple[Cell, dict[str, Any]]:
    answers = [Answer(task=task, item=str(at), prediction="A", score=float(score)) for at, score in enumerate(scores)]
    inputs = {
        "checkpoint": f"{format} {data}",
        "task": {"name": task, "shots": None},
        "data": data,
        "versions": {"a": 1},
    }
    cell = Cell(kind="evaluate", title=f"{task} on {format}", format=format, inputs=inputs)
    return cell, {"answers": [asdict(row) for row in answers], "facts": asdict(FACTS), "task": {}}


def _timings(study: Study, format: str, seconds: Sequence[float]) -> tuple[Cell, dict[str, Any]]:
    use_case, ((load, _), *_) = shape_of(study.use_cases[0].name), study.timed_loads()
    inputs = {
        "checkpoint": format,
        "use_case": asdict(use_case),
        "load": asdict(load),
        "machine": {"processor": "made up"},
    }
    cell = Cell(kind="benchmark", title=f"rag, {format}", format=format, inputs=inputs)
    rows, at = [], 0.0
    for took in seconds:
        rows.append(Timing(start_s=at, first_token_s=at + took / 4, end_s=at + took, prompt_tokens=8, output_tokens=5))
        at += took
    return cell, {"unsupported": None, "timings": [asdict(row) for row in rows], "facts": asdict(FACTS)}
