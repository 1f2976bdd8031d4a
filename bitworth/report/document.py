"""A study's result as plain JSON values: keys carry their units, and what JSON cannot say (NaN, infinity) is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitworth.load.savings import savings
from bitworth.report.figures import counterpart, times, usd_per_1k
from bitworth.types import (
    Divergence,
    EngineFacts,
    Option,
    QuantizeResult,
    QueryCost,
    Recommendation,
    Recovery,
    StudyResult,
)

Json = dict[str, Any]


def result_as_json(result: StudyResult) -> Json:
    """Everything the study says, as it stands in recommendation.json."""
    document = {
        "study": result.name,
        "model": result.model,
        "constraint": asdict(result.constraint),
        "recommendations": [_recommendation(row) for row in result.recommendations],
        "deployments": [_recommendation(row) for row in result.deployments],
        "recoveries": [_recovery(row) for row in result.recoveries],
        "recoveries_by_group": [_recovery(row) for row in result.groups],
        "noise": [asdict(row) for row in result.noise],
        "divergences": {format: _divergence(row) for format, row in result.divergences.items()},
        "likenesses": [asdict(row) for row in result.likenesses],
        "answers_apart": [asdict(pair) for pair in result.apart],
        "costs": [cost_as_json(cost) for cost in result.costs],
        "savings": [asdict(row) for row in savings(result.costs)],
        "checkpoints": {format: _checkpoint(row) for format, row in result.checkpoints.items()},
        "missing": [asdict(row) for row in result.missing],
        "evaluated_with": {format: _facts(facts) for format, facts in result.evaluated_with.items()},
        "hardware": [asdict(row) for row in result.hardware],
        "machine": dict(result.machine),
        "settings": dict(result.settings),
        "finished": result.finished,
    }
    return {name: plain(value) for name, value in document.items()}


def cost_as_json(cost: QueryCost) -> Json:
    """One format's figures under one use case and load."""
    scene = {"format": cost.format, "use_case": cost.use_case.name, **_shape(cost), "load": cost.load}
    row: Json = plain({**scene, "hardware": cost.hardware, **_figures(cost), "unsupported": cost.unsupported})
    return row


def summary_rows(result: StudyResult) -> list[Json]:
    """One flat row a recommendation, deployments last: what is chosen, what it keeps, what it saves, and why."""
    return [plain(_summary(row)) for row in (*result.recommendations, *result.deployments)]


def as_text(document: Json) -> str:
    """The document as indented JSON that any parser reads."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in JSON's types; NaN and infinity become null, paths text, tuples lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def _shape(cost: QueryCost) -> Json:
    use_case = cost.use_case
    return {
        "prompt_tokens": use_case.prompt_tokens,
        "output_tokens": use_case.output_tokens,
        "scale": use_case.scale,
    }


def _figures(cost: QueryCost) -> Json:
    return {
        "count": cost.count,
        "usd_per_hour": cost.usd_per_hour,
        "latency_s": cost.latency_s,
        "latency_p90_s": cost.latency_p90_s,
        "first_token_s": cost.first_token_s,
        "queries_per_second": cost.queries_per_second,
        "queries_per_usd": cost.queries_per_usd,
        "queries_per_usd_ci95": cost.ci95_queries_per_usd,
        "usd_per_1k_queries": usd_per_1k(cost),
        "requests": cost.requests,
        "source": cost.source,
        "seconds": {name: asdict(figure) for name, figure in cost.figures.items()},
        "rates": [asdict(point) for point in cost.rates],
        "facts": _facts(cost.facts),
    }


def _recommendation(row: Recommendation) -> Json:
    use_case, costs = row.use_case, [option.cost for option in row.options]
    return {
        "use_case": use_case.name,
        "prompt_tokens": use_case.prompt_tokens,
        "output_tokens": use_case.output_tokens,
        "scale": use_case.scale,
        "load": row.load,
        "choice": _option(row.choice, costs),
        "runner_up": _option(row.runner_up, costs),
        "contender": _option(row.contender, costs),
        "frontier": [_option(option, costs) for option in row.frontier],
        "flips": [asdict(flip) for flip in row.flips],
        "chance": asdict(row.chance) if row.chance else None,
        "why": row.why,
        "next_step": row.next_step,
        "steps": [asdict(step) for step in row.steps],
        "options": [_option(option, costs) for option in row.options],
    }


def _option(option: Option | None, costs: Sequence[QueryCost]) -> Json | None:
    if option is None:
        return None
    ratio, bounds = _times_baseline(option, costs)
    return {
        "format": option.format,
        "hardware": option.hardware,
        "recovery_pct": option.recovery_pct,
        "recovery_ci95_pct": option.recovery_ci95_pct,
        "recovery_source": option.recovery_source,
        "verdict": option.recovery_verdict,
        "deployments": option.deployments,
        "times_baseline": ratio,
        "times_baseline_ci95": bounds,
        **_figures(option.cost),
        "usd_per_1k_queries": option.usd_per_1k_queries,
        "unsupported": option.cost.unsupported,
        "rejected": option.rejected,
    }


def _summary(row: Recommendation) -> Json:
    choice = row.choice
    ratio, bounds = _times_baseline(choice, [option.cost for option in row.options]) if choice else (None, None)
    return {
        "use_case": row.use_case.name,
        "scale": row.use_case.scale,
        "load": row.load,
        "choice": choice.format if choice else None,
        "choice_load": choice.cost.load if choice else None,
        "hardware": choice.hardware if choice else None,
        "recovery_pct": choice.recovery_pct if choice else None,
        "recovery_ci95_pct": choice.recovery_ci95_pct if choice else None,
        "recovery_source": choice.recovery_source if choice else None,
        "verdict": choice.recovery_verdict if choice else None,
        "queries_per_usd": choice.cost.queries_per_usd if choice else None,
        "times_baseline": ratio,
        "times_baseline_ci95": bounds,
        "latency_s": choice.cost.latency_s if choice else None,
        "source": choice.cost.source if choice else None,
        "runner_up": row.runner_up.format if row.runner_up else None,
        "contender": row.contender.format if row.contender else None,
        "why": row.why,
        "next_step": row.next_step,
        "probability": row.chance.probability if row.chance else None,
        "flips": [flip.says for flip in row.flips],
    }


def _times_baseline(option: Option, costs: Sequence[QueryCost]) -> tuple[float | None, tuple[float, float] | None]:
    return times(option.cost, counterpart(option.cost, costs)) or (None, None)


def _recovery(row: Recovery) -> Json:
    return {
        "task": row.task,
        "format": row.format,
        "baseline_score": row.baseline,
        "score": row.quantized,
        "recovery_pct": row.recovery_pct,
        "recovery_ci95_pct": row.ci95_pct,
        "min_recovery_pct": row.min_recovery_pct,
        "verdict": row.verdict,
        "questions": row.questions,
        "questions_needed": row.questions_needed,
        "source": row.source,
        "p_value": row.p_value,
        "p_holm": row.p_holm,
        "columns": row.columns,
        "groups_ci95_pct": row.groups_ci95_pct,
        "lost": row.lost,
        "won": row.won,
        "mcnemar_p": row.mcnemar_p,
    }


def _divergence(row: Divergence) -> Json:
    return asdict(row)


def _checkpoint(row: QuantizeResult) -> Json:
    # The audit has a row a stage of layers; the checkpoint's own bitworth.json holds it.
    return {name: value for name, value in asdict(row).items() if name not in ("format", "audit")}


def _facts(facts: EngineFacts | None) -> Json | None:
    return asdict(facts) if facts else None
