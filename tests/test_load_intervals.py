"""The simulated servers of benchmarks/load_intervals.py have the figures that it holds intervals against."""

from __future__ import annotations

import load_intervals
import numpy as np
import pytest
from load_intervals import Server, claims_of, servers

SERVERS = [server for server, _ in servers()]


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_a_long_run_has_the_figures_that_are_taken_for_true(server: Server) -> None:
    """The rate by counting answers over time; quantiles of latencies by numpy."""
    begun, near = 4000, 0.15 if server.name.endswith("0.95") else 0.05
    starts, ends = server.simulate(np.random.default_rng(1), 20, 20_000)
    rates = [(len(end) - 1) / (end.max() - end.min()) for end in ends]
    assert np.mean(rates) == pytest.approx(server.rate, rel=0.03)
    latencies = (ends - starts)[:, begun:]
    found = {"latency_mean": latencies.mean(), "latency_p50": np.quantile(latencies, 0.5)}
    found["latency_p90"] = np.quantile(latencies, 0.9)
    for name, truth in server.latencies.items():
        assert found[name] == pytest.approx(truth, rel=near), name


def test_loops_keep_so_many_streams_busy() -> None:
    for server in SERVERS:
        if server.load.kind == "throughput":
            starts, ends = server.simulate(np.random.default_rng(2), 1, 400)
            busy = [int(((starts <= at) & (at < ends)).sum()) for at in starts[0, 20:-20] + 1e-9]
            assert set(busy) == {load_intervals.STREAMS}, server.name


@pytest.mark.slow(beside=True)
def test_a_quick_run_tells_ours_from_the_peers() -> None:
    cells = load_intervals.measure(quick=True)
    assert {cell.server.name for cell in cells} == {server.name for server in SERVERS}
    assert claims_of(cells)[-1].holds
    queued = next(cell for cell in cells if cell.server.name == "M/D/1 at 0.8" and cell.figure == "latency_mean")
    assert queued.peer < 40 < queued.ours < 90
