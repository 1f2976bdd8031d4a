"""Nodes that would compute something else are told apart by one difference, in words."""

from __future__ import annotations

from importlib.metadata import version

from bitworth.execute.environment import CODE, difference, environment

HERE = {"python": "3.11", "bitworth": "0.1.0", "torch": "2.13.0+cpu", CODE: "abc"}


def test_the_same_versions_differ_in_nothing() -> None:
    found = environment()
    assert difference(found, found) is None
    assert found["torch"].partition("+")[0] == version("torch").partition("+")[0]
    assert len(found[CODE]) == 12


def test_a_build_for_other_devices_is_the_nodes_affair() -> None:
    assert difference({**HERE, "torch": "2.13.0+cu130"}, HERE) is None
    assert difference({**HERE, "torch": "2.13.0"}, HERE) is None


def test_the_difference_is_said() -> None:
    assert difference({**HERE, "torch": "2.9.1+cu126"}, HERE) == "torch 2.9.1+cu126 instead of 2.13.0+cpu"
    assert difference({**HERE, CODE: "abd"}, HERE) == "other bitworth's code"
    assert difference({}, HERE) == "python absent instead of 3.11"
