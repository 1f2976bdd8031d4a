"""The time in which a run was under the load that was asked for, and the part of each request that lies in it.

A closed loop runs dry: once the last request has been sent, streams fall idle one after another, and what is answered
meanwhile is answered by a server that is less and less busy: the shorter the run, the slower the server seems (figures
in docs/load.md). So a closed loop counts from the moment when all its streams are first busy to the moment when they
last are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bitworth.types import Timing

#: Batches of requests from which on Student's interval of their mean is less than 3 standard errors either way.
ENOUGH_BATCHES = 5


def busy(timings: Sequence[Timing], streams: int | None) -> tuple[float, float]:
    """When the load begins and ends, seconds.

    Args:
        timings: of all requests of a run, of which one succeeded; failed ones keep a stream busy too.
        streams: of a closed loop; None for others, which are counted from the first start to the last end of those that
            succeeded. So is a loop whose streams never were all busy at once.
    """
    good = [timing for timing in timings if timing.error is None]
    whole = min(timing.start_s for timing in good), max(timing.end_s for timing in good)
    if streams is None:
        return whole
    starts, ends = (np.array([getattr(t, name) for t in timings]) for name in ("start_s", "end_s"))
    at, change = np.concatenate((ends, starts)), np.repeat((-1, 1), len(timings))
    order = np.lexsort((change, at))  # of one moment, what ends before what starts
    full = np.flatnonzero(np.cumsum(change[order]) == streams)
    if not full.size or full[-1] + 1 == len(order):
        return whole
    began, ended = float(at[order][full[0]]), float(at[order][full[-1] + 1])
    return (began, ended) if ended > began else whole


def answered(timings: Sequence[Timing], streams: int | None) -> tuple[NDArray[np.float64], float]:
    """How much of each request that succeeded counts, and the seconds in which as much was answered; see `busy`."""
    began, ended = busy(timings, streams)
    return parts([timing for timing in timings if timing.error is None], (began, ended)), ended - began


def batches(timings: Sequence[Timing], streams: int | None) -> list[Sequence[Timing]]:
    """Requests in the order of their start, in batches of as many as a closed loop has at once, or one by one.

    Requests that run together are slow together: what varies by itself is, about, the batch. Where the streams do not
    divide the requests, batches are a little larger.
    """
    ordered = sorted(timings, key=lambda timing: timing.start_s)
    edges = np.linspace(0, len(ordered), max(1, len(ordered) // (streams or 1)) + 1).astype(int)
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
