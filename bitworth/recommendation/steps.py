"""What to measure next: which questions or requests would settle what is open, how many, and what they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bitworth.load.percentiles import requests_for
from bitworth.recommendation.candidates import Candidate, bounds_of, rate_of
from bitworth.report.figures import limit, number, overlap
from bitworth.types import AVERAGE, Chance, Constraint, LatencyLimit, QueryCost, Recovery, Step

Names = Callable[[Candidate], str]

_MOST = 10**9
_MOST_CONTENDERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What asking takes: seconds a question of the format and its baseline together, by (format, task), and the
    dollars an hour of the machine that asks."""

    seconds_per_question: Mapping[tuple[str, str], float] = field(default_factory=dict)
    usd_per_hour: float | None = None

    def usd(self, seconds: float | None) -> float | None:
        """The price of so many seconds."""
        return None if seconds is None or self.usd_per_hour is None else seconds * self.usd_per_hour / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task's part in the error of the average: half the interval that it alone would give, in percentage points."""

    name: str
    half_pct: float
    questions: int
    seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rivals:
    """What the decision is between, and how likely each is the best."""

    choice: Candidate | None
    runner_up: Candidate | None
    contenders: Sequence[Candidate]
    chance: Chance | None


def steps_of(
    rivals: Rivals, constraint: Constraint, recoveries: Sequence[Recovery], effort: Effort, name: Names
) -> tuple[Step, ...]:
    """Every measurement that could overturn or settle the choice, accuracy first.

    Of several contenders those come first whose settling is expected to gain most for the questions it takes: the
    chance that it is the best option, times what it saves over the choice, over the questions. No more than three.
    """
    choice, shares = rivals.choice, rivals.chance.by_option if rivals.chance else {}

    def worth(found: tuple[Candidate, Step]) -> float:
        contender, step = found
        gain = rate_of(contender.cost, constraint) / rate_of(choice.cost, constraint) - 1 if choice else 1.0
        asked = sum(step.count.values())
        return -gain * shares.get(name(contender), 0.0) / asked if asked else 0.0

    asked = [(row, _settle_recovery(row, choice, constraint, recoveries, effort, name)) for row in rivals.contenders]
    by_format: dict[str, Step] = {}  # a format's answers serve all its devices and loads
    for _, step in sorted(asked, key=worth):
        by_format.setdefault(step.format, step)
    found = list(by_format.values())[:_MOST_CONTENDERS]
    if choice is not None and choice.recovery is not None and choice.recovery.origin == "predicted":
        found.append(_measure_accuracy(choice, name))
    if choice is not None:
        found += _requests(choice, rivals.runner_up, constraint, name)
    return tuple(found)


# --- questions ----------------------------------------------------------------------------------------------------


def questions_to_ask(
    recovery: Recovery, rows: Iterable[Recovery], constraint: Constraint, effort: Effort
) -> dict[str, int] | None:
    """Further questions by task until the interval of the average leaves the least recovery on one side.

    As `statistics.paired_recovery` foresees it (the interval shrinks around the same ratio), but spread so that it
    takes the least time: a task's questions in proportion to its spread over the root of its seconds a question. None
    where the interval's rows by task are missing, or no number of questions would do.
    """
    tasks = _parts(recovery, rows, effort)
    low, high = bounds_of(recovery.figure, constraint.confidence_pct)
    least, value = constraint.min_recovery_pct, recovery.recovery_pct
    distance = abs(value - least)
    half = value - low if value > least else high - value
    if not tasks or not math.isfinite(half) or half <= 0 or distance < 1e-4:
        return None
    whole = math.sqrt(sum(task.half_pct**2 for task in tasks))
    return spread_questions(tasks, distance * whole / half) if whole > 0 else None


