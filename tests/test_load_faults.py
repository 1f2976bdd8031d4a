"""Servers that die, hang, refuse or break off in the middle of a benchmark: a failed cell, its cause, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from test_http import served

from bitworth.benchmarking import measure
from bitworth.cells import Subject, benchmark_cell
from bitworth.engines.fake import FakeServer, Fault
from bitworth.engines.http import HttpGenerator
from bitworth.engines.schedule import loop_of
from bitworth.errors import WorkFailed
from bitworth.execute.local import LocalExecutor
from bitworth.ledger import Ledger
from bitworth.load.rates import ramp_of
from bitworth.load.traces import Workload
from bitworth.running import run_cells, standing
from bitworth.types import Load, UseCase

SHAPE = UseCase(name="8/16", prompt_tokens=8, output_tokens=16)
LOADS = [
    Load(kind="synchronous"),
    Load(kind="throughput", streams=8),
    Load(kind="constant", rate=50.0),
    Load(kind="poisson", rate=50.0),
]
SLOW_SERVER = """
import sys
from aiohttp import web
from bitworth.engines.fake import FakeServer
print("up", flush=True)
web.run_app(FakeServer(first_s=0.01, token_s=0.01).application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def process_server() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, 0.16 s a request."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SLOW_SERVER, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def tasks_and_sockets() -> tuple[int, int]:
    here = psutil.Process()
    return threading.active_count(), len([c for c in here.net_connections("tcp") if c.status == "ESTABLISHED"])


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.kind)
def test_a_killed_server_fails_what_is_left_at_once(load: Load) -> None:
    with process_server() as (url, process):
        client = HttpGenerator(url, wait_s=30)
        before = tasks_and_sockets()
        began = time.monotonic()

        def kill(done: int, _: int) -> None:
            if done == 20:
                os.kill(process.pid, signal.SIGKILL)

        with pytest.raises(WorkFailed, match=r"of 100 requests failed: (the server closed the connection|cannot conn)"):
            measure(client, SHAPE, load, requests=100, warmup=0, progress=kill)
        assert time.monotonic() - began < 15
        assert tasks_and_sockets() == before


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.kind)
def test_a_server_that_hangs_is_given_up(load: Load) -> None:
    ramp = 0 if load.kind == "synchronous" else ramp_of(100, loop_of(load))
    server = FakeServer(faults=["none"] * (ramp + 2) + ["hang"] * 500)  # type: ignore[arg-type]
    with served(server) as url:
        client = HttpGenerator(url, idle_s=0.5)
        began = time.monotonic()
        with pytest.raises(WorkFailed, match=r"98 of 100 requests failed: the server was silent for 0\.5 s"):
            measure(client, SHAPE, load, requests=100, warmup=0)
        # Not a silence for each request: those that are not sent say so.
        assert time.monotonic() - began < 6
    assert len(server.requests) < ramp + 100 or load.rate is not None


@pytest.mark.slow
def test_a_server_that_loses_one_request_is_not_given_up() -> None:
    with served(FakeServer(token_s=0.005, faults=[*["none"] * 30, "hang"])) as url:
        found = measure(HttpGenerator(url, idle_s=0.5), SHAPE, Load(kind="throughput", streams=4), requests=100)
    causes = [timing.error for timing in found.timings if timing.error is not None]
    assert causes == ["the server was silent for 0.5 s"]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("refuse", r"HTTP 500 \(out of order"),
        ("break_off", "the answer broke off after 15 of 16 tokens"),
        ("stall", r"the server was silent for 0\.5 s after 16 of 16 tokens"),
        ("miscount", "15 tokens were generated instead of 16"),
        ("report", "the server reports: engine dead"),
    ],
)
@pytest.mark.parametrize("load", [LOADS[1], Load(kind="constant", rate=200.0)], ids=lambda load: load.kind)
def test_a_third_of_the_answers_gone_is_a_failed_run(load: Load, fault: Fault, cause: str) -> None:
    # None among the first, where those of the ramp may change places with those that count.
    faults: list[Fault] = ["none"] * (ramp_of(90, loop_of(load)) + 15) + ["none", "none", fault, "none", fault] * 15
    with (
        served(FakeServer(faults=faults)) as url,
        pytest.raises(WorkFailed, match=rf"30 of 90 requests failed: {cause}"),
    ):
        measure(HttpGenerator(url, idle_s=0.5), SHAPE, load, requests=90, warmup=0)


@pytest.mark.slow(beside=True)
def test_a_cell_keeps_the_cause_and_the_next_one_runs(tiny_llama: Path, tmp_path: Path) -> None:
    """Through the worker process: the server is killed in the first cell, and the second finds none."""
    subject = Subject(format="baseline", identity="tiny", path=str(tiny_llama))
    workload = Workload(name="8/16", parts=((SHAPE, 1.0),))
    with process_server() as (url, process):
        HttpGenerator(url, wait_s=30)
        cells = tuple(benchmark_cell(subject, workload, load, url, 100) for load in LOADS[:2])
        stopper = threading.Thread(target=kill_once_busy, args=(process,))
        stopper.start()
        ledger = Ledger(tmp_path)
        run_cells(ledger, cells, executor=LocalExecutor())
        stopper.join()
    killed, none = standing(ledger, cells)
    assert (killed.state, none.state) == ("failed", "failed")
    assert "requests failed: the server closed the connection" in str(killed.cause)
    assert "does not answer" in str(none.cause)
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not [line for line in left if "resource_tracker" not in " ".join(line)]


def kill_once_busy(process: subprocess.Popen[str]) -> None:
    """End the server soon after the worker's first connection."""
    server = psutil.Process(process.pid)
    while not any(c.status == "ESTABLISHED" for c in server.net_connections("tcp")):
        time.sleep(0.02)
    time.sleep(0.5)
    process.kill()
