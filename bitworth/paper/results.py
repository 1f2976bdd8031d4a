"""The published figures of a model as a study's result: what `run` would have said of them, for the same report.

Accuracy is Leaderboard V1 (Table 2), whose scores are shares of questions. The paper prints no answers, so questions
cannot be paired: intervals are those of two models that answer independently, which are wider than paired ones. Timings
are those of Tables 5 and 6, priced by Table 9, less those that are out of line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import fmean

from bitworth import tasks, workloads
from bitworth.benchmarking import cost_of
from bitworth.paper.costs import LOADS, LoadTable, cost, place, use_cases
from bitworth.paper.defects import Defect, Key
from bitworth.paper.printed import BASELINE_FORMAT, Row, Tables
from bitworth.paper.recomputed import V1_TASKS
from bitworth.recommendation import recommend
from bitworth.statistics import mean_recovery
from bitworth.tasks.suites import LEADERBOARD_V1
from bitworth.types import AVERAGE, BASELINE, Constraint, EngineFacts, Hardware, QueryCost, Recovery, StudyResult

MODELS = {size: f"meta-llama/Llama-3.1-{size}-Instruct" for size in ("8B", "70B", "405B")}
TASKS = dict(zip(V1_TASKS, (spec.name for spec in LEADERBOARD_V1), strict=True))
"""Columns of Table 2 by the names that tasks have here; as many questions as the public test sets have."""
_HARNESS = EngineFacts(engine="lm-eval on vLLM, published figures", kernel="as published", device="not stated")

Scores = tuple[list[int], list[int]]
"""Of the baseline and of the quantized model, question by question."""


def result_of(tables: Tables, size: str, *, min_recovery_pct: float, defects: Sequence[Defect] = ()) -> StudyResult:
    """What the tables say of one size; the defects that touch it stand in the result's settings."""
    constraint = Constraint(min_recovery_pct=min_recovery_pct)
    recoveries = tuple(recoveries_of(tables, size, min_recovery_pct))
    costs, hardware = _costs(tables, size, {key for one in defects if one.kind == "out of line" for key in one.cells})
    formats = dict.fromkeys([BASELINE, *(row.format for row in recoveries), *(cost.format for cost in costs)])
    return StudyResult(
        name=f"Llama-3.1-{size}-Instruct, as published",
        model=MODELS[size],
        formats=tuple(formats),
        constraint=constraint,
        checkpoints={},
        recoveries=recoveries,
        divergences={},
        costs=costs,
        recommendations=recommend(costs, recoveries, constraint),
        missing=(),
        evaluated_with=dict.fromkeys((row.format for row in recoveries), _HARNESS),
        hardware=hardware,
        machine={},
        settings=_settings(size, defects),
        finished="arXiv 2411.02355v4",
    )


def recoveries_of(tables: Tables, size: str, min_recovery_pct: float) -> Iterator[Recovery]:
    """Recovery of every quantized row of Table 2 a task, then of the mean of the seven."""
    baseline = tables[2].row(size, BASELINE_FORMAT) if 2 in tables else None
    for row in tables[2].rows if baseline is not None else ():
        if row.size != size or row is baseline:
            continue
        assert baseline is not None
        pairs = {task: _shares(baseline, row, column) for column, task in TASKS.items()}
        scores = {task: independent(*pair, tasks.get(task).questions) for task, pair in pairs.items()}
        for task in pairs:
            yield _recovery(task, row.name, {task: pairs[task]}, {task: scores[task]}, min_recovery_pct)
        yield _recovery(AVERAGE, row.name, pairs, scores, min_recovery_pct)


def independent(baseline: float, quantized: float, count: int) -> Scores:
    """Right and wrong answers of two models with these shares right, uncorrelated over the questions."""
    right, also = round(count * baseline), round(count * quantized)
    both = round(right * also / count)
    neither = count - right - also + both
    first = [1] * right + [0] * (count - right)
    second = [1] * both + [0] * (right - both) + [1] * (also - both) + [0] * neither
    return first, second


def _shares(baseline: Row, row: Row, column: str) -> tuple[float, float]:
    return baseline.figures[column].value / 100, row.figures[column].value / 100


def _recovery(
    name: str, format: str, pairs: Mapping[str, tuple[float, float]], scores: Mapping[str, Scores], least_pct: float
) -> Recovery:
    exact = mean_recovery({task: ([b], [q]) for task, (b, q) in pairs.items()}, min_recovery_pct=least_pct)
    found = mean_recovery(scores, min_recovery_pct=least_pct)
    return Recovery(
        task=name,
        format=format,
        baseline=fmean(b for b, _ in pairs.values()),
        quantized=fmean(q for _, q in pairs.values()),
        recovery_pct=exact.recovery_pct,
        ci95_pct=found.ci95_pct,
        questions=sum(len(one) for one, _ in scores.values()),
        min_recovery_pct=least_pct,
        verdict=found.verdict,
        questions_needed=found.questions_needed,
    )


def _costs(tables: Tables, size: str, doubtful: Collection[Key]) -> tuple[tuple[QueryCost, ...], tuple[Hardware, ...]]:
    """Costs and the hardware they are on; a doubtful timing decides nothing."""
    costs: list[QueryCost] = []
    machines: dict[tuple[str, int], Hardware] = {}
    for load in LOADS:
        rows = [row for row in tables[load.number].rows if row.size == size] if load.number in tables else []
        for row in rows:
            machine = machines.setdefault((row.gpu, row.count), place(tables, row))
            for name in use_cases(row, load.timing):
                known = (load.number, row.label, name + load.timing) not in doubtful
                costs.append(cost(row, name, load, machine) if known else _without(row, name, load, machine))
    return tuple(costs), tuple(machines.values())


def _without(row: Row, use_case: str, load: LoadTable, machine: Hardware) -> QueryCost:
    why = f"its printed figure ({row.figures[use_case + load.timing].value:g}) is out of line with the other rows"
    return cost_of(row.name, None, workloads.use_case(use_case), load.load, machine, unsupported=why)


def _settings(size: str, defects: Sequence[Defect]) -> dict[str, str]:
    settings = {
        "source": "Tables 2, 5, 6 and 9 of arXiv 2411.02355v4; no figure was measured here",
        "tasks": "Open LLM Leaderboard V1, seven columns; intervals as if the models answered independently, since no "
        "answers are published",
        "calibration": "see the paper, section 3.2 and appendix A.2",
        "engine for speed": "vLLM 0.6.4.post1",
    }
    touching = [one.says for one in defects if any(f"{row} ".startswith(f"{size} ") for _, row, _ in one.cells)]
    return settings | {f"in doubt ({number})": says for number, says in enumerate(touching, start=1)}