def spread_questions(tasks: Sequence[Task], half_pct: float) -> dict[str, int] | None:
    """Fewest seconds of further questions until the tasks' halves add up, in quadrature, to `half_pct`.

    Neyman's allocation with costs; a task that has more questions than its share already keeps them, and the rest is
    spread over the others.
    """
    open_, fixed = list(tasks), 0.0
    while open_:
        left = half_pct**2 - fixed
        if left <= 0:
            return None
        spreads = {task.name: task.half_pct * math.sqrt(task.questions) for task in open_}
        weight = sum(spreads[task.name] * math.sqrt(task.seconds) for task in open_) / left
        totals = {task.name: spreads[task.name] / math.sqrt(task.seconds) * weight for task in open_}
        enough = [task for task in open_ if totals[task.name] <= task.questions]
        if not enough:
            more = {task.name: math.ceil(totals[task.name] - task.questions - 1e-9) for task in open_}
            return more if sum(more.values()) < _MOST else None
        fixed += sum(task.half_pct**2 for task in enough)
        open_ = [task for task in open_ if task not in enough]
    return {}


def _parts(recovery: Recovery, rows: Iterable[Recovery], effort: Effort) -> list[Task]:
    mine = [row for row in rows if row.format == recovery.format and _is_part(row, recovery)]
    whole = len(mine) * recovery.baseline
    if not mine or whole <= 0 or not all(map(math.isfinite, (bound for row in mine for bound in row.ci95_pct))):
        return []
    return [
        Task(
            name=row.task,
            half_pct=(row.ci95_pct[1] - row.ci95_pct[0]) / 2 * row.baseline / whole,
            questions=row.questions,
            seconds=effort.seconds_per_question.get((row.format, row.task), 1.0),
        )
        for row in mine
    ]


def _is_part(row: Recovery, recovery: Recovery) -> bool:
    """Whether a row is of a task that a mean is over; a task alone is its own part."""
    if recovery.columns:
        return row.task in recovery.columns
    if recovery.task == AVERAGE:  # of a mean that does not name its tasks
        return row.task != AVERAGE and not row.columns
    return row.task == recovery.task


def _settle_recovery(
    contender: Candidate,
    choice: Candidate | None,
    constraint: Constraint,
    recoveries: Sequence[Recovery],
    effort: Effort,
    name: Names,
) -> Step:
    row = contender.row
    if row is None:
        return _measure_accuracy(contender, name, _then(contender, choice, constraint, name))
    count = questions_to_ask(row, recoveries, constraint, effort) or {}
    count = {task: more for task, more in count.items() if more}
    foreseen = row.questions_needed if row.min_recovery_pct == constraint.min_recovery_pct else None
    total = sum(count.values()) or foreseen
    seconds = _seconds(contender.cost.format, count, effort)
    about = f"about {number(total)} more questions" if total else "more questions"
    tasks = " and ".join(f"{number(more)} of {task}" for task, more in count.items())
    said = f"Put {about} to {name(contender)} ({row.questions:,} so far{f'; best {tasks}' if tasks else ''}"
    return Step(
        kind="questions",
        format=contender.cost.format,
        hardware=None,
        count=count or ({row.task: total} if total else {}),
        seconds=seconds,
        usd=effort.usd(seconds),
        says=f"{said}{_price(seconds, effort)}): {_then(contender, choice, constraint, name)}",
    )


def _seconds(format: str, count: Mapping[str, int], effort: Effort) -> float | None:
    known = effort.seconds_per_question
    if not count or any((format, task) not in known for task in count):
        return None
    return sum(more * known[format, task] for task, more in count.items())


def _price(seconds: float | None, effort: Effort) -> str:
    if seconds is None:
        return ""
    usd = effort.usd(seconds)
    return f"; {duration(seconds)}{'' if usd is None else f', USD {number(usd)}'}"


def _then(contender: Candidate, choice: Candidate | None, constraint: Constraint, name: Names) -> str:
    shown = f"if it is shown to recover {limit(constraint.min_recovery_pct)} %, it"
    if choice is None:
        return f"{shown} is the choice."
    ratio = rate_of(contender.cost, constraint) / rate_of(choice.cost, constraint)
    return f"{shown} replaces {name(choice)} and answers {number(ratio)} times as many queries per dollar."


