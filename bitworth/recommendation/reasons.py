"""Why an option falls out, in words; and what options are called in a scenario."""

from __future__ import annotations

from dataclasses import dataclass

from bitworth.recommendation.candidates import Candidate, Violation, bounds_of, deployments, verdict_on, violations
from bitworth.report.figures import hardware_name, interval, limit, number, percent, seconds
from bitworth.report.words import latency_words
from bitworth.types import AVERAGE, Constraint, Option, QueryCost


@dataclass(frozen=True, slots=True)
class Scene:
    """What the sentences about one scenario are made from."""

    constraint: Constraint
    candidates: tuple[Candidate, ...]
    evaluated: frozenset[str]
    baseline: str

    @property
    def blind(self) -> bool:
        """No accuracy is known at all."""
        others = [found for found in self.candidates if found.cost.format != self.baseline]
        return not self.evaluated and not any(found.judged for found in others)

    def name(self, option: Option | Candidate) -> str:
        """The format, with its hardware and its load where the scenario has several."""
        cost = option.cost
        name = "the baseline" if cost.format == self.baseline else cost.format
        if len({hardware_name(other.cost) for other in self.candidates}) > 1:
            name += f" on {hardware_name(cost)}"
        return f"{name} under {cost.load}" if len({other.cost.load for other in self.candidates}) > 1 else name


def reasons_of(candidate: Candidate, scene: Scene) -> tuple[str, ...]:
    """A phrase a limit that it breaks."""
    return tuple(_reason(candidate, broken, scene) for broken in violations(candidate, scene.constraint))


def _reason(candidate: Candidate, broken: Violation, scene: Scene) -> str:
    cost = candidate.cost
    if broken.kind == "accuracy":
        return _accuracy(candidate, scene)
    if broken.kind == "unsupported":
        return cost.unsupported or "It was not measured."
    if broken.kind == "unpriced":
        return "has no cost figure"
    if broken.kind == "unknown rate":
        return "has no queries per second, so nothing says how many of it the traffic takes"
    return _over(broken, cost, scene.constraint)


def _over(broken: Violation, cost: QueryCost, constraint: Constraint) -> str:
    most = broken.most or 0.0
    asked = number(broken.value, apart_from=most)
    if broken.limit is not None:
        what = latency_words(broken.limit)
        if broken.value is None or broken.value != broken.value:
            return f"{what} was not measured, so nothing shows that it keeps the limit of {limit(most)} s"
        return f"{what} {seconds(broken.value, apart_from=most)} is over the limit of {limit(most)} s"
    if broken.kind == "budget":
        return f"costs USD {asked} per 1,000 queries, over the budget of USD {limit(most)}"
    many = deployments(cost, constraint) or 1
    of_it = "" if many == 1 else f" for {many:,} of it"
    if broken.kind == "month":
        return f"costs USD {asked} a month{of_it}, over the budget of USD {limit(most)} a month"
    return f"needs {many * cost.count:,} × {cost.hardware}{of_it}, of which {limit(most)} can be had"


def _accuracy(candidate: Candidate, scene: Scene) -> str:
    """What keeps a judged candidate's recovery from holding."""
    recovery, row, format = candidate.recovery, candidate.row, candidate.cost.format
    least = scene.constraint.min_recovery_pct
    if format == scene.baseline:
        return f"recovers 100 % by definition, less than {limit(least)} %"
    if recovery is None:
        where = scene.constraint.recovery_of
        lacking = " on every task" if where == AVERAGE else f" on {where}"
        return f"its accuracy was not measured{lacking if format in scene.evaluated else ''}"
    bounds = interval(bounds_of(recovery, scene.constraint.confidence_pct), decimals=1)
    predicted = "predicted " if recovery.origin == "predicted" else ""
    if verdict_on(candidate, scene.constraint) == "loses":
        recovers = "is predicted to recover" if predicted else "recovers"
        return f"{recovers} {percent(recovery.value, apart_from=least)} ({bounds}), less than {limit(least)} %"
    needed = row.questions_needed if row is not None and row.min_recovery_pct == least else None
    more = f"about {number(needed)} more questions would" if needed else "more questions are needed"
    if predicted:
        more = "measuring it would"
    return f"{predicted}recovery {percent(recovery.value)} ({bounds}) is not settled against {limit(least)} %; {more}"
