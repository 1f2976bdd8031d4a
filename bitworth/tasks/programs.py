"""Programming questions: what is asked, where an answer ends, and which program an answer holds.

A model that goes on with text gets a function's beginning, and the program is that beginning and what it wrote. A model
that converses gets the same as a task, its reply begun with an open code fence; the program is the code in the reply.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitworth.sandbox import Check
from bitworth.types import Message

Style = Literal["humaneval", "mbpp"]

FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_ENDS = {
    # where a function has ended: the strings of the HumanEval paper (arXiv 2107.03374, section 3), and a test
    "humaneval": ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\nassert"),
    # a program may hold several functions; these begin what comes after it
    "mbpp": ('\n"""', "\nassert", "\nprint", "\nif __name__"),
}
_TASK = "Solve the following problem with one self-contained Python program, and put all of it in one code block:"
_REPLY = "This Python program solves the problem and passes its tests:"

_CLOSE = """
def is_floats(x):
    if isinstance(x, (list, tuple)) and x:
        return all(isinstance(item, float) for item in x)
    return isinstance(x, float) or getattr(x, "dtype", None) in (np.float64, np.float32)


def assertion(out, exp, atol):
    if out == exp:
        return
    atol = atol or (1e-6 if is_floats(exp) else 0)
    assert atol and type(out) == type(exp)
    assert not isinstance(exp, (list, tuple)) or len(out) == len(exp)
    assert np.allclose(out, exp, rtol=1e-07, atol=atol)
"""
"""EvalPlus's comparison as its evaluator makes it. The tests that it publishes for others hold an earlier one, under
which any list of one number equals an empty list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question.

    Attributes:
        item: its id.
        prompt: Python source for a model to go on with.
        entry: the function that the tests call.
        check: the tests.
    """

    item: str
    prompt: str
    entry: str
    check: Check


def read_problem(style: Style, row: Mapping[str, Any], tests: str) -> Problem:
    """A row of the hub's data sets (HumanEval, HumanEval+; MBPP, MBPP+) with the column that holds its tests.

    Raises:
        KeyError, TypeError, IndexError, SyntaxError: it is laid out otherwise.
    """
    return _humaneval(row, tests) if style == "humaneval" else _mbpp(row, tests)


def _humaneval(row: Mapping[str, Any], tests: str) -> Problem:
    prompt, entry, test = row["prompt"], row["entry_point"], row[tests]
    if "def assertion(" in test:
        test += _CLOSE
    # HumanEval/32 of HumanEval+ as published unpacks the root and leaves the polynomial whole
    test = test.replace("_poly(*candidate(*inp), inp) <= ", "abs(_poly(*inp, candidate(*inp))) <= ")
    ast.parse(prompt)
    check = Check(setup=prompt, asked=(entry,), test=f"{_on_copies(test, 'candidate')}\ncheck({entry})\n")
    return Problem(item=str(row["task_id"]), prompt=prompt, entry=entry, check=check)


def _mbpp(row: Mapping[str, Any], tests: str) -> Problem:
    asked = str(row["prompt"] if "prompt" in row else row["text"]).strip()
    examples = [str(line) for line in row["test_list"]]
    test = row[tests] if isinstance(row[tests], str) else "\n".join(row[tests])
    setup = "\n".join(row.get("test_imports") or ()) or row.get("test_setup_code") or ""
    prompt = f'"""\n{asked}\n{examples[0].strip()}\n"""\n'
    entry = _called(examples[0])
    check = Check(setup=setup, test=_on_copies(test, entry))
    return Problem(item=str(row["task_id"]), prompt=prompt, entry=entry, check=check)


def _on_copies(test: str, function: str) -> str:
    """The test with copies of its inputs for the program, whose changes to them would reach the expected results."""
    changed = re.sub(rf"\b{re.escape(function)}\(\*inp\)", f"{function}(*deepcopy(inp))", test) if function else test
    return test if changed == test else f"from copy import deepcopy\n{changed}"


def _called(test: str) -> str:
    """The function of the program that a test calls: the first name called that Python does not have."""
    calls = (node.func for node in ast.walk(ast.parse(test.strip())) if isinstance(node, ast.Call))
    return next((f.id for f in calls if isinstance(f, ast.Name) and not hasattr(builtins, f.id)), "")


def stops(style: Style, *, chat: bool) -> tuple[str, ...]:
    """Strings that end an answer: in a reply the fence, else also what comes after the function."""
    return ("\n```\n",) if chat else ("\n```", *_ENDS[style])


def conversation(problem: Problem) -> tuple[Message, ...]:
    """The task in words, and a reply that has come as far as the code."""
    task = f"{_TASK}\n```python\n{problem.prompt.strip()}\n```\n"
    return (Message(role="user", content=task), Message(role="assistant", content=f"{_REPLY}\n```python\n"))


def program_of(problem: Problem, text: str, *, chat: bool) -> str:
    """The program that an answer makes.

    Of a reply, the first block of code that defines the function counts (of several blocks that do not, all of them;
    of a reply that repeats only the function's body, what the prompt begins with it), without the lines at its end
    that break off, and without what it does besides importing, defining and assigning: examples, tests, input.
    """
    if not chat:
        return problem.prompt + text
    blocks = [parsable(found) for found in FENCE.findall(f"```python\n{text}")]
    whole = next((block for block in blocks if problem.entry in definitions(block)), "\n".join(blocks))
    if problem.entry not in definitions(whole):
        begun = parsable(problem.prompt + text)
        whole = begun if problem.entry in definitions(begun) else whole
    return defining(whole)


def parsable(source: str) -> str:
    """The source without as many lines at its end as keep it from being Python; as it is when none can be kept."""
    lines = source.split("\n")
    for count in range(len(lines), 0, -1):
        shorter = "\n".join(lines[:count])
        if _tree(shorter) is not None:
            return shorter if shorter.strip() else source
    return source


def definitions(source: str) -> set[str]:
    """Names that a source defines at its top level; none where it is no Python."""
    tree = _tree(source)
    found: set[str] = set()
    for node in tree.body if tree is not None else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def defining(source: str) -> str:
    """The source's imports, definitions and assignments; as it is where it is no Python."""
    tree = _tree(source)
    if tree is None:
        return source
    lines = source.split("\n")
    kept = []
    for node in tree.body:
        if isinstance(node, _DEFINING):
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
            kept.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n".join(kept) + "\n"


_DEFINING = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Try,  # an import with its substitute
)


def _tree(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
