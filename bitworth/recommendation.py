"""What to deploy: for each use case and load, the option with the most queries per dollar that meets the constraint.

An option is a format on a hardware row. It falls out when it has no figures, exceeds a limit, or is not shown to keep
enough accuracy: its whole 95 % interval of recovery must reach the least allowed. An option that is cheaper than the
choice and whose recovery is merely not settled is the contender, and the recommendation says what would settle it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitworth.errors import BitworthError
from bitworth.report.figures import (
    counterpart,
    hardware_name,
    interval,
    limit,
    number,
    overlap,
    percent,
    seconds,
    times,
    usd_per_1k,
)
from bitworth.statistics import verdict_of
from bitworth.types import AVERAGE, BASELINE, Constraint, Option, QueryCost, Recommendation, Recovery, UseCase, Verdict

_LISTED = 4
_NAN = math.nan


def recommend(
    costs: Sequence[QueryCost],
    recoveries: Sequence[Recovery],
    constraint: Constraint,
    *,
    baseline: str = BASELINE,
) -> tuple[Recommendation, ...]:
    """One recommendation a use case and load, in the order in which `costs` first names them.

    A format's recovery is its row of task `average`, judged against `constraint` by its interval; the baseline
    recovers 100 % by definition. Without any recoveries formats are judged on cost alone, and `why` says so. Ties go
    to the higher recovery, then to the earlier name.

    Raises:
        BitworthError: a format has two `average` rows.
    """
    study = _Study(constraint, _averages(recoveries), {row.format for row in recoveries}, baseline)
    scenarios: dict[tuple[UseCase, str], list[QueryCost]] = {}
    for cost in costs:
        scenarios.setdefault((cost.use_case, cost.load), []).append(cost)
    return tuple(_decide(use_case, load, rows, study) for (use_case, load), rows in scenarios.items())


@dataclass(frozen=True, slots=True)
class _Study:
    """What is the same in every scenario."""

    constraint: Constraint
    averages: Mapping[str, Recovery]
    evaluated: set[str]
    baseline: str

    @property
    def blind(self) -> bool:
        """No accuracy was measured at all."""
        return not self.evaluated


@dataclass(frozen=True, slots=True)
class _Scene:
    """What the sentences about one scenario are made from."""

    study: _Study
    options: tuple[Option, ...]

    def name(self, option: Option) -> str:
        """The format, with its hardware where the scenario has several."""
        format = "the baseline" if option.format == self.study.baseline else option.format
        several = len({hardware_name(other.cost) for other in self.options}) > 1
        return f"{format} on {hardware_name(option.cost)}" if several else format


def _averages(recoveries: Sequence[Recovery]) -> dict[str, Recovery]:
    found: dict[str, Recovery] = {}
    for row in recoveries:
        if row.task != AVERAGE:
            continue
        if row.format in found:
            raise BitworthError(f"The recoveries hold two `average` rows of format {row.format}; give one a format.")
        found[row.format] = row
    return found


def _decide(use_case: UseCase, load: str, costs: Sequence[QueryCost], study: _Study) -> Recommendation:
    options = tuple(sorted((_option(cost, study) for cost in costs), key=_rank))
    scene = _Scene(study, options)
    feasible = [option for option in options if not option.rejected]
    choice, runner_up = (*feasible[:2], None, None)[:2]
    contender = next((option for option in _cheaper(options, choice) if _only_unsettled(option, study)), None)
    return Recommendation(
        use_case=use_case,
        load=load,
        choice=choice,
        runner_up=runner_up,
        contender=contender,
        options=options,
        why=_why_none(scene) if choice is None else _why(scene, choice, runner_up),
        next_step=None if contender is None else _next_step(scene, contender, choice),
    )


# --- options ------------------------------------------------------------------------------------------------------


def _option(cost: QueryCost, study: _Study) -> Option:
    recovery_pct, bounds = _recovery(cost.format, study)
    verdict = verdict_of(*bounds, study.constraint.min_recovery_pct)
    reasons = [*_cost_reasons(cost, study.constraint), *_accuracy_reasons(cost.format, verdict, study)]
    return Option(
        format=cost.format,
        hardware=cost.hardware,
        recovery_pct=recovery_pct,
        recovery_ci95_pct=bounds,
        recovery_verdict=verdict,
        cost=cost,
        rejected=tuple(reasons),
    )


def _recovery(format: str, study: _Study) -> tuple[float, tuple[float, float]]:
    """Recovery and its interval, in percent; not a number where it was not measured."""
    if format == study.baseline:
        return 100.0, (100.0, 100.0)
    row = study.averages.get(format)
    return (row.recovery_pct, row.ci95_pct) if row else (_NAN, (_NAN, _NAN))


def _accuracy_reasons(format: str, verdict: Verdict, study: _Study) -> list[str]:
    least = study.constraint.min_recovery_pct
    row = study.averages.get(format)
    if verdict == "holds" or (study.blind and format != study.baseline):
        return []
    if format == study.baseline:
        return [f"recovers 100 % by definition, less than {limit(least)} %"]
    if row is None:
        return [f"its accuracy was not measured{' on every task' if format in study.evaluated else ''}"]
    bounds = interval(row.ci95_pct, decimals=1)
    if verdict == "loses":
        return [f"recovers {percent(row.recovery_pct, apart_from=least)} ({bounds}), less than {limit(least)} %"]
    needed = _questions_needed(row, least)
    more = f"about {number(needed)} more questions would" if needed else "more questions are needed"
    return [f"recovery {percent(row.recovery_pct)} ({bounds}) is not settled against {limit(least)} %; {more}"]


def _questions_needed(row: Recovery, least_pct: float) -> int | None:
    """The row's own count, which holds only for the least recovery that the row was judged by."""
    return row.questions_needed if row.min_recovery_pct == least_pct else None


