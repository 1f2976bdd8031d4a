"""Cells side by side on the nodes of a cluster: each starts when it may and where there is room.

A cell is tried again when its node or worker dies. All is reported in the driver's process.

What a cluster is, is the protocol `Cluster`: `execute.ray` has the real one, the tests a false one.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, Protocol

from bitworth.errors import BitworthError, WorkFailed
from bitworth.execute import Watcher, Work
from bitworth.execute.parts import QUESTIONS, join, split
from bitworth.execute.placement import Demand, Fleet, Node
from bitworth.ledger import PARTS, key_of, write_json
from bitworth.sources import Note, silent
from bitworth.types import Cell

Death = Literal["node", "worker"]
TRIES = {"node": 5, "worker": 3}
"""Deaths after which a cell has failed: nodes die for reasons of their own, a worker often for the cell's.

A dying node takes its workers down first, so a worker's death is tried again, on another node where there is one.
"""
POLL_S, LOOK_S = 0.5, 5.0
"""Longest wait for an outcome before progress is shown, and between two looks at which nodes are up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a started cell: a result, a cause, or with `death` what died under it (the cause says how)."""

    ticket: int
    result: dict[str, Any] | None = None
    cause: str | None = None
    seconds: float = 0.0
    death: Death | None = None


class Cluster(Protocol):
    """Machines that run cells."""

    def nodes(self) -> list[Node]:
        """Those that are up and fit to run cells."""
        ...

    def start(self, ticket: int, cell: Cell, work: Work, root: str, node: Node, demand: Demand) -> None:
        """Run a cell on a node; what becomes of it is known under the number."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """What became of started cells, each once; empty when nothing did for so long."""
        ...

    def told(self) -> list[tuple[int, str, int, int]]:
        """Progress since the last call: (ticket, what, done, total)."""
        ...

    def fetch(self, cell: Cell, root: Path) -> None:
        """Bring the files that a finished cell left behind into the results folder.

        Raises:
            BitworthError: they cannot be had.
        """
        ...

    def stop(self) -> None:
        """End whatever is still running."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Whole:
    """A cell, and what its parts gave so far."""

    cell: Cell
    results: list[dict[str, Any] | None]
    seconds: float = 0.0
    progress: dict[int, tuple[int, int]] = field(default_factory=dict)
    started: bool = False
    ended: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class _Piece:
    """What is sent to a node: a cell, or a part of one; of two that could start, the one whose turn is lower does."""

    cell: Cell
    whole: _Whole
    at: int
    turn: int
    node: str = ""
    shunned: set[str] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)

    @property
    def shape(self) -> tuple[str, ...]:
        """Equal for pieces that fit in the same places."""
        where = (self.cell.where.get(name, "") for name in ("model", "checkpoint", "baseline"))
        machine = json.dumps(self.cell.inputs.get("machine"), sort_keys=True)
        return (self.cell.kind, *where, machine, *sorted(self.shunned))


class FleetExecutor:
    """Runs cells on a cluster; the results folder is written by this process alone."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        part_questions: int = QUESTIONS,
        patience_s: float = 60.0,
        note: Note = silent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Split tasks larger than `part_questions`; wait `patience_s` for a node that a cell could run on."""
        self._cluster, self._part_questions, self._patience_s = cluster, part_questions, patience_s
        self._note, self._clock = note, clock

    def run(self, cells: Iterable[Cell | None], work: Work, root: str, watcher: Watcher) -> None:
        """Run each cell and report it; nothing of it is left running when this returns or raises.

        Raises:
            WorkFailed: the cluster has no nodes left.
        """
        try:
            _Run(self, iter(cells), work, Path(root).resolve(), watcher).finish()
        finally:
            self._cluster.stop()


