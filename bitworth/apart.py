"""Where two models' answers part: the questions answered most unlike, and how alike all that was written is.

A score says how many answers became wrong; a reader who signs for a model wants to see some. Both come from stored
answers alone, without torch: ROUGE where its package is installed, and the share of identical answers in any case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from importlib.util import find_spec
from statistics import fmean

import numpy as np
from scipy.special import softmax

from bitworth.similarity import MEASURES, scores_of
from bitworth.types import Answer, AnswerPair, Likeness

#: Pairs a task that are looked at closely, and words of each text that are: what decides is at the front.
CLOSELY, WORDS = 200, 300
#: Pairs a task whose likeness is measured, evenly spread over them.
MEASURED = 500
#: Measures that need no neural network.
_LIGHT = ("identical", "rouge1", "rougeL")


def differing(
    baseline: Sequence[Answer], quantized: Sequence[Answer], *, format: str, most: int = 3
) -> list[AnswerPair]:
    """The `most` questions of one task answered most unlike; those whose score changed first, then by distance."""
    pairs = [(b, q) for b, q in _common(baseline, quantized) if len(set(_said(b, q))) > 1]
    pairs.sort(key=lambda pair: (-abs(pair[0].score - pair[1].score), pair[0].item))
    found = [_pair(before, after, format) for before, after in pairs[:CLOSELY]]
    found.sort(key=lambda pair: (-abs(pair.baseline_score - pair.quantized_score), -pair.distance, pair.item))
    return found[:most]


def likenesses(baseline: Sequence[Answer], quantized: Sequence[Answer], *, format: str) -> list[Likeness]:
    """How alike one task's written answers are, a row a measure; none where nothing was written."""
    pairs = [(b, q) for b, q in _common(baseline, quantized) if not b.logprobs and not q.logprobs]
    if not any(any((*b.written, *q.written)) for b, q in pairs):
        return []
    step = max(1, math.ceil(len(pairs) / MEASURED))
    before, after = [b.written[0] for b, _ in pairs[::step]], [q.written[0] for _, q in pairs[::step]]
    return [
        _likeness(pairs[0][0].task, format, measure, scores_of(measure, before, after))
        for measure in _LIGHT
        if (package := MEASURES[measure]) is None or find_spec(package.partition(".")[0])
    ]


def _common(baseline: Sequence[Answer], quantized: Sequence[Answer]) -> Iterator[tuple[Answer, Answer]]:
    before = {answer.item: answer for answer in baseline}
    for answer in quantized:
        if answer.item in before:
            yield before[answer.item], answer


def _pair(before: Answer, after: Answer, format: str) -> AnswerPair:
    ours, theirs = _said(before, after)
    return AnswerPair(
        task=after.task,
        format=format,
        item=after.item,
        baseline=ours,
        quantized=theirs,
        baseline_score=before.score,
        quantized_score=after.score,
        distance=_distance(before, after),
    )


def _said(before: Answer, after: Answer) -> tuple[str, str]:
    """What each said; of several programs, the first two of one place that differ."""
    pairs = list(zip(before.written, after.written, strict=False))
    ours, theirs = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    return ours or before.prediction, theirs or after.prediction


def _distance(before: Answer, after: Answer) -> float:
    if len(before.logprobs) == len(after.logprobs) > 1:
        changes = np.abs(softmax(before.logprobs) - softmax(after.logprobs))
        return float(changes.sum() / 2)
    ours, theirs = (said.split()[:WORDS] for said in _said(before, after))
    return 1 - SequenceMatcher(None, ours, theirs, autojunk=False).ratio()


def _likeness(task: str, format: str, measure: str, scores: Sequence[float]) -> Likeness:
    low, middle, high = (float(value) for value in np.quantile(scores, (0.1, 0.5, 0.9)))
    return Likeness(
        task=task,
        format=format,
        measure=measure,
        mean=fmean(scores),
        p10=low,
        median=middle,
        p90=high,
        questions=len(scores),
    )
