"""The noise of an engine: what changes when the same questions are put again with the same seeds.

A server that batches what arrives adds up in another order each time, and close calls fall the other way. A loss that
is no larger than that is not one of the format.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, variance

from bitworth.errors import BitworthError
from bitworth.types import Answer, Noise


def noise_of(task: str, format: str, runs: Sequence[Sequence[Answer]]) -> Noise:
    """Of two or more runs of one task, answers in any order.

    The standard deviation is that of the mean score of one run: √(Σ s²) / n, s² being the variance of one question's
    score over the runs. It takes questions to differ independently, and so has n degrees of freedom per further run
    where the runs' means alone would have one.

    Raises:
        BitworthError: a single run, or runs of different questions.
    """
    by_item = [{answer.item: answer for answer in run} for run in runs]
    if len(by_item) < 2:
        raise BitworthError(f"Task {task} was asked once, which shows no noise; ask for at least 2 repeats.")
    if any(run.keys() != by_item[0].keys() for run in by_item):
        raise BitworthError(f"Task {task}: the repeats of {format} asked different questions; run it again.")
    questions = [[run[item] for run in by_item] for item in sorted(by_item[0])]
    spread = sum(variance(answer.score for answer in asked) for asked in questions)
    return Noise(
        task=task,
        format=format,
        questions=len(questions),
        scores_pct=tuple(100 * fmean(answer.score for answer in run.values()) for run in by_item),
        answers_differ_pct=100 * fmean(_differing([_said(answer) for answer in asked]) for asked in questions),
        scores_differ_pct=100 * fmean(_differing([answer.score for answer in asked]) for asked in questions),
        score_sd_pct=100 * math.sqrt(spread) / len(questions),
    )


def _said(answer: Answer) -> tuple[str, ...]:
    return answer.written if any(answer.written) else (answer.prediction,)


def _differing(values: Sequence[object]) -> float:
    """The share of pairs that differ."""
    return fmean(one != other for one, other in combinations(values, 2))
