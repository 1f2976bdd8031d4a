"""When requests go out: at times known beforehand, or each as soon as a stream is free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from bitworth.errors import BitworthError
from bitworth.types import Load, Timing

#: Requests at once under `throughput` when the load does not say.
DEFAULT_STREAMS = 64
Prepare = Callable[[int], bytes]
"""Makes the body of the request of that index."""
Send = Callable[[int, bytes], Awaitable[Timing]]
"""Sends that body as the request of that index."""


def arrivals(load: Load, count: int, seed: int) -> list[float]:
    """Seconds at which requests start: the first at 0, then 1 / rate apart, or exponentially so for Poisson."""
    if load.rate is None or load.rate <= 0:
        raise BitworthError(f"A {load.kind} load needs a rate above 0 requests a second.")
    gaps = np.full(count, 1 / load.rate)
    if load.kind == "poisson":
        gaps = np.random.default_rng(seed).exponential(1 / load.rate, count)
    return [0.0, *np.cumsum(gaps)[: count - 1].tolist()][:count]


def streams_of(load: Load) -> int:
    """How many requests a closed loop holds open."""
    return 1 if load.kind == "synchronous" else load.streams or DEFAULT_STREAMS


def loop_of(load: Load) -> int | None:
    """The streams of a closed loop; None of a load whose requests have times of their own."""
    return streams_of(load) if load.kind in ("synchronous", "throughput") else None


async def at_times(times: Sequence[float], prepare: Prepare, send: Send, began: float) -> list[Timing]:
    """Send each request at its time, whatever became of those before it; times ascend, in seconds since `began`.

    A body is made before its time, so that making it delays nothing.
    """
    sent: list[asyncio.Task[Timing]] = []
    try:
        for index, at in enumerate(times):
            body = prepare(index)
            wait = began + at - time.monotonic()
            # Where several are due, or the client is late, requests go out one after another without a pause.
            if wait > 0:
                await asyncio.sleep(wait)
            sent.append(asyncio.ensure_future(send(index, body)))
        return list(await asyncio.gather(*sent))
    finally:
        for task in sent:
            task.cancel()


async def closed_loop(count: int, streams: int, prepare: Prepare, send: Send) -> list[Timing]:
    """As many requests at once as there are streams, each followed by the next one as soon as it is answered."""
    waiting = iter(range(count))
    timings: dict[int, Timing] = {}

    async def stream() -> None:
        for index in waiting:
            timings[index] = await send(index, prepare(index))

    await asyncio.gather(*(stream() for _ in range(min(streams, count))))
    return [timings[index] for index in range(count)]
