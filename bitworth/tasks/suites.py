"""Tasks that are asked together, by name: the paper's, and a quick look.

A suite's entries carry what its protocol sets beyond the tasks' own defaults: HellaSwag is a task without examples, but
the first leaderboard asks it with ten.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bitworth.errors import BitworthError
from bitworth.types import TaskSpec

LEADERBOARD_V1 = (
    TaskSpec(name="mmlu_llama"),
    TaskSpec(name="mmlu_cot_llama"),
    TaskSpec(name="arc_challenge_llama"),
    TaskSpec(name="gsm8k_llama"),
    TaskSpec(name="hellaswag", shots=10),
    TaskSpec(name="winogrande", shots=5),
    TaskSpec(name="truthfulqa_mc2"),
)
"""Paper, table 2: MMLU and MMLU-CoT both count in the average of seven."""

LEADERBOARD_V2 = (
    TaskSpec(name="leaderboard_ifeval"),
    TaskSpec(name="leaderboard_bbh"),
    TaskSpec(name="leaderboard_math_hard"),
    TaskSpec(name="leaderboard_gpqa"),
    TaskSpec(name="leaderboard_musr"),
    TaskSpec(name="leaderboard_mmlu_pro"),
)
"""Paper, table 3."""

REASONING = (TaskSpec(name="aime24"), TaskSpec(name="math500"), TaskSpec(name="gpqa_diamond"))
"""Paper, table 4."""

QUICK = tuple(TaskSpec(name=name, limit=100) for name in ("arc_challenge", "hellaswag", "winogrande", "mmlu"))
"""A hundred questions each of four tasks that are scored without writing; the demo's data has them."""

LONG_CONTEXT = tuple(TaskSpec(name=f"ruler_{thousands}k") for thousands in (4, 8, 16, 32, 64, 128))
"""Paper, table 3: the mean over lengths."""

MULTILINGUAL = (TaskSpec(name="mgsm_native_cot"), TaskSpec(name="belebele"))
"""Eleven languages, which reports tell apart."""

CODE = (TaskSpec(name="humaneval"), TaskSpec(name="mbpp"))

SUITES: Mapping[str, tuple[TaskSpec, ...]] = {
    "quick": QUICK,
    "leaderboard-v1": LEADERBOARD_V1,
    "leaderboard-v2": LEADERBOARD_V2,
    "reasoning": REASONING,
    "code": CODE,
    "long-context": LONG_CONTEXT,
    "multilingual": MULTILINGUAL,
    "paper": (*LEADERBOARD_V1, *LEADERBOARD_V2, *CODE, *LONG_CONTEXT),
}


def suites(known: Iterable[str]) -> dict[str, tuple[TaskSpec, ...]]:
    """The suites, each without tasks that are not among `known`; those of which nothing is left are left out."""
    names = set(known)
    kept = {name: tuple(spec for spec in specs if spec.name in names) for name, specs in SUITES.items()}
    return {name: specs for name, specs in kept.items() if specs}


def expand(asked: Sequence[TaskSpec], known: Sequence[str]) -> list[TaskSpec]:
    """Tasks and suites to tasks, each once, in the order in which they were named.

    A limit, seed or number of shots, samples or repeats given with a suite is that of each of its tasks. A task that is
    named itself is as its own entry says, wherever it stands; one that is in two suites is as the first has it.

    Raises:
        BitworthError: a name that is neither a task nor a suite.
    """
    offered = suites(known)
    found: dict[str, TaskSpec] = {}
    for spec in asked:
        if spec.name in offered:
            for one in offered[spec.name]:
                found.setdefault(one.name, _within(spec, one))
        elif spec.name not in known:
            raise BitworthError(unknown_task(spec.name, known))
    own = {spec.name: spec for spec in asked if spec.name not in offered}
    order = dict.fromkeys(
        name for spec in asked for name in ([one.name for one in offered.get(spec.name, ())] or [spec.name])
    )
    return [own.get(name) or found[name] for name in order]


def unknown_task(name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is neither a task's nor a suite's."""
    offered = suites(known)
    close = difflib.get_close_matches(name, [*known, *offered], n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"Unknown task '{name}'; {hint}known: {', '.join(sorted(known))}; suites: {', '.join(offered)}."


def _within(suite: TaskSpec, task: TaskSpec) -> TaskSpec:
    return replace(
        task,
        limit=task.limit if suite.limit is None else suite.limit,
        seed=suite.seed,
        shots=task.shots if suite.shots is None else suite.shots,
        samples=task.samples if suite.samples is None else suite.samples,
        temperature=task.temperature if suite.temperature is None else suite.temperature,
        chat=task.chat if suite.chat is None else suite.chat,
        repeats=suite.repeats,
    )
