"""A Ray cluster as the machines that run cells; importing this needs no Ray.

with connect("ray://head:10001", Path("out")) as cluster:
    running.run(study, "out", executor=FleetExecutor(cluster))

Placement is the driver's (`execute.placement`): a task is bound to its node, and asks Ray for the cores, GPUs and
memory it takes there, so that other users of the cluster are respected. Ray retries nothing by itself: what died is
known here.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from bitworth.errors import BitworthError
from bitworth.execute import Work
from bitworth.execute.fleet import Outcome
from bitworth.execute.members import Members, bound_to, line_of, nodes_up
from bitworth.execute.node import run_cell, send_inputs
from bitworth.execute.placement import Demand, Node
from bitworth.execute.storage import Storage
from bitworth.sources import Note, silent
from bitworth.types import Cell

_ATTEMPTS = 3
"""How often a head that answers is asked to start the process that serves this driver."""


@contextmanager
def connect(
    address: str | None, root: Path, *, storage: str | None = None, note: Note = silent
) -> Iterator[RayCluster]:
    """A running Ray cluster, checked; what runs on it for us is ended on leaving.

    Args:
        address: `ray://HOST:10001`, `HOST:6379`, or None for $RAY_ADDRESS or the cluster that this machine belongs to.
        root: the results folder, which every node must see under this path unless there is a storage.
        storage: fsspec's URL of a place that the driver and all nodes reach; inputs and checkpoints travel through it.
        note: told of nodes that come and cannot be used.

    Raises:
        BitworthError: no Ray, no cluster, or a node that has other versions or cannot see the folder or storage.
    """
    ray = _ray()
    ours = not ray.is_initialized()
    if ours:
        _open(ray, address)
    try:
        cluster = RayCluster(ray, root, storage=storage, note=note)
        try:
            cluster.check()
            yield cluster
        finally:
            cluster.close()
    finally:
        if ours:
            ray.shutdown()


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise BitworthError("Ray is not installed; `pip install 'bitworth[ray]'` brings it.") from error
    module: ModuleType = ray
    return module


def _open(ray: ModuleType, address: str | None) -> None:
    place = address or os.environ.get("RAY_ADDRESS") or "auto"
    for more in reversed(range(_ATTEMPTS)):
        try:
            return _init(ray, place)
        except BitworthError as error:
            ray.shutdown()  # Ray itself stays half in its client's mode after it failed, and joins nothing then
            if not (more and isinstance(error.__cause__, ConnectionAbortedError)):
                raise
            time.sleep(1)


def _init(ray: ModuleType, place: str) -> None:
    where = "on this machine" if place == "auto" else f"at {place}"
    try:
        ray.init(address=place, log_to_driver=False, logging_level="error", namespace=f"bitworth-{uuid.uuid4().hex}")
    except ConnectionAbortedError as error:  # reached; the process that it starts for this driver did not live
        raise BitworthError(f"The Ray cluster {where} does not take this driver: {line_of(error)}.") from error
    except (ConnectionError, TimeoutError) as error:
        raise BitworthError(
            f"No Ray cluster answers {where}; start one with `ray start --head`, or name one with --on ray://HOST:10001."
        ) from error
    except (RuntimeError, ImportError, ValueError) as error:  # versions of Ray or Python that differ, no gRPC
        raise BitworthError(f"The Ray cluster cannot be used: {line_of(error)}.") from error


class Board:
    """An actor that keeps the newest message of each cell until the driver takes it."""

    def __init__(self) -> None:
        self._messages: dict[int, tuple[int, str, int, int]] = {}

    def put(self, ticket: int, what: str, done: int, total: int) -> None:
        """Keep it in place of the last."""
        self._messages[ticket] = (ticket, what, done, total)

    def take(self) -> list[tuple[int, str, int, int]]:
        """What came since the last call."""
        found = list(self._messages.values())
        self._messages.clear()
        return found


class RayCluster:
    """See `execute.fleet.Cluster`."""

    def __init__(self, ray: ModuleType, root: Path, *, storage: str | None = None, note: Note = silent) -> None:
        self._ray, self._root, self._note = ray, root.resolve(), note
        self._storage = storage
        self._shelf = None if storage is None else Storage(storage)
        self._tasks: dict[Any, tuple[int, Node]] = {}
        self._run = ray.remote(_run)
        self._board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_concurrency=1).remote()
        self._messages: Any = None
        self._members = Members(ray, self._root, storage)

    def check(self) -> None:
        """Look at every node that is up.

        Raises:
            BitworthError: one cannot be used, or there is none.
        """
        refused = self._members.meet()
        if refused:
            raise BitworthError(refused[0])
        if not self.nodes():
            raise BitworthError("The Ray cluster has no node with a core for cells; start one with `ray start`.")

    def nodes(self) -> list[Node]:
        """Those that are up and fit; one that came since and is not is told of once."""
        for sentence in self._members.meet():
            self._note(f"{sentence} It is not used.")
        return self._members.fit()

    def start(self, ticket: int, cell: Cell, work: Work, root: str, node: Node, demand: Demand) -> None:
        """See `Cluster.start`."""
        sent = send_inputs(cell, Path(root), self._shelf)
        options = {"num_cpus": demand.cpus, "num_gpus": demand.gpus, "memory": int(demand.memory), "max_retries": 0}
        task = self._run.options(**options, scheduling_strategy=bound_to(self._ray, node.id)).remote(
            ticket, sent, work, root, self._storage, demand.cpus, self._board
        )
        self._tasks[task] = (ticket, node)

    def wait(self, seconds: float) -> list[Outcome]:
        """See `Cluster.wait`."""
        if not self._tasks:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        if ready:  # others may have ended meanwhile
            ready, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        return [self._outcome(task, *self._tasks.pop(task)) for task in ready]

    def told(self) -> list[tuple[int, str, int, int]]:
        """See `Cluster.told`; never waits for the board, whose node may be going down."""
        found: list[tuple[int, str, int, int]] = []
        if self._messages is not None and self._ray.wait([self._messages], timeout=0)[0]:
            with suppress(self._ray.exceptions.RayError):
                found = self._ray.get(self._messages)
            self._messages = None
        if self._messages is None:
            self._messages = self._board.take.remote()
        return found

    def fetch(self, cell: Cell, root: Path) -> None:
        """See `Cluster.fetch`."""
        if self._shelf is not None and cell.kind == "quantize":
            self._shelf.fetch(cell.where["out"], root / cell.where["out"])

    def stop(self) -> None:
        """See `Cluster.stop`."""
        tasks = list(self._tasks)
        self._tasks.clear()
        for task in tasks:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task, force=True)
        if tasks:
            self._ray.wait(tasks, num_returns=len(tasks), timeout=10)

    def close(self) -> None:
        """Stop, and end the board."""
        self.stop()
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._board)

    def _outcome(self, task: Any, ticket: int, node: Node) -> Outcome:
        faults = self._ray.exceptions
        try:
            result, cause, seconds = self._ray.get(task)
            return Outcome(ticket=ticket, result=result, cause=cause, seconds=seconds)
        except faults.OutOfMemoryError:
            said = f"Node {node.address} ran out of memory, and Ray killed the worker."
            return Outcome(ticket=ticket, cause=said, death="worker")
        except faults.WorkerCrashedError:
            said = f"The worker on node {node.address} died, as happens when the machine runs out of memory."
            return Outcome(ticket=ticket, cause=said, death="worker")
        except (faults.NodeDiedError, faults.LocalRayletDiedError):
            return Outcome(ticket=ticket, cause=f"Node {node.address} died.", death="node")
        except faults.ObjectLostError as error:
            return self._gone(ticket, node, f"What node {node.address} found was lost: {line_of(error)}.")
        except faults.TaskUnschedulableError as error:
            return self._gone(ticket, node, f"Node {node.address} takes no work: {line_of(error)}.")
        except faults.RayError as error:  # the work's module cannot be imported there, say
            return Outcome(ticket=ticket, cause=f"Ray could not run it: {line_of(error)}.")

    def _gone(self, ticket: int, node: Node, said: str) -> Outcome:
        """What befalls a node that dies, and one that lives: this one may be asked again, for other cells."""
        up = node.id in {row["NodeID"] for row in nodes_up(self._ray)}
        if up:
            return Outcome(ticket=ticket, cause=said, death="worker")
        return Outcome(ticket=ticket, cause=f"Node {node.address} died.", death="node")


def _run(
    ticket: int, cell: Cell, work: Work, root: str, storage: str | None, cores: float, board: Any
) -> tuple[dict[str, Any] | None, str | None, float]:
    """The Ray task."""

    def tell(what: str, done: int, total: int) -> None:
        board.put.remote(ticket, what, done, total)

    return run_cell(cell, work, root, storage, cores, tell)
