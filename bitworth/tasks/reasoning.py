"""Reasoning under sampling (paper, table 4): AIME 2024, MATH-500, GPQA-Diamond; pass@1 averaged over samples.

Twenty answers a question at temperature 0.6 and top-p 0.95, of at most 32,768 tokens. The paper asked through
LightEval; here the rows, answers and scores are those of lm-eval's definitions, asked without examples and without
their stop strings (a chain of thought may well contain "Question:"), with a line that asks for the form of answer
that the scores look for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bitworth.tasks.base import MATH_PACKAGES, TaskDef
from bitworth.types import Answer

TEMPERATURE, TOP_P, SAMPLES, MAX_TOKENS = 0.6, 0.95, 20, 32768

_GENERATION = {"do_sample": True, "max_gen_toks": MAX_TOKENS, "until": []}
_BOXED = "\n\nThink step by step, and give the final answer within \\boxed{}."
_LETTER = (
    "{{Question}}\n\n(A) {{choice1}}\n(B) {{choice2}}\n(C) {{choice3}}\n(D) {{choice4}}\n\n"
    "Think step by step, and end with the letter of the right choice in parentheses."
)

TASKS = (
    TaskDef(
        name="aime24",
        yaml="aime/aime24.yaml",
        kind="generated",
        metric="exact_match",
        dataset="Maxwell-Jia/AIME_2024",
        folders=("Maxwell-Jia/AIME_2024",),
        flat="aime",
        stems=("aime24", "aime_2024_problems"),
        item_key="ID",
        questions=30,
        tokens=150,
        answer_tokens=12000,
        chat=True,
        splits=("train",),
        pool="",
        temperature=TEMPERATURE,
        top_p=TOP_P,
        samples=SAMPLES,
        overrides={"doc_to_text": "{{Problem}}" + _BOXED, "generation_kwargs": _GENERATION},
    ),
    TaskDef(
        name="math500",
        yaml="minerva_math/minerva_math500.yaml",
        kind="generated",
        metric="math_verify",
        dataset="HuggingFaceH4/MATH-500",
        folders=("HuggingFaceH4/MATH-500",),
        flat="math",
        stems=("math500",),
        item_key="unique_id",
        questions=500,
        tokens=120,
        answer_tokens=4000,
        chat=True,
        splits=("test",),
        pool="",
        temperature=TEMPERATURE,
        top_p=TOP_P,
        samples=SAMPLES,
        overrides={"doc_to_text": "{{problem}}" + _BOXED, "generation_kwargs": _GENERATION},
        needs=("math_verify", "antlr4"),
        packages=MATH_PACKAGES,
    ),
    TaskDef(
        name="gpqa_diamond",
        yaml="gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml",
        kind="generated",
        metric="exact_match",
        filter="flexible-extract",
        dataset="Idavidrein/gpqa",
        gated=True,
        folders=("Idavidrein/gpqa",),
        config="gpqa_diamond",
        flat="gpqa",
        stems=("gpqa_diamond",),
        questions=198,
        tokens=250,
        answer_tokens=8000,
        chat=True,
        prepared=True,
        splits=("train",),
        pool="",
        temperature=TEMPERATURE,
        top_p=TOP_P,
        samples=SAMPLES,
        overrides={"doc_to_text": _LETTER, "generation_kwargs": _GENERATION},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """pass@1 averaged over samples, in percent, with 95 % normal intervals.

    `ci95_pct` is about questions like these, so it holds both the luck of the samples and the choice of questions;
    `samples_ci95_pct` is about these very questions, the luck of the samples alone (None of one sample each).
    """

    pass_at_1_pct: float
    ci95_pct: tuple[float, float]
    samples_ci95_pct: tuple[float, float] | None
    questions: int
    samples: int


def pass_rate(answers: Sequence[Answer], samples: int) -> PassRate:
    """From answers whose score is the share of `samples` right ones.

    A question's mean over its samples already varies by the luck of these, so the variance of the means over questions
    holds both. Either interval imagines a right and a wrong one besides, of the questions or of the samples: where all
    are alike, that is no proof that others would be.
    """
    from bitworth.statistics import share_interval  # and numpy with it, which naming tasks does without

    scores = [answer.score for answer in answers]
    return PassRate(
        pass_at_1_pct=100 * fmean(scores),
        ci95_pct=_percent(share_interval(scores)),
        samples_ci95_pct=_percent(_of_samples(scores, samples)) if samples > 1 else None,
        questions=len(scores),
        samples=samples,
    )


def _of_samples(shares: Sequence[float], samples: int) -> tuple[float, float]:
    """Of the mean over these very questions; of n samples the right ones have the variance n² p (1 - p) / (n - 1)."""
    from bitworth.statistics import Z95

    every = len(shares) * samples + 2
    middle = (samples * sum(shares) + 1) / every
    variance = sum(samples**2 * p * (1 - p) / (samples - 1) for p in shares) + middle**2 + (1 - middle) ** 2
    reach = Z95 * math.sqrt(variance) / every
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _percent(bounds: tuple[float, float]) -> tuple[float, float]:
    return 100 * bounds[0], 100 * bounds[1]
