"""Where cells go: what they take is there, timings are alone, and models run on GPUs where there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.execute.placement import CORES, Demand, Fleet, Node, demand, machines
from bitworth.hardware import hardware
from bitworth.types import Cell

A100 = "NVIDIA A100-SXM4-80GB"
GIB = 1 << 30


def cpu_node(name: str, cpus: float = 8, **changes: Any) -> Node:
    facts: dict[str, Any] = {"machine": {"processor": "EPYC"}, "memory": 32.0 * GIB, **changes}
    return Node(id=name, address=name, cpus=cpus, **facts)


def gpu_node(name: str, gpus: int = 4, model: str = A100, **changes: Any) -> Node:
    return cpu_node(name, cpus=32, gpus=gpus, gpu_names=(model,) * gpus, machine={"processor": "Xeon"}, **changes)


def cell(kind: Any = "evaluate", title: str = "a", **inputs: Any) -> Cell:
    return Cell(kind=kind, title=title, format="f", inputs={"title": title, **inputs}, where={"checkpoint": title})


def timing(title: str = "t", **machine: str) -> Cell:
    return cell("benchmark", title, machine=machine)


def test_models_go_to_gpus_where_there_are_any() -> None:
    fleet = Fleet(Path("/none"))
    fleet.update([cpu_node("head", 64), gpu_node("a", 2)])
    places = [fleet.take(ticket, cell(title=str(ticket))) for ticket in range(3)]
    assert [place and place[0].id for place in places] == ["a", "a", None]
    assert all(place is None or place[1].gpus == 1 for place in places)
    fleet.update([cpu_node("head", 64)])
    alone = fleet.take(3, cell())
    assert alone is not None
    assert alone[1].gpus == 0
    assert alone[1].cpus == CORES


def test_evaluations_pack_on_cores_and_spread_over_nodes() -> None:
    fleet = Fleet(Path("/none"))
    fleet.update([cpu_node("a"), cpu_node("b")])
    places = [fleet.take(ticket, cell(title=str(ticket))) for ticket in range(5)]
    assert sorted(place[0].id for place in places if place) == ["a", "a", "b", "b"]
    assert places[4] is None
    fleet.release(0)
    assert fleet.take(5, cell()) is not None


def test_a_checkpoints_cells_meet_where_it_is() -> None:
    fleet = Fleet(Path("/none"))
    fleet.update([cpu_node("a"), cpu_node("b")])
    first = fleet.take(0, cell(title="x"))
    other = fleet.take(1, cell(title="y"))
    again = fleet.take(2, cell(title="x"))
    assert first is not None
    assert other is not None
    assert again is not None
    assert first[0] == again[0] != other[0]


def test_a_timing_on_processors_has_its_machine_alone() -> None:
    fleet = Fleet(Path("/none"))
    fleet.update([cpu_node("a"), cpu_node("b", machine={"processor": "other"})])
    assert fleet.take(0, timing("one", processor="EPYC")) is not None
    assert fleet.take(1, timing("two", processor="EPYC")) is None
    on_the_other = fleet.take(2, cell())
    assert on_the_other is not None
    assert on_the_other[0].id == "b"
    assert fleet.take(3, timing("two", processor="EPYC")) is None
    fleet.release(0)
    assert fleet.take(4, timing("two", processor="EPYC")) is not None


def test_a_timing_gets_its_rows_gpus_and_their_share_of_the_rest() -> None:
    node = gpu_node("a", 4)
    asked = timing(processor="Xeon", hardware="2 x A100")
    assert demand(asked, node, Path()) == Demand(cpus=16, gpus=2, memory=16 * GIB)
    assert demand(asked, gpu_node("b", 1), Path()) is None
    assert demand(asked, gpu_node("b", 4, "NVIDIA H100 80GB HBM3"), Path()) is None
    assert demand(timing(processor="EPYC", hardware="2 x A100"), node, Path()) is None


def test_a_quantization_spread_over_devices_gets_them_together() -> None:
    spread = Cell(kind="quantize", title="q", format="f", inputs={}, where={"model": "m", "devices": "4"})
    found = demand(spread, gpu_node("a", 4), Path())
    assert found is not None
    assert found.gpus == 4
    assert demand(spread, gpu_node("b", 2), Path()) is None


def test_memory_bounds_what_runs_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with (tmp_path / "x" / "model.safetensors").open("wb") as file:
        file.truncate(5 * GIB)
    fleet = Fleet(tmp_path)
    fleet.update([cpu_node("a", 64, memory=30.0 * GIB)])
    taken = [fleet.take(ticket, cell(title="x")) for ticket in range(4)]
    assert [place is not None for place in taken] == [True, True, False, False]
    fleet.update([])
    fleet.update([cpu_node("small", 64, memory=4.0 * GIB)])
    assert fleet.take(9, cell(title="x")) is not None, "a model that no node has room for by this rule is tried alone"


@pytest.mark.parametrize(
    ("nodes", "rows", "expected"),
    [
        ([cpu_node("a")], ["local"], [{"processor": "EPYC"}]),
        ([cpu_node("a"), gpu_node("b")], ["local"], [{"processor": "Xeon"}]),
        ([cpu_node("a"), gpu_node("b")], ["A100", "H100"], [{"processor": "Xeon", "hardware": "1 x A100"}]),
        ([cpu_node("a")], ["A100", "H100"], [{"processor": "EPYC"}]),
        (
            [gpu_node("a"), gpu_node("b", 8, "NVIDIA H100 80GB HBM3")],
            ["A100", "H100"],
            [{"processor": "Xeon", "hardware": "1 x A100"}, {"processor": "Xeon", "hardware": "1 x H100"}],
        ),
    ],
)
def test_timings_are_taken_for_the_rows_that_the_fleet_has(
    nodes: list[Node], rows: list[str], expected: list[dict[str, str]]
) -> None:
    assert machines(nodes, [hardware(name) for name in rows]) == expected


def test_local_stands_for_the_kind_of_node_there_is_most_of() -> None:
    nodes = [cpu_node("a"), cpu_node("b", machine={"processor": "other"}), cpu_node("c")]
    assert machines(nodes, [hardware("local")]) == [{"processor": "EPYC"}]
    assert machines(nodes[::-1], [hardware("local")]) == [{"processor": "EPYC"}]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 16), st.integers(0, 4), st.integers(2, 64)), min_size=1, max_size=4),
    moves=st.lists(
        st.tuples(st.sampled_from(["evaluate", "quantize", "benchmark", "release", "lose"]), st.integers(0, 9))
    ),
)
def test_nothing_is_ever_given_twice(sizes: list[tuple[int, int, int]], moves: list[tuple[str, int]]) -> None:
    """The books kept apart: what is taken of a node never exceeds what it has."""
    nodes = [
        Node(
            id=str(at),
            address="",
            cpus=cpus,
            gpus=gpus,
            memory=memory * GIB,
            gpu_names=(A100,) * gpus,
            machine={"a": "b"},
        )
        for at, (cpus, gpus, memory) in enumerate(sizes)
    ]
    fleet = Fleet(Path("/none"))
    fleet.update(nodes)
    taken: dict[int, tuple[Node, Demand]] = {}
    for ticket, (what, number) in enumerate(moves):
        if what == "release" and taken:
            key = sorted(taken)[number % len(taken)]
            fleet.release(key)
            del taken[key]
        elif what == "lose" and number == 0:
            lost = nodes.pop() if len(nodes) > 1 else None
            fleet.update(nodes)
            for key in [key for key, (node, _) in taken.items() if node == lost]:
                fleet.release(key)
                del taken[key]
        elif what in ("evaluate", "quantize", "benchmark"):
            machine = {"a": "b"} if number % 2 else {"a": "b", "hardware": "1 x A100"}
            place = fleet.take(ticket, cell(what, str(number), machine=machine))
            if place is not None:
                taken[ticket] = place
        for node in nodes:
            mine = [wanted for where, wanted in taken.values() if where == node]
            assert sum(one.cpus for one in mine) <= node.cpus + 1e-6
            assert sum(one.gpus for one in mine) <= node.gpus
            assert sum(one.memory for one in mine) <= node.memory * (1 + 1e-6)
