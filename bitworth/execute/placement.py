"""Which node a cell runs on, and what it takes there: arithmetic on numbers that a cluster gave, without a cluster.

Quantizing, evaluating and comparing pack: each takes a GPU where there are GPUs, else a few cores, and the memory of
the models it holds. A timing takes what it is priced for, alone: the GPUs of its hardware row with their share of the
node's cores, or a whole node without GPUs. Nodes that already hold a cell's checkpoint are preferred.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from bitworth.hardware import LOCAL, is_of
from bitworth.types import Cell, Hardware

CORES = 4
"""Most cores of a cell that packs: two side by side on eight cores get more done than one alone."""
BASE_BYTES = 1 << 30
"""What Python, torch and a task's rows take besides the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of a cluster: cores, GPUs and bytes that it has for cells, the GPUs' names, and itself in words.

    `served` is the version of its vLLM, by the package's name (`versions.served`).
    """

    id: str
    address: str
    cpus: float
    gpus: int = 0
    memory: float = float(1 << 50)
    gpu_names: tuple[str, ...] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    served: Mapping[str, str] = field(default_factory=dict)

    def serves(self, row: Hardware) -> bool:
        """Whether it has a hardware row's devices."""
        return row.name == LOCAL or (self.gpus >= row.count and is_of(row, self.gpu_names))

    @property
    def kind(self) -> str:
        """Equal for nodes whose timings are comparable."""
        return json.dumps([dict(self.machine), self.gpu_names, dict(self.served)], sort_keys=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a cell takes of one node; memory in bytes, for bookkeeping."""

    cpus: float
    gpus: int = 0
    memory: float = 0.0


def machines(nodes: Sequence[Node], rows: Sequence[Hardware]) -> list[dict[str, str]]:
    """In words, the machines to take timings on, each with its vLLM: one for each hardware row that some node serves.

    `local`, and rows that none serves, stand for the kind of node that there is most of, GPUs first.
    """
    found: list[dict[str, str]] = []
    for row in rows:
        able = [node for node in nodes if row.name != LOCAL and node.serves(row)]
        node = _commonest(able or nodes)
        place = {**node.machine, **node.served, **({"hardware": row.words} if able else {})}
        if place not in found:
            found.append(place)
    served = [place for place in found if "hardware" in place]
    # a row that nothing serves is predicted as long as another is measured
    return found if not served or any(row.name == LOCAL for row in rows) else served


def _commonest(nodes: Sequence[Node]) -> Node:
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.kind] = counts.get(node.kind, 0) + 1
    return max(nodes, key=lambda node: (node.gpus > 0, counts[node.kind], node.kind))


def demand(cell: Cell, node: Node, root: Path) -> Demand | None:
    """What the cell would take of this node, whether or not it is free; None where it may not run there."""
    if cell.kind == "benchmark":
        return _alone(cell, node)
    cpus = min(float(CORES), node.cpus)
    memory = min(BASE_BYTES + _held_bytes(cell, root), node.memory)
    devices = int(cell.where.get("devices", 1))
    if node.gpus:
        share = _cores(min(cpus, node.cpus / node.gpus) * devices)
        return Demand(cpus=share, gpus=devices, memory=memory) if devices <= node.gpus else None
    return Demand(cpus=cpus, memory=memory)


def _alone(cell: Cell, node: Node) -> Demand | None:
    """A timing's share of a node of the machine that its key says."""
    asked = dict(cell.inputs["machine"])
    row = asked.pop("hardware", None)
    if asked != dict(node.machine):
        return None
    if row is None:
        return Demand(cpus=node.cpus, gpus=node.gpus, memory=node.memory)
    count, _, name = row.partition(" x ")
    if not node.serves(Hardware(name=name, count=int(count), usd_per_hour=0.0, memory_gib=0.0)):
        return None
    share = int(count) / node.gpus
    return Demand(cpus=_cores(node.cpus * share), gpus=int(count), memory=node.memory * share)


def _cores(share: float) -> float:
    """Whole cores, or a part of one: Ray takes nothing between."""
    return float(math.floor(share)) if share >= 1 else share


def _held_bytes(cell: Cell, root: Path) -> float:
    """The models that the cell holds, in float32; files of two bytes a weight are read, smaller ones grow as much."""
    folders = [cell.where[name] for name in ("model", "checkpoint", "baseline") if name in cell.where]
    return sum(2.0 * _weights_bytes(root / folder) for folder in folders)


@lru_cache(maxsize=1024)
def _weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@dataclass(slots=True)
class _Free:
    cpus: float
    gpus: int
    memory: float


class Fleet:
    """The nodes of a cluster and what is free on each; nothing runs where it was not taken here."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._nodes: dict[str, Node] = {}
        self._free: dict[str, _Free] = {}
        self._held: dict[str, set[str]] = {}
        self._taken: dict[int, tuple[str, Demand]] = {}

    @property
    def nodes(self) -> list[Node]:
        """Those that are up."""
        return list(self._nodes.values())

    def update(self, nodes: Iterable[Node]) -> None:
        """Nodes that came are used, those that went are not; what was taken on a lost one is lost with it."""
        now = {node.id: node for node in nodes}
        for lost in self._nodes.keys() - now.keys():
            del self._nodes[lost], self._free[lost], self._held[lost]
        for came in now.keys() - self._nodes.keys():
            node = self._nodes[came] = now[came]
            self._free[came] = _Free(node.cpus, node.gpus, node.memory)
            self._held[came] = set()

    def may_run(self, cell: Cell) -> bool:
        """Whether some node could run the cell when it is free."""
        return bool(self._able(cell))

    def take(self, ticket: int, cell: Cell, *, shunned: Set[str] = frozenset()) -> tuple[Node, Demand] | None:
        """A free place for the cell, taken under that number; None where there is none now.

        Nodes to be shunned are taken only where no others could ever run it.
        """
        able = self._able(cell)
        able = [pair for pair in able if pair[0].id not in shunned] or able
        fitting = [(node, wanted) for node, wanted in able if self._fits(node.id, wanted)]
        if not fitting:
            return None
        model = cell.where.get("checkpoint") or cell.where.get("model") or ""
        # where the checkpoint is, then where most is free: the order of the nodes settles the rest
        node, wanted = max(fitting, key=lambda pair: (model in self._held[pair[0].id], self._share(pair[0])))
        free = self._free[node.id]
        free.cpus, free.gpus, free.memory = (
            free.cpus - wanted.cpus, free.gpus - wanted.gpus, free.memory - wanted.memory,
        )  # fmt: skip
        self._held[node.id].add(model)
        self._taken[ticket] = (node.id, wanted)
        return node, wanted

    def release(self, ticket: int) -> None:
        """Give back what was taken under that number, if its node is still there."""
        id_, given = self._taken.pop(ticket)
        free = self._free.get(id_)
        if free is not None:
            free.cpus, free.gpus, free.memory = (
                free.cpus + given.cpus, free.gpus + given.gpus, free.memory + given.memory,
            )  # fmt: skip

    def _able(self, cell: Cell) -> list[tuple[Node, Demand]]:
        """Nodes that could run the cell; where there are GPUs, models run on nothing else."""
        gpus = any(node.gpus for node in self.nodes) and cell.kind != "benchmark"
        nodes = [node for node in self.nodes if node.gpus or not gpus]
        return [(node, wanted) for node in nodes if (wanted := demand(cell, node, self._root)) is not None]

    def _fits(self, id_: str, wanted: Demand) -> bool:
        free = self._free[id_]
        slack = 1e-6
        return (
            wanted.cpus <= free.cpus + slack and wanted.gpus <= free.gpus and wanted.memory <= free.memory * (1 + slack)
        )

    def _share(self, node: Node) -> float:
        free = self._free[node.id]
        return free.gpus / node.gpus if node.gpus else free.cpus / node.cpus
