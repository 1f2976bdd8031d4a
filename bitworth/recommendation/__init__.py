"""What to deploy: for each use case and load, the option with the most queries per dollar that meets the constraint.

An option is a format on a hardware row. It falls out when it has no figures, exceeds a limit, or is not shown to keep
enough accuracy: its whole 95 % interval of recovery must reach the least allowed. An option that is cheaper than the
choice and whose recovery is merely not settled is the contender, and the recommendation says what would settle it.

- `candidates`: options as numbers, and the limits that each breaks.
- `deciding`: the choice and the frontier.       `flips`: what would change the choice.
- `draws`: how likely it is right.               `steps`: what to measure next.
- `mixes`: several use cases on one deployment.  `predictions`: figures that were not measured.
- `reasons`, `sentences`: all of it in words.

The rules, and how far they can be trusted, are in docs/recommendation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bitworth.errors import BitworthError
from bitworth.recommendation.candidates import Candidate, bounds_of, deployments, ordered, rate_of, verdict_on
from bitworth.recommendation.deciding import contenders_to, decide, frontier, ranked
from bitworth.recommendation.draws import chance_of
from bitworth.recommendation.flips import flips_of
from bitworth.recommendation.mixes import mix_costs
from bitworth.recommendation.predictions import predicted_cost, predicted_figure
from bitworth.recommendation.reasons import Scene, reasons_of
from bitworth.recommendation.sentences import told_flips, why
from bitworth.recommendation.steps import Effort, Rivals, steps_of
from bitworth.types import BASELINE, Constraint, Figure, Option, QueryCost, Recommendation, Recovery, UseCase

__all__ = ["Effort", "mix_costs", "predicted_cost", "predicted_figure", "recommend"]

_NAN = float("nan")
_WHOLE = Figure(value=100.0, low=100.0, high=100.0)


def recommend(
    costs: Sequence[QueryCost],
    recoveries: Sequence[Recovery],
    constraint: Constraint,
    *,
    baseline: str = BASELINE,
    predicted: Mapping[str, Figure] | None = None,
    across_loads: bool = False,
    effort: Effort | None = None,
    seed: int = 0,
) -> tuple[Recommendation, ...]:
    """One recommendation a use case and load, in the order in which `costs` first names them.

    A format's recovery is its row of the constraint's `recovery_of` (`average` unless it says otherwise), judged
    against `constraint` by its interval; the baseline recovers 100 % by definition. Without any recoveries formats are
    judged on cost alone, and `why` says so. Ties go to the higher recovery, then to the earlier name.

    Args:
        costs: a row a format, hardware, use case and load; predicted ones say so in their `source`.
        recoveries: rows of tasks and of their `average`.
        constraint: what a deployment must meet.
        baseline: the format that the others are compared with.
        predicted: recoveries in percent of formats that have no measured average.
        across_loads: decide a use case over all its loads at once, as ways to run it.
        effort: what asking further questions takes.
        seed: of the draws behind the probability.

    Raises:
        BitworthError: a format has two such rows.
    """
    study = _Study(
        constraint=constraint,
        recoveries=tuple(recoveries),
        averages=_averages(recoveries, constraint.recovery_of),
        predicted=dict(predicted or {}),
        baseline=baseline,
        effort=effort or Effort(),
        seed=seed,
    )
    scenarios: dict[tuple[UseCase, str], list[QueryCost]] = {}
    for cost in costs:
        scenarios.setdefault((cost.use_case, "" if across_loads else cost.load), []).append(cost)
    return tuple(_recommend(use_case, rows, study) for (use_case, _), rows in scenarios.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Study:
    """What is the same in every scenario."""

    constraint: Constraint
    recoveries: tuple[Recovery, ...]
    averages: Mapping[str, Recovery]
    predicted: Mapping[str, Figure] = field(default_factory=dict)
    baseline: str
    effort: Effort
    seed: int

    def candidate(self, cost: QueryCost) -> Candidate:
        """The cost with what is known of the format's recovery."""
        if cost.format == self.baseline:
            return Candidate(cost=cost, recovery=_WHOLE)
        row = self.averages.get(cost.format)
        if row is not None:
            return Candidate(cost=cost, recovery=row.figure, row=row)
        judged = bool(self.recoveries or self.predicted)
        return Candidate(cost=cost, recovery=self.predicted.get(cost.format), judged=judged)


def _averages(recoveries: Sequence[Recovery], task: str) -> dict[str, Recovery]:
    """The rows that count, by format."""
    found: dict[str, Recovery] = {}
    for row in recoveries:
        if row.task != task:
            continue
        if row.format in found:
            raise BitworthError(f"The recoveries hold two `{task}` rows of format {row.format}; give one a format.")
        found[row.format] = row
    return found


def _recommend(use_case: UseCase, costs: Sequence[QueryCost], study: _Study) -> Recommendation:
    constraint = study.constraint
    candidates = ordered([study.candidate(cost) for cost in costs])
    evaluated = frozenset(row.format for row in study.recoveries)
    scene = Scene(constraint, candidates, evaluated, study.baseline)
    options = {found.place: _option(found, scene) for found in ranked(candidates, constraint)}
    choice = decide(candidates, constraint)
    rest = [found for found in candidates if found is not choice]
    runner_up = None if choice is None else decide(rest, constraint)
    contenders = contenders_to(candidates, choice, constraint)
    chance = chance_of(candidates, choice, constraint, scene.name, seed=study.seed)
    rivals = Rivals(choice=choice, runner_up=runner_up, contenders=contenders, chance=chance)
    steps = steps_of(rivals, constraint, study.recoveries, study.effort, scene.name)

    def option(found: Candidate | None) -> Option | None:
        return None if found is None else options[found.place]

    return Recommendation(
        use_case=use_case,
        load=" or ".join(dict.fromkeys(cost.load for cost in costs)),
        choice=option(choice),
        runner_up=option(runner_up),
        contender=option(contenders[0] if contenders else None),
        options=tuple(options.values()),
        why=why(scene, choice, runner_up, chance),
        next_step=steps[0].says if steps else None,
        frontier=tuple(options[found.place] for found in frontier(candidates, constraint)),
        flips=told_flips(flips_of(candidates, constraint), scene),
        chance=chance,
        steps=steps,
    )


def _option(found: Candidate, scene: Scene) -> Option:
    recovery, constraint = found.recovery, scene.constraint
    rate = rate_of(found.cost, constraint)
    return Option(
        format=found.cost.format,
        hardware=found.cost.hardware,
        recovery_pct=_NAN if recovery is None else recovery.value,
        recovery_ci95_pct=(_NAN, _NAN) if recovery is None else (recovery.low, recovery.high),
        recovery_verdict=verdict_on(found, constraint),
        cost=found.cost,
        rejected=reasons_of(found, scene),
        recovery_source="measured" if recovery is None else recovery.origin,
        usd_per_1k_queries=1000 / rate if rate else None,
        deployments=deployments(found.cost, constraint) or 1,
        verdict_bounds_pct=(_NAN, _NAN) if recovery is None else bounds_of(recovery, constraint.confidence_pct),
        judged=found.judged,
    )
