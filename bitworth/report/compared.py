"""What the page shows of formats side by side: latency over the rate of requests, and written answers' likeness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bitworth.report.figures import hardware_name, number
from bitworth.report.marks import Mark
from bitworth.report.plots import Line, Row, curve_plot, interval_plot
from bitworth.report.sheets import Sheet, curve_sheet, likeness_sheet
from bitworth.report.words import shape_words
from bitworth.types import AnswerPair, Likeness, QueryCost, RatePoint, StudyResult, UseCase

#: Names of measures as people read them.
MEASURES = {"identical": "Identical answers", "rouge1": "ROUGE-1", "rougeL": "ROUGE-L"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A plot with its title and the table behind it."""

    title: str
    svg: str
    sheet: Sheet


def curves(result: StudyResult, marks: Mapping[str, Mark]) -> list[Drawing]:
    """95th percentile of the latency over the rate: a plot a use case, device and kind of arrivals with two rates.

    A sweep's requests arrive as a Poisson load's do.
    """
    groups: dict[tuple[UseCase, str, str], dict[str, list[RatePoint]]] = {}
    for cost in result.costs:
        for point in _points(cost):
            arrivals = "constant rates" if cost.load.startswith("constant") else "Poisson arrivals"
            formats = groups.setdefault((cost.use_case, hardware_name(cost), arrivals), {})
            formats.setdefault(cost.format, []).append(point)
    found = []
    for (case, place, arrivals), by_format in groups.items():
        seen = {format: sorted(points, key=lambda point: point.rate) for format, points in by_format.items()}
        lines = {format: points for format, points in seen.items() if len({point.rate for point in points}) > 1}
        if lines:
            found.append(_curve(f"{case.name} on {place}, {arrivals}", shape_words(case), lines, marks))
    return found


def _points(cost: QueryCost) -> Iterator[RatePoint]:
    """A sweep's rates, or the one rate of a load that has one; only what was measured has percentiles."""
    yield from cost.rates
    kind, _, rate = cost.load.partition("@")
    names = ("latency_p50", "latency_p95")
    if kind in ("constant", "poisson") and cost.source == "measured" and all(name in cost.figures for name in names):
        first = cost.figures.get("first_token_p95")
        yield RatePoint(
            rate=float(rate),
            queries_per_second=cost.queries_per_second or 0.0,
            latency_p50_s=cost.figures["latency_p50"].value,
            latency_p95_s=cost.figures["latency_p95"].value,
            first_token_p95_s=first.value if first else None,
            keeps=True,
        )


def _curve(title: str, shape: str, by_format: Mapping[str, Sequence[RatePoint]], marks: Mapping[str, Mark]) -> Drawing:
    lines = [
        Line(name=format, points=tuple((point.rate, point.latency_p95_s) for point in points), mark=marks[format])
        for format, points in by_format.items()
    ]
    told = "; ".join(
        f"{line.name} {number(line.points[0][1])} s at {number(line.points[0][0])} a second to "
        f"{number(line.points[-1][1])} s at {number(line.points[-1][0])}"
        for line in lines
    )
    alt = f"95th percentile of the latency over requests a second, {title} ({shape}): {told}."
    svg = curve_plot(lines, x="requests a second", y="p95 of the latency, s", alt=alt)
    return Drawing(title=title, svg=svg, sheet=curve_sheet(title, by_format))


def likeness(result: StudyResult, marks: Mapping[str, Mark]) -> list[Drawing]:
    """A plot a task and measure: the median over answers and the middle four fifths of them, a row a format."""
    groups: dict[tuple[str, str], list[Likeness]] = {}
    for row in result.likenesses:
        groups.setdefault((row.task, row.measure), []).append(row)
    return [_likeness(task, measure, rows, marks) for (task, measure), rows in groups.items()]


def _likeness(task: str, measure: str, rows: Sequence[Likeness], marks: Mapping[str, Mark]) -> Drawing:
    title = f"{MEASURES.get(measure, measure)} on {task}"
    share = measure == "identical"
    drawn = [
        Row(
            name=row.format,
            value=row.mean if share else row.median,
            bounds=(row.mean, row.mean) if share else (row.p10, row.p90),
            text=number(row.mean if share else row.median),
            mark=marks[row.format],
        )
        for row in rows
    ]
    what = "share" if share else "median, and the middle four fifths"
    alt = f"{title}, {what}: " + "; ".join(f"{row.name} {row.text}" for row in drawn) + "."
    svg = interval_plot(drawn, domain=(0.0, 1.0), dashed=None, solid=1.0, alt=alt, unit="1 is the same text")
    return Drawing(title=title, svg=svg, sheet=likeness_sheet(title, rows))


def by_format(pairs: Sequence[AnswerPair]) -> dict[str, list[AnswerPair]]:
    """Pairs by format, in their order."""
    found: dict[str, list[AnswerPair]] = {}
    for pair in pairs:
        found.setdefault(pair.format, []).append(pair)
    return found
