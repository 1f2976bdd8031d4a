"""How often the 95 % intervals of benchmarks hold, on simulated servers whose long-run figures are known.

Open loads are queues of one server with Poisson arrivals: constant service (M/D/1, Pollaczek and Khinchine's mean
latency), random service (M/M/1, exponential latencies), or a server that never makes a request wait (M/M/inf). Closed
loops keep eight streams busy: each by itself, all in step, all behind one another at one server, or each by itself on
a machine whose speed wavers by a tenth. Requests are sent before those that count and left out, as in a benchmark.

The peer takes requests for independent: Student's interval of all latencies, of all gaps between answers for the rate
of an open load, of order statistics for a percentile. --quick takes fewer runs and cells.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from claims import Claim, say
from numpy.typing import NDArray

from bitworth.benchmarking import cost_of
from bitworth.engines.schedule import loop_of
from bitworth.hardware import hardware
from bitworth.load.percentiles import percentile
from bitworth.load.rates import ramp_of
from bitworth.statistics import mean_factor
from bitworth.types import EngineFacts, Figure, Load, Measurement, QueryCost, Timing, UseCase

Floats = NDArray[np.float64]
Spans = tuple[Floats, Floats]
"""Starts and ends of requests, seconds, of shape (runs, requests)."""
Simulate = Callable[[np.random.Generator, int, int], Spans]
"""Of so many runs and so many requests in each."""

STREAMS = 8
WAVERS, LASTS = 0.1, 3.0
"""Standard deviation of a machine's slowness, and for how many mean latencies it lasts."""
DELAY_S, DELAY_RATE = 20.0, 4.0
WANTED_PCT = 90.0
SHAPE = UseCase(name="1/1", prompt_tokens=1, output_tokens=1)
FACTS = EngineFacts(engine="simulated", kernel="none", device="none")
#: At a dollar a second, queries a dollar are queries a second.
MACHINE = replace(hardware("local"), usd_per_hour=3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A simulated server under a load, with its long-run rate and latencies by name (`latency_mean`, ...)."""

    name: str
    load: Load
    simulate: Simulate
    rate: float
    latencies: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Of a figure of a server with so many requests: percent of the runs whose interval holds the truth.

    `reach` is the median of ours, above over below, as the root of their ratio: 1.1 is a tenth either way.
    """

    server: Server
    requests: int
    figure: str
    ours: float
    peer: float
    reach: float


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    say(claims_of(measure(quick=arguments.quick)), as_json=arguments.json)


def measure(*, quick: bool) -> list[Cell]:
    """All servers at all sizes."""
    runs, cells = (40 if quick else 1000), list[Cell]()
    table(f"coverage in {runs} runs: server, requests, figure, ours %, taken as independent %, reach of ours")
    for place, (server, sizes) in enumerate(servers()):
        for requests in sizes[:1] if quick else sizes:
            random = np.random.default_rng([place, requests])
            for cell in covered(server, requests, random, runs):
                cells.append(cell)
                figures = f"{cell.ours:6.1f} {cell.peer:6.1f} ×{cell.reach:.2f}"
                table(f"{server.name:<30} {requests:5} {cell.figure:<13} {figures}")
    return cells


# --- servers --------------------------------------------------------------------------------------------------------


def servers() -> list[tuple[Server, tuple[int, ...]]]:
    """Each with the numbers of requests to try."""
    open_sizes, loop_sizes = (100, 300, 1000), (2 * STREAMS, 6 * STREAMS, 20 * STREAMS)
    shares = {"latency_p50": 0.5, "latency_p90": 0.9}
    exponential = {name: -math.log(1 - share) for name, share in shares.items()} | {"latency_mean": 1.0}
    found: list[tuple[Server, tuple[int, ...]]] = [(constant_service(busy), open_sizes) for busy in (0.5, 0.8, 0.95)]
    waiting = {name: seconds / (1 - 0.8) for name, seconds in exponential.items()}
    found.append((opened("M/M/1 at 0.8", 0.8, queue(0.8, constant=False), waiting), open_sizes))
    long = {name: DELAY_S * seconds for name, seconds in exponential.items()}
    found.append((opened("M/M/inf, 80 at once", DELAY_RATE, overtaking, long), open_sizes))
    for name, simulate, seconds in (
        ("closed loop, each by itself", by_itself, 1.0),
        ("closed loop, in step", in_step, 1.0),
        ("closed loop, one at a time", one_at_a_time, float(STREAMS)),
        ("closed loop, wavering machine", wavering, 1.0),
    ):
        load = Load(kind="throughput", streams=STREAMS)
        little = {"latency_mean": seconds}
        server = Server(name=name, load=load, simulate=simulate, rate=STREAMS / seconds, latencies=little)
        found.append((server, loop_sizes))
    return found


def opened(name: str, rate: float, simulate: Simulate, latencies: dict[str, float]) -> Server:
    """A server that answers all that comes: its rate is that of the arrivals."""
    return Server(name=name, load=Load(kind="poisson", rate=rate), simulate=simulate, rate=rate, latencies=latencies)


def constant_service(busy: float) -> Server:
    """M/D/1, of a second's service, busy for this share of the time; a percentile has no formula as short."""
    mean = 1 + busy / (2 * (1 - busy))
    return opened(f"M/D/1 at {busy:g}", busy, queue(busy, constant=True), {"latency_mean": mean})


def queue(rate: float, *, constant: bool) -> Simulate:
    """Poisson arrivals at one server that takes a second, or a second on average; it begins empty."""

    def simulate(random: np.random.Generator, runs: int, requests: int) -> Spans:
        starts = np.cumsum(random.exponential(1 / rate, (runs, requests)), axis=1)
        seconds = np.ones(starts.shape) if constant else random.exponential(1.0, starts.shape)
        ends = np.empty_like(starts)
        free = np.zeros(runs)
        for at in range(requests):
            free = np.maximum(free, starts[:, at]) + seconds[:, at]
            ends[:, at] = free
        return starts, ends

    return simulate


def overtaking(random: np.random.Generator, runs: int, requests: int) -> Spans:
    """Poisson arrivals that are all served at once, each for a time of its own."""
    starts = np.cumsum(random.exponential(1 / DELAY_RATE, (runs, requests)), axis=1)
    return starts, starts + random.exponential(DELAY_S, starts.shape)


def by_itself(random: np.random.Generator, runs: int, requests: int) -> Spans:
    """Each stream sends its next request once the last is answered; a second on average, give or take a half."""
    seconds = random.gamma(4, 0.25, (runs, requests))
    starts, free, every = np.empty_like(seconds), np.zeros((runs, STREAMS)), np.arange(runs)
    for at in range(requests):
        first = free.argmin(axis=1)
        starts[:, at] = free[every, first]
        free[every, first] += seconds[:, at]
    return starts, starts + seconds


def in_step(random: np.random.Generator, runs: int, requests: int) -> Spans:
    """The streams' requests are answered together: what slows one slows all."""
    rounds = -(-requests // STREAMS)
    ends = np.cumsum(random.gamma(4, 0.25, (runs, rounds)), axis=1)
    starts = np.concatenate((np.zeros((runs, 1)), ends[:, :-1]), axis=1)
    whole = np.repeat(starts, STREAMS, axis=1), np.repeat(ends, STREAMS, axis=1)
    return whole[0][:, :requests], whole[1][:, :requests]


def one_at_a_time(random: np.random.Generator, runs: int, requests: int) -> Spans:
    """One server, a second on average for each, takes them as they come: each waits for the seven before it."""
    ends = np.cumsum(random.exponential(1.0, (runs, requests)), axis=1)
    starts = np.concatenate((np.zeros((runs, STREAMS)), ends), axis=1)[:, :requests]
    return starts, ends


def wavering(random: np.random.Generator, runs: int, requests: int) -> Spans:
    """As `by_itself`, on a machine whose clock runs now slower, now faster: a second is one only on average."""
    spans = by_itself(random, runs, requests)
    steps = math.ceil(max(float(each.max()) for each in spans)) + 1
    kept = math.exp(-1 / LASTS)
    level = random.normal(0, WAVERS, runs)
    slowness = np.empty((runs, steps))
    for step in range(steps):
        slowness[:, step] = np.exp(level - WAVERS**2 / 2)  # of mean 1
        level = kept * level + random.normal(0, WAVERS * math.sqrt(1 - kept**2), runs)
    clock = np.concatenate((np.zeros((runs, 1)), np.cumsum(slowness, axis=1)), axis=1)
    ticks = np.arange(steps + 1)
    starts, ends = (
        np.stack([np.interp(row, ticks, time) for row, time in zip(each, clock, strict=True)]) for each in spans
    )
    return starts, ends


# --- intervals ------------------------------------------------------------------------------------------------------


def covered(server: Server, requests: int, random: np.random.Generator, runs: int) -> list[Cell]:
    """The coverage of the rate's interval and of the latencies', ours and the peer's."""
    ramp = ramp_of(requests, loop_of(server.load))
    starts, ends = (each[:, ramp:] for each in server.simulate(random, runs, ramp + requests))
    truths = {"rate": server.rate, **server.latencies}
    ours, peers = list[dict[str, Figure]](), list[dict[str, Figure]]()
    for start, end in zip(starts, ends, strict=True):
        cost = priced(start, end, server.load)
        ours.append({"rate": rate_of(cost), **cost.figures})
        peers.append({"rate": peer_rate(cost, start, end), **peer_latencies(end - start)})
    return [
        Cell(
            server=server,
            requests=requests,
            figure=name,
            ours=held([figures[name] for figures in ours], truth),
            peer=held([figures[name] for figures in peers], truth),
            reach=float(np.median([reach_of(figures[name]) for figures in ours])),
        )
        for name, truth in truths.items()
    ]


def priced(starts: Floats, ends: Floats, load: Load) -> QueryCost:
    """What bitworth says of one run."""
    timings = tuple(
        Timing(start_s=start, first_token_s=None, end_s=end, prompt_tokens=1, output_tokens=1)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )
    return cost_of("f", Measurement(runs=(timings,), facts=FACTS), SHAPE, load, MACHINE)


def rate_of(cost: QueryCost) -> Figure:
    """Its rate; without an interval everything is possible."""
    low, high = cost.ci95_queries_per_usd or (0.0, math.inf)
    return Figure(value=cost.queries_per_second or 0.0, low=low, high=high)


def peer_rate(cost: QueryCost, starts: Floats, ends: Floats) -> Figure:
    """Our rate with the interval of values taken for independent: latencies in a loop, gaps between answers else."""
    values = ends - starts if cost.load.startswith("throughput") else np.diff(np.sort(ends))
    return around(cost.queries_per_second or 0.0, values)


def peer_latencies(latencies: Floats) -> dict[str, Figure]:
    """Of requests taken for independent."""
    ordered = np.sort(latencies)
    found = {f"latency_p{percent}": percentile(ordered, percent) for percent in (50, 90)}
    return {"latency_mean": around(float(latencies.mean()), latencies), **found}


def around(middle: float, values: Floats) -> Figure:
    """With Student's interval of the values' mean."""
    factor = mean_factor(values.tolist()) or math.inf
    return Figure(value=middle, low=middle / factor, high=middle * factor)


def reach_of(figure: Figure) -> float:
    """The root of the upper bound over the lower."""
    return math.sqrt(figure.high / figure.low) if figure.low else math.inf


def held(figures: Sequence[Figure], truth: float) -> float:
    """Percent of the figures whose interval holds the truth."""
    return 100 * float(np.mean([f.low * (1 - 1e-9) <= truth <= f.high * (1 + 1e-9) for f in figures]))


# --- claims ---------------------------------------------------------------------------------------------------------


def claims_of(cells: Sequence[Cell]) -> list[Claim]:
    """The least coverage of each kind of cell, and whether the peer ever does better where it matters."""
    loops = [cell for cell in cells if cell.server.load.kind == "throughput"]
    opens = [cell for cell in cells if cell not in loops]
    full = [cell for cell in opens if cell.server.name.endswith("0.95")]
    easy = [cell for cell in opens if cell not in full]
    kinds = {
        "rates of open loads to eight tenths": [cell for cell in easy if cell.figure == "rate"],
        "rates of open loads at 95 %": [cell for cell in full if cell.figure == "rate"],
        "mean latencies of open loads to eight tenths": [cell for cell in easy if cell.figure == "latency_mean"],
        "mean latencies of open loads at 95 %": [cell for cell in full if cell.figure == "latency_mean"],
        "percentiles of open loads to eight tenths": [cell for cell in easy if cell.figure.startswith("latency_p")],
        "rates of closed loops": [cell for cell in loops if cell.figure == "rate"],
        "mean latencies of closed loops": [cell for cell in loops if cell.figure == "latency_mean"],
    }
    found = [least(name, some) for name, some in kinds.items()]
    below = [cell for cell in cells if cell.peer < WANTED_PCT]
    better = 100 * float(np.mean([cell.ours >= cell.peer for cell in below]))
    name = "cells where independence covers less than 90 % and ours no less"
    return [*found, Claim(name, "= 100 %", better, "%", better == 100)]


def least(name: str, cells: Sequence[Cell]) -> Claim:
    """The worst cell's coverage."""
    worst = min(cell.ours for cell in cells)
    return Claim(f"coverage of {name}, least", f">= {WANTED_PCT:g} %", worst, "%", worst >= WANTED_PCT)


def table(line: str) -> None:
    """A line for people, apart from the document."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
