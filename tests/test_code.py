"""Programming tasks: the estimator, programs taken from answers, rows, grading, and the command line."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_evaluation import FakeScorer
from test_tasks import write_jsonl
from typer.testing import CliRunner

from bitworth import evaluation as verbs
from bitworth import sandbox, tasks
from bitworth.cli import app
from bitworth.engines.generator import Progress
from bitworth.errors import BitworthError
from bitworth.ledger import revive
from bitworth.sandbox import rooms
from bitworth.study import Study
from bitworth.tasks import programs, rows
from bitworth.tasks.base import LoadedOpen
from bitworth.tasks.code import CODE, sampling_of
from bitworth.tasks.grading_code import pass_at_k
from bitworth.types import Answer, Completion, EngineFacts, Message, Prompt, Sampling, TaskSpec


def humaneval_row(number: int) -> dict[str, Any]:
    """A question in HumanEval's schema, whose prompt holds a helper that its tests call too."""
    calls = f"    assert near(candidate(1)) == {1 + number}\n    assert candidate(-1) == {number - 1}\n"
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def near(x):\n    return x\n\n\ndef add_{number}(a: int) -> int:\n    """Adds {number}."""\n',
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return a + {number}\n",
        "test": f"def check(candidate):\n{calls}",
    }


def mbpp_row(number: int) -> dict[str, Any]:
    """A question in the schema of EvalPlus's MBPP+."""
    return {
        "task_id": number,
        "prompt": f"Write a function that gives the roots of {number}.",
        "code": f"def roots(x):\n    return (x ** 0.5, -(x ** 0.5), {number})",
        "test_imports": ["import math"],
        "test_list": [f"assert set(roots(4)) == {{2.0, -2.0, {number}}}", "assert math.isclose(roots(2)[0], 2 ** 0.5)"],
        "test": f"inputs = [[4], [9]]\nfor inp in inputs:\n    assert roots(*inp)[2] == {number}\n",
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "humaneval" / "HumanEval.jsonl.gz", [humaneval_row(number) for number in range(6)])
    write_jsonl(tmp_path / "mbpp_plus" / "test.jsonl", [mbpp_row(number) for number in range(3)])
    write_jsonl(tmp_path / "mbpp" / "test.jsonl", [mbpp_row(number) for number in range(3)])
    return tmp_path


@pytest.fixture(autouse=True)
def _isolated(request: pytest.FixtureRequest) -> None:
    """Programs run in these tests; they do no harm, but a machine without rooms refuses them."""
    if all(sandbox.works(way) is not None for way in rooms.WAYS):
        pytest.skip("programs cannot be isolated here")


class Writer:
    """Writes what `answer` says for a prompt and the completion's number."""

    has_chat_template = True
    facts = EngineFacts(engine="fake", kernel="none", device="none")

    def __init__(self, answer: Callable[[Prompt, int], str], *, chat: bool = False) -> None:
        self._answer, self.has_chat_template = answer, chat
        self.prompts: list[Prompt] = []
        self.sampling: Sampling | None = None

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        self.prompts, self.sampling = list(prompts), sampling
        return [
            [Completion(text=self._answer(prompt, number), finish="stop") for number in range(sampling.n)]
            for prompt in prompts
        ]


def canonical(prompt: Prompt, number: int) -> str:
    """The canonical solution of a `humaneval_row`, as the prompt asks for it."""
    text = prompt if isinstance(prompt, str) else prompt[0].content
    found = next(n for n in range(6) if f"def add_{n}(" in text)
    body = f"    return a + {found}\n"
    return body if isinstance(prompt, str) else f"def add_{found}(a):\n{body}"


# --- the estimator ------------------------------------------------------------------------------------------------


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass(case: tuple[int, int, int]) -> None:
    samples, passed, k = case
    draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.floats(0, 1))
def test_pass_at_k_is_unbiased(sizes: tuple[int, int], chance: float) -> None:
    """Its mean over binomial draws of n is the chance that k fresh samples hold a pass."""
    import math

    samples, k = sizes
    weights = [math.comb(samples, c) * chance**c * (1 - chance) ** (samples - c) for c in range(samples + 1)]
    mean = sum(weight * pass_at_k(samples, c, k) for c, weight in enumerate(weights))
    assert mean == pytest.approx(1 - (1 - chance) ** k, abs=1e-9)


