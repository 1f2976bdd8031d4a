"""Which plots a study gets, and what each says to a reader who cannot see it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitworth.report.figures import hardware_name, interval, number, percent, usd_per_1k
from bitworth.report.marks import Mark
from bitworth.report.plots import (
    Point,
    Row,
    best,
    frontier_plot,
    interval_plot,
    recovery_domain,
)
from bitworth.report.words import scenario_title, tasks_in_order
from bitworth.types import BASELINE, Option, QueryCost, Recommendation, Recovery, StudyResult

_MOST_NAMED = 6  # names in a frontier plot; with more options only those that the recommendation speaks of
_MOST_TOLD = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A scenario's plot (None without a figure) and the options it cannot show."""

    svg: str | None
    hidden: tuple[str, ...]


def recovery_plots(result: StudyResult, marks: Mapping[str, Mark]) -> list[tuple[str, str]]:
    """(task, SVG) for the average and then each task, all on one axis."""
    rows = result.recoveries
    least = result.constraint.min_recovery_pct
    domain = recovery_domain((bound for row in rows for bound in (row.recovery_pct, *row.ci95_pct)), least)
    return [
        (task, _recovery_plot(task, [row for row in rows if row.task == task], least, domain, marks))
        for task in tasks_in_order(rows)
    ]


def _recovery_plot(
    task: str, rows: Sequence[Recovery], least: float, domain: tuple[float, float], marks: Mapping[str, Mark]
) -> str:
    drawn = [
        Row(
            name=row.format,
            value=row.recovery_pct,
            bounds=row.ci95_pct,
            text=percent(row.recovery_pct),
            mark=marks[row.format],
        )
        for row in rows
    ]
    told = "; ".join(f"{row.format} {percent(row.recovery_pct)} ({interval(row.ci95_pct, decimals=1)})" for row in rows)
    alt = f"Recovery on {task} with 95 % intervals, least allowed {least:g} %: {told}."
    return interval_plot(drawn, domain=domain, dashed=least, solid=100.0, alt=alt, unit="recovery, %")


def cost_panel(found: Recommendation, result: StudyResult, marks: Mapping[str, Mark]) -> Panel:
    """Recovery over queries per dollar; without any recovery, queries per dollar alone."""
    names = option_names(found.options)
    priced = [option for option in found.options if option.cost.unsupported is None and usd_per_1k(option.cost)]
    shown = [o for o in priced if math.isfinite(o.recovery_pct)] if result.recoveries else priced
    hidden = tuple(name for option, name in zip(found.options, names, strict=True) if option not in shown)
    if not shown:
        return Panel(svg=None, hidden=hidden)
    kept = [(option, name) for option, name in zip(found.options, names, strict=True) if option in shown]
    plot = _frontier(kept, found, result, marks) if result.recoveries else _cost_plot(kept, found, marks)
    return Panel(svg=plot, hidden=hidden)


def option_names(options: Sequence[Option]) -> list[str]:
    """The format, with its hardware where there are several."""
    several = len({hardware_name(option.cost) for option in options}) > 1
    return [f"{o.format} · {hardware_name(o.cost)}" if several else o.format for o in options]


def _frontier(
    kept: Sequence[tuple[Option, str]], found: Recommendation, result: StudyResult, marks: Mapping[str, Mark]
) -> str:
    few = len(kept) <= _MOST_NAMED
    special = (found.choice, found.runner_up, found.contender)
    points = [
        Point(
            name=name,
            x=_rate(option.cost),
            x_bounds=_bounds(option.cost),
            y=option.recovery_pct,
            y_bounds=option.recovery_ci95_pct,
            mark=marks[option.format],
            open=option.cost.source == "predicted",
            chosen=option == found.choice,
            named=few or option in special or option.format == BASELINE,
        )
        for option, name in kept
    ]
    least = result.constraint.min_recovery_pct
    domain = recovery_domain((bound for point in points for bound in (point.y, *point.y_bounds)), least)
    told = _told(f"{point.name} {number(point.x)} queries per dollar, {percent(point.y)}" for point in points)
    unbeaten = ", ".join(point.name for point in best(points))
    alt = (
        f"Recovery over queries per dollar for {scenario_title(found.use_case, found.load)}: {told}. "
        f"Not beaten on both: {unbeaten}."
    )
    return frontier_plot(points, domain=domain, least_pct=least, alt=alt)


def _cost_plot(kept: Sequence[tuple[Option, str]], found: Recommendation, marks: Mapping[str, Mark]) -> str:
    rows = [
        Row(
            name=name,
            value=_rate(option.cost),
            bounds=_bounds(option.cost),
            text=number(_rate(option.cost)),
            mark=marks[option.format],
            open=option.cost.source == "predicted",
        )
        for option, name in kept
    ]
    told = _told(f"{row.name} {row.text}" for row in rows)
    alt = f"Queries per dollar with 95 % intervals for {scenario_title(found.use_case, found.load)}: {told}."
    most = max(row.bounds[1] for row in rows)
    return interval_plot(rows, domain=(0.0, 1.05 * most), dashed=None, solid=None, alt=alt, unit="queries per dollar")


def _told(phrases: Iterable[str]) -> str:
    """What a plot shows, in words; the table below it has the rest."""
    first = list(itertools.islice(phrases, _MOST_TOLD + 1))
    more = "; and more, all in the table below" if len(first) > _MOST_TOLD else ""
    return "; ".join(first[:_MOST_TOLD]) + more


def _rate(cost: QueryCost) -> float:
    assert cost.queries_per_usd is not None
    return cost.queries_per_usd


def _bounds(cost: QueryCost) -> tuple[float, float]:
    """The interval of queries per dollar, or the figure itself twice."""
    bounds, rate = cost.ci95_queries_per_usd, _rate(cost)
    return bounds if bounds is not None and all(map(math.isfinite, bounds)) else (rate, rate)
