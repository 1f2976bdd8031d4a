"""A fleet without a fleet: a false cluster that loses nodes and workers where the test says."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_running import Here

from bitworth import running
from bitworth.assembly import assemble
from bitworth.errors import BitworthError, WorkFailed
from bitworth.execute import Tell, Work
from bitworth.execute.attempt import attempt
from bitworth.execute.fleet import TRIES, FleetExecutor, Outcome
from bitworth.execute.placement import Demand, Node
from bitworth.hardware import machine
from bitworth.ledger import Ledger, key_of
from bitworth.study import parse_study
from bitworth.types import Cell

Kill = Callable[[int, Cell, Node], str | None]
"""What dies under the n-th start: `node`, `worker` or nothing."""


def node(name: str, cpus: float = 1) -> Node:
    return Node(id=name, address=name, cpus=cpus, machine=machine())


@dataclass
class FakeCluster:
    """Runs cells in this process, in an order drawn by a seed."""

    up: list[Node]
    kill: Kill = lambda *_: None
    seed: int = 0
    starts: list[tuple[str, str]] = field(default_factory=list)
    flying: dict[int, tuple[Cell, Work, str, Node, Demand]] = field(default_factory=dict)
    stopped: bool = False
    most: int = 0
    progress: list[tuple[int, str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def nodes(self) -> list[Node]:
        return list(self.up)

    def start(self, ticket: int, cell: Cell, work: Work, root: str, node: Node, demand: Demand) -> None:
        assert node in self.up
        self.flying[ticket] = (cell, work, root, node, demand)
        self.starts.append((cell.title, node.id))
        busy = sum(one[4].cpus for one in self.flying.values() if one[3] == node)
        assert busy <= node.cpus
        self.most = max(self.most, len(self.flying))

    def wait(self, seconds: float) -> list[Outcome]:
        if not self.flying:
            return []
        ticket = self.random.choice(sorted(self.flying))
        cell, work, root, node, _ = self.flying.pop(ticket)
        dies = self.kill(len(self.starts), cell, node)
        if dies == "worker":
            return [Outcome(ticket=ticket, death="worker", cause="The worker died.")]
        if dies == "node":
            self.up.remove(node)
            with_it = [other for other, one in self.flying.items() if one[3] == node]
            for other in with_it:
                del self.flying[other]
            return [Outcome(ticket=one, death="node", cause="The node died.") for one in [ticket, *with_it]]

        def tell(what: str, done: int, total: int) -> None:
            self.progress.append((ticket, what, done, total))

        result, cause = attempt(cell, work, root, tell)
        return [Outcome(ticket=ticket, result=result, cause=cause, seconds=1.0)]

    def told(self) -> list[tuple[int, str, int, int]]:
        found, self.progress = self.progress, []
        return found

    def fetch(self, cell: Cell, root: Path) -> None:
        if cell.inputs.get("lost"):
            raise BitworthError("Its files are gone.")

    def stop(self) -> None:
        self.stopped = True
        self.flying.clear()


class Log(running.Unwatched):
    def __init__(self) -> None:
        self.started_: list[str] = []
        self.ended_: list[tuple[str, Any, str | None]] = []

    def started(self, cell: Cell) -> None:
        self.started_.append(cell.title)

    def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
        self.ended_.append((cell.title, result, cause))


def cell(title: str, needs: Iterable[Cell] = (), **inputs: Any) -> Cell:
    keys = tuple(key_of(need) for need in needs)
    return Cell(kind="diverge", title=title, format="f", inputs={"title": title, **inputs}, needs=keys)


def done(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    if cell.inputs.get("broken"):
        raise BitworthError("It will not do.")
    tell("steps", 1, 1)
    return {"title": cell.title}


def run(cluster: FakeCluster, cells: Iterable[Cell | None], root: Path, **settings: Any) -> Log:
    log = Log()
    FleetExecutor(cluster, patience_s=0, **settings).run(cells, done, str(root), log)
    assert cluster.stopped
    return log


def test_cells_run_side_by_side_and_each_is_reported_once(tmp_path: Path) -> None:
    cluster = FakeCluster([node("a", 8), node("b", 4)])
    log = run(cluster, [cell(str(number)) for number in range(9)], tmp_path)
    assert cluster.most == 3  # of four cores each
    assert sorted(title for title, _, _ in log.ended_) == sorted(map(str, range(9)))
    assert all(result == {"title": title} for title, result, _ in log.ended_)
    assert log.started_ == list(map(str, range(9)))


def test_a_faulty_cell_is_not_tried_again(tmp_path: Path) -> None:
    cluster = FakeCluster([node("a")])
    log = run(cluster, [cell("bad", broken=True), cell("good")], tmp_path)
    assert log.ended_ == [("bad", None, "It will not do."), ("good", {"title": "good"}, None)]
    assert len(cluster.starts) == 2


def test_a_lost_nodes_cells_run_elsewhere(tmp_path: Path) -> None:
    notes: list[str] = []
    cluster = FakeCluster([node("a", 8), node("b", 8)], kill=lambda n, _, where: "node" if where.id == "a" else None)
    log = run(cluster, [cell(str(number)) for number in range(6)], tmp_path, note=notes.append)
    assert {cause for _, _, cause in log.ended_} == {None}
    assert len(log.ended_) == 6
    assert notes
    assert all(note.endswith("is run again: The node died.") for note in notes)


def test_a_cell_that_kills_its_workers_is_given_up_with_the_cause(tmp_path: Path) -> None:
    cluster = FakeCluster(
        [node("a"), node("b"), node("c")], kill=lambda n, cell, _: "worker" if cell.title == "x" else None
    )
    log = run(cluster, [cell("x"), cell("y")], tmp_path)
    causes = {title: cause for title, _, cause in log.ended_}
    assert causes == {"x": "The worker died. It was tried 3 times.", "y": None}
    assert len({where for title, where in cluster.starts if title == "x"}) == TRIES["worker"], (
        "each time on another node"
    )


def test_no_nodes_left_is_one_sentence(tmp_path: Path) -> None:
    cluster = FakeCluster([node("a")], kill=lambda *_: "node")
    with pytest.raises(WorkFailed, match="no nodes left"):
        run(cluster, [cell("x")], tmp_path)


def test_a_cell_that_no_node_is_for_has_its_cause(tmp_path: Path) -> None:
    timing = replace(cell("t", machine={"processor": "other"}), kind="benchmark")
    log = run(FakeCluster([node("a")]), [timing, cell("x")], tmp_path)
    assert ("t", None, "No node of the cluster that it could run on is up.") in log.ended_
    assert ("x", {"title": "x"}, None) in log.ended_


def test_files_that_do_not_arrive_fail_their_cell(tmp_path: Path) -> None:
    log = run(FakeCluster([node("a")]), [cell("x", lost=True)], tmp_path)
    assert log.ended_ == [("x", None, "Its files are gone.")]


def test_an_interrupted_driver_stops_the_cluster(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Cell | None]:
        yield cell("x")
        raise KeyboardInterrupt

    cluster = FakeCluster([node("a")])
    with pytest.raises(KeyboardInterrupt):
        run(cluster, interrupted(), tmp_path)
    assert cluster.stopped


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_needs_come_first_and_nothing_is_lost_whatever_dies(
    data: st.DataObject, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Random graphs of cells, nodes and workers that die at random: every cell has one result or one cause."""
    root = tmp_path_factory.mktemp("fleet")
    luck = random.Random(seed)
    cells: list[Cell] = []
    for number in range(data.draw(st.integers(1, 10))):
        needs = [one for one in cells if luck.random() < 0.3]
        cells.append(cell(f"{number}", needs, broken=luck.random() < 0.1))
    order: list[str] = []
    deaths = luck.sample([None, None, None, "worker", "worker", "node", "node"], 7)  # too few to give a cell up

    def kill(count: int, cell: Cell, where: Node) -> str | None:
        dies = deaths.pop() if deaths else None
        return None if dies == "node" and len(cluster.up) == 1 else dies

    def working(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
        assert all(Ledger(Path(root)).get(by_key[need]) is not None for need in cell.needs)
        order.append(cell.title)
        return done(cell, root, tell)

    by_key = {key_of(one): one for one in cells}
    cluster = FakeCluster([node(str(at), luck.choice([1, 4, 8])) for at in range(3)], kill=kill, seed=seed)
    ledger = Ledger(root)
    recorder = running._Recorder(ledger, running.Unwatched())
    executor = FleetExecutor(cluster, patience_s=0)
    executor.run(running._pending(ledger, tuple(cells), recorder), working, str(root), recorder)
    assert len(order) == len(set(order)), "what has a result is not run again"
    broken = {key_of(one) for one in cells if one.inputs["broken"]}
    for one in cells:
        if broken.isdisjoint([key_of(one), *_all_needs(one, by_key)]):
            assert ledger.get(one) == {"title": one.title}
        else:
            assert ledger.get(one) is None
            assert ledger.failure(one)


def _all_needs(cell: Cell, by_key: dict[str, Cell]) -> set[str]:
    return {key for need in cell.needs for key in (need, *_all_needs(by_key[need], by_key))}


@pytest.fixture(scope="module")
def finished(tiny_study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, run one cell after another in this process."""
    root = tmp_path_factory.mktemp("finished")
    running.run(parse_study(tiny_study), root, executor=Here())
    return root


@pytest.mark.slow(beside=True)
def test_a_study_gives_what_it_gives_here(tiny_study: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    """Cells shuffled over nodes that die: every figure that does not measure time is the local one, bit for bit."""
    kills = iter(["node", None, "worker", None, "node"])
    nodes = [node(str(at), 4) for at in range(4)]
    cluster = FakeCluster(nodes, kill=lambda *_: next(kills, None), seed=1)
    running.run(parse_study(tiny_study), tmp_path, executor=FleetExecutor(cluster))
    assert same(tmp_path, finished)
    kinds = {title.split()[0] for title, _ in cluster.starts}
    assert {"quantize", "arc_challenge", "divergence"} <= kinds


def same(ours: Path, theirs: Path) -> bool:
    """Whether two results folders hold the same cells with the same figures; what they took to get aside."""
    figures = [{key_of(one): _figures(one, found) for one, found in Ledger(root).all()} for root in (ours, theirs)]
    assert figures[0] == figures[1]
    for one in Ledger(theirs).read_plan():
        if one.kind == "quantize":
            for path in sorted((theirs / one.where["out"]).glob("*.safetensors")):
                assert (ours / one.where["out"] / path.name).read_bytes() == path.read_bytes()
    before, after = assemble(ours), assemble(theirs)
    return before.recoveries == after.recoveries and before.divergences == after.divergences and not after.missing


def _figures(cell: Cell, result: dict[str, Any]) -> str:
    """A result without times, memory and timings."""
    took = ("seconds", "peak_rss_mib", "timings", "machine", "notes")
    return json.dumps({name: value for name, value in result.items() if name not in took}, sort_keys=True)


def test_parts_survive_the_driver(tiny_study: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    """A driver that stops between two parts of a task: those that were answered are not asked again."""
    study = parse_study({**tiny_study, "formats": ["baseline"], "use_cases": [], "divergence": None})
    asked: list[str] = []

    class Broken(FakeCluster):
        def wait(self, seconds: float) -> list[Outcome]:
            if len(asked) == 2:
                raise KeyboardInterrupt
            found = super().wait(seconds)
            asked.extend(self.starts[-1:][0][:1])
            return found

    with pytest.raises(KeyboardInterrupt):
        running.run(study, tmp_path, executor=FleetExecutor(Broken([node("a")]), part_questions=7))
    second = FakeCluster([node("a")])
    result = running.run(study, tmp_path, executor=FleetExecutor(second, part_questions=7))
    assert not result.missing
    assert len(second.starts) == 1
    assert not list((tmp_path / "parts").iterdir())
    (cell,) = Ledger(tmp_path).read_plan()
    ours, theirs = (Ledger(root).get(cell) for root in (tmp_path, finished))
    assert ours is not None
    assert theirs is not None
    kept = [[{**row, "logprobs": None} for row in result["answers"]] for result in (ours, theirs)]
    assert kept[0] == kept[1]


@pytest.mark.slow(beside=True)
def test_many_waiting_cells_cost_a_start_nothing(tmp_path: Path) -> None:
    """Every outcome looked at all that waited: 84 s for these."""
    cells = [
        Cell(kind="evaluate", title=f"{at}", format="f", inputs={"at": at}, where={"checkpoint": f"c{at % 13}"})
        for at in range(2000)
    ]
    cluster, log = FakeCluster([node("a", 8), node("b", 8)]), Log()
    began = time.process_time()
    FleetExecutor(cluster).run(iter(cells), done, str(tmp_path), log)
    assert time.process_time() - began < 15
    assert [title for title, _ in cluster.starts] == [cell.title for cell in cells]
    assert len(log.ended_) == 2000
