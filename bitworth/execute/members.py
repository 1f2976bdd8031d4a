"""The nodes of a Ray cluster, each looked at once, before any work goes there: its versions, its GPUs, what it sees."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from bitworth.errors import BitworthError, disk_reason
from bitworth.execute.environment import difference, environment
from bitworth.execute.placement import Node
from bitworth.execute.storage import Storage

ANSWER_S = 120.0
"""Longest wait for a node's first answer: a worker's start on a loaded machine is slow."""
Row = Mapping[str, Any]
"""A node as Ray lists it."""


def nodes_up(ray: ModuleType) -> list[Row]:
    """Those that are up and have a core for tasks."""
    return [row for row in ray.nodes() if row["Alive"] and row["Resources"].get("CPU", 0) >= 1]


def bound_to(ray: ModuleType, node: str) -> Any:
    """The scheduling strategy of a task that may run on one node only."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def line_of(error: BaseException) -> str:
    """What an error says, in a line, without a final stop: the last one of a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (lines[-1] if "Traceback" in str(error) else lines[0]).rstrip(".")


class Members:
    """What is known of the nodes."""

    def __init__(self, ray: ModuleType, root: Path, storage: str | None) -> None:
        self._ray, self._root, self._storage = ray, root, storage
        self._here = environment()
        self._known: dict[str, Node | None] = {}

    def fit(self) -> list[Node]:
        """Those that are up and can be used."""
        known = [self._known.get(row["NodeID"]) for row in nodes_up(self._ray)]
        return [node for node in known if node is not None]

    def meet(self) -> list[str]:
        """Look at the nodes that came since the last call; a sentence for each that is up and cannot be used."""
        rows = [row for row in nodes_up(self._ray) if row["NodeID"] not in self._known]
        if not rows:
            return []
        self._known.update(dict.fromkeys((row["NodeID"] for row in rows), None))
        facts = list(zip(rows, self._ask(rows, _describe()), strict=True))
        sentences = [(row, self._unfit(row, found)) for row, found in facts]
        left = [(row, found) for (row, no), (_, found) in zip(sentences, facts, strict=True) if no is None]
        blind = self._blind([row for row, _ in left])
        for (row, found), sentence in zip(left, blind, strict=True):
            if sentence is None:
                self._known[row["NodeID"]] = _node(row, found)
            sentences.append((row, sentence))
        # Ray lists a node that died for some seconds more; that one was no fault of its own, and no work goes there.
        up = {row["NodeID"] for row in nodes_up(self._ray)}
        return [sentence for row, sentence in sentences if sentence is not None and row["NodeID"] in up]

    def _ask(self, rows: Sequence[Row], function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function gives on each node, or the error; it is called with the node's id last."""
        task = self._ray.remote(function)
        asked = [
            task.options(num_cpus=0, max_retries=0, scheduling_strategy=bound_to(self._ray, row["NodeID"])).remote(
                *arguments, row["NodeID"]
            )
            for row in rows
        ]
        self._ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
        return [self._answer(one) for one in asked]

    def _answer(self, asked: Any) -> Any:
        try:
            return self._ray.get(asked, timeout=1)
        except self._ray.exceptions.RayError as error:
            return error

    def _unfit(self, row: Row, found: Any) -> str | None:
        """Why a node of these facts cannot be used, in a sentence."""
        address = row["NodeManagerAddress"]
        if isinstance(found, Exception):
            return f"Node {address} of the Ray cluster does not answer: {line_of(found)}."
        if found is None:
            return f"Node {address} has no bitworth of this version; install {self._wanted()} there."
        other = difference(found["environment"], self._here)
        if other is not None:
            return f"Node {address} has {other}; install the same there as on this machine ({self._wanted()})."
        return None

    def _wanted(self) -> str:
        return f"bitworth {self._here['bitworth']} with torch {self._here['torch']}"

    def _blind(self, rows: Sequence[Row]) -> list[str | None]:
        """For each node, a sentence if it cannot read what is left for it or the driver not what it leaves."""
        token = uuid.uuid4().hex
        with self._left(token) as answers:
            seen = self._ask(rows, _sees(), None if self._storage else str(self._root), self._storage, token)
            both = [found is True and answers(row["NodeID"]) for row, found in zip(rows, seen, strict=True)]
        return [None if fine else self._out_of_sight(row) for row, fine in zip(rows, both, strict=True)]

    def _out_of_sight(self, row: Row) -> str:
        address = row["NodeManagerAddress"]
        if self._storage:
            return f"Node {address} cannot use the storage {self._storage}; name one that all nodes may read and write."
        return (
            f"Node {address} does not see the results folder {self._root}; put --out on a folder that all nodes share, "
            "or give --storage URL."
        )

    @contextmanager
    def _left(self, token: str) -> Iterator[Callable[[str], bool]]:
        """Leave a mark for the nodes; gives what says whether a node left its own. All are removed."""
        if self._storage:
            shelf = Storage(self._storage)
            names = [f"probes/{token}", *(f"probes/{token}-{node}" for node in self._known)]
            shelf.mark(names[0])
            try:
                yield lambda node: shelf.has(f"probes/{token}-{node}")
            finally:
                for name in names:
                    shelf.unmark(name)
            return
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            (self._root / f".probe-{token}").touch()
            yield lambda node: (self._root / f".probe-{token}-{node}").exists()
        except OSError as error:
            raise BitworthError(f"The folder {self._root} cannot be used for results: {disk_reason(error)}.") from error
        finally:
            for path in self._root.glob(f".probe-{token}*"):
                with suppress(OSError):
                    path.unlink()


def _node(row: Row, facts: Mapping[str, Any]) -> Node:
    resources = row["Resources"]
    return Node(
        id=row["NodeID"],
        address=row["NodeManagerAddress"],
        cpus=float(resources["CPU"]),
        gpus=int(resources.get("GPU", 0)),
        memory=float(resources["memory"]),
        gpu_names=tuple(facts["gpu_names"]) if resources.get("GPU") else (),
        machine=facts["machine"],
        served=facts["served"],
    )


def _describe() -> Callable[..., Any]:
    """A function that is sent as it is, since a node may lack the module it would be found in: None from such a one."""

    def describe(node: str) -> Any:
        try:
            from bitworth.execute.node import describe
        except ImportError:
            return None
        return describe()

    return describe


def _sees() -> Callable[..., Any]:
    def see(folder: str | None, storage: str | None, token: str, node: str) -> bool:
        from bitworth.execute.node import sees

        return sees(folder, storage, token, node)

    return see
