"""Tables that stand behind a plot or beside a cost table: what a reader opens to see every figure, or takes as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from urllib.parse import quote

from bitworth.guard.text import visible
from bitworth.load.savings import savings
from bitworth.report.figures import hardware_name, interval, number, percent, seconds, usd_per_1k
from bitworth.report.words import scenario_title
from bitworth.types import Likeness, QueryCost, RatePoint, Recommendation, Recovery, StudyResult

Value = str | float | int | None
_QUANTITIES = {"latency": "latency", "first_token": "first token", "per_output_token": "per output token"}
_STATISTICS = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table as people read it, and its values as a `data:` address of CSV under a file's name."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    file: str = ""
    csv: str = ""


def recovery_sheet(task: str, rows: Sequence[Recovery]) -> Sheet:
    """What is drawn of one task."""
    keys = ("format", "recovery_pct", "ci95_low_pct", "ci95_high_pct", "questions", "verdict", "source")
    values = [(r.format, r.recovery_pct, *r.ci95_pct, r.questions, r.verdict, r.source) for r in rows]
    return Sheet(
        title=f"Recovery on {task}",
        head=("Format", "Recovery", "95 % interval", "Verdict"),
        rows=tuple((r.format, percent(r.recovery_pct), interval(r.ci95_pct, decimals=1), r.verdict) for r in rows),
        file=_file("recovery", task),
        csv=_address(keys, values),
    )


def noise_sheet(result: StudyResult) -> Sheet | None:
    """The engine's noise where tasks were asked several times, beside what the format loses; None where none was."""
    if not result.noise:
        return None
    rows = {(row.task, row.format): row for row in result.recoveries}
    shown, values = [], []
    for noise in result.noise:
        row = rows.get((noise.task, noise.format))
        lost = None if row is None else 100 * (row.baseline - row.quantized)
        shares = (noise.answers_differ_pct, noise.scores_differ_pct)
        runs = len(noise.scores_pct)
        values.append((noise.task, noise.format, runs, noise.questions, *shares, noise.score_sd_pct, lost))
        told = (
            *(percent(share) for share in shares),
            f"{noise.score_sd_pct:.2f}",
            "" if lost is None else f"{lost:.2f}",
        )
        shown.append((noise.task, noise.format, str(runs), f"{noise.questions:,}", *told))
    keys = (
        "task",
        "format",
        "runs",
        "questions",
        "answers_differ_pct",
        "scores_differ_pct",
        "score_sd_pct",
        "loss_pct",
    )
    head = (
        "Task",
        "Format",
        "Runs",
        "Questions",
        "Answers that differ",
        "Scores that differ",
        "SD of the score, points",
    )
    return Sheet(
        title="Noise of the engine beside the loss",
        head=(*head, "Loss, points"),
        rows=tuple(shown),
        file="noise.csv",
        csv=_address(keys, values),
    )


def cost_sheet(found: Recommendation) -> Sheet:
    """What is drawn of one scenario: every option with its recovery and its queries per dollar."""
    title = scenario_title(found.use_case, found.load)
    keys = (
        *("format", "hardware", "queries_per_usd", "ci95_low", "ci95_high"),
        *("recovery_pct", "recovery_ci95_low_pct", "recovery_ci95_high_pct", "source", "recovery_source"),
    )
    values, shown = [], []
    for option in found.options:
        cost, place = option.cost, hardware_name(option.cost)
        bounds = cost.ci95_queries_per_usd or (None, None)
        kept = (option.recovery_pct, *option.recovery_ci95_pct)
        values.append((cost.format, place, cost.queries_per_usd, *bounds, *kept, cost.source, option.recovery_source))
        rate = _with(number(cost.queries_per_usd), cost.ci95_queries_per_usd) if usd_per_1k(cost) else "none"
        shown.append((cost.format, place, rate, _recovery(*kept), cost.source))
    head = ("Format", "Hardware", "Queries per dollar", "Recovery", "Figures")
    return Sheet(title=title, head=head, rows=tuple(shown), file=_file("cost", title), csv=_address(keys, values))


def curve_sheet(title: str, by_format: Mapping[str, Sequence[RatePoint]]) -> Sheet:
    """What was seen at each rate, by format."""
    keys = ("format", *(field.name for field in fields(RatePoint)))
    values = [(format, *astuple(point)) for format, points in by_format.items() for point in points]
    shown = tuple(
        (format, number(p.rate), number(p.queries_per_second), seconds(p.latency_p50_s), seconds(p.latency_p95_s))
        for format, points in by_format.items()
        for p in points
    )
    head = ("Format", "Requests a second", "Answered a second", "Latency, p50", "Latency, p95")
    return Sheet(title=title, head=head, rows=shown, file=_file("latency", title), csv=_address(keys, values))


def likeness_sheet(title: str, rows: Sequence[Likeness]) -> Sheet:
    """Quantiles of one measure on one task."""
    keys = ("format", "mean", "p10", "median", "p90", "questions")
    values = [(r.format, r.mean, r.p10, r.median, r.p90, r.questions) for r in rows]
    shown = tuple((r.format, *(number(v) for v in (r.mean, r.p10, r.median, r.p90)), f"{r.questions:,}") for r in rows)
    head = ("Format", "Mean", "Lowest tenth below", "Median", "Highest tenth above", "Answers")
    return Sheet(title=title, head=head, rows=shown, file=_file("likeness", title), csv=_address(keys, values))


