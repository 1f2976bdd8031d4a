"""What runs on a node of a cluster: a look at the machine, and a cell, with what it reads brought here."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.execute import Tell, Work
from bitworth.execute.attempt import attempt
from bitworth.execute.environment import environment
from bitworth.execute.storage import Storage, name_of
from bitworth.hardware import gpus, machine
from bitworth.sources.cache import cache_folder
from bitworth.types import Cell
from bitworth.versions import served

TELL_S = 1.0
"""Least time between two messages of one cell: a fleet's would drown the driver otherwise."""
_PATHS = ("model", "checkpoint", "baseline", "data", "text", "trace")


def describe() -> dict[str, Any]:
    """This machine in words, all its GPUs, the vLLM that would serve, and what would be computed with."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # a task that asked for no GPU is shown none
    return {"machine": machine(), "gpu_names": gpus(), "served": served(), "environment": environment()}


def sees(folder: str | None, storage: str | None, token: str, node: str) -> bool:
    """Whether what the driver left can be read here, and something be left for it."""
    try:
        if storage is not None:
            shelf = Storage(storage)
            found = shelf.has(f"probes/{token}")
            shelf.mark(f"probes/{token}-{node}")
            return found
        assert folder is not None
        found = (Path(folder) / f".probe-{token}").is_file()
        if found:
            (Path(folder) / f".probe-{token}-{node}").touch()
        return found
    except (OSError, BitworthError):
        return False


def send_inputs(cell: Cell, root: Path, shelf: Storage | None) -> Cell:
    """In the driver: the cell as a node gets it, with what it reads on the shelf if there is one.

    Raises:
        WorkFailed: the shelf cannot be written.
    """
    where = dict(cell.where)
    for name in filter(_is_path, cell.where):
        source = root / where[name] if name in _PATHS else Path(where[name])
        if shelf is None:
            where[name] = where[name] if name in _PATHS or not source.exists() else str(source.resolve())
        elif not Path(where[name]).is_absolute() and name in _PATHS:
            if source.is_dir():
                shelf.send(source, where[name])
        elif source.exists():
            place = f"{name_of(source)}/{source.name}"
            shelf.send(source, place)
            where[name] = f"{'file' if source.is_file() else 'folder'}:{place}"
            where[f"{name}.from"] = str(source)
    # a neighbour may be making what this one could make along with its own
    return replace(cell, where={**where, "alone": "yes"})


def _is_path(name: str) -> bool:
    return name in _PATHS or (name.startswith("calibration.") and not name.endswith(".name"))


def run_cell(
    cell: Cell, work: Work, root: str, storage: str | None, cores: float, tell: Tell
) -> tuple[dict[str, Any] | None, str | None, float]:
    """On the node: (result, None, seconds) or (None, cause, seconds)."""
    _use(max(1, int(cores)))
    began = time.monotonic()
    there: Work = partial(_in_place, work) if storage is None else partial(_on_shelf, work, storage)
    result, cause = attempt(cell, there, root, seldom(tell))
    return result, cause, time.monotonic() - began


def seldom(tell: Tell, clock: Callable[[], float] = time.monotonic) -> Tell:
    """The same, with at most one message each `TELL_S`, and the last."""
    last = [-TELL_S]

    def told(what: str, done: int, total: int) -> None:
        if clock() - last[0] >= TELL_S or done == total:
            last[0] = clock()
            tell(what, done, total)

    return told


def _use(cores: int) -> None:
    """Compute with so many threads, in a process that may have served a cell with another number."""
    os.environ["OMP_NUM_THREADS"] = str(cores)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(cores)


def _in_place(work: Work, cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """In the results folder that all nodes see."""
    for name in filter(_is_path, cell.where):
        path = Path(cell.where[name])
        if path.is_absolute() and not path.exists():
            raise BitworthError(
                f"{path} does not exist on this node; put it where all nodes see it under the same path, or give "
                "--storage URL."
            )
    return work(cell, root, tell)


def _on_shelf(work: Work, storage: str, cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """In a folder of this node's own, with what the cell reads fetched and what it made sent."""
    shelf = Storage(storage)
    scratch = cache_folder() / "nodes" / hashlib.sha256(f"{storage}\0{root}".encode()).hexdigest()[:12]
    result = work(_fetched(cell, shelf, scratch), str(scratch), tell)
    if cell.kind == "quantize":
        shelf.send(scratch / cell.where["out"], cell.where["out"])
    if "data.from" in cell.where:
        result["task"] = {**result["task"], "source": cell.where["data.from"]}
    return result


def _fetched(cell: Cell, shelf: Storage, scratch: Path) -> Cell:
    where = dict(cell.where)
    for name in filter(_is_path, cell.where):
        kind, _, place = where[name].partition(":")
        if kind in ("file", "folder") and place:
            shelf.fetch(place, scratch / place)
            where[name] = str(scratch / place / Path(place).name if kind == "file" else scratch / place)
        elif name in _PATHS and not Path(where[name]).is_absolute():
            shelf.fetch(where[name], scratch / where[name])
    return replace(cell, where=where)
