"""The serving loop, request by request: continuous batching, prompts read in chunks, a cache that fills up.

Each pass gives every running sequence a token and reads prompts, first come first served, up to a budget of tokens. A
request starts when a slot and room for its prompt are free. When the cache is full, the newest request gives its room
back and starts again later, prompt and answer read as one prompt (recomputation, as vLLM does). Passes in which nothing
but decoding happens are taken together, so that a simulation costs a few steps a request.

Arrivals: one at a time, so many streams that each ask again when answered, a constant rate, or a Poisson process.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np

from bitworth.errors import BitworthError
from bitworth.prediction.serving import CHUNK_TOKENS, MOST_SEQUENCES, Fleet
from bitworth.types import Load, Timing, UseCase


@dataclass(slots=True)
class _Request:
    """A request under way: prompt tokens still to read, tokens in the cache, tokens given."""

    sent: float
    to_read: int
    cached: int = 0
    given: int = 0
    first: float | None = None


class _Copy:
    """One copy's queue, slots and clock."""

    def __init__(self, fleet: Fleet, case: UseCase, slots: int) -> None:
        self.fleet, self.case, self.slots = fleet, case, slots
        self.capacity = fleet.deployment.cache_tokens
        self.now = 0.0
        self.waiting: deque[_Request] = deque()
        self.reading: deque[_Request] = deque()
        self.decoding: list[_Request] = []

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self.waiting or self.reading or self.decoding)

    def step(self, until: float) -> list[_Request]:
        """One pass, or many alike that end before `until`; the requests that it finished."""
        self._admit()
        self._make_room()
        chunks = list(self._chunks())
        count = 1 if chunks else self._alike(until)
        self._advance(chunks, count)
        for request in self.decoding:
            request.given += count
            request.cached += count
        self._take_in(chunks)
        done = [request for request in self.decoding if request.given >= self.case.output_tokens]
        self.decoding = [request for request in self.decoding if request.given < self.case.output_tokens]
        return done

    @property
    def _used(self) -> int:
        return sum(request.cached for request in self.decoding) + sum(r.cached + r.to_read for r in self.reading)

    def _admit(self) -> None:
        used = self._used
        while self.waiting and len(self.reading) + len(self.decoding) < self.slots:
            used += self.waiting[0].to_read
            if used + len(self.decoding) > self.capacity and (self.reading or self.decoding):
                return
            self.reading.append(self.waiting.popleft())

    def _make_room(self) -> None:
        """The newest requests go back to the queue until each running one can have a token more."""
        while len(self.decoding) > 1 and self._used + len(self.decoding) > self.capacity:
            newest = self.reading.pop() if self.reading else self.decoding.pop()
            newest.to_read, newest.cached = newest.to_read + newest.cached, 0
            self.waiting.appendleft(newest)

    def _chunks(self) -> Iterator[tuple[_Request, int]]:
        """Parts of prompts that this pass reads."""
        budget = CHUNK_TOKENS - len(self.decoding)
        for request in self.reading:
            if budget <= 0:
                return
            part = min(budget, request.to_read)
            budget -= part
            yield request, part

    def _alike(self, until: float) -> int:
        """Passes before a request ends, the next arrives, or the cache is full."""
        count = min(self.case.output_tokens - request.given for request in self.decoding)
        count = min(count, max(1, (self.capacity - self._used) // len(self.decoding)))
        if math.isfinite(until):
            count = min(count, max(1, math.ceil((until - self.now) / self._seconds([], 1))))
        return count

    def _advance(self, chunks: list[tuple[_Request, int]], count: int) -> None:
        self.now += count * self._seconds(chunks, count)

    def _seconds(self, chunks: list[tuple[_Request, int]], count: int) -> float:
        """One pass, in the middle of `count` of them."""
        d = self.fleet.deployment
        cached = sum(d.seen(request.cached + (count - 1) / 2) for request in self.decoding)
        pairs = sum(d.pairs(request.cached + part) - d.pairs(request.cached) for request, part in chunks)
        return self.fleet.step_seconds(len(self.decoding), cached, sum(part for _, part in chunks), pairs)

    def _take_in(self, chunks: list[tuple[_Request, int]]) -> None:
        """Prompts that were read to their end give their next token and start to decode."""
        for request, part in chunks:
            request.to_read -= part
            request.cached += part
            if request.to_read == 0:
                self.reading.remove(request)
                request.given += 1
                request.first = self.now if request.first is None else request.first
                self.decoding.append(request)


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
    if fleet.deployment.cache_tokens < case.prompt_tokens + case.output_tokens:
        raise BitworthError(f"The cache does not hold one request of {case.prompt_tokens + case.output_tokens} tokens.")
    if requests is None and seconds is None and not times:
        raise BitworthError("A simulation needs a number of requests or of seconds at which it ends.")
    slots = 1 if load.kind == "synchronous" else MOST_SEQUENCES
    copy, finished = _Copy(fleet, case, slots), list[Timing]()
    arrivals = chain(times, repeat(math.inf)) if times else _arrivals(load, fleet.copies, seed)
    upcoming = next(arrivals)
    most, end = min(requests or math.inf, len(times) or math.inf), seconds or math.inf
    while len(finished) < most:
        while upcoming <= copy.now or (copy.idle and math.isfinite(upcoming)):
            copy.now = max(copy.now, upcoming)
            copy.waiting.append(_Request(sent=upcoming, to_read=case.prompt_tokens))
            upcoming = next(arrivals)
        done = copy.step(min(upcoming, end))
        if copy.now > end:
            break
        finished += [_timing(request, copy.now, case) for request in done]
        if load.rate is None:
            copy.waiting += [_Request(sent=copy.now, to_read=case.prompt_tokens) for _ in done]
    return tuple(finished)


def _arrivals(load: Load, copies: int, seed: int) -> Iterator[float]:
    """Times at which one copy's requests are sent; then never."""
    if load.rate is None:
        streams = 1 if load.kind == "synchronous" else max(1, (load.streams or MOST_SEQUENCES * copies) // copies)
        yield from [0.0] * streams
        while True:
            yield math.inf
    generator, now, mean = np.random.default_rng(seed), 0.0, copies / load.rate
    while True:
        now += float(generator.exponential(mean)) if load.kind == "poisson" else mean
        yield now


def _timing(request: _Request, now: float, case: UseCase) -> Timing:
    return Timing(
        start_s=request.sent,
        first_token_s=request.first,
        end_s=now,
        prompt_tokens=case.prompt_tokens,
        output_tokens=case.output_tokens,
    )
