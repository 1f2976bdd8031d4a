"""What a process would compute with, and how two of them differ: results of one study come from one set of versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import bitworth

PACKAGES = ("bitworth", "torch", "transformers", "tokenizers", "safetensors", "numpy", "datasets", "lm_eval")
"""Those whose version can change a result."""
CODE = "bitworth's code"


def environment() -> dict[str, str]:
    """Versions by package, Python's, and a digest of bitworth's own source."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return {**found, CODE: _digest()}


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """`torch 2.9.0 instead of 2.13.0`, None where nothing differs that changes a result.

    What follows a plus sign says what a build is for (`2.13.0+cpu`), which is the node's own affair.
    """
    for name, wanted in here.items():
        found = there.get(name, "absent")
        if found.partition("+")[0] != wanted.partition("+")[0]:
            return f"other {CODE}" if name == CODE else f"{name} {found} instead of {wanted}"
    return None


@cache
def _digest() -> str:
    """Of the package's Python files, so that equal version numbers of different work are told apart."""
    root = Path(bitworth.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