def _cost_reasons(cost: QueryCost, constraint: Constraint) -> list[str]:
    if cost.unsupported is not None:
        return [cost.unsupported]
    reasons = [
        _over("mean latency", cost.latency_s, constraint.max_latency_s),
        _over("mean time to the first token", cost.first_token_s, constraint.max_first_token_s),
    ]
    price, budget = usd_per_1k(cost), constraint.max_usd_per_1k_queries
    if price is None:
        reasons.append("has no cost figure")
    elif budget is not None and price > budget:
        asked = number(price, apart_from=budget)
        reasons.append(f"costs USD {asked} per 1,000 queries, over the budget of USD {limit(budget)}")
    return [reason for reason in reasons if reason is not None]


def _over(what: str, value_s: float | None, most_s: float | None) -> str | None:
    if most_s is None:
        return None
    if value_s is None or math.isnan(value_s):
        return f"{what} was not measured, so nothing shows that it keeps the limit of {limit(most_s)} s"
    if value_s <= most_s:
        return None
    return f"{what} {seconds(value_s, apart_from=most_s)} is over the limit of {limit(most_s)} s"


def _rank(option: Option) -> tuple[float, float, str, str]:
    """Most queries per dollar first, then highest recovery, then name; the last part makes the order total."""
    rate = -_rate(option)
    recovery = math.inf if math.isnan(option.recovery_pct) else -option.recovery_pct
    return rate, recovery, option.format, repr(option.cost)


def _rate(option: Option) -> float:
    """Queries per dollar, 0 where there is no figure."""
    rate = option.cost.queries_per_usd
    return rate if rate is not None and usd_per_1k(option.cost) is not None else 0.0


def _cheaper(options: Sequence[Option], choice: Option | None) -> list[Option]:
    least = 0.0 if choice is None else _rate(choice)
    return [option for option in options if option.cost.unsupported is None and _rate(option) > least]


def _only_unsettled(option: Option, study: _Study) -> bool:
    """Accuracy alone keeps it out, and only because it is not settled."""
    return (
        bool(option.rejected)
        and option.recovery_verdict == "undecided"
        and not _cost_reasons(option.cost, study.constraint)
    )


# --- sentences ----------------------------------------------------------------------------------------------------


