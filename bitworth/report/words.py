"""The report's own sentences: its headline, a scenario's name, the constraint."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from bitworth.guard.text import visible
from bitworth.report.figures import counterpart, limit, number, percent, times
from bitworth.types import (
    AVERAGE,
    BASELINE,
    Chance,
    Constraint,
    LatencyLimit,
    Option,
    Recovery,
    StudyResult,
    UseCase,
)

_UNIT = re.compile(r"(?<=\d) (?=(?:%|×|ms|s|min)(?:\W|$))")


MOST_FLIPS = 5
"""Flip points that are told, nearest first; recommendation.json has all."""


def headline(result: StudyResult) -> tuple[str, str]:
    """The answer in a few words, and what it saves and keeps in one sentence more (or nothing)."""
    rows = result.recommendations
    if not rows:
        return "Nothing to recommend yet", "No format has been timed; the figures that exist are below."
    choices = [row.choice for row in rows if row.choice is not None]
    if not choices:
        return "No option meets the constraint", "What excludes each is said below."
    counts = Counter(choice.format for choice in choices)
    if len(counts) == 1 and len(choices) == len(rows):
        name = choices[0].format
        return ("Stay with the baseline" if name == BASELINE else f"Deploy {name}"), _gain(choices, result)
    parts = [f"{name} in {count}" for name, count in counts.items()]
    parts[0] += f" of {len(rows)} scenarios"
    if len(choices) < len(rows):
        parts.append(f"nothing fits in {len(rows) - len(choices)}")
    gain = _gain(choices, result)
    return "It depends on the workload", f"{'; '.join(parts)}. {gain}".strip()


def scenario_title(use_case: UseCase, load: str) -> str:
    """`multi turn chat, synchronous`."""
    return f"{use_case.name.replace('_', ' ')}, {load}"


def shape_words(use_case: UseCase) -> str:
    """The request's tokens and how they compare with the published shape; always says the scale."""
    if " % " in use_case.name:  # a mix
        return f"{use_case.prompt_tokens:,} prompt + {use_case.output_tokens:,} output tokens on average"
    scale = "as published" if use_case.scale == 1 else f"{use_case.scale:.4g} × the published shape"
    return f"{use_case.prompt_tokens:,} prompt + {use_case.output_tokens:,} output tokens, {scale}"


def constraint_words(constraint: Constraint) -> list[str]:
    """Each limit as a phrase."""
    sure = "" if constraint.confidence_pct == 95 else f", at {limit(constraint.confidence_pct)} % confidence"
    of = "" if constraint.recovery_of == AVERAGE else f" on {constraint.recovery_of}"
    found = [f"recovery{of} at least {limit(constraint.min_recovery_pct)} %{sure}"]
    if constraint.max_latency_s is not None:
        found.append(f"mean latency at most {limit(constraint.max_latency_s)} s")
    if constraint.max_first_token_s is not None:
        found.append(f"first token within {limit(constraint.max_first_token_s)} s")
    found += [f"{latency_words(asked)} at most {limit(asked.most_s)} s" for asked in constraint.limits]
    if constraint.queries_per_second is not None:
        found.append(f"{limit(constraint.queries_per_second)} queries a second to be served")
    if constraint.max_usd_per_1k_queries is not None:
        found.append(f"at most USD {limit(constraint.max_usd_per_1k_queries)} per 1,000 queries")
    if constraint.max_usd_per_month is not None:
        found.append(f"at most USD {limit(constraint.max_usd_per_month)} a month")
    found += [f"at most {most} × {name}" for name, most in constraint.available.items()]
    return found


def tasks_in_order(rows: Sequence[Recovery]) -> list[str]:
    """Names of the rows' tasks: the average, then suites, then single tasks as they come."""

    def floor(row: Recovery) -> int:
        return 0 if row.task == AVERAGE else 1 if row.columns else 2

    return list(dict.fromkeys(row.task for row in sorted(rows, key=floor)))


def latency_words(asked: LatencyLimit) -> str:
    """`mean latency`, `p95 time to the first token`."""
    quantity = {
        "latency": "latency",
        "first_token": "time to the first token",
        "per_output_token": "time per output token",
    }
    return f"{asked.at} {quantity[asked.of]}"


def chance_words(chance: Chance | None) -> str:
    """How likely the choice meets the constraint and is the best that does, what else may be; a sentence or two."""
    if chance is None:
        return ""
    if math.isnan(chance.probability):
        return f"How likely that is right cannot be said: {'; '.join(chance.left_out)}."
    others = [(name, share) for name, share in chance.by_option.items() if name != chance.of and share >= 0.001]
    also = f"; {others[0][0]} is with {probability(others[0][1])}" if others else ""
    best = f"it is the cheapest that does with {probability(chance.probability)}{also}"
    if not chance.by_option or chance.of == "nothing":
        best = f"nothing meets the constraint with a probability of {probability(chance.probability)}{also}"
    else:
        best = f"it meets the constraint with a probability of {probability(chance.meets)}, and {best}"
    left = f" Left out of that: {'; '.join(chance.left_out)}." if chance.left_out else ""
    return f"By these intervals {best}.{left}"


def probability(value: float) -> str:
    """In percent; never rounded to certainty."""
    if value > 0.999:
        return "over 99.9 %"
    return "below 0.1 %" if value < 0.001 else percent(100 * value)


def moment(finished: str | None) -> str:
    """`2026-11-24 17:44 UTC`; another text as it is."""
    try:
        when = datetime.fromisoformat(finished or "")
    except ValueError:
        return finished or "none yet"
    return f"{when:%Y-%m-%d %H:%M} {when:%Z}".strip()


def unbroken(value: object) -> object:
    """Text whose figures keep their units on the same line, and in which nothing is hidden."""
    return _UNIT.sub("\u00a0", visible(value)) if type(value) is str else value


def _gain(choices: list[Option], result: StudyResult) -> str:
    """What the quantized choices save and keep, over all scenarios."""
    quantized = [choice for choice in choices if choice.format != BASELINE]
    found = [times(choice.cost, counterpart(choice.cost, result.costs)) for choice in quantized]
    ratios = [each[0] for each in found if each is not None]
    if not ratios:
        return ""
    low, high = number(min(ratios)), number(max(ratios))
    saving = f"{low if low == high else f'{low} to {high}'} times as many queries per dollar as the baseline"
    predicted = [choice.cost.source == "predicted" for choice in quantized]
    if any(predicted):
        saving += " (predicted)" if all(predicted) else " (in part predicted)"
    kept = [choice.recovery_pct for choice in quantized if choice.recovery_verdict == "holds"]
    if not kept:
        return f"{saving}; accuracy was not measured."
    least, most = percent(min(kept)), percent(max(kept))
    foretold = any(choice.recovery_source == "predicted" for choice in quantized)
    recovering = "predicted to recover" if foretold else "recovering"
    return f"{saving}, {recovering} {least if least == most else f'{least} to {most}'} of its accuracy."
