"""What the page needs to decide again without Python: the options of every scenario as JSON, in the order of the rule.

`Recommendation.options` come most queries per dollar first, with ties broken. The least recovery changes neither, so
the choice at any tolerance is the first option that breaks no other limit and whose interval reaches it (page.js).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from bitworth.guard.text import all_visible
from bitworth.report.document import plain
from bitworth.report.figures import counterpart, hardware_name, times
from bitworth.report.words import shape_words
from bitworth.types import Option, Recommendation, StudyResult, UseCase

_REACH_PCT = 30.0
"""How far below the least recovery asked for the slider goes, at most."""


def asked_again(result: StudyResult) -> str:
    """The JSON text for a `script` element, in which no markup can start; empty where nothing was timed."""
    rows: dict[tuple[UseCase, str], Recommendation] = {}
    for row in (*result.recommendations, *result.deployments):
        rows.setdefault((row.use_case, row.load), row)
    if not rows:
        return ""
    scenes = [_scene(row) for row in rows.values()]
    least = result.constraint.min_recovery_pct
    low, high = _slider(least, (option for scene in scenes for option in scene["options"]))
    document = {"least": least, "slider": {"low": low, "high": high}, "scenes": scenes}
    text = json.dumps(all_visible(plain(document)), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _scene(row: Recommendation) -> dict[str, Any]:
    name = f"{row.use_case.name.replace('_', ' ')} ({shape_words(row.use_case)})"
    return {"use_case": name, "load": row.load, "options": [_option(option, row) for option in row.options]}


def _option(option: Option, row: Recommendation) -> dict[str, Any]:
    """One option: `low` and `high` bound its recovery as the verdict does, `blocked` says what else it breaks."""
    found = times(option.cost, counterpart(option.cost, [other.cost for other in row.options]))
    low, high = option.verdict_bounds_pct
    price = option.usd_per_1k_queries
    return {
        "format": option.format,
        "hardware": hardware_name(option.cost),
        "load": option.cost.load,
        "usd_per_1k_queries": price,
        "queries_per_usd": 1000 / price if price else None,
        "times_baseline": found[0] if found else None,
        "latency_s": option.cost.latency_s,
        "source": option.cost.source,
        "recovery_pct": option.recovery_pct,
        "recovery_source": option.recovery_source,
        "low": low,
        "high": high,
        "judged": option.judged,
        "blocked": _blocked(option),
    }


def _blocked(option: Option) -> tuple[str, ...]:
    """The reasons that no tolerance takes away; that of accuracy comes last."""
    inaccurate = option.judged and option.recovery_verdict != "holds"
    return option.rejected[:-1] if inaccurate else option.rejected


def _slider(least: float, options: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Whole percents: from the worst option's lower bound, as far as it is near, to the baseline's 100."""
    lows = [option["low"] for option in options if math.isfinite(option["low"])]
    low = max(min([least, *lows]), least - _REACH_PCT, 0.0)
    return math.floor(low), max(100, math.ceil(least))
