"""The page: one HTML file with its style and its plots inside, which reads nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bitworth.report import compared, figures, panels
from bitworth.report.asking import asked_again
from bitworth.report.figures import counterpart, dollars, hardware_name, overlap, times
from bitworth.report.marks import Mark, marks_of
from bitworth.report.sheets import (
    Sheet,
    cost_sheet,
    foretold_sheet,
    noise_sheet,
    percentile_sheet,
    recovery_sheet,
    savings_sheet,
)
from bitworth.report.words import (
    MOST_FLIPS,
    constraint_words,
    headline,
    moment,
    probability,
    scenario_title,
    shape_words,
    tasks_in_order,
    unbroken,
)
from bitworth.types import BASELINE, EngineFacts, Option, QueryCost, Recommendation, Recovery, StudyResult

SURE = 0.95
"""From this probability on, a choice is shown as sure."""


def environment(package: str) -> Environment:
    """Templates of a package, which escape what they print and know the report's ways to write figures."""
    found = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=unbroken,
    )
    found.filters |= {
        name: getattr(figures, name)
        for name in ("number", "chance", "flips", "percent", "limit", "dollars", "interval", "seconds", "hardware_name")
    }
    found.filters |= {"title": scenario_title, "shape": shape_words, "moment": moment}
    return found