class _Run:
    """One call of `FleetExecutor.run`."""

    def __init__(
        self, executor: FleetExecutor, draws: Iterator[Cell | None], work: Work, root: Path, watcher: Watcher
    ) -> None:
        self.cluster, self.note, self.clock = executor._cluster, executor._note, executor._clock
        self.part_questions, self.patience_s = executor._part_questions, executor._patience_s
        self.draws, self.work, self.root, self.watcher = draws, work, root, watcher
        self.fleet = Fleet(root)
        self.waiting: dict[tuple[str, ...], deque[_Piece]] = {}
        """By shape, so that a place that is not there is looked for once, not for each."""
        self.running: dict[int, _Piece] = {}
        self.lost: set[str] = set()
        self.stuck: dict[tuple[str, ...], float] = {}
        self.tickets = self.turns = 0
        self.looked = -LOOK_S

    def finish(self) -> None:
        """Draw, place and report until nothing is left."""
        while True:
            self._look()
            drawn = self._draw()
            self._place()
            if not (drawn or self.waiting or self.running):
                return
            for outcome in self.cluster.wait(POLL_S):
                self._end(outcome)
            for ticket, what, done, total in self.cluster.told():
                self._tell(ticket, what, done, total)

    def _look(self, *, now: bool = False) -> None:
        if now or self.clock() - self.looked >= LOOK_S:
            self.looked = self.clock()
            self.fleet.update([node for node in self.cluster.nodes() if node.id not in self.lost])

    def _draw(self) -> bool:
        """Take every cell that may start; False when there will be no more."""
        for cell in self.draws:
            if cell is None:
                return True
            parts = split(cell, self.part_questions)
            kept = [self._kept(cell, at, len(parts)) for at in range(len(parts))]
            whole = _Whole(cell=cell, results=[row and row["result"] for row in kept])
            whole.seconds = sum(row["seconds"] for row in kept if row)
            for at, part in enumerate(parts):
                if whole.results[at] is None:
                    self.turns += 1
                    piece = _Piece(cell=part, whole=whole, at=at, turn=self.turns)
                    self.waiting.setdefault(piece.shape, deque()).append(piece)
            self._complete(whole)
        return False

    def _place(self) -> None:
        """Start what there is room for, in turn."""
        heads = [(queue[0].turn, shape) for shape, queue in self.waiting.items()]
        heapify(heads)
        while heads:
            _, shape = heappop(heads)
            queue = self.waiting[shape]
            if queue[0].whole.ended or self._start(queue[0]):
                queue.popleft()
                if queue:
                    heappush(heads, (queue[0].turn, shape))
            else:
                self._wait_for_a_node(shape)
        self.waiting = {shape: queue for shape, queue in self.waiting.items() if queue}

    def _start(self, piece: _Piece) -> bool:
        """Start it where there is room; False where there is none."""
        taken = self.fleet.take(self.tickets, piece.cell, shunned=piece.shunned)
        if taken is None:
            return False
        node, wanted = taken
        self.cluster.start(self.tickets, piece.cell, self.work, str(self.root), node, wanted)
        piece.node = node.id
        self.running[self.tickets] = piece
        self.tickets += 1
        if not piece.whole.started:
            piece.whole.started = True
            self.watcher.started(piece.whole.cell)
        return True

    def _wait_for_a_node(self, shape: tuple[str, ...]) -> None:
        """Give up what waits in this shape when no node could have run it for too long."""
        pieces = self.waiting[shape]
        if self.fleet.may_run(pieces[0].cell):
            self.stuck.pop(shape, None)
            return
        if self.clock() - self.stuck.setdefault(shape, self.clock()) < self.patience_s:
            return
        if not self.fleet.nodes:
            raise WorkFailed(
                "The cluster has no nodes left; what was finished is kept, and the same command goes on from there."
            )
        for piece in pieces:
            self._report(piece.whole, None, "No node of the cluster that it could run on is up.")

    def _end(self, outcome: Outcome) -> None:
        piece = self.running.pop(outcome.ticket)
        self.fleet.release(outcome.ticket)
        if outcome.death is not None:
            self._again(piece, outcome.death, outcome.cause or "It died.")
        elif outcome.result is None:
            self._report(piece.whole, None, outcome.cause)
        else:
            piece.whole.seconds += outcome.seconds
            piece.whole.results[piece.at] = outcome.result
            self._keep(piece, outcome)
            self._complete(piece.whole)

    def _again(self, piece: _Piece, death: Death, cause: str) -> None:
        """Put a piece whose node or worker died back in line, or give it up."""
        if death == "node":
            self.lost.add(piece.node)
            self._look(now=True)
        piece.shunned.add(piece.node)
        piece.deaths[death] += 1
        if piece.deaths[death] < TRIES[death]:
            self.note(f"{piece.cell.title} is run again: {cause}")
            piece.turn = -self.tickets  # before all that have not been tried
            self.waiting.setdefault(piece.shape, deque()).appendleft(piece)
        else:
            self._report(piece.whole, None, f"{cause} It was tried {piece.deaths.total()} times.")

    def _tell(self, ticket: int, what: str, done: int, total: int) -> None:
        piece = self.running.get(ticket)
        if piece is not None and not piece.whole.ended:
            piece.whole.progress[piece.at] = (done, total)
            sums = [sum(column) for column in zip(*piece.whole.progress.values(), strict=True)]
            self.watcher.told(piece.whole.cell, what, sums[0], sums[1])

    def _complete(self, whole: _Whole) -> None:
        """Report a cell whose parts are all there."""
        found = [result for result in whole.results if result is not None]
        if whole.ended or len(found) < len(whole.results):
            return
        try:
            self.cluster.fetch(whole.cell, self.root)
        except BitworthError as error:
            self._report(whole, None, str(error))
            return
        self._report(whole, found[0] if len(found) == 1 else join(found), None)
        rmtree(self._parts(whole.cell), ignore_errors=True)

    def _report(self, whole: _Whole, result: dict[str, Any] | None, cause: str | None) -> None:
        if not whole.ended:
            whole.ended = True
            self.watcher.ended(whole.cell, result, cause, whole.seconds)

    def _parts(self, cell: Cell) -> Path:
        return self.root / PARTS / key_of(cell)

    def _keep(self, piece: _Piece, outcome: Outcome) -> None:
        """A part's result outlives this process: only the parts in flight are run again."""
        count = len(piece.whole.results)
        if count > 1:
            row = {"seconds": outcome.seconds, "result": outcome.result}
            write_json(self._parts(piece.whole.cell) / f"{piece.at}-of-{count}.json", row)

    def _kept(self, cell: Cell, at: int, count: int) -> dict[str, Any] | None:
        if count == 1:
            return None
        try:
            found = json.loads((self._parts(cell) / f"{at}-of-{count}.json").read_text(encoding="utf-8"))
            return {"result": dict(found["result"]), "seconds": float(found["seconds"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None