def percentile_sheet(costs: Sequence[QueryCost]) -> Sheet | None:
    """Percentiles of latency, first token and time between tokens; None where the rows have none."""
    names = [f"{what}_{at}" for what in _QUANTITIES for at in _STATISTICS]
    names = [name for name in names if any(name in cost.figures for cost in costs)]
    if not names:
        return None
    having = [cost for cost in costs if any(name in cost.figures for name in names)]
    shown = [
        (cost.format, hardware_name(cost), *(_seconds(cost, name) for name in names), _origin(cost)) for cost in having
    ]
    values = [
        (cost.format, hardware_name(cost), name, found.value, found.low, found.high, found.origin)
        for cost in having
        for name in names
        if (found := cost.figures.get(name)) is not None
    ]
    keys = ("format", "hardware", "figure", "seconds", "ci95_low_s", "ci95_high_s", "origin")
    title = scenario_title(costs[0].use_case, costs[0].load)
    head = ("Format", "Hardware", *(_figure_name(name) for name in names), "Figures")
    return Sheet(
        title=f"Percentiles, {title}",
        head=head,
        rows=tuple(shown),
        file=_file("percentiles", title),
        csv=_address(keys, values),
    )


def savings_sheet(result: StudyResult) -> Sheet | None:
    """Means over use cases of what each format saves against the baseline; None where none covers two of them."""
    rows = [row for row in savings(result.costs) if len(row.use_cases) > 1]
    if not rows:
        return None
    keys = (
        "format",
        "load",
        "hardware",
        "count",
        "use_cases",
        "cost_reduction",
        "speedup",
        "latency_reduction",
        "source",
    )
    values = [
        (
            r.format,
            r.load,
            r.hardware,
            r.count,
            len(r.use_cases),
            r.cost_reduction,
            r.speedup,
            r.latency_reduction,
            r.source,
        )
        for r in rows
    ]
    shown = [
        (
            r.format,
            r.load,
            r.hardware if r.count == 1 else f"{r.count} × {r.hardware}",
            str(len(r.use_cases)),
            *(number(value) for value in (r.cost_reduction, r.speedup, r.latency_reduction)),
            r.source,
        )
        for r in rows
    ]
    head = ("Format", "Load", "Hardware", "Use cases", "Queries per dollar, ×", "Queries/s, ×", "Latency, ÷", "Figures")
    title = "Savings against the baseline, means over use cases"
    return Sheet(title=title, head=head, rows=tuple(shown), file="savings.csv", csv=_address(keys, values))


def foretold_sheet(costs: Sequence[QueryCost]) -> Sheet | None:
    """Predictions beside measurements of the same thing; None where nothing was both."""
    known = {_same(cost): cost for cost in costs if cost.source == "measured" and cost.latency_s}
    pairs = [(known[_same(c)], c) for c in costs if c.source == "predicted" and c.latency_s and _same(c) in known]
    if not pairs:
        return None
    shown, values = [], []
    for one, told in pairs:
        ratio = (told.latency_s or 0) / (one.latency_s or 1)
        scene = (scenario_title(one.use_case, one.load), one.format, hardware_name(one))
        shown.append((*scene, seconds(one.latency_s), seconds(told.latency_s), number(ratio)))
        values.append((*scene, one.latency_s, told.latency_s, ratio))
    keys = ("scenario", "format", "hardware", "measured_latency_s", "predicted_latency_s", "ratio")
    head = ("Use case, load", "Format", "Hardware", "Measured latency", "Predicted latency", "Predicted / measured")
    title = "Predictions beside measurements"
    return Sheet(title=title, head=head, rows=tuple(shown), file="predictions.csv", csv=_address(keys, values))


def _same(cost: QueryCost) -> tuple[object, ...]:
    return cost.format, cost.use_case, cost.load, cost.hardware, cost.count


def _seconds(cost: QueryCost, name: str) -> str:
    found = cost.figures.get(name)
    if found is None:
        return "–"
    high = "unbounded" if math.isinf(found.high) else seconds(found.high)
    return f"{seconds(found.value)} ({seconds(found.low)} to {high})"


def _origin(cost: QueryCost) -> str:
    return ", ".join(dict.fromkeys(figure.origin for figure in cost.figures.values()))


def _figure_name(name: str) -> str:
    what, _, at = name.rpartition("_")
    return f"{_QUANTITIES[what]}, {at}"


def _recovery(value: float, low: float, high: float) -> str:
    return percent(value) if math.isnan(low) else f"{percent(value)} ({interval((low, high), decimals=1)})"


def _with(figure: str, bounds: tuple[float, float] | None) -> str:
    return f"{figure} ({interval(bounds)})" if bounds else figure


def slug(*parts: str) -> str:
    """The parts as a name fit for a file."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)


def _file(*parts: str) -> str:
    return f"{slug(*parts)}.csv"


def _address(keys: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """CSV (RFC 4180) of full precision as a `data:` address; what is unknown is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(keys)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return f"data:text/csv;charset=utf-8,{quote(text.getvalue(), safe=',')}"


def _cell(value: Value) -> Value:
    """Nothing for what is unknown; a text that a spreadsheet would compute begins with an apostrophe."""
    if isinstance(value, str):
        return f"'{visible(value)}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else visible(value)
    return "" if _unknown(value) else value


def _unknown(value: Value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
