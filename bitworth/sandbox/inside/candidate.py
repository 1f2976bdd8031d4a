"""The process that runs a stranger's program, and answers calls of its functions until nobody asks any more."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from typing import Any

from . import wire
from .confine import confine, take_input
from .numpy_alone import offer_numpy


def main(settings: Mapping[str, Any]) -> None:
    """Run the program that standard input holds; with `calls` and `replies` also serve its functions."""
    confine(settings["limits"])
    offer_numpy(settings["numpy"])
    program = take_input().decode()
    if settings["calls"] is None:
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(program, "program.py", "exec"), vars(module))
        return
    # a name of its own: `if __name__ == "__main__"` does not run where a program is checked
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    exec(compile(program, "program.py", "exec"), vars(module))
    Served(vars(module), settings["calls"], settings["replies"]).serve()


class Served:
    """The program's names, and the objects that were given out by number."""

    def __init__(self, names: dict[str, Any], calls: int, replies: int) -> None:
        self.names, self.calls, self.replies = names, calls, replies
        self.kept: list[Any] = []

    def serve(self) -> None:
        """Answer until the checker is gone."""
        while True:
            try:
                asked = wire.receive(self.calls)
            except wire.Ended:
                return
            try:
                answer = self._answer(asked)
                wire.send(self.replies, answer)
            except wire.Ended:
                return
            except Exception as error:
                raised = next((k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins"), "Exception")
                wire.send(self.replies, {"raised": raised})

    def _answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        if asked["do"] == "look":
            return {"found": [self._look(name) for name in asked["names"]]}
        if asked["do"] == "list":
            return {"value": self._encode(list(self.kept[asked["object"]]))}
        arguments = [self._decode(value) for value in asked["arguments"]]
        named = {name: self._decode(value) for name, value in asked["named"].items()}
        function = self.kept[asked["function"]] if isinstance(asked["function"], int) else self.names[asked["function"]]
        value = function(*arguments, **named)
        after = [self._encode(argument) for argument in arguments]
        changed = None if json.dumps(after) == json.dumps(asked["arguments"]) else after
        return {"value": self._encode(value), "changed": changed}

    def _look(self, name: str) -> dict[str, Any]:
        if name not in self.names:
            return {"is": "missing"}
        value = self.names[name]
        if isinstance(value, types.ModuleType):
            return {"is": "module", "name": value.__name__}
        return {"is": "callable"} if callable(value) else {"is": "value", "value": self._encode(value)}

    def _encode(self, value: Any) -> Any:
        return wire.encode(value, self._stand_in)

    def _decode(self, value: Any) -> Any:
        return wire.decode(value, self.kept.__getitem__)

    def _stand_in(self, value: Any) -> int:
        for at, known in enumerate(self.kept):
            if known is value:
                return at
        self.kept.append(value)
        return len(self.kept) - 1
