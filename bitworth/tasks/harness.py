"""lm-eval's task definitions, loaded one file at a time (its TaskManager would index thousands first: 15 s)."""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.tasks import rows
from bitworth.tasks.base import Loaded, Question, Score, TaskDef
from bitworth.types import Answer, TaskSpec

FEWSHOT_SEED = 1234
"""The seed lm-eval draws few-shot examples with."""


def load_questions(task: TaskDef, spec: TaskSpec, data: Path | None, batch: tuple[int, int] | None = None) -> Loaded:
    """The spec's questions in a fixed order: by subset, then by index in the split.

    A batch is that stretch of the seeded shuffle of all questions, in the order of the shuffle.
    """
    shots = task.shots if spec.shots is None else spec.shots
    split, sets = _eval_sets(task, data)
    sizes = [len(rows_) for rows_ in sets]
    drawn = None if batch is None else shuffled(sizes, spec.seed)[slice(*batch)]
    chosen = choose(sizes, spec.limit, spec.seed) if drawn is None else _ascending(drawn, len(sizes))
    placed = {}
    for which, (config, docs, indices) in enumerate(zip(task.configs(), sets, chosen, strict=True)):
        if indices:
            made = _subset_questions(task, config, docs, indices, split=split, shots=shots, data=data)
            placed.update({(which, index): question for index, question in zip(indices, made, strict=True)})
    questions = [placed[place] for place in drawn or placed]
    facts: dict[str, str | int] = {
        "dataset": task.dataset,
        "source": "hub" if data is None else str(data),
        "split": split,
        "rows": sum(map(len, sets)),
        "questions": len(questions),
        "shots": shots,
        "metric": task.metric,
    }
    return Loaded(task=task.name, questions=tuple(questions), facts=facts)


def choose(sizes: Sequence[int], limit: int | None, seed: int) -> list[list[int]]:
    """Row indices of the first `limit` questions of a seeded shuffle over all sets, ascending within each set.

    >>> choose([2, 3], None, 0)
    [[0, 1], [0, 1, 2]]
    """
    if limit is None or limit >= sum(sizes):
        return [list(range(size)) for size in sizes]
    return _ascending(shuffled(sizes, seed)[:limit], len(sizes))


def shuffled(sizes: Sequence[int], seed: int) -> list[tuple[int, int]]:
    """(set, row) of every question in the order in which the seed draws them."""
    every = [(which, index) for which, size in enumerate(sizes) for index in range(size)]
    random.Random(seed).shuffle(every)
    return every


def _ascending(places: Sequence[tuple[int, int]], sets: int) -> list[list[int]]:
    """The rows of each set, ascending."""
    return [sorted(index for which, index in places if which == wanted) for wanted in range(sets)]


def _eval_sets(task: TaskDef, data: Path | None) -> tuple[str, list[Any]]:
    """The split questions come from (the first that every configuration has) and its rows, one set a configuration."""
    if data is not None and not data.is_dir():
        raise BitworthError(f"Task {task.name}: the data folder {data} does not exist.")
    for split in task.splits:
        sets = [rows.read(task, config, split, data) for config in task.configs()]
        if all(found is not None and len(found) for found in sets):
            return split, sets
    raise rows.absent(task, task.splits[0], data)


def _subset_questions(
    task: TaskDef, config: str | None, docs: Any, indices: list[int], *, split: str, shots: int, data: Path | None
) -> list[Question]:
    """Questions of one configuration, rendered by lm-eval's own `fewshot_context` and `construct_requests`."""
    splits = {split: docs.select(indices)}
    if shots:
        splits[task.pool] = rows.read(task, config, task.pool, data)
        if splits[task.pool] is None:
            raise _no_examples(task, shots, data)
    harness = _configured(task, config, splits, split=split, shots=shots)
    items = _items(task, config, docs, indices)
    questions, drawn = [], 0
    for item, index, doc in zip(items, indices, harness.eval_docs, strict=True):
        # lm-eval's sampler is one stream over the split: skip what the questions left out would have drawn, so that
        # an item has the same examples in every subset, and the same as in lm-eval's full run.
        for _ in range(index - drawn if shots else 0):
            harness.sampler.sample(n=shots)
        drawn = index + 1
        context = harness.fewshot_context(doc, shots)
        requests = harness.construct_requests(doc, context, metadata=(task.name, index, 1))
        grade = partial(_grade, task, harness, doc, item, config if task.subsets else None)
        questions.append(
            Question(task=task.name, item=item, requests=tuple(tuple(r.args) for r in requests), grade=grade)
        )
    return questions


def _configured(task: TaskDef, config: str | None, splits: dict[str, Any], *, split: str, shots: int) -> Any:
    """lm-eval's ConfigurableTask over rows that are already in memory."""
    quiet_progress_bars()
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    class InMemoryTask(ConfigurableTask):  # type: ignore[misc]
        def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
            self.dataset = splits

    settings = dict(load_yaml(_tasks_folder() / task.yaml.format(subset=config)))
    for key in ("tag", "task_alias"):
        settings.pop(key, None)
    # Rows held locally may lack the official test split; then the validation split is the one evaluated.
    settings["test_split"] = "test" if split == "test" else None
    settings["validation_split"] = "validation" if split == "validation" else None
    settings["training_split"] = task.pool if shots and task.pool == "train" else None
    if not shots:
        settings.pop("fewshot_split", None)
        settings.pop("fewshot_config", None)
    harness = InMemoryTask(config={**settings, "num_fewshot": shots})
    harness.set_fewshot_seed(FEWSHOT_SEED)
    return harness


def _grade(task: TaskDef, harness: Any, doc: Any, item: str, group: str | None, scores: Sequence[Score]) -> Answer:
    """An Answer whose score is lm-eval's; the prediction is the letter of the choice it picked."""
    import numpy as np

    results = harness.process_results(doc, [tuple(score) for score in scores])
    logprobs = np.array([score.logprob for score in scores])
    if task.metric == "acc_norm":
        picked = int(np.argmax(logprobs / np.array([float(len(choice)) for choice in harness.doc_to_choice(doc)])))
    else:
        picked = int(np.argmax(logprobs))
    return Answer(
        task=task.name,
        item=item,
        prediction=chr(ord("A") + picked),
        score=float(results[task.metric]),
        logprobs=tuple(float(value) for value in logprobs),
        group=group,
    )


def _items(task: TaskDef, config: str | None, docs: Any, indices: list[int]) -> list[str]:
    """Stable ids: the row's own, or its index in the split, after the subset's name where there are subsets."""
    if task.item_key is not None and task.item_key in docs.column_names:
        return [str(docs[index][task.item_key]) for index in indices]
    return [f"{config}/{index}" if task.subsets else str(index) for index in indices]


def _no_examples(task: TaskDef, shots: int, data: Path | None) -> BitworthError:
    return BitworthError(
        f"Task {task.name}: its {shots} few-shot examples come from the {task.pool} split of {task.dataset}, which "
        f"{'the hub' if data is None else data} does not have; add it, or ask for 0 shots."
    )


@functools.cache
def _tasks_folder() -> Path:
    """lm-eval's folder of definitions, found without importing it."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise BitworthError("Tasks need lm-eval, which is not installed; run `pip install lm-eval`.")
    return Path(next(iter(found.submodule_search_locations))) / "tasks"


@functools.cache
def quiet_progress_bars() -> None:
    """`datasets` draws a bar for every map over a handful of rows."""
    import datasets

    datasets.disable_progress_bars()
