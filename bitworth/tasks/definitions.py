"""lm-eval's task definitions, loaded one file at a time (its TaskManager would index thousands first: 15 s)."""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.tasks.base import TaskDef, drawn
from bitworth.types import Message, Prompt, Sampling, TaskSpec

FEWSHOT_SEED = 1234
"""The seed lm-eval draws few-shot examples with."""


def settings_of(task: TaskDef, subset: str | None) -> dict[str, Any]:
    """What the definition's file says, with the task's own overrides.

    Raises:
        BitworthError: a package that the definition imports, or NLTK's data for it, is not here.
    """
    for need in task.needs:
        _require(task, need)
    from lm_eval.tasks._yaml_loader import load_yaml

    settings = dict(load_yaml(tasks_folder() / task.yaml.format(subset=task.called(subset))))
    for key in ("tag", "task_alias"):
        settings.pop(key, None)
    return settings | dict(task.overrides)


def examples_are_fixed(settings: Mapping[str, Any]) -> bool:
    """Whether few-shot examples stand in the definition, so that no split is needed for them."""
    return bool((settings.get("fewshot_config") or {}).get("samples"))


def prepare(settings: dict[str, Any], docs: Any) -> Any:
    """All rows, processed as the definition says, which then does not do it again.

    GPQA's definition shuffles the choices with Python's global generator, so in lm-eval their order depends on what
    ran before; here it is that of seed 0 over the whole split, whatever is asked.
    """
    process = settings.get("process_docs")
    if process is None:
        return docs
    quiet_progress_bars()
    with _seeded(), _uncached():
        return process(docs)


def configured(settings: Mapping[str, Any], splits: dict[str, Any], *, split: str, shots: int, pool: str | None) -> Any:
    """lm-eval's ConfigurableTask over rows that are already in memory; `pool` is the split of examples, if one is."""
    quiet_progress_bars()
    compile_templates_once()
    from lm_eval.api.task import ConfigurableTask

    class InMemoryTask(ConfigurableTask):  # type: ignore[misc]
        def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
            self.dataset = splits

    # Rows held locally may lack the official test split; then the validation split is the one evaluated.
    changed = {
        "test_split": None if split == "validation" else split,
        "validation_split": "validation" if split == "validation" else None,
        "training_split": pool if pool == "train" else None,
        "num_fewshot": shots,
    }
    dropped = () if shots else ("fewshot_split", "fewshot_config")
    kept = {key: value for key, value in settings.items() if key not in dropped}
    harness = InMemoryTask(config={**kept, **changed})
    if shots:
        harness.set_fewshot_seed(FEWSHOT_SEED)
    return harness


def render(task: TaskDef, harness: Any, doc: Any, shots: int, *, chat: bool) -> Any:
    """The context of a question as lm-eval makes it: text, a conversation, or one text a choice (Winogrande).

    Conversations are handed on as turns, so that whoever asks the model applies its own template.
    """
    prefix = harness.doc_to_prefix(doc)
    if not chat:
        return harness.fewshot_context(doc, shots, gen_prefix=prefix)
    return harness.fewshot_context(
        doc,
        shots,
        apply_chat_template=True,
        fewshot_as_multiturn=task.multiturn,
        chat_template=_turns,
        gen_prefix=prefix,
    )


def _turns(turns: list[dict[str, Any]], add_generation_prompt: bool = True) -> Prompt:
    """In place of a tokenizer's template; whether the model goes on with the last turn shows from its role."""
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)


def sampling_of(task: TaskDef, settings: Sequence[Mapping[str, Any]], spec: TaskSpec) -> Sampling:
    """How a written task's answers are generated: the definitions' length and stop strings, the task's sampling.

    Args:
        task: whose answers.
        settings: the definition of each of its subsets; an answer ends at a stop string of any (languages differ).
        spec: what the study asks for.

    Raises:
        BitworthError: several samples at temperature 0.
    """
    asked = [one.get("generation_kwargs") or {} for one in settings]
    ends = [one.get("until") or () for one in asked]
    stop = [end for until in ends for end in ((until,) if isinstance(until, str) else until)]
    sampling = Sampling(
        max_tokens=int(asked[0].get("max_gen_toks", task.max_tokens)),
        stop=tuple(dict.fromkeys(stop)),
        temperature=task.temperature if spec.temperature is None else spec.temperature,
        top_p=task.top_p,
        n=spec.samples or task.samples,
        seed=spec.seed,
    )
    return drawn(task.name, sampling, spec.samples)


def _require(task: TaskDef, need: str) -> None:
    kind, _, name = need.rpartition(":")
    if kind == "nltk":
        import nltk

        table = name.rpartition("/")[2]
        try:
            nltk.data.find(name)
        except LookupError:
            raise BitworthError(
                f"Task {task.name} counts words and sentences with NLTK's {table}, which is not here; run "
                f"`python -m nltk.downloader {table}`."
            ) from None
    elif importlib.util.find_spec(name) is None:
        raise BitworthError(
            f"Task {task.name} needs the package {name}, which is not installed; run `pip install 'bitworth[tasks]'`."
        )


@functools.cache
def tasks_folder() -> Path:
    """lm-eval's folder of definitions, found without importing it."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise BitworthError("Tasks need lm-eval, which is not installed; run `pip install lm-eval`.")
    return Path(next(iter(found.submodule_search_locations))) / "tasks"


@functools.cache
def compile_templates_once() -> None:
    """lm-eval compiles a template anew for each text of each question: nearly all the time that a prompt takes."""
    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        utils.env.from_string = functools.cache(utils.env.from_string)


def quiet_progress_bars() -> None:
    """`datasets` draws a bar for every map over a handful of rows."""
    import datasets

    datasets.disable_progress_bars()


@contextmanager
def _seeded() -> Iterator[None]:
    """Python's global generator at seed 0, and as it was afterwards."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _uncached() -> Iterator[None]:
    """`datasets` must not hand out rows that another run shuffled."""
    import datasets

    enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if enabled:
            datasets.enable_caching()