def _why(scene: _Scene, choice: Option, runner_up: Option | None) -> str:
    cheaper = _cheaper(scene.options, choice)
    bare = [option for option in scene.options if _rate(option) == 0 or option.cost.unsupported is not None]
    sentences = [
        _saving(scene, choice),
        _accuracy(scene, choice),
        *_falling_out("Cheaper, but out", scene, cheaper),
        *_falling_out("Without figures", scene, bare),
        _distance(scene, choice, runner_up),
        _provenance(scene, [choice, *([runner_up] if runner_up else [])]),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _saving(scene: _Scene, choice: Option) -> str:
    name, rate = scene.name(choice), f"{number(_rate(choice))} queries per dollar"
    if choice.format == scene.study.baseline:
        return f"Stay with {name}: it answers {rate}, and nothing that meets the constraint answers more."
    other = counterpart(choice.cost, (option.cost for option in scene.options), baseline=scene.study.baseline)
    found = times(choice.cost, other)
    if found is None:
        return f"Deploy {name}: it answers {rate}; the baseline has no figure there to compare with."
    ratio, bounds = found
    between = f" ({interval(bounds)})" if bounds else ""
    elsewhere = "" if other is None or other.count == choice.cost.count else f" on {hardware_name(other)}"
    return f"Deploy {name}: it answers {rate}, {number(ratio)} times as many as the baseline{elsewhere}{between}."


def _accuracy(scene: _Scene, choice: Option) -> str:
    if scene.study.blind:
        return "Accuracy was not measured, so this rests on cost alone."
    if choice.format == scene.study.baseline:
        return ""
    return (
        f"It recovers {percent(choice.recovery_pct)} of the baseline's accuracy (95 % interval "
        f"{interval(choice.recovery_ci95_pct, decimals=1)}), where {limit(scene.study.constraint.min_recovery_pct)} % "
        "is asked for."
    )


def _falling_out(title: str, scene: _Scene, options: Sequence[Option]) -> list[str]:
    """`TITLE: NAME, RATE (reasons); NAME ...; and N more.`, or nothing."""
    if not options:
        return []
    parts: list[str] = []
    for option in options[:_LISTED]:
        name = scene.name(option)
        if parts and name.startswith("the "):
            name = f"T{name[1:]}"
        rate = f" at {number(_rate(option))} queries per dollar" if _rate(option) else ""
        reasons = "; ".join(reason.rstrip(". ") for reason in option.rejected)
        parts.append(f"{name}{rate} – {reasons}")
    more = len(options) - _LISTED
    return [f"{title}: {'. '.join([*parts, *([f'And {more} more'] if more > 0 else [])])}."]


def _distance(scene: _Scene, choice: Option, runner_up: Option | None) -> str:
    if runner_up is None:
        return "Nothing else meets the constraint."
    fewer = 100 * (1 - _rate(runner_up) / _rate(choice))
    behind = f"{percent(fewer)} fewer" if round(fewer, 1) else "as many"
    told = {
        True: "the cost intervals overlap, so the two are not told apart by these measurements",
        False: "the cost intervals do not overlap",
        None: "without cost intervals nothing says whether that difference is more than noise",
    }[overlap(choice.cost, runner_up.cost)]
    answers = f"answers {number(_rate(runner_up))} queries per dollar ({behind})"
    return f"The runner-up, {scene.name(runner_up)}, {answers}; {told}."


def _provenance(scene: _Scene, options: Sequence[Option]) -> str:
    predicted = [scene.name(option) for option in options if option.cost.source == "predicted"]
    return f"The cost of {' and of '.join(predicted)} is predicted, not measured." if predicted else ""


def _why_none(scene: _Scene) -> str:
    """Which constraint excludes each option, the closest first."""
    closest = sorted(scene.options, key=lambda option: (len(option.rejected), _rank(option)))
    sentences = [*_falling_out("No option meets the constraint", scene, closest), _provenance(scene, closest[:_LISTED])]
    return " ".join(sentence for sentence in sentences if sentence)


def _next_step(scene: _Scene, contender: Option, choice: Option | None) -> str:
    least = scene.study.constraint.min_recovery_pct
    row = scene.study.averages.get(contender.format)
    needed = _questions_needed(row, least) if row else None
    if row is None:
        measure = f"Measure the accuracy of {scene.name(contender)}"
    elif needed:
        measure = f"Put about {number(needed)} more questions to {scene.name(contender)} ({row.questions:,} so far)"
    else:
        measure = f"Put more questions to {scene.name(contender)} ({row.questions:,} so far)"
    if choice is None:
        return f"{measure}: if it is shown to recover {limit(least)} %, it is the choice."
    ratio = _rate(contender) / _rate(choice)
    return (
        f"{measure}: if it is shown to recover {limit(least)} %, it replaces {scene.name(choice)} "
        f"and answers {number(ratio)} times as many queries per dollar."
    )
