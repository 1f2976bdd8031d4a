"""A study as tables: typed columns whose names carry their units, an iterator of rows each.

Types are `text`, `int`, `float`, `time`, `texts` and `floats` (lists), `named texts` and `named floats` (maps), and
records, a mapping of names to these, which stand for a list of such. What is unknown, NaN or infinite is None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bitworth.ledger import Ledger, key_of
from bitworth.report.figures import usd_per_1k
from bitworth.types import EngineFacts, QueryCost, Recovery, StudyResult

Kind = str | Mapping[str, str]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table's name, its columns and their types, and a function that yields its rows anew at each call."""

    name: str
    columns: Mapping[str, Kind]
    rows: Callable[[], Iterator[Row]]


def tables_of(ledger: Ledger, result: StudyResult) -> Sequence[Table]:
    """Everything the results folder says; answers are read cell by cell, never all at once."""
    study = result.name
    return (
        Table(name="answers", columns=_ANSWERS, rows=lambda: _answers(ledger, study)),
        Table(name="recoveries", columns=_RECOVERIES, rows=lambda: _recoveries(result)),
        Table(name="costs", columns=_COSTS, rows=lambda: (_cost(cost, study) for cost in result.costs)),
        Table(name="latencies", columns=_LATENCIES, rows=lambda: _latencies(result)),
        Table(name="divergences", columns=_DIVERGENCES, rows=lambda: _divergences(result)),
        Table(name="provenance", columns=_PROVENANCE, rows=lambda: _provenance(ledger, result)),
    )


def known(value: float | None) -> float | None:
    """The value where it is a finite number."""
    return value if value is not None and math.isfinite(value) else None


_ANSWERS: Mapping[str, Kind] = {
    "study": "text",
    "format": "text",
    "task": "text",
    "group": "text",
    "cluster": "text",
    "item": "text",
    "prediction": "text",
    "text": "text",
    "score": "float",
    "logprobs_nats": "floats",
    "measures": "named floats",
    "samples": {"text": "text", "passed": "bool", "reason": "text"},
}


def _answers(ledger: Ledger, study: str) -> Iterator[Row]:
    for cell in ledger.read_plan():
        result = ledger.get(cell) if cell.kind == "evaluate" else None
        for row in result["answers"] if result is not None else ():
            yield {
                "study": study,
                "format": cell.format,
                **{name: row.get(name) for name in ("task", "group", "cluster", "item", "prediction", "text", "score")},
                "logprobs_nats": [known(value) for value in row.get("logprobs", ())],
                "measures": row.get("measures", {}),
                "samples": row.get("samples", []),
            }


_RECOVERIES: Mapping[str, Kind] = {
    "study": "text",
    "format": "text",
    "task": "text",
    "level": "text",
    "baseline_score": "float",
    "score": "float",
    "recovery_pct": "float",
    "recovery_ci95_low_pct": "float",
    "recovery_ci95_high_pct": "float",
    "min_recovery_pct": "float",
    "verdict": "text",
    "questions": "int",
    "questions_needed": "int",
    "p_value": "float",
    "p_holm": "float",
    "source": "text",
    "columns": "text",
    "groups_ci95_low_pct": "float",
    "groups_ci95_high_pct": "float",
    "lost": "int",
    "won": "int",
    "mcnemar_p": "float",
}


def _recoveries(result: StudyResult) -> Iterator[Row]:
    for level, rows in (("task", result.recoveries), ("group", result.groups)):
        yield from (_recovery(row, level, result.name) for row in rows)


def _recovery(row: Recovery, level: str, study: str) -> Row:
    groups_low, groups_high = row.groups_ci95_pct or (None, None)
    return {
        "study": study,
        "format": row.format,
        "task": row.task,
        "level": level,
        "baseline_score": known(row.baseline),
        "score": known(row.quantized),
        "recovery_pct": known(row.recovery_pct),
        "recovery_ci95_low_pct": known(row.ci95_pct[0]),
        "recovery_ci95_high_pct": known(row.ci95_pct[1]),
        "min_recovery_pct": row.min_recovery_pct,
        "verdict": row.verdict,
        "questions": row.questions,
        "questions_needed": row.questions_needed,
        "p_value": known(row.p_value),
        "p_holm": known(row.p_holm),
        "source": row.source,
        "columns": ", ".join(row.columns),
        "groups_ci95_low_pct": known(groups_low),
        "groups_ci95_high_pct": known(groups_high),
        "lost": row.lost,
        "won": row.won,
        "mcnemar_p": known(row.mcnemar_p),
    }