def render_page(result: StudyResult) -> str:
    """The whole page as text; equal results give equal text."""
    measured = [*(cost.format for cost in result.costs), *(row.format for row in result.recoveries)]
    marks = marks_of([*result.formats, *measured])
    footnotes = _footnotes(result)
    script = files("bitworth.report").joinpath("page.js").read_text(encoding="utf-8")
    by_task = _by_task(result.recoveries)
    template = environment("bitworth.report").get_template("page.html.j2")
    return template.render(
        result=result,
        baseline=BASELINE,
        marks=marks,
        headline=headline(result),
        constraint=constraint_words(result.constraint),
        cards=[_card(row) for row in result.recommendations],
        deployments=[_card(row) for row in result.deployments],
        most_flips=MOST_FLIPS,
        recovery_plots=[
            (task, Markup(plot), recovery_sheet(task, by_task[task]))
            for task, plot in panels.recovery_plots(result, marks)
        ],
        recovery_groups=by_task,
        subject_groups=_by_task(result.groups),
        noise=noise_sheet(result),
        scenarios=_scenarios(result, marks),
        curves=compared.curves(result, marks),
        likeness=compared.likeness(result, marks),
        apart=compared.by_format(result.apart),
        drawn=Markup,
        savings=savings_sheet(result),
        foretold=foretold_sheet(result.costs),
        options=Markup(asked_again(result)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        footnotes=footnotes,
        mark_of=lambda facts: _letter(footnotes, facts),
        swatch=lambda format: _swatch(marks.get(format)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One recommendation as the page shows it: its key figures, and how sure it is as (state, words)."""

    recommendation: Recommendation
    ratio: float | None
    bounds: tuple[float, float] | None
    checks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One line of the cost table: figures, the ratio to the baseline, and what became of the option."""

    cost: QueryCost
    price: float | None
    ratio: float | None
    bounds: tuple[float, float] | None
    role: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A use case under a load: its plot and its lines of the cost table; `place` is the hardware where all share it."""

    first: QueryCost
    place: str | None
    plot: Markup | None
    sheet: Sheet | None
    percentiles: Sheet | None
    hidden: tuple[str, ...]
    rows: tuple[CostRow, ...]


def _card(row: Recommendation) -> Card:
    choice = row.choice
    ratio, bounds = _ratio(choice.cost, [option.cost for option in row.options]) if choice else (None, None)
    return Card(recommendation=row, ratio=ratio, bounds=bounds, checks=tuple(_checks(row)) if choice else ())


def _checks(row: Recommendation) -> Iterable[tuple[str, str]]:
    """How sure the choice is, as (state, words): the kind of cost figures, recovery, the lead over the runner-up."""
    choice, rival = row.choice, row.runner_up
    assert choice is not None
    yield "plain" if choice.cost.source == "measured" else "open", f"cost {choice.cost.source}"
    if choice.format != BASELINE:
        settled = choice.recovery_verdict == "holds"
        predicted = choice.recovery_source == "predicted"
        unsettled = "recovery predicted" if predicted else "accuracy not measured"
        yield ("sure", "recovery settled") if settled and not predicted else ("open", unsettled)
    if rival is None:
        yield "sure", "nothing else meets the constraint"
    else:
        apart = overlap(choice.cost, rival.cost)
        told = {True: "not told apart from the runner-up", None: "lead without an interval"}
        yield ("sure", "ahead of the runner-up") if apart is False else ("open", told[apart])
    if row.contender is not None:
        yield "open", "a cheaper format is not settled"
    if row.chance is not None and math.isfinite(row.chance.probability):
        sure = "sure" if row.chance.probability >= SURE else "open"
        yield sure, f"the best with {probability(row.chance.probability)}"


def _ratio(cost: QueryCost, costs: Sequence[QueryCost]) -> tuple[float | None, tuple[float, float] | None]:
    return times(cost, counterpart(cost, costs)) or (None, None)


def _by_task(recoveries: Sequence[Recovery]) -> dict[str, list[Recovery]]:
    """Rows by task, means first."""
    return {task: [row for row in recoveries if row.task == task] for task in tasks_in_order(recoveries)}


def _scenarios(result: StudyResult, marks: dict[str, Mark]) -> list[Scenario]:
    groups: dict[Any, list[QueryCost]] = {}
    for cost in result.costs:
        groups.setdefault((cost.use_case, cost.load), []).append(cost)
    recommendations = {(row.use_case, row.load): row for row in result.recommendations}
    found = []
    for key, costs in groups.items():
        row = recommendations.get(key)
        panel = panels.cost_panel(row, result, marks) if row else None
        found.append(
            Scenario(
                first=costs[0],
                place=_place(costs),
                plot=Markup(panel.svg) if panel and panel.svg else None,
                sheet=cost_sheet(row) if row else None,
                percentiles=percentile_sheet(costs),
                hidden=panel.hidden if panel else (),
                rows=tuple(_cost_row(cost, costs, row) for cost in costs),
            )
        )
    return found


def _place(costs: Sequence[QueryCost]) -> str | None:
    places = {f"{hardware_name(cost)} at USD {dollars(cost.usd_per_hour)} an hour" for cost in costs}
    return places.pop() if len(places) == 1 else None


def _cost_row(cost: QueryCost, costs: Sequence[QueryCost], found: Recommendation | None) -> CostRow:
    ratio, bounds = _ratio(cost, costs)
    option = next((option for option in found.options if option.cost == cost), None) if found else None
    return CostRow(
        cost=cost,
        price=figures.usd_per_1k(cost),
        ratio=ratio,
        bounds=bounds,
        role=_role(option, found) if found else "",
        reasons=option.rejected if option else (),
    )


def _role(option: Option | None, found: Recommendation) -> str:
    if option is None:
        return ""
    roles = {"choice": found.choice, "runner-up": found.runner_up, "contender": found.contender}
    named = next((name for name, holder in roles.items() if holder == option), None)
    return named or ("out" if option.rejected else "feasible")


def _footnotes(result: StudyResult) -> list[EngineFacts]:
    """Everything that produced figures, each once."""
    found: list[EngineFacts] = []
    for facts in (*result.evaluated_with.values(), *(cost.facts for cost in result.costs)):
        if facts is not None and facts not in found:
            found.append(facts)
    return found


def _letter(footnotes: Sequence[EngineFacts], facts: EngineFacts | None) -> str:
    """`a` to `z`, then `a2`, ...; empty without facts."""
    if facts is None:
        return ""
    round_, index = divmod(footnotes.index(facts), 26)
    return chr(ord("a") + index) + (str(round_ + 1) if round_ else "")


def _swatch(mark: Mark | None) -> Markup:
    if mark is None:
        return Markup("")
    return Markup(
        '<svg class="swatch" viewBox="-1.2 -1.2 2.4 2.4" aria-hidden="true"><path d="{}" style="fill:var({})"/></svg>'
    ).format(mark.shape, mark.colour)
