"""The serving loop, request by request: continuous batching, prompts read in chunks, a cache that fills up.

Each pass gives every running sequence a token and reads prompts, first come first served, up to a budget of tokens. A
request starts when a slot and room for its prompt are free; blocks with a window need room for that alone, and for what
is being read. When the cache is full, the newest request gives its room back and starts again later, prompt and answer
read as one prompt (recomputation, as vLLM does). Passes in which nothing but decoding happens are taken together.

Arrivals: one at a time, so many streams that each ask again when answered, a constant rate, or a Poisson process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from bitworth.errors import BitworthError
from bitworth.prediction.loop import Floats, Integers, serve
from bitworth.prediction.roofline import Deployment
from bitworth.prediction.serving import Fleet, fleets, needed_tokens
from bitworth.types import Load, Timing, UseCase

_WAVES = 6  # answers to each stream of a closed loop, the first of which does not count
MOST_STREAMS = 2**16  # beyond what a server runs at once they only queue


class Run(NamedTuple):
    """When each finished request was sent, gave its first token and ended, seconds, in the order they ended."""

    sent: Floats
    first: Floats
    ended: Floats


class Sustained(NamedTuple):
    """A fleet under a closed loop, for ever: queries a second; mean and 90th percentile of latency, mean time to a
    first token, seconds.
    """

    fleet: Fleet
    rate: float
    latency_s: float
    latency_p90_s: float
    first_token_s: float


def simulate(
    fleet: Fleet,
    case: UseCase,
    load: Load,
    *,
    requests: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    times: Sequence[float] = (),
) -> tuple[Timing, ...]:
    """The requests that one copy of the fleet finishes, in the order they end; copies share the load evenly.

    Args:
        fleet: the copies.
        case: the shape of every request.
        load: how the whole fleet's requests arrive; without `streams`, throughput keeps all slots of the copies busy.
        requests: stop after so many.
        seconds: stop at this time; what is not finished then is lost.
        seed: of Poisson arrivals.
        times: when one copy's requests are sent, ascending, in place of the load's own arrivals.

    Raises:
        BitworthError: the cache does not hold one request, or there is no limit.
    """
    if times:
        enough = min(requests or len(times), len(times))
        run = _run(fleet, case, np.array(times, np.float64), len(times), enough, seconds or math.inf)
    else:
        run = simulated(fleet, case, load, requests=requests, seconds=seconds, seed=seed)
    return tuple(
        Timing(
            start_s=float(sent),
            first_token_s=float(first),
            end_s=float(ended),
            prompt_tokens=case.prompt_tokens,
            output_tokens=case.output_tokens,
        )
        for sent, first, ended in zip(*run, strict=True)
    )


def simulated(
    fleet: Fleet,
    case: UseCase,
    load: Load,
    *,
    requests: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
) -> Run:
    """See `simulate`."""
    if requests is None and seconds is None:
        raise BitworthError("A simulation needs a number of requests or of seconds at which it ends.")
    slots, end = 1 if load.kind == "synchronous" else fleet.server.sequences, seconds or math.inf
    size = 2 * (requests or 1024) + 4 * slots
    while True:
        sent, arrived = _arrivals(fleet, load, size, seed)
        run = _run(fleet, case, sent, arrived, requests or size, end, slots=slots)
        # Requests that were not drawn any more might have shared passes with those that were.
        if sent[-1] > (run.ended[-1] if len(run.ended) >= (requests or math.inf) else end):
            return Run(*(times[:requests] for times in run))
        size *= 2


def sustained(fleet: Fleet, case: UseCase) -> Sustained:
    """As many streams as run at once, out of step with each other.

    Raises:
        BitworthError: the cache does not hold one request.
    """
    streams = max(1, int(fleet.slots(case)))
    sent = np.full((_WAVES + 2) * streams, math.inf)
    sent[:streams] = 0.0
    wanted = np.full(len(sent), case.output_tokens)
    wanted[:streams] = np.ceil(case.output_tokens * np.arange(1, streams + 1) / streams)
    run = _run(fleet, case, sent, streams, _WAVES * streams, math.inf, wanted=wanted)
    late = len(run.ended) - streams
    rate = late / float(run.ended[-1] - run.ended[streams - 1])
    p90 = float(np.quantile(run.ended[streams:] - run.sent[streams:], 0.9))
    first = float(np.mean(run.first[streams:] - run.sent[streams:]))
    return Sustained(fleet, fleet.copies * rate, streams / rate, p90, first)  # Little's law: no stream ever rests


def closed_loop(fleet: Fleet, case: UseCase, streams: int) -> Sustained:
    """So many streams over the whole fleet, all of which begin together, as a load generator's do.

    Copies share them as evenly as they can, so that there are copies of two kinds at most.

    Raises:
        BitworthError: the cache does not hold one request, or there are too many streams.
    """
    if streams > MOST_STREAMS:
        raise BitworthError(f"{streams:,} streams are too many to simulate; give {MOST_STREAMS:,} or fewer.")
    each, more = divmod(streams, fleet.copies)
    kinds = [(copies, own) for copies, own in ((more, each + 1), (fleet.copies - more, each)) if copies and own]
    latencies, firsts, shares = [], [], []  # of requests, and how many a second each stands for
    for copies, own in kinds:
        load = Load(kind="throughput", streams=own)
        run = simulated(replace(fleet, copies=1), case, load, requests=_WAVES * own)
        sent, first, ended = (times[own:] for times in run)
        latencies.append(ended - sent)
        firsts.append(first - sent)
        rate = copies * own / float(np.mean(ended - sent))  # Little's law
        shares.append(np.full(len(ended), rate / len(ended)))
    share, latency = np.concatenate(shares), np.concatenate(latencies)
    rate = float(np.sum(share))
    first_token_s = float(np.sum(share * np.concatenate(firsts))) / rate
    return Sustained(fleet, rate, streams / rate, _quantile(latency, share, 0.9), first_token_s)


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    """The least of the values that, with those below it, weigh at least that share of all."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, share * below[-1])])


