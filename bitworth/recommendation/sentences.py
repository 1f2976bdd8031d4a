"""The recommendation in sentences: why, how sure, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitworth.recommendation.candidates import Candidate, bounds_of, deployments, rate_of, usd_per_month
from bitworth.recommendation.deciding import ranked
from bitworth.recommendation.flips import Point
from bitworth.recommendation.reasons import Scene, reasons_of
from bitworth.report.figures import counterpart, hardware_name, interval, limit, number, overlap, percent, times
from bitworth.report.words import chance_words, latency_words
from bitworth.types import AVERAGE, Chance, Flip

_LISTED = 4


def why(scene: Scene, choice: Candidate | None, runner_up: Candidate | None, chance: Chance | None) -> str:
    """One paragraph: what, how much it saves and keeps, what falls out and why, the runner-up, how sure."""
    if choice is None:
        return _why_none(scene, chance)
    order = ranked(scene.candidates, scene.constraint)
    supported = [found for found in order if found.cost.unsupported is None]
    cheaper = [found for found in supported if _rate(scene, found) > _rate(scene, choice)]
    bare = [found for found in order if not _rate(scene, found) or found.cost.unsupported is not None]
    return _joined(
        _saving(scene, choice),
        _traffic(scene, choice),
        _accuracy(scene, choice),
        *_falling_out("Cheaper, but out", scene, cheaper),
        *_falling_out("Without figures", scene, bare),
        _distance(scene, choice, runner_up),
        chance_words(chance),
        _provenance(scene, [choice, *([runner_up] if runner_up else [])]),
    )


def _why_none(scene: Scene, chance: Chance | None) -> str:
    """Which constraint excludes each option, the closest first."""
    order = ranked(scene.candidates, scene.constraint)
    closest = sorted(order, key=lambda found: len(reasons_of(found, scene)))
    told = _falling_out("No option meets the constraint", scene, closest)
    return _joined(*told, chance_words(chance), _provenance(scene, closest[:_LISTED]))


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _rate(scene: Scene, candidate: Candidate) -> float:
    return rate_of(candidate.cost, scene.constraint)


def _saving(scene: Scene, choice: Candidate) -> str:
    name, rate = scene.name(choice), f"{number(_rate(scene, choice))} queries per dollar"
    if choice.cost.format == scene.baseline:
        return f"Stay with {name}: it answers {rate}, and nothing that meets the constraint answers more."
    other = counterpart(choice.cost, (found.cost for found in scene.candidates), baseline=scene.baseline)
    found = times(choice.cost, other)
    if found is None:
        return f"Deploy {name}: it answers {rate}; the baseline has no figure there to compare with."
    ratio, bounds = found
    between = f" ({interval(bounds)})" if bounds else ""
    elsewhere = "" if other is None or other.count == choice.cost.count else f" on {hardware_name(other)}"
    busy = "" if scene.constraint.queries_per_second is None else ", both never idle"
    return f"Deploy {name}: it answers {rate}, {number(ratio)} times as many as the baseline{elsewhere}{between}{busy}."


def _traffic(scene: Scene, choice: Candidate) -> str:
    demand, count = scene.constraint.queries_per_second, deployments(choice.cost, scene.constraint)
    if demand is None or count is None:
        return ""
    whole = "one deployment of it serves" if count == 1 else f"{count:,} deployments of it serve"
    month = number(usd_per_month(choice.cost, scene.constraint))
    return f"For {limit(demand)} queries a second, {whole}, at USD {month} a month."


def _accuracy(scene: Scene, choice: Candidate) -> str:
    if scene.blind:
        return "Accuracy was not measured, so this rests on cost alone."
    if choice.cost.format == scene.baseline or choice.recovery is None:
        return ""
    recovers = "recovers" if choice.recovery.origin == "measured" else "is predicted to recover"
    confidence = scene.constraint.confidence_pct
    where = scene.constraint.recovery_of
    accuracy = "accuracy" if where == AVERAGE else f"accuracy on {where}"
    return (
        f"It {recovers} {percent(choice.recovery.value)} of the baseline's {accuracy} ({limit(confidence)} % interval "
        f"{interval(bounds_of(choice.recovery, confidence), decimals=1)}), where "
        f"{limit(scene.constraint.min_recovery_pct)} % is asked for."
    )


def _falling_out(title: str, scene: Scene, options: Sequence[Candidate]) -> list[str]:
    """`TITLE: NAME, RATE (reasons); NAME ...; and N more.`, or nothing."""
    if not options:
        return []
    parts: list[str] = []
    for option in options[:_LISTED]:
        name = scene.name(option)
        if parts and name.startswith("the "):
            name = f"T{name[1:]}"
        rate = f" at {number(_rate(scene, option))} queries per dollar" if _rate(scene, option) else ""
        reasons = "; ".join(reason.rstrip(". ") for reason in reasons_of(option, scene))
        parts.append(f"{name}{rate} – {reasons}")
    more = len(options) - _LISTED
    return [f"{title}: {'. '.join([*parts, *([f'And {more} more'] if more > 0 else [])])}."]


def _distance(scene: Scene, choice: Candidate, runner_up: Candidate | None) -> str:
    if runner_up is None:
        return "Nothing else meets the constraint."
    fewer = 100 * (1 - _rate(scene, runner_up) / _rate(scene, choice))
    behind = f"{percent(fewer)} fewer" if round(fewer, 1) else "as many"
    told = {
        True: "the cost intervals overlap, so the two are not told apart by these measurements",
        False: "the cost intervals do not overlap",
        None: "without cost intervals nothing says whether that difference is more than noise",
    }[overlap(choice.cost, runner_up.cost)]
    answers = f"answers {number(_rate(scene, runner_up))} queries per dollar ({behind})"
    return f"The runner-up, {scene.name(runner_up)}, {answers}; {told}."


def _provenance(scene: Scene, options: Sequence[Candidate]) -> str:
    costs = [scene.name(option) for option in options if option.cost.source == "predicted"]
    recoveries = [
        scene.name(option)
        for option in options
        if option.recovery is not None and option.recovery.origin == "predicted"
    ]
    return _joined(
        f"The cost of {' and of '.join(costs)} is predicted, not measured." if costs else "",
        f"The recovery of {' and of '.join(recoveries)} is predicted, not measured." if recoveries else "",
    )


# --- flips --------------------------------------------------------------------------------------------------------


def told_flips(points: Sequence[Point], scene: Scene) -> tuple[Flip, ...]:
    """The points with their sentences, nearest first."""
    by_place = {f"speed of {found.place}": found for found in scene.candidates}
    found = []
    for point in sorted(points, key=_nearness):
        what = f"speed of {scene.name(by_place[point.what])}" if point.what in by_place else point.what
        to = None if point.to is None else scene.name(point.to)
        then = f"the choice is {to}" if to else "nothing meets the constraint"
        says = f"{_condition(point, what, scene)}, {then}."
        found.append(Flip(what=what, now=point.now, at=point.at, up=point.up, to=to, says=says))
    return tuple(found)


def _nearness(point: Point) -> float:
    """How far the flip is from now: percentage points of recovery over 100, else the logarithm of the ratio."""
    if point.what == "min_recovery_pct":
        return abs(point.at - point.now) / 100
    return abs(math.log(point.at / point.now)) if point.at > 0 and point.now > 0 else math.inf


def _condition(point: Point, what: str, scene: Scene) -> str:
    """`With H100 above USD 4.12 an hour each (now 3.29)`."""
    beyond = "above" if point.up else "below"
    at = number(point.at, digits=4, apart_from=point.now)
    if what == "min_recovery_pct":
        return f"With a least recovery {beyond} {percent(point.at, decimals=2, apart_from=point.now)}"
    if what.startswith("usd_per_hour of "):
        name = what.removeprefix("usd_per_hour of ")
        return f"With {name} {beyond} USD {at} an hour each (now {limit(point.now)})"
    if what.startswith("speed of "):
        name = what.removeprefix("speed of ")
        change = percent(100 * abs(point.at - 1))
        return f"With {name} more than {change} {'faster' if point.up else 'slower'}"
    if what == "queries_per_second":
        return f"With traffic {beyond} {at} queries a second"
    if what == "max_usd_per_1k_queries":
        return f"With a budget {beyond} USD {at} per 1,000 queries"
    if what == "max_usd_per_month":
        return f"With a budget {beyond} USD {at} a month"
    names = {asked.name: latency_words(asked) for asked in scene.constraint.latency_limits}
    names |= {"max_latency_s": "mean latency", "max_first_token_s": "mean time to the first token"}
    return f"With a limit on {names[what]} {beyond} {at} s"