_SCENE: Mapping[str, Kind] = {
    "study": "text",
    "format": "text",
    "use_case": "text",
    "prompt_tokens": "int",
    "output_tokens": "int",
    "scale": "float",
    "load": "text",
    "hardware": "text",
    "devices": "int",
}
_FACTS: Mapping[str, Kind] = {"engine": "text", "kernel": "text", "device": "text", "versions": "named texts"}
_COSTS: Mapping[str, Kind] = {
    **_SCENE,
    "usd_per_hour": "float",
    "latency_mean_s": "float",
    "latency_p90_s": "float",
    "first_token_mean_s": "float",
    "queries_per_second": "float",
    "queries_per_usd": "float",
    "queries_per_usd_ci95_low": "float",
    "queries_per_usd_ci95_high": "float",
    "usd_per_1k_queries": "float",
    "requests": "int",
    "source": "text",
    "unsupported": "text",
    **_FACTS,
}


def _scene(cost: QueryCost, study: str) -> Row:
    return {
        "study": study,
        "format": cost.format,
        "use_case": cost.use_case.name,
        "prompt_tokens": cost.use_case.prompt_tokens,
        "output_tokens": cost.use_case.output_tokens,
        "scale": cost.use_case.scale,
        "load": cost.load,
        "hardware": cost.hardware,
        "devices": cost.count,
    }


def _cost(cost: QueryCost, study: str) -> Row:
    low, high = cost.ci95_queries_per_usd or (None, None)
    return {
        **_scene(cost, study),
        "usd_per_hour": cost.usd_per_hour,
        "latency_mean_s": known(cost.latency_s),
        "latency_p90_s": known(cost.latency_p90_s),
        "first_token_mean_s": known(cost.first_token_s),
        "queries_per_second": known(cost.queries_per_second),
        "queries_per_usd": known(cost.queries_per_usd),
        "queries_per_usd_ci95_low": known(low),
        "queries_per_usd_ci95_high": known(high),
        "usd_per_1k_queries": usd_per_1k(cost),
        "requests": cost.requests,
        "source": cost.source,
        "unsupported": cost.unsupported,
        **_facts(cost.facts),
    }


def _facts(facts: EngineFacts | None) -> Row:
    if facts is None:
        return dict.fromkeys(_FACTS)
    return {"engine": facts.engine, "kernel": facts.kernel, "device": facts.device, "versions": facts.versions}


_LATENCIES: Mapping[str, Kind] = {
    **_SCENE,
    "quantity": "text",
    "statistic": "text",
    "value_s": "float",
    "ci95_low_s": "float",
    "ci95_high_s": "float",
    "source": "text",
}


def _latencies(result: StudyResult) -> Iterator[Row]:
    for cost in result.costs:
        for name, figure in cost.figures.items():
            quantity, _, statistic = name.rpartition("_")
            yield {
                **_scene(cost, result.name),
                "quantity": quantity,
                "statistic": statistic,
                "value_s": known(figure.value),
                "ci95_low_s": known(figure.low),
                "ci95_high_s": known(figure.high),
                "source": figure.origin,
            }


_DIVERGENCES: Mapping[str, Kind] = {
    "study": "text",
    "format": "text",
    "perplexity": "float",
    "baseline_perplexity": "float",
    "kl_nats": "float",
    "top1_flip_pct": "float",
    "tokens": "int",
    "kl_by_position": {"first_token": "int", "last_token": "int", "kl_nats": "float"},
}


def _divergences(result: StudyResult) -> Iterator[Row]:
    for format, row in result.divergences.items():
        spans = [
            {"first_token": s.first, "last_token": s.last, "kl_nats": known(s.kl_nats)} for s in row.kl_by_position
        ]
        yield {
            "study": result.name,
            "format": format,
            "perplexity": known(row.perplexity),
            "baseline_perplexity": known(row.baseline_perplexity),
            "kl_nats": known(row.kl_nats),
            "top1_flip_pct": known(row.top1_flip_pct),
            "tokens": row.tokens,
            "kl_by_position": spans,
        }


_PROVENANCE: Mapping[str, Kind] = {
    "study": "text",
    "model": "text",
    "key": "text",
    "kind": "text",
    "format": "text",
    "title": "text",
    "state": "text",
    "cause": "text",
    "finished": "time",
    "took_s": "float",
    **_FACTS,
    "machine": "named texts",
    "inputs_json": "text",
}


def _provenance(ledger: Ledger, result: StudyResult) -> Iterator[Row]:
    """A row a cell of the plan: where it stands, what made its result, and everything that could change it."""
    for cell in ledger.read_plan():
        record = ledger.record(cell)
        cause = ledger.failure(cell) if record is None else None
        found: Mapping[str, Any] = record["result"] if record is not None else {}
        facts = found.get("facts") or {}
        yield {
            "study": result.name,
            "model": result.model,
            "key": key_of(cell),
            "kind": cell.kind,
            "format": cell.format,
            "title": cell.title,
            "state": "done" if record is not None else "failed" if cause else "to do",
            "cause": cause or found.get("unsupported"),
            "finished": datetime.fromisoformat(record["finished"]) if record is not None else None,
            "took_s": record.get("seconds") if record is not None else None,
            **{name: facts.get(name) for name in _FACTS},
            "machine": found.get("machine"),
            "inputs_json": json.dumps(cell.inputs, sort_keys=True, ensure_ascii=False),
        }
