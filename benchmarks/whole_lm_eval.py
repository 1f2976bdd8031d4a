"""lm-eval run whole on the rows that bitworth reads: its prompts, its filters, its scores, a log entry an answer.

Its own `evaluate` over its own task class; only where the rows come from is replaced, for machines without a hub.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bitworth import tasks
from bitworth.tasks import rows
from bitworth.tasks.definitions import prepare, tasks_folder
from bitworth.tasks.mirror import hub_rows

_MUSR_SAMPLE = {
    "small_murder_mystery": "murder_mysteries",
    "small_object_placements": "object_placements",
    "small_team_allocation": "team_allocation",
}


def lm_evals(
    lm: Any,
    name: str,
    data: Path,
    items: list[str],
    *,
    shots: int | None = None,
    change: Callable[[Any], None] | None = None,
    chat: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Item to what lm-eval logged of it, an entry a filter.

    `change` is given each of its tasks before it is asked; `chat` says that the model has a chat template.
    """
    from lm_eval.evaluator import evaluate

    task = tasks.get(name)
    assert isinstance(task, tasks.TaskDef)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for subset, places in _places(task, data, items).items():
        one = _mirrored(task, subset, data, task.shots if shots is None else shots)
        if change is not None:
            change(one)
        logged = evaluate(
            lm,
            {"tasks": {"one": one}, "groups": {}, "group_map": {}},
            samples={"one": sorted(places)},
            bootstrap_iters=0,
            apply_chat_template=task.chat and chat,
            fewshot_as_multiturn=task.multiturn and chat,
        )
        for entry in logged["samples"]["one"]:
            found[places[entry["doc_id"]]].append(entry)
    return found


def _mirrored(task: tasks.TaskDef, subset: str | None, data: Path, shots: int) -> Any:
    """lm-eval's task of a subset, with its rows from the folder."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    splits = {split: rows.read(task, subset, split, data) for split in (*task.splits, task.pool) if split}
    if subset is not None:
        splits[subset] = splits[task.splits[0]]

    class Mirrored(ConfigurableTask):  # type: ignore[misc]
        def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
            self.dataset = {split: found for split, found in splits.items() if found is not None}

    settings = load_yaml(tasks_folder() / task.yaml.format(subset=task.called(subset))) | dict(task.overrides)
    for key in ("tag", "task_alias"):
        settings.pop(key, None)
    if task.prepared:  # GPQA's definition shuffles choices by a generator that lm-eval seeds once for all tasks
        settings["process_docs"] = partial(prepare, dict(settings))
    if task.pool == "" or shots == 0:
        settings["training_split"] = None
    if shots == 0:
        settings.pop("fewshot_split", None)
    settings["num_fewshot"] = shots
    one = Mirrored(config=settings)
    one.set_fewshot_seed(1234)
    return one


def _places(task: tasks.TaskDef, data: Path, items: list[str]) -> dict[str | None, dict[int, str]]:
    """Subset to place in it to item; items that are the rows' own ids are looked up."""
    found: dict[str | None, dict[int, str]] = defaultdict(dict)
    if task.item_key is None:
        for item in items:
            subset, _, index = item.rpartition("/")
            found[subset or None][int(index)] = item
        return found
    docs = rows.read(task, task.config, next(s for s in task.splits if rows.find(task, task.config, s, data)), data)
    if task.name == "arc_challenge_llama":
        docs = docs.filter(lambda row: len(row["choices"]["label"]) == 4)
    ids = [str(value) for value in docs[task.item_key]]
    return {None: {ids.index(item): item for item in items}}


def with_musr_sample(data: Path, folder: Path) -> Path:
    """`folder` with everything of `data`, MuSR's published sample among it where the whole is looked for."""
    for path in data.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    for short, subset in _MUSR_SAMPLE.items():
        for file in sorted((data / "musr").glob(f"{short}.json*"))[:1]:
            out = folder / "TAUR-Lab" / "MuSR" / f"{subset}.jsonl"
            out.parent.mkdir(parents=True, exist_ok=True)
            found = (row for raw in rows._parse(file) for row in hub_rows("TAUR-Lab/MuSR", raw))
            out.write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder
