"""Evaluate: a checkpoint's answers to a task's questions, its divergence from a baseline on text, and what they say.

answers = evaluate(Path("w4a16"), [TaskSpec(name="arc_challenge", limit=200)], data=folder)
compare(baseline_answers, answers, min_recovery_pct=99, format="w4a16-int-gptq")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from bitworth import tasks as registry
from bitworth.divergence import diverge_models
from bitworth.engines.generator import Completer
from bitworth.engines.scorer import Scorer
from bitworth.errors import BitworthError
from bitworth.statistics import holm, mcnemar_exact, mean_recovery
from bitworth.tasks import Loaded, LoadedOpen
from bitworth.types import AVERAGE, Answer, Divergence, Recovery, TaskSpec

Progress = Callable[[str, int, int], None]
"""Called with (task or "text", done, total); done counts the task's scored continuations or its completions, or windows
of the text."""
GRADERS = max(2, (os.cpu_count() or 2) // 2)
"""Answers graded at once: graders that run programs wait for them most of the time."""


def evaluate(
    checkpoint: Path | Scorer | Completer,
    tasks: Sequence[TaskSpec],
    *,
    data: Path | None = None,
    unsafe: bool = False,
    progress: Progress | None = None,
) -> list[Answer]:
    """One Answer a question, task after task, each task's in the order of its split.

    Args:
        checkpoint: a model folder, or an engine that already holds one.
        tasks: what to ask, tasks or suites.
        data: a local folder of benchmark rows; None asks the hub.
        unsafe: run the programs that a model writes even where they cannot be isolated.
        progress: see `Progress`.

    Raises:
        BitworthError: see `tasks.load` and `engines.torch.load_exact`.
    """
    # Rows first: a data set that cannot be had should say so before a model is loaded.
    specs = registry.expand(tasks)
    chat = any(registry.get(spec.name).chat for spec in specs) and takes_conversations(checkpoint)
    measure = _measure(checkpoint)
    loaded = [registry.load(spec, data, chat=chat, unsafe=unsafe, measure=measure) for spec in specs]
    engine = _scorer(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    return [answer for task in loaded for answer in answer_questions(engine, task, progress=progress)]


def takes_conversations(checkpoint: Path | Scorer | Completer) -> bool:
    """Whether tasks that are asked in conversations can be: the model has a chat template.

    Raises:
        BitworthError: a folder without a tokenizer.
    """
    if isinstance(checkpoint, Path):
        from bitworth.engines.prompts import has_chat_template, load_tokenizer

        return has_chat_template(load_tokenizer(checkpoint))
    return bool(getattr(checkpoint, "has_chat_template", False))


def _measure(checkpoint: Path | Scorer | Completer) -> Callable[[str], int] | None:
    """Tokens of a text, by a model's tokenizer; None where an engine does not show it."""

    def of_folder(text: str) -> int:
        from bitworth.engines.prompts import load_tokenizer

        return len(load_tokenizer(Path(str(checkpoint))).encode(text))

    if isinstance(checkpoint, Path):
        return of_folder
    return (lambda text: len(checkpoint.encode(text))) if isinstance(checkpoint, Scorer) else None


def answer_questions(
    engine: Scorer | Completer, task: Loaded | LoadedOpen, *, progress: Progress | None = None
) -> list[Answer]:
    """One Answer a question of a loaded task.

    Raises:
        BitworthError: an engine that cannot do what the task needs: score continuations, or write.
    """
    if isinstance(task, LoadedOpen):
        if not isinstance(engine, Completer):
            raise BitworthError(f"Task {task.task} is answered in writing, which this engine cannot do.")
        return _written(engine, task, progress)
    if not isinstance(engine, Scorer):
        raise BitworthError(f"Task {task.task} scores given answers, which only the torch engine does; drop --engine.")
    return _scored(engine, task, progress)


def _written(engine: Completer, task: LoadedOpen, progress: Progress | None) -> list[Answer]:
    told = None if progress is None else lambda done, total: progress(task.task, done, total)
    completions = engine.generate([question.prompt for question in task.questions], task.sampling, told)
    pairs = list(zip(task.questions, completions, strict=True))
    if task.one_by_one:
        return [question.grade(written) for question, written in pairs]
    with ThreadPoolExecutor(GRADERS) as pool:
        return list(pool.map(lambda pair: pair[0].grade(pair[1]), pairs))


