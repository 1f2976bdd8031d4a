"""JSON and YAML that somebody else wrote: whatever is wrong with it is a ValueError, and nothing in it can grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml

#: A study is a page long.
MOST_YAML_CHARACTERS = 1 << 18
#: Values of a YAML document with every alias written out.
MOST_YAML_NODES = 50_000
#: Of a number in YAML, as for Python's own: 1:1:1:... counts sixties, in time that grows with the square of its length.
MOST_YAML_DIGITS = 4_300
#: Lists and mappings inside one another; what reads a document further needs some of Python's stack for each.
MOST_NESTED = 64

#: libyaml's where PyYAML was built with it: Python's takes seconds for what is allowed here.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})

_UNREADABLE = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)


Collect = Callable[[list[tuple[str, Any]]], Any]


def json_of(text: str | bytes, *, nested: int | None = None, collect: Collect | None = None) -> Any:
    """The value of a JSON text.

    Args:
        text: as it came.
        nested: how deep lists and objects may lie inside one another.
        collect: makes each object of its (name, value) pairs.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=collect)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if nested is not None and _deeper(value, nested):
        raise ValueError("it is nested too deeply")
    return value


def config_of(text: str | bytes) -> dict[str, Any]:
    """The object of a JSON text of a few pages, such as a config.json.

    Raises:
        ValueError: it is not JSON, no object, or nested too deeply.
    """
    value = json_of(text, nested=MOST_NESTED)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def yaml_of(text: str) -> Any:
    """The value of a YAML document in YAML's own types; aliases count for what they stand for.

    Raises:
        yaml.YAMLError: it is not YAML, or names a type that is not YAML's own.
        ValueError: it is too long, too large with its aliases written out, nested too deeply, within itself, or holds a
            value that is none of its type (the 40th of May) or an endless number.
    """
    if len(text) > MOST_YAML_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_YAML_CHARACTERS:,} characters")
    _bounded(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}, 0) > MOST_YAML_NODES:
            raise ValueError(f"its aliases stand for more than {MOST_YAML_NODES:,} values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError:
        raise
    except _UNREADABLE as error:  # PyYAML's constructors raise whatever the value gave them
        raise ValueError("it holds a value that is none of its type") from error
    finally:
        loader.dispose()


def _bounded(text: str) -> None:
    """Refuse a document by its events, which need no stack and no memory, before anything is made of it."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > MOST_NESTED:
            raise ValueError("it is nested too deeply")
        if nodes > MOST_YAML_NODES:
            raise ValueError(f"it holds more than {MOST_YAML_NODES:,} values")


def _written_out(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many nodes there are with aliases written out; `known` holds 0 for what is being counted."""
    if depth > MOST_NESTED:
        raise ValueError("it is nested too deeply")
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("it holds itself")
        return known[id(node)]
    if node.tag in _NUMBERS and len(node.value) > MOST_YAML_DIGITS:
        raise ValueError(f"it holds a number of more than {MOST_YAML_DIGITS:,} digits")
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"`{twice[:80]}` stands twice in one mapping")
    known[id(node)] = 0
    children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    inner = () if isinstance(node, yaml.ScalarNode) else children
    known[id(node)] = 1 + sum(_written_out(child, known, depth + 1) for child in inner)
    return known[id(node)]


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects lie more than `most` deep in one another."""
    level = [value]
    for _ in range(most + 1):
        level = [
            part
            for each in level
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True