def _measure_accuracy(candidate: Candidate, name: Names, then: str = "") -> Step:
    then = then or "it is the choice by a prediction."
    return Step(
        kind="accuracy",
        format=candidate.cost.format,
        hardware=None,
        count={},
        seconds=None,
        usd=None,
        says=f"Measure the accuracy of {name(candidate)}: {then}",
    )


# --- requests -----------------------------------------------------------------------------------------------------


def _requests(choice: Candidate, runner_up: Candidate | None, constraint: Constraint, name: Names) -> Iterable[Step]:
    if choice.cost.source == "predicted":
        yield _time(choice, 0, f"Time {name(choice)}: its cost is predicted.")
    elif runner_up is not None and runner_up.cost.source == "measured" and overlap(choice.cost, runner_up.cost):
        more = requests_to_tell_apart(choice, runner_up)
        if more is not None:
            said = f"Time about {number(more)} more requests of {name(choice)} and of {name(runner_up)}"
            yield _time(choice, more, f"{said}, to tell their costs apart.", runner_up)
    for asked in constraint.latency_limits:
        more = _to_bound(choice.cost, asked)
        if more:
            said = f"Time about {number(more)} more requests of {name(choice)}: {choice.cost.requests} do not bound"
            yield _time(choice, more, f"{said} the {asked.at} of a limit.")


def _to_bound(cost: QueryCost, asked: LatencyLimit) -> int:
    """Further requests that bound a percentile; as many again where they wait for one another, so that it is open."""
    if cost.source != "measured" or asked.at == "mean":
        return 0
    least, figure = requests_for(float(asked.at[1:])), cost.figures.get(asked.name)
    if cost.requests < least:
        return least - cost.requests
    return cost.requests if figure is not None and math.isinf(figure.high) else 0


def requests_to_tell_apart(one: Candidate, other: Candidate) -> int | None:
    """Further requests of each until the interval of the ratio of their costs, shrinking as 1/√n, leaves 1 out."""
    mine, theirs = one.cost, other.cost
    if not mine.queries_per_usd or not theirs.queries_per_usd:
        return None
    if mine.ci95_queries_per_usd is None or theirs.ci95_queries_per_usd is None:
        return None
    if min(mine.ci95_queries_per_usd[0], theirs.ci95_queries_per_usd[0]) <= 0:
        return None
    lead = math.log(mine.queries_per_usd / theirs.queries_per_usd)
    down = math.hypot(
        math.log(mine.queries_per_usd / mine.ci95_queries_per_usd[0]),
        math.log(theirs.ci95_queries_per_usd[1] / theirs.queries_per_usd),
    )
    fewest = min(mine.requests, theirs.requests)
    if lead <= 0 or fewest < 2 or down <= lead:
        return None
    total = fewest * (down / lead) ** 2
    return max(1, math.ceil(total - fewest)) if total < _MOST else None


def _time(choice: Candidate, more: int, says: str, other: Candidate | None = None) -> Step:
    """Seconds and dollars of so many requests, at the rate that was measured."""
    timed = [found.cost for found in (choice, other) if found is not None]
    known = [cost for cost in timed if cost.queries_per_second]
    seconds = (
        sum(more / (cost.queries_per_second or 1.0) for cost in known) if more and len(known) == len(timed) else None
    )
    usd = sum(more * 1 / (cost.queries_per_usd or math.inf) for cost in known) if seconds is not None else None
    told = "" if seconds is None else f" That takes {duration(seconds)} and USD {number(usd)}."
    return Step(
        kind="requests",
        format=choice.cost.format,
        hardware=choice.cost.hardware,
        count={"requests": more} if more else {},
        seconds=seconds,
        usd=usd,
        says=says + told,
    )


def duration(seconds: float) -> str:
    """`40 seconds`, `12 minutes`, `3.5 hours`."""
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"about {number(seconds / size, digits=2)} {name}"
    return f"about {number(max(1.0, seconds), digits=2)} seconds"