def _scored(scorer: Scorer, task: Loaded, progress: Progress | None) -> list[Answer]:
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
    baseline: Sequence[Answer], quantized: Sequence[Answer], *, min_recovery_pct: float, format: str
) -> list[Recovery]:
    """Recovery of every task both answered, paired item by item, then of the plain mean over tasks (`average`).

    There is no `average` where the quantized model lacks a task of the baseline's: it would be over other tasks.
    Where answers name clusters, these are the sample, not the questions. Verdicts are each row's own; `p_holm` is
    adjusted over the tasks.

    Args:
        baseline: answers of the unquantized model, in any order.
        quantized: answers of the quantized model to the same questions, in any order.
        min_recovery_pct: the recovery that counts as holding, in percent of the baseline.
        format: the quantized model's name in the result.

    Raises:
        BitworthError: no common task, an item twice, or different questions of a task.
    """
    pairs = _pairs(baseline, quantized, format)
    rows = [_of_task(task, format, pair, min_recovery_pct) for task, pair in pairs.items()]
    whole = pairs.keys() >= {answer.task for answer in baseline}
    rows = [*adjusted(rows), *([_mean(AVERAGE, format, pairs, min_recovery_pct)] if whole else [])]
    return [_over_groups(row, pairs) for row in rows]


def compare_groups(
    baseline: Sequence[Answer], quantized: Sequence[Answer], *, min_recovery_pct: float, format: str
) -> list[Recovery]:
    """Recovery of every subject or language (`Answer.group`) of the tasks that have several, named `task/group`.

    Groups whose answers allow no recovery (`unfit_because`) have no row. `p_holm` is adjusted over all rows: of fifty
    subjects some look bad by chance, and only those that it still calls different are to be believed.

    Raises:
        BitworthError: see `compare`.
    """
    rows = []
    for task, pairs in _pairs(baseline, quantized, format).items():
        groups = {answer.group for answer, _ in pairs if answer.group is not None}
        for group in sorted(groups) if len(groups) > 1 else ():
            chosen = [pair for pair in pairs if pair[0].group == group]
            if unfit_because([answer for answer, _ in chosen]) is None:
                rows.append(_of_task(f"{task}/{group}", format, chosen, min_recovery_pct))
    return adjusted(rows)


def compare_suites(
    baseline: Sequence[Answer],
    quantized: Sequence[Answer],
    suites: Mapping[str, Sequence[str]],
    *,
    min_recovery_pct: float,
    format: str,
) -> list[Recovery]:
    """Recovery of every suite of tasks, by the plain mean of its columns as the paper takes it (section 4).

    Raises:
        BitworthError: see `compare`; a task of a suite that was not answered.
    """
    pairs = _pairs(baseline, quantized, format)
    rows = []
    for suite, tasks in suites.items():
        absent = [task for task in tasks if task not in pairs]
        if absent:
            raise BitworthError(f"Suite {suite}: {format} and its baseline did not both answer {absent[0]}.")
        rows.append(_mean(suite, format, {task: pairs[task] for task in tasks}, min_recovery_pct))
    return [_over_groups(row, pairs) for row in adjusted(rows)]


def unfit_because(answers: Sequence[Answer]) -> str | None:
    """Why nothing can be compared with these answers of the baseline to a task; None where something can."""
    if not any(answer.score for answer in answers):
        return "The baseline answers none of its questions right."
    clusters = {answer.cluster for answer in answers}
    if len(clusters) == 1 and None not in clusters:
        return "All its questions share one passage, so nothing tells how much passages differ; ask more questions."
    return None


Pairs = list[tuple[Answer, Answer]]
"""Baseline's and quantized model's answers to the same questions."""


def _pairs(baseline: Sequence[Answer], quantized: Sequence[Answer], format: str) -> dict[str, Pairs]:
    """The pairs of every task that both answered."""
    before, after = _by_task(baseline, "the baseline"), _by_task(quantized, format)
    tasks = [task for task in before if task in after]
    if not tasks:
        raise BitworthError(f"{format} and its baseline have no task in common; evaluate both on the same tasks.")
    return {task: _paired(task, format, before[task], after[task]) for task in tasks}


