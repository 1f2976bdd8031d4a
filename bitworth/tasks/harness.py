"""From a task's rows to its questions: which are asked, in what order, with prompts as lm-eval renders them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.tasks import rows
from bitworth.tasks.base import Loaded, LoadedOpen, OpenQuestion, Question, TaskDef
from bitworth.tasks.definitions import (
    configured,
    examples_are_fixed,
    prepare,
    render,
    sampling_of,
    settings_of,
)
from bitworth.tasks.grading import Grader
from bitworth.types import TaskSpec

Asked = Question | OpenQuestion


def load_questions(
    task: TaskDef, spec: TaskSpec, data: Path | None, batch: tuple[int, int] | None = None, *, chat: bool = False
) -> Loaded | LoadedOpen:
    """The spec's questions in a fixed order: by subset, then by index in the split.

    A batch is that stretch of the seeded shuffle of all questions, in the order of the shuffle. `chat` says that the
    model has a chat template; tasks that are asked in conversations then are.
    """
    shots = task.shots if spec.shots is None else spec.shots
    chat = chat and (task.chat if spec.chat is None else spec.chat)
    split, sets = _eval_sets(task, data)
    settings = [settings_of(task, subset) for subset in task.configs()]
    if task.prepared:
        sets = [prepare(one, docs) for one, docs in zip(settings, sets, strict=True)]
    sizes = [len(rows_) for rows_ in sets]
    drawn = None if batch is None else shuffled(sizes, spec.seed)[slice(*batch)]
    chosen = choose(sizes, spec.limit, spec.seed) if drawn is None else _ascending(drawn, len(sizes))
    placed: dict[tuple[int, int], Asked] = {}
    for which, (subset, docs, indices) in enumerate(zip(task.configs(), sets, chosen, strict=True)):
        if indices:
            maker = _Maker(task, subset, settings[which], split=split, shots=shots, chat=chat, data=data)
            made = maker.questions(docs, indices)
            placed.update({(which, index): question for index, question in zip(indices, made, strict=True)})
    questions = tuple(placed[place] for place in drawn or placed)
    facts: dict[str, str | int] = {
        "dataset": task.dataset,
        "source": "hub" if data is None else str(data),
        "split": split,
        "rows": sum(map(len, sets)),
        "questions": len(questions),
        "shots": shots,
        "metric": task.metric,
        "prompt": "conversation" if chat else "text",
    }
    if task.kind == "choices":
        return Loaded(task=task.name, questions=questions, facts=facts)  # type: ignore[arg-type]
    sampling = sampling_of(task, settings, spec)
    return LoadedOpen(
        task=task.name,
        questions=questions,  # type: ignore[arg-type]
        sampling=sampling,
        facts=facts | {"samples": sampling.n},
        one_by_one=True,
    )


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


class _Maker:
    """Makes the questions of one subset, rendered by lm-eval's own `fewshot_context` and `construct_requests`."""

    def __init__(
        self,
        task: TaskDef,
        subset: str | None,
        settings: dict[str, Any],
        *,
        split: str,
        shots: int,
        chat: bool,
        data: Path | None,
    ) -> None:
        self.task, self.subset, self.split, self.shots, self.chat = task, subset, split, shots, chat
        dropped = ("process_docs",) if task.prepared else ()
        self.settings = {key: value for key, value in settings.items() if key not in dropped}
        self.examples: dict[str, Any] = {}
        if shots and not examples_are_fixed(settings):
            found = rows.read(task, subset, task.pool, data) if task.pool else None
            if found is None:
                raise _no_examples(task, shots, data)
            self.examples[task.pool] = prepare(settings, found) if task.prepared else found

    def questions(self, docs: Any, indices: list[int]) -> list[Asked]:
        """Those at these places of the split."""
        splits = {**self.examples, self.split: docs.select(indices)}
        pool = self.task.pool if self.examples else None
        harness = configured(self.settings, splits, split=self.split, shots=self.shots, pool=pool)
        made: list[Asked] = []
        drawn = 0
        for item, index, doc in zip(self._items(docs, indices), indices, harness.eval_docs, strict=True):
            # lm-eval's sampler is one stream over the split: skip what the questions left out would have drawn, so
            # that an item has the same examples in every subset, and the same as in lm-eval's full run.
            for _ in range(index - drawn if self.shots else 0):
                harness.sampler.sample(n=self.shots)
            drawn = index + 1
            made.append(self._question(harness, doc, item, index))
        return made

    def _question(self, harness: Any, doc: Any, item: str, index: int) -> Asked:
        context = render(self.task, harness, doc, self.shots, chat=self.chat)
        group = self.subset if self.task.subsets else None
        grader = Grader(task=self.task, harness=harness, doc=doc, item=item, group=group, place=index)
        if self.task.kind == "generated":
            return OpenQuestion(task=self.task.name, item=item, prompt=context, grade=grader.written)
        made = harness.construct_requests(
            doc, context, metadata=(self.task.name, index, 1), apply_chat_template=self.chat
        )
        requests = tuple(tuple(request.args) for request in made)
        return Question(task=self.task.name, item=item, requests=requests, grade=grader.choices)

    def _items(self, docs: Any, indices: list[int]) -> list[str]:
        """Stable ids: the row's own, or its index in the split, after the subset's name where there are subsets."""
        key = self.task.item_key
        if key is not None and key in docs.column_names:
            return [str(docs[index][key]) for index in indices]
        return [f"{self.subset}/{index}" if self.task.subsets else str(index) for index in indices]


def _no_examples(task: TaskDef, shots: int, data: Path | None) -> rows.RowsAbsent:
    if not task.pool:
        return rows.RowsAbsent(f"Task {task.name} has no rows to take {shots} few-shot examples from; ask for 0 shots.")
    return rows.RowsAbsent(
        f"Task {task.name}: its {shots} few-shot examples come from the {task.pool} split of {task.dataset}, which "
        f"{'the hub' if data is None else data} does not have; add it, or ask for 0 shots."
    )