@pytest.mark.parametrize("case", [(5, 6, 1), (5, -1, 1), (5, 2, 6), (5, 2, 0)])
def test_pass_at_k_of_nonsense_is_refused(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(*case)


# --- programs from answers ----------------------------------------------------------------------------------------

PROBLEM = programs.read_problem("humaneval", humaneval_row(1), "test")
RIGHT = "def add_1(a):\n    return a + 1"


@pytest.mark.parametrize(
    "reply",
    [
        RIGHT,
        f"{RIGHT}\n```",
        f"{RIGHT}\n```\nThis adds one.\n",
        f"{RIGHT}\nprint(add_1(int(input())))\nassert add_1(1) == 3\nif __name__ == '__main__':\n    exit(1)",
        f"{RIGHT}\n\ndef test_it(",
        f"{RIGHT}\nThis function adds one.",
        f"import math\n```\nor rather\n```python\n{RIGHT}\n```\nor\n```python\ndef add_1(a): return 0\n```",
        "    return a + 1\n```",
        "add_1 = lambda a: a + 1",
        "import functools\n@functools.cache\ndef add_1(a):\n    return a + 1",
        f"# adds\n{RIGHT}",
    ],
)
def test_programs_are_found_in_replies(reply: str) -> None:
    program = programs.program_of(PROBLEM, reply, chat=True)
    verdict = sandbox.judge(program, PROBLEM.check, isolation=sandbox.isolation())
    assert verdict.passed, (program, verdict)


@pytest.mark.parametrize(
    "reply", ["", "I cannot do that.", "def other(a):\n    return a + 1", "```\n```", "\0", "x = '"]
)
def test_replies_without_a_program_fail(reply: str) -> None:
    program = programs.program_of(PROBLEM, reply, chat=True)
    assert not sandbox.judge(program, PROBLEM.check, isolation=sandbox.isolation()).passed


def test_plain_text_goes_on_with_the_prompt_as_it_is() -> None:
    assert programs.program_of(PROBLEM, "    return 7", chat=False) == PROBLEM.prompt + "    return 7"


@given(st.text(alphabet="ab(){}:=\n \t'#`1", max_size=80))
def test_any_answer_makes_some_program(text: str) -> None:
    for chat in (True, False):
        assert isinstance(programs.program_of(PROBLEM, text, chat=chat), str)


def test_mbpp_questions_name_their_function() -> None:
    problem = programs.read_problem("mbpp", mbpp_row(3), "test_list")
    assert problem.entry == "roots"
    assert problem.prompt.count('"""') == 2
    assert "roots of 3." in problem.prompt
    assert mbpp_row(3)["test_list"][0] in problem.prompt
    older = {key: value for key, value in mbpp_row(3).items() if key != "test_imports"}
    older = {**older, "text": older.pop("prompt"), "test_setup_code": "import math"}
    assert programs.read_problem("mbpp", older, "test_list") == problem


def test_conversations_begin_the_reply() -> None:
    asked, begun = programs.conversation(PROBLEM)
    assert isinstance(asked, Message)
    assert (asked.role, begun.role) == ("user", "assistant")
    assert PROBLEM.prompt.strip() in asked.content
    assert begun.content.endswith("```python\n")


# --- how they are sampled -----------------------------------------------------------------------------------------


def sampled(chat: bool = False, **spec: Any) -> Sampling:
    return sampling_of(CODE["humaneval"], TaskSpec(name="humaneval", **spec), chat=chat)


def test_sampling_is_the_papers_unless_asked_otherwise() -> None:
    paper = sampled()
    assert (paper.n, paper.temperature, paper.top_p, paper.max_tokens) == (50, 0.2, 0.95, 768)
    assert (sampled(samples=10, temperature=0.8).n, sampled(samples=10, temperature=0.8).temperature) == (10, 0.8)
    for greedy in (sampled(samples=1), sampled(temperature=0), sampled(samples=1, temperature=0)):
        assert (greedy.n, greedy.temperature, greedy.top_p) == (1, 0.0, 1.0)
    assert (sampled(samples=1, temperature=0.2).n, sampled(samples=1, temperature=0.2).temperature) == (1, 0.2)
    with pytest.raises(BitworthError, match="alike"):
        sampled(samples=2, temperature=0)


def test_tasks_that_score_choices_take_no_samples(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match=r"arc_easy.*answered in writing"):
        tasks.load(TaskSpec(name="arc_easy", samples=3), tmp_path)


# --- from rows to answers -----------------------------------------------------------------------------------------


def ask(data: Path, writer: Writer, **spec: Any) -> list[Answer]:
    return verbs.evaluate(writer, [TaskSpec(**{"name": "humaneval", "samples": 4, **spec})], data=data)


@pytest.mark.parametrize("chat", [False, pytest.param(True, marks=pytest.mark.slow(beside=True))])
def test_canonical_solutions_get_everything_and_wrong_ones_nothing(data: Path, chat: bool) -> None:
    writer = Writer(canonical, chat=chat)
    right = ask(data, writer, samples=12)
    assert [answer.score for answer in right] == [1.0] * 6
    assert [answer.measures for answer in right] == [{"pass@10": 1.0}] * 6
    assert isinstance(writer.prompts[0], str) != chat
    wrong = ask(data, Writer(lambda prompt, number: canonical(prompt, number).replace("+", "-"), chat=chat), samples=12)
    assert [answer.item for answer in wrong if answer.score] == ["HumanEval/0"]  # a - 0 is right
    broken = ask(data, Writer(lambda prompt, number: "    return undefined", chat=chat), samples=12, limit=2)
    assert [answer.score for answer in broken] == [0.0] * 2
    assert broken[0].measures == {"pass@10": 0.0}
    assert broken[0].samples[0].reason.startswith("NameError")


def test_scores_are_the_share_of_samples_that_pass_and_pair(data: Path) -> None:
    def sometimes(least: int) -> Callable[[Prompt, int], str]:
        return lambda prompt, number: canonical(prompt, number) if number >= least else "    return None"

    half, most = (ask(data, Writer(sometimes(least)), limit=3) for least in (2, 1))
    assert {answer.score for answer in half} == {0.5}
    assert {answer.score for answer in most} == {0.75}
    assert half[0].prediction == "2 of 4 pass"
    assert [sample.passed for sample in half[0].samples] == [False, False, True, True]
    assert half[0].measures == {}
    (row, _) = verbs.compare(most, half, min_recovery_pct=99, format="w4a16")
    assert row.recovery_pct == pytest.approx(100 * 2 / 3)


def test_answers_come_back_from_a_ledger(data: Path) -> None:
    from dataclasses import asdict

    answer = ask(data, Writer(canonical), limit=1)[0]
    assert revive(Answer, json.loads(json.dumps(asdict(answer)))) == answer


def test_limits_choose_the_questions_of_any_task(data: Path) -> None:
    loaded = tasks.load(TaskSpec(name="humaneval", limit=3, seed=1), data)
    more = tasks.load(TaskSpec(name="humaneval", limit=4, seed=1), data)
    assert isinstance(loaded, LoadedOpen)
    assert isinstance(more, LoadedOpen)
    assert {question.item for question in loaded.questions} < {question.item for question in more.questions}
    assert [loaded.facts[name] for name in ("rows", "samples", "prompt")] == [6, 50, "text"]
    assert loaded.facts["isolation"] in rooms.WAYS


@pytest.mark.parametrize("name", ["mbpp", "mbpp_plus"])
def test_mbpp_programs_are_judged_by_their_tests(data: Path, name: str) -> None:
    def code(prompt: Prompt, number: int) -> str:
        return str(mbpp_row(next(n for n in range(3) if f"roots of {n}." in prompt))["code"])

    assert [answer.score for answer in ask(data, Writer(code), name=name, samples=1)] == [1.0] * 3
    wrong = ask(data, Writer(lambda prompt, number: code(prompt, number)[:-2] + "7)"), name=name, samples=1)
    assert [answer.score for answer in wrong] == [0.0] * 3


def test_a_polynomial_is_not_solved_by_zeroing_it(shared: Path) -> None:
    docs = rows.read(CODE["humaneval_plus"], None, "test", shared / "data")
    row = next(row for row in docs if row["task_id"] == "HumanEval/32")
    problem = programs.read_problem("humaneval", row, "test")
    run = partial(sandbox.judge, check=problem.check, isolation=sandbox.isolation())
    assert run(problem.prompt + row["canonical_solution"]).passed
    assert not run("def find_zero(xs):\n    xs[:] = [0] * len(xs)\n    return 0.0\n").passed


@pytest.mark.parametrize("style", ["humaneval", "mbpp"])
def test_a_reference_that_runs_afterwards_gets_what_the_program_was_given(style: Literal["humaneval", "mbpp"]) -> None:
    """As EvalPlus publishes tests whose expected result a solution of its own computes."""
    loop = "for inp in [[[3, 1, 2]], [[2, 2]]]:\n    assertion({}(*inp), ref_func(*inp), 0)\n"
    helpers = "def assertion(out, exp, atol):\n    assert out == exp\n\n\ndef ref_func(l):\n    return sorted(l)\n\n\n"
    if style == "mbpp":
        row = {**mbpp_row(1), "test_list": ["assert order([2, 1]) == [1, 2]"], "test": helpers + loop.format("order")}
    else:
        check = "def check(candidate):\n" + textwrap.indent(loop.format("candidate"), "    ")
        row = {**humaneval_row(1), "entry_point": "order", "test": helpers + check}
    problem = programs.read_problem(style, row, "test")
    run = partial(sandbox.judge, check=problem.check, isolation=sandbox.isolation())
    assert run("def order(l):\n    l.sort()\n    return l\n").passed
    assert not run("def order(l):\n    l.clear()\n    return []\n").passed


def test_conversations_can_be_asked_for_and_refused(data: Path) -> None:
    writer = Writer(canonical, chat=True)
    ask(data, writer, samples=1, chat=False, limit=1)
    assert isinstance(writer.prompts[0], str)
    plain = Writer(canonical, chat=False)
    ask(data, plain, samples=1, chat=True, limit=1)
    assert isinstance(plain.prompts[0], str)  # without a template, as every other task
    writer = Writer(canonical, chat=True)
    ask(data, writer, samples=1, chat=True, limit=1)
    assert not isinstance(writer.prompts[0], str)


def test_batches_are_stretches_of_one_seeded_order(data: Path) -> None:
    spec = TaskSpec(name="humaneval", samples=1)
    every = {question.item for question in tasks.load(spec, data).questions}
    parts = [tasks.load(spec, data, batch=(start, start + 1)).questions for start in range(len(every))]
    assert sorted(question.item for part in parts for question in part) == sorted(every)
    assert all(len(part) == 1 for part in parts)


def test_engines_that_do_not_write_are_refused(data: Path) -> None:
    with pytest.raises(BitworthError, match="answered in writing"):
        verbs.evaluate(FakeScorer(), [TaskSpec(name="humaneval")], data=data)


def test_what_is_wrong_with_rows_is_said(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match=r"humaneval/HumanEval\.jsonl"):
        tasks.load(TaskSpec(name="humaneval"), tmp_path)
    with pytest.raises(BitworthError, match="does not exist"):
        tasks.load(TaskSpec(name="humaneval"), tmp_path / "nothing")
    write_jsonl(tmp_path / "humaneval" / "HumanEval.jsonl", [{"task_id": "HumanEval/0", "prompt": "def f():\n  1\n"}])
    with pytest.raises(BitworthError, match="HumanEval/0 is not laid out"):
        tasks.load(TaskSpec(name="humaneval"), tmp_path)
    with pytest.raises(BitworthError, match="no examples"):
        tasks.load(TaskSpec(name="humaneval", shots=2), tmp_path)


def test_nothing_runs_where_nothing_isolates(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "works", lambda way: "the kernel says no")
    with pytest.raises(BitworthError, match="--unsafe-code-execution"):
        ask(data, Writer(canonical), limit=1)
    insisted = verbs.evaluate(
        Writer(canonical), [TaskSpec(name="humaneval", samples=1, limit=1)], data=data, unsafe=True
    )
    assert insisted[0].score == 1.0


# --- studies and the command line ---------------------------------------------------------------------------------


def test_study_files_sample_programs() -> None:
    entry = {"name": "humaneval", "limit": 20, "samples": 10, "temperature": 0.8, "chat": False}
    study = Study.model_validate({"model": "m", "formats": ["baseline"], "tasks": [entry, "arc_easy"]})
    assert study.task_specs()[0] == TaskSpec(name="humaneval", limit=20, samples=10, temperature=0.8, chat=False)
    assert study.task_specs()[1] == TaskSpec(name="arc_easy")
    assert not study.unsafe_code_execution


@pytest.mark.slow(beside=True)
def test_the_command_line_samples_programs(data: Path, tiny_llama: Path, tmp_path: Path) -> None:
    sampled_ = ["--samples", "2", "--temperature", "0.2", "--data", str(data), "--out", str(tmp_path / "out")]
    command = ["evaluate", str(tiny_llama), "--task", "humaneval", "--limit", "1", *sampled_, "--json", "--quiet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["tasks"]
    assert (row["task"], row["questions"], row["samples"], row["score"]) == ("humaneval", 1, 2, 0.0)
    assert (row["temperature"], row["metric"], row["isolation"] in rooms.WAYS) == (0.2, "pass@1", True)
    assert CliRunner().invoke(app, [*command, "--temperature", "0"]).exit_code != 0
    # another engine is another cell; this one writes the same word whatever it is asked
    other = CliRunner().invoke(app, [*command, "--engine", "fake"])
    assert other.exit_code == 0, other.output
    assert json.loads(other.stdout)["tasks"][0]["score"] == 0.0
