"""How many requests a second a run answered, of which part of each request, and in what batches requests vary.

A closed loop runs dry: once the last request has been sent, streams fall idle one after another, and what is answered
meanwhile is answered by a server that is less and less busy: the shorter the run, the slower the server seems (figures
in docs/load.md). So a closed loop counts from the moment when all its streams are first busy to the moment when they
last are.

Requests at times of their own come to a server that works on others before and after: from the first start to the last
end is one latency too long. Their rate is that at which they came or that at which they were answered, whichever is
lower, from the middle of the first tenth of them to the middle of the last. Answers are taken in the order in which
requests came, so that long and short requests of a mix, which overtake one another, spread no rate out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bitworth.types import Timing

#: Batches of requests from which on Student's interval of their mean is less than 3 standard errors either way.
ENOUGH_BATCHES = 5
#: Most batches of requests. Neighbours depend on one another where a machine's speed wavers, and less if they are long.
TENTHS = 10
#: Requests at the start of a run that are left out, as a share of those that count.
RAMP = 0.1
#: Fewer requests than this are no batch of those, so few requests have few batches and a wide interval.
LEAST_BATCH = 2
#: Gaps from batch to batch share the batch between them: neighbours of a random walk's correlate by a quarter, which
#: makes the variance of their mean half again that of independent ones.
SHARED = 1.5


def busy(timings: Sequence[Timing], streams: int) -> tuple[float, float]:
    """When all streams of a closed loop are first and last busy, seconds.

    Args:
        timings: of all requests of a run, of which one succeeded; failed ones keep a stream busy too.
        streams: of the loop. Where they never were all busy at once, it is from the first start to the last end of the
            requests that succeeded.
    """
    good = [timing for timing in timings if timing.error is None]
    whole = _whole(good)
    starts, ends = (np.array([getattr(t, name) for t in timings]) for name in ("start_s", "end_s"))
    at, change = np.concatenate((ends, starts)), np.repeat((-1, 1), len(timings))
    order = np.lexsort((change, at))  # of one moment, what ends before what starts
    full = np.flatnonzero(np.cumsum(change[order]) == streams)
    if not full.size or full[-1] + 1 == len(order):
        return whole
    began, ended = float(at[order][full[0]]), float(at[order][full[-1] + 1])
    return (began, ended) if ended > began else whole


def answered(timings: Sequence[Timing], streams: int | None) -> tuple[NDArray[np.float64], float]:
    """How much of each request that succeeded counts, and the seconds in which as much was answered.

    Args:
        timings: of all requests of a run, of which one succeeded.
        streams: of a closed loop (see `busy`); None for requests at times of their own (see `pace`).
    """
    good = [timing for timing in timings if timing.error is None]
    if streams is not None:
        began, ended = busy(timings, streams)
        return parts(good, (began, ended)), ended - began
    paces = pace(good)
    began, ended = _whole(good)
    return np.ones(len(good)), len(good) * float(paces.mean()) if paces.size else ended - began


def pace(timings: Sequence[Timing]) -> NDArray[np.float64]:
    """Seconds a request at which requests with times of their own were answered, from each tenth of them to the next.

    No server answers more than it is sent: where the last requests were faster than the first, as happens by chance,
    every pace is longer by as much as makes their mean the pace at which requests came. There is none where fewer than
    two requests succeeded or all were answered at once.
    """
    if len({timing.end_s for timing in timings}) < 2:
        return np.zeros(0)
    ordered = sorted(timings, key=lambda t: (t.start_s if t.due_s is None else t.due_s, t.end_s))
    tenths = np.array_split(np.arange(len(ordered)), min(TENTHS, len(ordered)))
    apart = np.diff([tenth.mean() for tenth in tenths])
    came, left = (
        np.diff([np.mean([getattr(ordered[at], name) for at in tenth]) for tenth in tenths]) / apart
        for name in ("start_s", "end_s")
    )
    found: NDArray[np.float64] = left + max(0.0, came.mean() - left.mean())
    return found


def ramp_of(requests: int, streams: int | None) -> int:
    """How many requests to send first and leave out, since they meet an empty server: a tenth, in loops whole rounds.

    Where streams keep step a batch is one round then, not a part of each of two.
    """
    return math.ceil(RAMP * requests / (streams or 1)) * (streams or 1)


def _whole(good: Sequence[Timing]) -> tuple[float, float]:
    return min(timing.start_s for timing in good), max(timing.end_s for timing in good)


def batches(timings: Sequence[Timing], streams: int | None) -> list[Sequence[Timing]]:
    """Requests in the order of their start, in ten batches at most, of at least as many as a closed loop has at once.

    What varies by itself is, about, the batch: requests that run together are slow together, and those that come at
    times of their own wait in one queue. Requests one at a time are a batch each. Where the batches do not divide the
    requests, some are a little larger.
    """
    ordered = sorted(timings, key=lambda timing: timing.start_s)
    if streams == 1:
        return [[timing] for timing in ordered]
    found = min(TENTHS, len(ordered) // (streams or LEAST_BATCH))
    edges = np.linspace(0, len(ordered), max(1, found) + 1).astype(int)
    return [ordered[begin:end] for begin, end in pairwise(edges)]


def few_batches(requests: int, streams: int | None) -> str | None:
    """What is wrong with so few requests in a closed loop of so many streams, in words; None where nothing is."""
    if streams in (None, 1) or requests >= ENOUGH_BATCHES * streams:
        return None
    found = requests // streams
    batches, have = ("one batch", "no interval") if found < 2 else (f"{found} batches", "wide intervals")
    wanted = ENOUGH_BATCHES * streams
    return f"{requests} requests in {streams} streams are {batches}, so costs have {have}; {wanted} requests would do"


def parts(timings: Sequence[Timing], window: tuple[float, float]) -> NDArray[np.float64]:
    """Of each request, how much of its time lies in the window; 0 or 1 where it takes none."""
    starts, ends = (np.array([getattr(t, name) for t in timings]) for name in ("start_s", "end_s"))
    inside = np.minimum(ends, window[1]) - np.maximum(starts, window[0])
    spent = ends - starts
    found: NDArray[np.float64] = np.where(spent > 0, inside.clip(min=0) / np.where(spent > 0, spent, 1), inside >= 0)
    return found
