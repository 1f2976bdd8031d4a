"""The Ray executor on real clusters of this machine, each raylet one core's worth."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from test_fleet import Log, same
from test_local import wait_for

from bitworth import running
from bitworth.errors import BitworthError
from bitworth.execute import Tell, members
from bitworth.execute import ray as rays
from bitworth.execute.fleet import FleetExecutor
from bitworth.execute.node import sees
from bitworth.ledger import Ledger
from bitworth.study import parse_study
from bitworth.types import Cell

ROOT = Path(__file__).resolve().parents[1]


def test_without_ray_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(BitworthError, match=r"^Ray is not installed; `pip install 'bitworth\[ray\]'` brings it\.$"),
        rays.connect(None, tmp_path),
    ):
        raise AssertionError("there is no Ray")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("long\nstory"), r"^No Ray cluster answers at host:1; start one with "),
        (
            ConnectionAbortedError("Traceback\nError: it died."),
            r"^The Ray cluster at host:1 does not take .*: it died\.$",
        ),
        (RuntimeError("Version mismatch: a\nb"), r"^The Ray cluster cannot be used: Version mismatch: a\.$"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_sentence(error: Exception, sentence: str) -> None:
    def refuse(**_: Any) -> None:
        raise error

    with pytest.raises(BitworthError, match=sentence):
        rays._open(SimpleNamespace(init=refuse, shutdown=lambda: None), "host:1")  # type: ignore[arg-type]


def test_a_head_whose_server_for_us_dies_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rays.time, "sleep", lambda _: None)
    calls: list[str] = []

    def init(**_: Any) -> None:
        calls.append("init")
        if calls.count("init") < 3:
            raise ConnectionAbortedError("it died")

    rays._open(SimpleNamespace(init=init, shutdown=lambda: calls.append("shutdown")), "ray://host:1")  # type: ignore[arg-type]
    assert calls == ["init", "shutdown", "init", "shutdown", "init"]


def test_a_node_says_whether_it_sees_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".probe-t").touch()
    assert sees(str(tmp_path), None, "t", "n")
    assert (tmp_path / ".probe-t-n").is_file()
    assert not sees(str(tmp_path / "elsewhere"), None, "t", "n")


# --- on a real cluster --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> int:
    """A free port for drivers outside of the cluster."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(s3: str, client: int, dies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two raylets of one core each; what a test adds is gone after it."""
    pytest.importorskip("ray", reason="needs Ray (the `ray` extra)")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_agent_register_timeout_ms", "200000")  # a raylet gives up on a machine that is busy otherwise
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")  # else servers for drivers outside die of their fork
        patch.setenv("RAY_raylet_start_wait_time_s", "200")
        paths = [str(dies.parent), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("BITWORTH_CACHE", str(tmp_path_factory.mktemp("nodes")))
        one = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args={**one, "ray_client_server_port": client})
        found.add_node(**one)
        yield found
        found.shutdown()
    assert wait_for(lambda: not workers())


DIES = """
import os, sys
if "--mode=specific-server" in sys.orig_argv:
    try:
        os.remove({file!r})
    except FileNotFoundError:
        pass
    else:
        os._exit(1)
"""


@pytest.fixture(scope="module")
def dies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the next process that serves a driver outside takes it away and dies."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(DIES.format(file=str(folder / "dies")))
    return folder / "dies"


def workers() -> list[str]:
    """Processes of Ray that run something for us."""
    names = [process.info["name"] or "" for process in psutil.process_iter(["name"])]
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [name for name in (*names, *lines) if name.startswith(("ray::_run", "ray::Board"))]


def slowly(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """Sleeps, and leaves a line for every start."""
    with (Path(root) / "starts").open("a") as file:
        file.write(cell.title + "\n")
    time.sleep(cell.inputs["seconds"])
    tell("sleep", 1, 1)
    if cell.inputs.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"title": cell.title}


def cell(title: str, seconds: float = 0.0, **inputs: Any) -> Cell:
    return Cell(kind="diverge", title=title, format="f", inputs={"seconds": seconds, "title": title, **inputs})


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 2])
def test_cells_run_on_all_raylets_and_nothing_is_left(cluster: Any, tmp_path: Path, more: int) -> None:
    added = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(more)]
    log = Log()
    cells = [cell(str(number), 0.5) for number in range(8)]
    with rays.connect(cluster.address, tmp_path) as found:
        assert len(found.nodes()) == 2 + more
        FleetExecutor(found).run([*cells, cell("dies", die=True)], slowly, str(tmp_path), log)
    causes = {title: cause for title, _, cause in log.ended_}
    assert "died" in str(causes.pop("dies"))
    assert causes == dict.fromkeys(map(str, range(8)))
    assert wait_for(lambda: not workers())
    assert not list(tmp_path.glob(".probe*"))
    for node in added:
        cluster.remove_node(node)


@pytest.mark.slow
def test_a_raylet_killed_midway_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    added = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    notes: list[str] = []

    class Killing(Log):
        def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
            super().ended(cell, result, cause, seconds)
            if len(self.ended_) == 3:
                cluster.remove_node(added[0], allow_graceful=False)

    log = Killing()
    with rays.connect(cluster.address, tmp_path) as found:
        cells = [cell(str(number), 2.0) for number in range(12)]
        FleetExecutor(found, note=notes.append).run(cells, slowly, str(tmp_path), log)
    assert sorted(title for title, _, _ in log.ended_) == sorted(map(str, range(12))), "each reported once"
    assert {cause for _, _, cause in log.ended_} == {None}
    starts = (tmp_path / "starts").read_text().split()
    assert set(starts) == set(map(str, range(12)))
    assert notes, "the lost node had work"
    # What was sent there may not have begun, and then leaves no second start.
    assert 0 <= len(starts) - 12 <= len(notes), "only what was on the lost node ran again"
    cluster.remove_node(added[1])