def most(deployment: Deployment, case: UseCase, streams: int | None = None) -> Sustained:
    """The split of the devices that answers most queries a second in a closed loop of so many streams.

    Without a number there are as many streams as run at once.

    Raises:
        BitworthError: the model fits in none, or there are too many streams.
    """
    splits = fleets(deployment, case)
    runs = (sustained(fleet, case) if streams is None else closed_loop(fleet, case, streams) for fleet in splits)
    return max(runs, key=lambda found: found.rate)


def _run(
    fleet: Fleet,
    case: UseCase,
    sent: Floats,
    arrived: int,
    enough: int,
    end: float,
    *,
    slots: int | None = None,
    wanted: Integers | None = None,
) -> Run:
    """One copy; what is answered brings the next request where `sent` is infinite."""
    if fleet.deployment.cache_tokens < needed_tokens(fleet.deployment, case, fleet.server):
        raise BitworthError(f"The cache does not hold one request of {case.prompt_tokens + case.output_tokens} tokens.")
    limits = fleet.limits(slots or fleet.server.sequences)
    wanted = np.full(len(sent), case.output_tokens) if wanted is None else wanted
    costs, again = fleet.costs(limits.slots), arrived < len(sent)
    order, first, ended = serve(sent, wanted, case.prompt_tokens, arrived, again, enough, costs, limits, end)
    return Run(sent[order], first[order], ended[order])


def _arrivals(fleet: Fleet, load: Load, count: int, seed: int) -> tuple[Floats, int]:
    """When one copy's requests are sent, infinite where only an answer brings them; how many are not."""
    if load.rate is None:
        every = (load.streams or fleet.server.sequences * fleet.copies) // fleet.copies
        streams = min(count, 1 if load.kind == "synchronous" else max(1, every))
        return np.where(np.arange(count) < streams, 0.0, math.inf), streams
    mean = fleet.copies / load.rate
    gaps = np.random.default_rng(seed).exponential(mean, count) if load.kind == "poisson" else np.full(count, mean)
    return np.cumsum(gaps), count