def adjusted(rows: Sequence[Recovery]) -> list[Recovery]:
    """The rows with their p-values adjusted for each other."""
    values = holm([1.0 if row.p_value is None else row.p_value for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, values, strict=True)]


def _of_task(name: str, format: str, pairs: Pairs, least_pct: float) -> Recovery:
    """A task's row, or a group's, with the flips either way where answers are right or wrong."""
    row = _recovery(name, format, {name: pairs}, least_pct)
    if not all(answer.score in (0, 1) for pair in pairs for answer in pair):
        return row
    lost, won = (sum(one.score > other.score for one, other in way) for way in (pairs, [(q, b) for b, q in pairs]))
    p_value = mcnemar_exact(*([answer.score for answer in side] for side in zip(*pairs, strict=True)))
    independent = _clusters(pairs) is None  # what the test tosses its coin for
    return replace(row, lost=lost, won=won, mcnemar_p=p_value if independent else None)


def _mean(name: str, format: str, pairs: Mapping[str, Pairs], least_pct: float) -> Recovery:
    return replace(_recovery(name, format, pairs, least_pct), columns=tuple(pairs))


def _over_groups(row: Recovery, pairs: Mapping[str, Pairs]) -> Recovery:
    """The row with the interval of clustering by subject or language, where any of its tasks has several of these."""
    mine = {task: pairs[task] for task in row.columns or (row.task,)}
    groups = {task: [str(answer.group) for answer, _ in found] for task, found in mine.items()}
    several = {task for task, names in groups.items() if len(set(names)) > 1}
    if not several:
        return row
    labels = {task: groups[task] if task in several else _clusters(found) for task, found in mine.items()}
    found = mean_recovery(_scores(mine), min_recovery_pct=row.min_recovery_pct, clusters=labels)
    return replace(row, groups_ci95_pct=found.ci95_pct)


def _scores(pairs: Mapping[str, Pairs]) -> dict[str, tuple[list[float], list[float]]]:
    return {task: ([b.score for b, _ in rows], [q.score for _, q in rows]) for task, rows in pairs.items()}


def _recovery(name: str, format: str, pairs: Mapping[str, Pairs], least_pct: float) -> Recovery:
    scores = _scores(pairs)
    clusters = {task: _clusters(rows) for task, rows in pairs.items()}
    found = mean_recovery(scores, min_recovery_pct=least_pct, clusters=clusters)
    baseline, quantized = (fmean(fmean(pair[side]) for pair in scores.values()) for side in (0, 1))
    return Recovery(
        task=name,
        format=format,
        baseline=baseline,
        quantized=quantized,
        recovery_pct=found.recovery_pct,
        ci95_pct=found.ci95_pct,
        questions=sum(len(rows) for rows in pairs.values()),
        min_recovery_pct=least_pct,
        verdict=found.verdict,
        questions_needed=found.questions_needed,
        p_value=found.p_value,
    )


def _clusters(rows: Pairs) -> list[tuple[str, str]] | None:
    """Labels of the clusters, None where the answers name none; a question without one is a cluster of its own."""
    if all(answer.cluster is None for answer, _ in rows):
        return None
    return [("item", answer.item) if answer.cluster is None else ("cluster", answer.cluster) for answer, _ in rows]


def _by_task(answers: Sequence[Answer], who: str) -> dict[str, dict[str, Answer]]:
    """Task to item to answer."""
    found: dict[str, dict[str, Answer]] = {}
    for answer in answers:
        items = found.setdefault(answer.task, {})
        if answer.item in items:
            raise BitworthError(f"The answers of {who} hold {answer.task} {answer.item} twice; evaluate it again.")
        items[answer.item] = answer
    return found


def _paired(task: str, format: str, before: Mapping[str, Answer], after: Mapping[str, Answer]) -> Pairs:
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise BitworthError(
            f"Task {task}: {format} and its baseline answered different questions ({len(odd)} in one only, such as "
            f"{odd[0]}); evaluate both with the same limit, seed and data."
        )
    return [(before[item], after[item]) for item in sorted(before)]


def _scorer(checkpoint: Path | Scorer) -> Scorer:
    if not isinstance(checkpoint, Path):
        return checkpoint
    from bitworth.engines.torch import load_exact

    return load_exact(checkpoint)
