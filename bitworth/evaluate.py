"""Evaluate: a checkpoint's answers to a task's questions, its divergence from a baseline on text, and what they say.

answers = evaluate(Path("w4a16"), [TaskSpec(name="arc_challenge", limit=200)], data=folder)
compare(baseline_answers, answers, tolerance_pct=1.0, format="w4a16-int-gptq")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bitworth import tasks as registry
from bitworth.divergence import diverge_models
from bitworth.engines.scorer import Scorer
from bitworth.errors import BitworthError
from bitworth.tasks import Loaded
from bitworth.types import Answer, Divergence, Recovery, TaskSpec

Progress = Callable[[str, int, int], None]
"""Called with (task or "text", done, total); done counts scored continuations of the task, or windows of the text."""


def evaluate(
    checkpoint: Path | Scorer,
    tasks: Sequence[TaskSpec],
    *,
    data: Path | None = None,
    progress: Progress | None = None,
) -> list[Answer]:
    """One Answer a question, task after task, each task's in the order of its split.

    Args:
        checkpoint: a model folder, or an engine that already holds one.
        tasks: what to ask.
        data: a local folder of benchmark rows; None asks the hub.
        progress: see `Progress`.

    Raises:
        BitworthError: see `tasks.load` and `engines.torch.load_exact`.
    """
    # Rows first: a data set that cannot be had should say so before a model is loaded.
    loaded = [registry.load(spec, data) for spec in tasks]
    scorer = _scorer(checkpoint)
    return [answer for task in loaded for answer in answer_questions(scorer, task, progress=progress)]


def answer_questions(scorer: Scorer, task: Loaded, *, progress: Progress | None = None) -> list[Answer]:
    """One Answer a question of a loaded task."""
    requests = [request for question in task.questions for request in question.requests]
    told = None if progress is None else lambda done, total: progress(task.task, done, total)
    scores = iter(scorer.loglikelihoods(requests, told))
    return [question.grade([next(scores) for _ in question.requests]) for question in task.questions]


def diverge(
    checkpoint: Path | Scorer,
    baseline: Path | Scorer | None,
    text: str,
    *,
    window: int = 512,
    limit_windows: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Perplexity on a text and, against a baseline, mean KL (nats) and the share of top-1 flips.

    Raises:
        BitworthError: see `divergence.diverge_models` and `engines.torch.load_exact`.
    """
    told = None if progress is None else lambda done, total: progress("text", done, total)
    model = _scorer(checkpoint)
    reference = None if baseline is None else _scorer(baseline)
    return diverge_models(model, reference, text, window=window, limit_windows=limit_windows, progress=told)


def compare(
    baseline: Sequence[Answer],
    quantized: Sequence[Answer],
    *,
    tolerance_pct: float,
    format: str,
    seed: int = 0,
) -> Recovery:
    """Recovery of one task over exactly the questions both answered, paired item by item.

    Args:
        baseline: answers of the unquantized model, all of one task.
        quantized: answers of the quantized model to the same questions, in any order.
        tolerance_pct: the loss that still counts as holding, in percent of the baseline.
        format: the quantized model's name in the result.
        seed: of the bootstrap.

    Raises:
        BitworthError: several tasks, an item twice, or different questions.
    """
    before, after = _by_item(baseline, "baseline"), _by_item(quantized, format)
    task = _one_task([*baseline, *quantized])
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise BitworthError(
            f"Task {task}: {format} and its baseline answered different questions ({len(odd)} in one only, such as "
            f"{odd[0]}); evaluate both with the same limit, seed and data."
        )
    import numpy as np

    from bitworth.statistics import paired_recovery

    items = sorted(before)
    scores = [np.array([answers[item].score for item in items]) for answers in (before, after)]
    recovery, interval, verdict, needed = paired_recovery(*scores, tolerance_pct=tolerance_pct, seed=seed)
    return Recovery(
        task=task,
        format=format,
        baseline=float(scores[0].mean()),
        quantized=float(scores[1].mean()),
        recovery_pct=recovery,
        ci95_pct=interval,
        questions=len(items),
        tolerance_pct=tolerance_pct,
        verdict=verdict,
        questions_needed=needed,
    )


def _scorer(checkpoint: Path | Scorer) -> Scorer:
    if not isinstance(checkpoint, Path):
        return checkpoint
    from bitworth.engines.torch import load_exact

    return load_exact(checkpoint)


def _one_task(answers: Sequence[Answer]) -> str:
    names = sorted({answer.task for answer in answers})
    if len(names) != 1:
        raise BitworthError(f"A recovery compares answers of one task; these are of {', '.join(names) or 'none'}.")
    return names[0]


def _by_item(answers: Sequence[Answer], who: str) -> dict[str, Answer]:
    found = {answer.item: answer for answer in answers}
    if len(found) != len(answers):
        raise BitworthError(f"The answers of {who} hold a question twice; evaluate it again.")
    return found
