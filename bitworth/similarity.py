"""How much alike two models write: each answer of the quantized model beside the baseline's to the same prompt.

The paper's figure 1: greedy answers compared by ROUGE-1, ROUGE-L, BERTScore (RoBERTa-large) and STS (MiniLM). A score
of 1 is the same text; no measure says which of two different texts is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from bitworth.errors import BitworthError, WorkFailed
from bitworth.statistics import share_interval
from bitworth.types import Answer

BERTSCORE_MODEL = "roberta-large"
BERTSCORE_LAYERS = 17
"""The layer that its authors take of that model."""
MEASURES: Mapping[str, str | None] = {
    "identical": None,
    "rouge1": "rouge_score.rouge_scorer",
    "rougeL": "rouge_score.rouge_scorer",
    "bertscore": "bert_score",
    "sts": "sentence_transformers",
}
"""Each with the module that it needs."""
STS_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """Mean likeness of a task's answers in [0, 1], with its 95 % normal interval over questions.

    `measure` is one of `MEASURES`; `identical` is the share of answers that are the same, character for character.
    """

    task: str
    measure: str
    mean: float
    ci95: tuple[float, float]
    questions: int


Scorer = Callable[[Sequence[str], Sequence[str]], list[float]]
"""(baseline's texts, quantized model's texts) to a score a pair."""


def check_measures(measures: Sequence[str]) -> None:
    """Fail before anything is written, not after.

    Raises:
        BitworthError: an unknown measure, or a package that is not installed.
    """
    for name in measures:
        if name not in MEASURES:
            raise BitworthError(f"Unknown measure of likeness '{name}'; known: {', '.join(MEASURES)}.")
        if (package := MEASURES[name]) is not None:
            _package(package)


def compare_texts(
    baseline: Sequence[Answer],
    quantized: Sequence[Answer],
    measures: Sequence[str] = ("identical", "rouge1", "rougeL"),
    *,
    encoder: Path | str = STS_MODEL,
) -> list[Similarity]:
    """Likeness of what both models wrote, task by task; tasks with given choices are passed over.

    Args:
        baseline: the unquantized model's answers.
        quantized: the quantized model's answers.
        measures: of `MEASURES`.
        encoder: a sentence encoder for `sts`, a folder or a hub id.

    Raises:
        BitworthError: an unknown measure, a package or encoder that is not here, or no written answers in common.
    """
    check_measures(measures)
    pairs = _written_pairs(baseline, quantized)
    if not pairs:
        raise BitworthError("Nothing was written to the same questions by both models; ask for tasks that are written.")
    scorers = {name: _scorer(name, encoder) for name in measures}
    return [
        _row(task, name, _by_question(asked, scorer))
        for task, asked in pairs.items()
        for name, scorer in scorers.items()
    ]


def scores_of(measure: str, baseline: Sequence[str], quantized: Sequence[str]) -> list[float]:
    """Likeness of each pair of texts, in [0, 1], by a measure that needs no encoder.

    Raises:
        BitworthError: its package is not installed.
    """
    return _scorer(measure, STS_MODEL)(baseline, quantized)


Texts = list[tuple[str, str]]
"""Baseline's and quantized model's texts of one question: of several programs, those of the same place."""


def _written_pairs(baseline: Sequence[Answer], quantized: Sequence[Answer]) -> dict[str, list[Texts]]:
    """Task to texts of the same questions; an answer with log-probabilities was not written."""
    before = {(one.task, one.item): one.written for one in baseline if not one.logprobs}
    found: dict[str, list[Texts]] = {}
    for answer in quantized:
        if (answer.task, answer.item) in before and not answer.logprobs:
            texts = list(zip(before[answer.task, answer.item], answer.written, strict=False))
            found.setdefault(answer.task, []).append(texts)
    return found


def _by_question(asked: Sequence[Texts], scorer: Scorer) -> list[float]:
    """Mean likeness of each question's texts."""
    flat = [pair for texts in asked for pair in texts]
    scores = iter(scorer([b for b, _ in flat], [q for _, q in flat]))
    return [fmean(islice(scores, len(texts))) for texts in asked]


def _row(task: str, measure: str, scores: Sequence[float]) -> Similarity:
    interval = share_interval(scores)
    return Similarity(task=task, measure=measure, mean=fmean(scores), ci95=interval, questions=len(scores))


def _scorer(measure: str, encoder: Path | str) -> Scorer:
    if measure == "identical":
        return _identical
    if measure == "bertscore":
        return _same_is_one(_bertscore())
    if measure == "sts":
        return _same_is_one(_sts(encoder))
    return _same_is_one(_rouge(measure))


def _identical(ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
    return [float(a == b) for a, b in zip(ours, theirs, strict=True)]


def _same_is_one(scorer: Scorer) -> Scorer:
    """Equal texts score 1 without being looked at: ROUGE finds no words in most scripts, and none in an empty text."""

    def score(ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        apart = [index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
        found = [1.0] * len(ours)
        scores = scorer([ours[index] for index in apart], [theirs[index] for index in apart]) if apart else []
        for index, value in zip(apart, scores, strict=True):
            found[index] = min(1.0, max(0.0, value))
        return found

    return score


def _rouge(measure: str) -> Scorer:
    module: Any = _package("rouge_score.rouge_scorer")
    judge = module.RougeScorer([measure], use_stemmer=False)

    def score(ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        return [float(judge.score(a, b)[measure].fmeasure) for a, b in zip(ours, theirs, strict=True)]

    return score


def _bertscore() -> Scorer:
    module: Any = _package("bert_score")

    def score(ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        try:
            settings = {"model_type": BERTSCORE_MODEL, "num_layers": BERTSCORE_LAYERS}
            _, _, f1 = module.score(list(theirs), list(ours), **settings, verbose=False)
        except (OSError, ValueError) as error:
            raise WorkFailed(f"BERTScore needs {BERTSCORE_MODEL} from the model hub ({_first(error)}).") from error
        return [float(value) for value in f1]

    return score


def _sts(encoder: Path | str) -> Scorer:
    """Cosine of sentence embeddings; below 0 counts as 0."""
    module: Any = _package("sentence_transformers")
    try:
        model = module.SentenceTransformer(
            str(encoder), trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError) as error:
        raise WorkFailed(f"The sentence encoder {encoder} cannot be loaded ({_first(error)}).") from error

    def score(ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        first, second = (model.encode(list(texts), **options) for texts in (ours, theirs))
        return [float(value) for value in (first * second).sum(axis=1)]

    return score


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise BitworthError(
            f"This measure of likeness needs the package {package}, which is not installed; run "
            "`pip install 'bitworth[similarity]'`."
        ) from error


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
