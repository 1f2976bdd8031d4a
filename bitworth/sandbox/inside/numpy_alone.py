"""Numpy, and nothing else that is installed beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class NumpyAlone(MetaPathFinder):
    """Finds numpy in a folder whose other packages it passes over."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of numpy itself; its own path has the modules in it."""
        return PathFinder.find_spec(fullname, [self.folder], target) if fullname == "numpy" else None


def offer_numpy(folder: str | None) -> None:
    """Let `import numpy` find what lies in the folder; None where there is no numpy."""
    if folder is not None:
        sys.meta_path.append(NumpyAlone(folder))
