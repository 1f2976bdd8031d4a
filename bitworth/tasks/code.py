"""Benchmarks whose answers are Python programs: HumanEval, MBPP, and EvalPlus's versions of both with more tests.

The paper's protocol (section 3, by way of EvalPlus): 50 completions a question at temperature 0.2 and top-p 0.95, of at
most 768 tokens, and pass@1. The programs run in `bitworth.sandbox`, never here. docs/code.md says what is asked and how
programs are taken from answers.

>>> sampling_of(CODE["humaneval"], TaskSpec(name="humaneval", samples=1), chat=False).temperature
0.0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bitworth import sandbox
from bitworth.errors import BitworthError
from bitworth.sandbox import Isolation
from bitworth.tasks import programs, rows
from bitworth.tasks.base import Benchmark, LoadedOpen, OpenQuestion, drawn
from bitworth.tasks.grading_code import Grader
from bitworth.tasks.harness import choose, shuffled
from bitworth.tasks.programs import Problem
from bitworth.types import Sampling, TaskSpec

SAMPLES, TEMPERATURE, TOP_P, MAX_TOKENS = 50, 0.2, 0.95, 768
"""The paper's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeDef(Benchmark):
    """A benchmark of programming questions.

    Attributes:
        style: how its rows are laid out, and so how a `Problem` is made of one.
        tests: the column that holds the tests.
    """

    style: Literal["humaneval", "mbpp"]
    tests: str
    kind: Literal["generated"] = "generated"
    chat: bool = True
    packages: tuple[str, ...] = ("python", "numpy")
    samples: int = SAMPLES
    answer_tokens: int = 150


_HUMANEVAL = CodeDef(
    name="humaneval",
    style="humaneval",
    tests="test",
    metric="pass@1",
    dataset="openai/openai_humaneval",
    folders=("openai/openai_humaneval", "openai_humaneval"),
    flat="humaneval",
    stems=("HumanEval",),
    splits=("test",),
    item_key="task_id",
    questions=164,
    tokens=170,
)
_MBPP = CodeDef(
    name="mbpp",
    style="mbpp",
    tests="test_list",
    metric="pass@1",
    dataset="evalplus/mbppplus",
    folders=("evalplus/mbppplus", "mbppplus"),
    flat="mbpp",
    splits=("test",),
    item_key="task_id",
    questions=378,
    tokens=70,
)
TASKS = (
    _HUMANEVAL,
    replace(
        _HUMANEVAL,
        name="humaneval_plus",
        dataset="evalplus/humanevalplus",
        folders=("evalplus/humanevalplus", "humanevalplus"),
        flat="humaneval_plus",
        stems=("HumanEvalPlus-OriginFmt",),
    ),
    _MBPP,
    replace(_MBPP, name="mbpp_plus", tests="test", flat="mbpp_plus"),
)
CODE: Mapping[str, CodeDef] = {task.name: task for task in TASKS}


def load_problems(
    task: CodeDef,
    spec: TaskSpec,
    data: Path | None,
    batch: tuple[int, int] | None = None,
    *,
    chat: bool = False,
    unsafe: bool = False,
) -> LoadedOpen:
    """The spec's questions in the order of the data; a larger limit only adds some.

    Args:
        task: the benchmark.
        spec: its `chat` can refuse conversations; a model without a template gets plain text whatever it says.
        data: folder of rows, None for the hub.
        batch: that stretch of the seeded order instead (`harness.load_questions`).
        chat: whether the model has a chat template.
        unsafe: run programs even where they cannot be isolated.

    Raises:
        BitworthError: rows that cannot be had or read, samples that would all be alike, no isolation on this machine.
    """
    chat = chat and spec.chat is not False
    sampling = sampling_of(task, spec, chat=chat)
    if spec.shots:
        raise BitworthError(f"Task {task.name} has no examples to show; leave its shots out.")
    docs = _docs(task, data)
    isolation = sandbox.isolation(unsafe=unsafe)
    (chosen,) = choose([len(docs)], spec.limit, spec.seed)
    if batch is not None:
        chosen = [index for _, index in shuffled([len(docs)], spec.seed)[slice(*batch)]]
    problems = [_problem(task, docs[index]) for index in chosen]
    return LoadedOpen(
        task=task.name,
        questions=tuple(_question(task, problem, isolation, chat=chat) for problem in problems),
        sampling=sampling,
        facts={
            "dataset": task.dataset,
            "source": "hub" if data is None else str(data),
            "split": task.splits[0],
            "rows": len(docs),
            "questions": len(problems),
            "shots": 0,
            "metric": task.metric,
            "prompt": "conversation" if chat else "text",
            "samples": sampling.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "isolation": isolation,
        },
    )


def sampling_of(task: CodeDef, spec: TaskSpec, *, chat: bool) -> Sampling:
    """The paper's sampling, but for what the spec says; a single sample, or temperature 0, means the other too.

    Raises:
        BitworthError: several samples at temperature 0.
    """
    usual = 0.0 if spec.samples == 1 else TEMPERATURE
    found = Sampling(
        max_tokens=MAX_TOKENS,
        stop=programs.stops(task.style, chat=chat),
        temperature=usual if spec.temperature is None else spec.temperature,
        top_p=TOP_P,
        n=spec.samples or task.samples,
        seed=spec.seed,
    )
    return drawn(task.name, found, spec.samples)


def _docs(task: CodeDef, data: Path | None) -> Any:
    if data is not None and not data.is_dir():
        raise BitworthError(f"Task {task.name}: the data folder {data} does not exist.")
    docs = rows.read(task, task.config, task.splits[0], data)
    if docs is None or not len(docs):
        raise rows.absent(task, task.splits[0], data)
    return docs


def _problem(task: CodeDef, row: Mapping[str, Any]) -> Problem:
    try:
        return programs.read_problem(task.style, row, task.tests)
    except (KeyError, TypeError, IndexError, SyntaxError) as error:
        item = row.get(task.item_key or "", "a row")
        raise BitworthError(
            f"Task {task.name}: {item} is not laid out as in {task.dataset} ({type(error).__name__}: {error}); get the "
            "data again."
        ) from error


def _question(task: CodeDef, problem: Problem, isolation: Isolation, *, chat: bool) -> OpenQuestion:
    prompt = programs.conversation(problem) if chat else problem.prompt
    grader = Grader(task=task.name, problem=problem, chat=chat, isolation=isolation)
    return OpenQuestion(task=task.name, item=problem.item, prompt=prompt, grade=grader.grade)