@pytest.mark.slow
def test_a_node_that_died_and_is_still_listed_is_no_refusal(cluster: Any, tmp_path: Path) -> None:
    """Ray lists a raylet that was killed until its health checks have failed several times."""
    import ray

    added = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    cluster.remove_node(added, allow_graceful=False)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        # Others that earlier tests took away may be listed too.
        assert added.node_id in {row["NodeID"] for row in members.nodes_up(ray)}, "else this shows nothing"
        with rays.connect(cluster.address, tmp_path) as found:
            assert len(found.nodes()) == 2
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def small(tiny_study: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_study, "formats": ["baseline", "w8a8-int-gptq", "w4a16-int-gptq"], "loads": ["synchronous"]}


@pytest.fixture(scope="module")
def here(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study by the local executor."""
    root = tmp_path_factory.mktemp("here")
    running.run(parse_study(small), root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("through", ["shared folder", "s3"])
def test_a_study_gives_what_it_gives_here(
    cluster: Any, s3: str, small: dict[str, Any], here: Path, tmp_path: Path, through: str
) -> None:
    """A tiny torch model and the fake engine: bit for bit the local executor's figures and checkpoints."""
    notes: list[str] = []
    storage = f"{s3}/{tmp_path.name}" if through == "s3" else None
    with rays.connect(cluster.address, tmp_path, storage=storage) as found:
        running.run(parse_study(small), tmp_path, executor=FleetExecutor(found, note=notes.append))
    assert same(tmp_path, here)
    assert not notes


@pytest.mark.slow
def test_a_driver_killed_and_started_again_goes_on(cluster: Any, small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**small, "formats": ["baseline", "w8a8-fp"]}))
    command = [sys.executable, "-m", "bitworth", "run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    command += ["--on", "ray", "--json", "--part-questions", "7"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    first = wait_for(lambda: list((tmp_path / "out").glob("cells/*/[!.]*.json")), seconds=300)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    stamps = {path: path.stat().st_mtime_ns for path in first}
    assert wait_for(lambda: not workers(), seconds=60), "its tasks go with it"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    assert not json.loads(again.stdout)["missing"]
    assert {path: path.stat().st_mtime_ns for path in first} == stamps, "what was finished was not run again"
    ledger = Ledger(tmp_path / "out")
    assert all(ledger.get(one) is not None for one in ledger.read_plan())


def shown(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """The GPUs that the cell may use."""
    return {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


@pytest.mark.slow
def test_where_a_node_counts_gpus_each_cell_gets_one(cluster: Any, tmp_path: Path) -> None:
    """Ray believes a raylet that says it has GPUs; that cells then see one each needs none."""
    added = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=80 << 20)
    log = Log()
    with rays.connect(cluster.address, tmp_path) as found:
        FleetExecutor(found).run([cell(name) for name in "abcd"], shown, str(tmp_path), log)
    assert {result["gpus"] for _, result, _ in log.ended_} <= {"0", "1"}
    assert len(log.ended_) == 4
    cluster.remove_node(added)


@pytest.mark.slow
def test_a_driver_outside_comes_in_by_the_client_port(cluster: Any, client: int, tmp_path: Path) -> None:
    log = Log()
    with rays.connect(f"ray://127.0.0.1:{client}", tmp_path) as found:
        FleetExecutor(found).run([cell("a"), cell("dies", die=True), cell("b")], slowly, str(tmp_path), log)
    causes = {title: cause for title, _, cause in log.ended_}
    assert "died" in str(causes.pop("dies"))
    assert causes == {"a": None, "b": None}
    assert wait_for(lambda: not workers())


@pytest.mark.slow
def test_a_server_for_the_driver_that_dies_is_said_and_leaves_nothing(
    cluster: Any, client: int, dies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray leaves of a failed try would keep the next from joining."""
    with monkeypatch.context() as patch:
        patch.setattr(rays, "_ATTEMPTS", 1)
        dies.touch()
        with (
            pytest.raises(BitworthError, match=r"^The Ray cluster at \S+ does not take this driver: \w+: \w+"),
            rays.connect(f"ray://127.0.0.1:{client}", tmp_path),
        ):
            raise AssertionError("nothing serves it")
    assert not dies.exists()
    for address in (cluster.address, f"ray://127.0.0.1:{client}"):
        with rays.connect(address, tmp_path) as found:
            assert len(found.nodes()) == 2


@pytest.mark.slow
def test_other_versions_are_refused(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = members.environment()
    monkeypatch.setattr(members, "environment", lambda: {**there, "torch": "1.0"})
    with (
        pytest.raises(BitworthError, match=r"^Node \S+ has torch \S+ instead of 1\.0; install the same there as on"),
        rays.connect(cluster.address, tmp_path),
    ):
        raise AssertionError("it must not be used")
    assert wait_for(lambda: not workers())


@pytest.mark.slow
def test_a_folder_that_nodes_do_not_see_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_sees", lambda: lambda *_: False)
    with (
        pytest.raises(BitworthError, match=r"does not see the results folder .*; put --out on a folder that all"),
        rays.connect(cluster.address, tmp_path),
    ):
        raise AssertionError("it must not be used")
