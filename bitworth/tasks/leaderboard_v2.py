"""The tasks of the second Open LLM Leaderboard (paper, table 3 and appendix A), one row each.

All six are asked in conversations with their examples as turns. The leaderboard reports what is left of a score when
guessing is taken off: 100 (score - chance) / (1 - chance), nothing below 0; of BBH and MuSR by subtask, then the mean
over subtasks. lm-eval does not do this; `normalized` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from bitworth.tasks.base import MATH_PACKAGES, Benchmark, TaskDef
from bitworth.tasks.passages import column, introduced
from bitworth.types import Answer

BBH_CHOICES: Mapping[str, int] = {
    "boolean_expressions": 2,
    "causal_judgement": 2,
    "date_understanding": 6,
    "disambiguation_qa": 3,
    "formal_fallacies": 2,
    "geometric_shapes": 11,
    "hyperbaton": 2,
    "logical_deduction_five_objects": 5,
    "logical_deduction_seven_objects": 7,
    "logical_deduction_three_objects": 3,
    "movie_recommendation": 6,
    "navigate": 2,
    "object_counting": 19,
    "penguins_in_a_table": 5,
    "reasoning_about_colored_objects": 18,
    "ruin_names": 6,
    "salient_translation_error_detection": 6,
    "snarks": 2,
    "sports_understanding": 2,
    "temporal_sequences": 4,
    "tracking_shuffled_objects_five_objects": 5,
    "tracking_shuffled_objects_seven_objects": 7,
    "tracking_shuffled_objects_three_objects": 3,
    "web_of_lies": 2,
}
"""Choices a question of each subtask that has choices, as lm-eval's definitions list them."""

BBH_WRITTEN = ("dyck_languages", "multistep_arithmetic_two", "word_sorting")
"""The subtasks without choices, which the leaderboard leaves out."""

MUSR_CHOICES: Mapping[str, int] = {"murder_mysteries": 2, "object_placements": 5, "team_allocation": 3}

MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

