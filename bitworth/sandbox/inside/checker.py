"""The process that runs a benchmark's tests. The program under test is in another one, which only answers calls.

It never sees the tests, the expected results or this process; all it can do to the verdict is to give right answers.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import wire
from .confine import confine, take_input
from .numpy_alone import offer_numpy


def main(settings: Mapping[str, Any]) -> None:
    """Run the job on standard input; the verdict goes to the file descriptor `verdict` as JSON."""
    confine(settings["limits"])
    offer_numpy(settings["numpy"])
    job = json.loads(take_input())
    remote = Remote(settings["calls"], settings["replies"])
    try:
        run(job, remote)
        reason = "" if remote.ended is None else remote.ended
    except wire.Ended as error:
        reason = str(error)
    except BaseException as error:
        reason = remote.ended or f"{type(error).__name__}: {error}"[:200]
    os.write(settings["verdict"], json.dumps({"passed": not reason, "reason": reason}).encode())


def run(job: Mapping[str, Any], remote: Remote) -> None:
    """Execute `setup`, forget the `asked` names that it defines, and execute `test`; raises whatever fails.

    Names that neither defines are the program's.
    """
    space: dict[str, Any] = {"__name__": "checks"}
    exec(compile(job["setup"], "setup.py", "exec"), space)
    for name in job["asked"]:
        space.pop(name, None)
    test = compile(job["test"], "test.py", "exec")
    wanted = [name for name in unknown_names(job["test"]) if name not in space]
    for name, found in zip(wanted, remote.look(wanted), strict=True):
        if found["is"] != "missing":
            space[name] = _stand_for(name, found, remote)
    exec(test, space)


def unknown_names(source: str) -> list[str]:
    """Names that a source reads and that are no builtins, in their order; some of them it may define itself."""
    names = (node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return [name for name in dict.fromkeys(names) if not hasattr(builtins, name)]


def _stand_for(name: str, found: Mapping[str, Any], remote: Remote) -> Any:
    if found["is"] == "module":
        module = str(found.get("name"))
        if module.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"}:
            raise ImportError(f"the tests use the program's module {module}, which is not at hand")
        return importlib.import_module(module)
    return remote.function(name) if found["is"] == "callable" else remote.decode(found.get("value"))


class Far:
    """Something of the program's that is no plain data: it can be called, gone through and handed back."""

    def __init__(self, remote: Remote, number: int) -> None:
        self._remote, self._number = remote, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call it where it is."""
        return self._remote.call(self._number, arguments, named)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._remote.ask({"do": "list", "object": self._number}))


class Remote:
    """The program under test, as far as it answers."""

    def __init__(self, calls: int, replies: int) -> None:
        self._calls, self._replies = calls, replies
        self._far: dict[int, Far] = {}
        self.ended: str | None = None

    def look(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What each name is in the program."""
        found = self._exchange({"do": "look", "names": list(names)}).get("found")
        if not isinstance(found, list) or len(found) != len(names) or not all(isinstance(f, dict) for f in found):
            raise self._end("what it sends cannot be read")
        return [{"is": "missing", **each} for each in found]

    def function(self, name: str) -> Any:
        """A function that calls the program's."""

        def call(*arguments: Any, **named: Any) -> Any:
            return self.call(name, arguments, named)

        return call

    def call(self, function: str | int, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """The value of a call; changes that it makes to its arguments are made here too."""
        encoded = [wire.encode(argument, self._number) for argument in arguments]
        by_name = {name: wire.encode(value, self._number) for name, value in named.items()}
        return self.ask({"do": "call", "function": function, "arguments": encoded, "named": by_name}, arguments)

    def ask(self, question: Mapping[str, Any], arguments: Sequence[Any] = ()) -> Any:
        """The decoded value of an answer.

        Raises:
            Exception: what the program raised, as the nearest of Python's own exceptions.
        """
        answer = self._exchange(question)
        if "raised" in answer:
            raise _raised(str(answer["raised"]))
        if isinstance(answer.get("changed"), list):
            for old, new in zip(arguments, self.decode(answer["changed"]), strict=False):
                _become(old, new)
        return self.decode(answer.get("value"))

    def decode(self, value: Any) -> Any:
        """A value that the program sent."""
        try:
            return wire.decode(value, lambda number: self._far.setdefault(number, Far(self, number)))
        except (wire.Ended, RecursionError) as error:
            raise self._end("what it sends cannot be read") from error

    def _number(self, value: Any) -> int:
        if isinstance(value, Far):
            return value._number
        raise TypeError(f"a {type(value).__name__} cannot be handed to the program")

    def _exchange(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if self.ended is not None:
            raise wire.Ended(self.ended)
        try:
            wire.send(self._calls, question)
            answer = wire.receive(self._replies)
        except wire.Ended as error:
            raise self._end(str(error)) from error
        if not isinstance(answer, dict):
            raise self._end("what it sends cannot be read")
        return answer

    def _end(self, why: str) -> wire.Ended:
        """From here on nothing can pass, whatever the tests make of the exception."""
        self.ended = f"the program: {why}"
        return wire.Ended(self.ended)


def _raised(name: str) -> Exception:
    """One of Python's own exceptions by its name, which is all that a program may say of what it raised."""
    kind = getattr(builtins, name, Exception)
    try:
        error = kind("raised by the program")
    except TypeError:  # some take other arguments
        error = None
    return error if isinstance(error, Exception) else Exception(name)


def _become(old: Any, new: Any) -> None:
    """Give a container what another one holds."""
    if isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif isinstance(old, (dict, set)) and type(old) is type(new):
        old.clear()
        old.update(new)
