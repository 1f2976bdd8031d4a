"""The studies that come with the project: read, planned without a network, and the paper's grid as it is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitworth import running, tasks, workloads
from bitworth.paper.costs import price
from bitworth.paper.printed import read_tables
from bitworth.sources import is_elsewhere
from bitworth.study import load_study
from bitworth.types import BASELINE

STUDIES = Path(__file__).resolve().parents[1] / "studies"
PAPER = sorted((STUDIES / "paper").glob("*.yaml"))
EXPERIMENTS = sorted((STUDIES / "experiments").glob("*.yaml"))


def test_there_is_a_study_a_size_and_three_experiments() -> None:
    assert [path.stem for path in PAPER] == ["llama-3.1-405b", "llama-3.1-70b", "llama-3.1-8b"]
    assert len(EXPERIMENTS) == 3


@pytest.mark.parametrize("path", [STUDIES / "demo.yaml", *PAPER, *EXPERIMENTS], ids=lambda path: path.stem)
def test_every_study_is_valid(path: Path) -> None:
    study = load_study(path)
    assert all(recipe is None or recipe.name == name for name, recipe in study.recipes().items())
    assert study.hardware_values()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.slow(beside=True) if at else [])
        for at, path in enumerate(PAPER)
    ],
)
def test_the_paper_s_grid_is_planned_by_name(path: Path, tmp_path: Path) -> None:
    told: list[str] = []
    study = load_study(path)
    assert is_elsewhere(study.model)
    planned = running.plan(path, tmp_path / "out", note=told.append)
    kinds = [row.cell.kind for row in planned]
    assert (kinds.count("quantize"), kinds.count("benchmark")) == (3, 7 * 2 * 4)
    assert len(told) == 1
    assert "is not on this machine" in told[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_paper_s_grid_is_the_printed_one(path: Path) -> None:
    tables, study = read_tables(), load_study(path)
    size = path.stem.rpartition("-")[2].upper()
    rows = [row for number in (5, 6) for row in tables[number].rows if row.size == size]
    assert {(row.name, row.count) for row in study.hardware_values()} == {(row.gpu, row.count) for row in rows}
    for machine in study.hardware_values():
        assert machine.usd_per_hour == pytest.approx(price(tables, machine.name, machine.count))
    assert {entry.name for entry in study.formats} == {BASELINE, "w8a8-fp", "w8a8-int", "w4a16-int"}
    assert [entry.name for entry in study.use_cases] == list(workloads.NAMES)
    assert {load.kind for load, _ in study.timed_loads()} == {"synchronous", "throughput"}


@pytest.mark.slow(beside=True)
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_are_planned_on_the_demo_s_model(path: Path, tmp_path: Path, shared: Path) -> None:
    study = load_study(path)
    if not all(tasks.get(spec.name).in_demo for spec in study.task_specs()):
        study = study.model_copy(update={"data": str(shared / "data")})  # what the hub would give
    assert running.plan(study, tmp_path)


def test_a_model_that_is_here_is_not_elsewhere(tiny_llama: Path) -> None:
    assert not is_elsewhere(str(tiny_llama))
    assert not is_elsewhere("demo:smollm2")
    assert is_elsewhere("nobody/there-is-no-such-model")