TASKS = (
    TaskDef(
        name="leaderboard_mmlu_pro",
        yaml="leaderboard/mmlu_pro/mmlu_pro.yaml",
        metric="acc",
        dataset="TIGER-Lab/MMLU-Pro",
        folders=("TIGER-Lab/MMLU-Pro",),
        flat="mmlu_pro",
        questions=12032,
        tokens=900,
        shots=5,
        chat=True,
        multiturn=True,
        item_key="question_id",
        sharing=introduced,
        splits=("test",),
        pool="validation",
        chance=0.1,
    ),
    TaskDef(
        name="leaderboard_bbh",
        yaml="leaderboard/bbh_mc/{subset}.yaml",
        metric="acc_norm",
        dataset="SaylorTwift/bbh",
        folders=("SaylorTwift/bbh", "lukaemon/bbh"),
        flat="bbh",
        stems=("{subset}", "bbh/{subset}"),
        questions=5761,
        tokens=600,
        shots=3,
        chat=True,
        multiturn=True,
        subsets=tuple(BBH_CHOICES),
        splits=("test",),
        pool="",
        chance={subset: 1 / choices for subset, choices in BBH_CHOICES.items()},
        macro=True,
    ),
    TaskDef(
        name="leaderboard_gpqa",
        yaml="leaderboard/gpqa/{subset}_zeroshot.yaml",
        metric="acc_norm",
        dataset="Idavidrein/gpqa",
        gated=True,
        folders=("Idavidrein/gpqa",),
        flat="gpqa",
        stems=("{subset}",),
        questions=1192,
        tokens=250,
        chat=True,
        multiturn=True,
        prepared=True,
        subsets=("gpqa_diamond", "gpqa_extended", "gpqa_main"),
        sharing=column("Question"),  # the diamonds are among the main questions, and these among the extended ones
        splits=("train",),
        pool="",
        chance=0.25,
    ),
    TaskDef(
        name="leaderboard_math_hard",
        yaml="leaderboard/math/math_{subset}.yaml",
        kind="generated",
        metric="exact_match",
        dataset="DigitalLearningGmbH/MATH-lighteval",
        folders=("DigitalLearningGmbH/MATH-lighteval", "EleutherAI/hendrycks_math"),
        flat="math",
        stems=("math", "minerva_math", "minerva_math_olmo"),
        questions=1324,  # of level 5
        tokens=1100,
        answer_tokens=400,
        shots=4,
        chat=True,
        multiturn=True,
        prepared=True,
        subsets=MATH_SUBJECTS,
        subset_key="config",
        names={"counting_and_probability": "counting_and_prob", "number_theory": "num_theory"},
        splits=("test",),
        pool="",
        needs=("math_verify", "antlr4"),
        packages=MATH_PACKAGES,
    ),
    TaskDef(
        name="leaderboard_ifeval",
        yaml="leaderboard/ifeval/ifeval.yaml",
        kind="generated",
        metric="prompt_level_strict_acc",
        dataset="wis-k/instruction-following-eval",
        folders=("wis-k/instruction-following-eval", "google/IFEval"),
        flat="ifeval",
        stems=("input_data",),
        item_key="key",
        questions=541,
        tokens=500,
        answer_tokens=350,
        chat=True,
        multiturn=True,
        splits=("train",),
        pool="",
        needs=("langdetect", "immutabledict", "nltk:tokenizers/punkt_tab"),
        packages=("langdetect", "nltk"),
    ),
    TaskDef(
        name="leaderboard_musr",
        yaml="leaderboard/musr/musr_{subset}.yaml",
        metric="acc_norm",
        dataset="TAUR-Lab/MuSR",
        folders=("TAUR-Lab/MuSR",),
        flat="musr",
        stems=("{subset}",),
        sharing=column("narrative"),
        questions=756,
        tokens=1300,
        chat=True,
        multiturn=True,
        subsets=tuple(MUSR_CHOICES),
        subset_splits=True,
        splits=("test",),
        pool="",
        chance={subset: 1 / choices for subset, choices in MUSR_CHOICES.items()},
        macro=True,
    ),
    TaskDef(
        name="bbh_cot_fewshot",
        yaml="bbh/cot_fewshot/{subset}.yaml",
        kind="generated",
        metric="exact_match",
        dataset="SaylorTwift/bbh",
        folders=("SaylorTwift/bbh", "lukaemon/bbh"),
        flat="bbh",
        stems=("{subset}", "bbh/{subset}"),
        questions=6511,
        tokens=1000,
        answer_tokens=150,
        shots=3,
        chat=True,
        multiturn=True,
        subsets=tuple(sorted((*BBH_CHOICES, *BBH_WRITTEN))),
        splits=("test",),
        pool="",
        macro=True,
    ),
)


def normalized_pct(task: Benchmark, answers: Sequence[Answer]) -> float:
    """The leaderboard's figure for a task's answers, in percent of what is above guessing."""
    groups: dict[str | None, list[float]] = {}
    for answer in answers:
        groups.setdefault(answer.group if task.macro else None, []).append(answer.score)
    return fmean(_above_chance(fmean(scores), chance_of(task, group)) for group, scores in groups.items())


def above_chance(task: Benchmark, answers: Sequence[Answer]) -> list[Answer]:
    """The answers with scores whose plain mean is the leaderboard's figure / 100, for intervals of it.

    Scores may be negative or above 1. A subtask below chance counts as it is here and as 0 in `normalized_pct`.
    """
    counts = Counter(answer.group for answer in answers)
    found = []
    for answer in answers:
        chance = chance_of(task, answer.group)
        weight = len(answers) / (len(counts) * counts[answer.group]) if task.macro else 1.0
        found.append(replace(answer, score=weight * (answer.score - chance) / (1 - chance)))
    return found


def chance_of(task: Benchmark, group: str | None) -> float:
    """The score of guessing, in a subtask."""
    return task.chance if isinstance(task.chance, float | int) else task.chance[str(group)]


def _above_chance(score: float, chance: float) -> float:
    return 100 * max(0.0, (score - chance) / (1 - chance))
