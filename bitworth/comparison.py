"""Two studies, or two versions of a model, side by side: settings, accuracy, speed and cost, with intervals.

Scores are compared question by question where both sides answered the same questions of the same data (the ledger keeps
the answers): the noise of the questions' difficulty then cancels. Else they are compared as independent samples, and
the row says so. Ratios are `after` over `before`, in percent for scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bitworth.assembly import assemble
from bitworth.errors import BitworthError
from bitworth.report.figures import hardware_name, times
from bitworth.sides import Answered, Side
from bitworth.statistics import holm, independent_ratio, mean_recovery
from bitworth.statistics.pairs import Floats, Labels
from bitworth.types import AVERAGE, Answer, QueryCost

_LEVEL = 0.05
_ASKED = ("task", "use_case", "load", "batch", "repeat")
"""Inputs of a cell that say what is asked, not what could change its result."""
Change = Literal["better", "worse", "no change shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """One setting that differs; None where a side lacks it."""

    what: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreChange:
    """One task's scores, in [0, 1], and 100 × after / before with its 95 % interval.

    `questions` is how many are compared; `p_holm` is adjusted over the tasks of the pair of formats.
    """

    task: str
    before_format: str
    after_format: str
    before: float
    after: float
    ratio_pct: float
    ci95_pct: tuple[float, float]
    paired: bool
    questions: int
    p_value: float
    p_holm: float | None
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedChange:
    """One scenario's figures, and after / before of queries per second and per dollar with 95 % intervals."""

    use_case: str
    load: str
    hardware: str
    before_format: str
    after_format: str
    before_latency_s: float | None
    after_latency_s: float | None
    speed_ratio: float
    speed_ci95: tuple[float, float] | None
    queries_per_usd_ratio: float
    queries_per_usd_ci95: tuple[float, float] | None
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceChange:
    """What is deployed in a scenario before and after."""

    use_case: str
    load: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that differs; `notes` say what could not be compared."""

    settings: tuple[SettingChange, ...]
    scores: tuple[ScoreChange, ...]
    speeds: tuple[SpeedChange, ...]
    choices: tuple[ChoiceChange, ...]
    notes: tuple[str, ...]


def compare_sides(
    before: Side, after: Side, *, before_format: str | None = None, after_format: str | None = None
) -> Comparison:
    """Compare two folders, format by format of the same name, or one format with another.

    Args:
        before: the older side.
        after: the newer side.
        before_format: a format of `before`; None takes all that both have, or the one that `after_format` names.
        after_format: a format of `after`, likewise.

    Raises:
        BitworthError: a side lacks the format that is named, or they have none in common.
    """
    pairs = _format_pairs(before, after, before_format, after_format)
    scores, notes = _scores(before, after, pairs)
    whole = before_format is None and after_format is None
    return Comparison(
        settings=tuple(_settings(before, after, pairs)),
        scores=tuple(scores),
        speeds=tuple(_speeds(before, after, pairs)),
        choices=tuple(_choices(before, after)) if whole else (),
        notes=tuple(notes),
    )


def _format_pairs(before: Side, after: Side, one: str | None, other: str | None) -> list[tuple[str, str]]:
    if one is None and other is None:
        pairs = [(name, name) for name in before.formats() if name in after.formats()]
        if not pairs:
            raise BitworthError(
                f"{before.root} ({', '.join(before.formats())}) and {after.root} ({', '.join(after.formats())}) have "
                "no format in common; name one of each as FOLDER:FORMAT."
            )
        return pairs
    pair = (one or other or "", other or one or "")
    for name, side in zip(pair, (before, after), strict=True):
        if name not in side.formats():
            raise BitworthError(f"{side.root} has no results of format '{name}'; it has {', '.join(side.formats())}.")
    return [pair]


# --- accuracy -----------------------------------------------------------------------------------------------------


def _scores(before: Side, after: Side, pairs: Sequence[tuple[str, str]]) -> tuple[list[ScoreChange], list[str]]:
    older, newer = before.answered(), after.answered()
    rows: list[ScoreChange] = []
    notes: list[str] = []
    for one, other in pairs:
        shared = [task for format, task in older if format == one and (other, task) in newer]
        columns: dict[str, _Columns] = {}
        for task in shared:
            found = _columns(older[one, task], newer[other, task])
            if found.before.sum() <= 0:
                notes.append(f"{task}, {one}: no question was answered right before, so there is no ratio.")
                continue
            columns[task] = found
        found_rows = [_change(task, one, other, {task: column}) for task, column in columns.items()]
        adjusted = holm([row.p_value for row in found_rows])
        rows += [_adjusted(row, p) for row, p in zip(found_rows, adjusted, strict=True)]
        if len(columns) > 1:
            rows.append(_change(AVERAGE, one, other, columns))
        alone = sorted({task for (format, task) in (*older, *newer) if format in (one, other)} - {*shared})
        notes += [f"{task}, {one}: only one side answered it." for task in alone]
    return rows, notes


@dataclass(frozen=True, slots=True)
class _Columns:
    """Both sides' scores, question by question where `paired`, and a cluster's label a question where they name any."""

    before: Floats
    after: Floats
    paired: bool
    clusters: tuple[Labels | None, Labels | None] = (None, None)


def _columns(before: Answered, after: Answered) -> _Columns:
    common = sorted(before.answers.keys() & after.answers.keys())
    if before.data == after.data:
        olds, news = ([side.answers[item] for item in common] for side in (before, after))
        labels = _clusters(olds)
        if len(set(labels or common)) > 1:  # of one passage nothing tells how much passages differ
            return _Columns(_array(olds), _array(news), True, (labels, labels))
    olds, news = list(before.answers.values()), list(after.answers.values())
    return _Columns(_array(olds), _array(news), False, (_clusters(olds), _clusters(news)))


def _array(answers: Iterable[Answer]) -> Floats:
    return np.array([answer.score for answer in answers], dtype=np.float64)


def _clusters(answers: Sequence[Answer]) -> list[tuple[str, str]] | None:
    if all(answer.cluster is None for answer in answers):
        return None
    return [("item", answer.item) if answer.cluster is None else ("cluster", answer.cluster) for answer in answers]


def _change(task: str, one: str, other: str, columns: Mapping[str, _Columns]) -> ScoreChange:
    """The ratio of the plain means of these tasks; paired where every one of them is."""
    paired = all(column.paired for column in columns.values())
    before, after = (
        float(np.mean([side.mean() for side in sides]))
        for sides in ([c.before for c in columns.values()], [c.after for c in columns.values()])
    )
    if paired:
        scores = {name: (column.before, column.after) for name, column in columns.items()}
        clusters = {name: column.clusters[0] for name, column in columns.items()}
        found = mean_recovery(scores, min_recovery_pct=100, clusters=clusters)
        bounds, p_value = found.ci95_pct, found.p_value
    else:
        bounds, p_value = independent_ratio(
            [(column.before, column.clusters[0]) for column in columns.values()],
            [(column.after, column.clusters[1]) for column in columns.values()],
        )
    return ScoreChange(
        task=task,
        before_format=one,
        after_format=other,
        before=before,
        after=after,
        ratio_pct=100 * after / before,
        ci95_pct=bounds,
        paired=paired,
        questions=sum(min(len(column.before), len(column.after)) for column in columns.values()),
        p_value=p_value,
        p_holm=None,
        change=_judged(bounds, 100),
    )


def _adjusted(row: ScoreChange, p_holm: float) -> ScoreChange:
    """With the p-value that many tasks leave of it, which its change has to survive."""
    return replace(row, p_holm=p_holm, change=row.change if p_holm <= _LEVEL else "no change shown")


def _judged(bounds: tuple[float, float] | None, same: float) -> Change:
    if bounds is None or bounds[0] <= same <= bounds[1]:
        return "no change shown"
    return "better" if bounds[0] > same else "worse"


# --- speed and cost -----------------------------------------------------------------------------------------------


def _speeds(before: Side, after: Side, pairs: Sequence[tuple[str, str]]) -> Iterator[SpeedChange]:
    older, newer = before.costs(), after.costs()
    for one, other in pairs:
        for old in (cost for cost in older if cost.format == one):
            new = next((cost for cost in newer if cost.format == other and _place(cost) == _place(old)), None)
            if new is not None and (found := _speed(old, new)) is not None:
                yield found


def _place(cost: QueryCost) -> tuple[object, ...]:
    return cost.use_case, cost.load, cost.hardware, cost.count


def _speed(old: QueryCost, new: QueryCost) -> SpeedChange | None:
    money = times(new, old)
    if money is None or not old.queries_per_second or not new.queries_per_second:
        return None
    # the price an hour is certain, so both ratios have the same relative error
    ratio = new.queries_per_second / old.queries_per_second
    bounds = None if money[1] is None else (money[1][0] * ratio / money[0], money[1][1] * ratio / money[0])
    return SpeedChange(
        use_case=old.use_case.name,
        load=old.load,
        hardware=hardware_name(old),
        before_format=old.format,
        after_format=new.format,
        before_latency_s=old.latency_s,
        after_latency_s=new.latency_s,
        speed_ratio=ratio,
        speed_ci95=bounds,
        queries_per_usd_ratio=money[0],
        queries_per_usd_ci95=money[1],
        change=_judged(money[1], 1),
    )


# --- settings and choices -----------------------------------------------------------------------------------------


def _settings(before: Side, after: Side, pairs: Sequence[tuple[str, str]]) -> Iterator[SettingChange]:
    """What was asked differently, then what was run differently."""
    both = [_flat(side.study.model_dump(mode="json")) if side.study else {} for side in (before, after)]
    yield from _differences(both[0], both[1])
    for one, other in pairs:
        yield from _differences(_inputs(before, one, other), _inputs(after, other, one))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[SettingChange]:
    for what in dict.fromkeys([*old, *new]):
        if old.get(what) != new.get(what):
            yield SettingChange(what=what, before=old.get(what), after=new.get(what))


def _inputs(side: Side, format: str, other: str) -> dict[str, Any]:
    """What could change a format's results, by kind of cell: versions, machine, weights, recipe, data."""
    name = format if format == other else "the format"
    found: dict[str, Any] = {}
    for cell, _ in side.results:
        if cell.format == format:
            kept = {key: value for key, value in cell.inputs.items() if key not in _ASKED}
            task = f" {cell.inputs['task']['name']}" if cell.kind == "evaluate" else ""
            found |= {f"{cell.kind}{task} {name}: {key}": value for key, value in _flat(kept).items()}
    return found


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by path; entries of a list that have a name go by it."""
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(part["name"]) if isinstance(part, Mapping) and "name" in part else str(at), part)
                 for at, part in enumerate(value)]  # fmt: skip
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, part in parts:
        flat |= _flat(part, f"{path}.{key}" if path else key)
    return flat


def _choices(before: Side, after: Side) -> Iterator[ChoiceChange]:
    """Scenarios that both studies decide, whose choice is another."""
    if before.study is None or after.study is None:
        return
    old, new = ({(row.use_case.name, row.load): row.choice for row in assemble(side.root).recommendations}
                for side in (before, after))  # fmt: skip
    for (use_case, load), choice in old.items():
        if (use_case, load) in new:
            names = [f"{o.format} on {hardware_name(o.cost)}" if o else None for o in (choice, new[use_case, load])]
            if names[0] != names[1]:
                yield ChoiceChange(use_case=use_case, load=load, before=names[0], after=names[1])
