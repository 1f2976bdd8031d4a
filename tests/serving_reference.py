"""The serving loop as plainly as it can be written, with lists of requests, and full load in closed form."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from bitworth.prediction.architecture import Architecture
from bitworth.prediction.serving import Fleet
from bitworth.types import UseCase


@dataclass(slots=True)
class _Request:
    """A request under way: prompt tokens still to read, tokens in the cache, tokens given."""

    number: int
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
    def _used(self) -> float:
        under_way = 2 * self.fleet.server.pass_tokens
        reading = sum(held(self.fleet.deployment.architecture, r.cached + r.to_read, under_way) for r in self.reading)
        return reading + sum(held(self.fleet.deployment.architecture, r.cached) for r in self.decoding)

    @property
    def _growth(self) -> float:
        """What a token more for each running request takes."""
        a = self.fleet.deployment.architecture
        return sum(held(a, r.cached + 1) - held(a, r.cached) for r in self.decoding)

    def _admit(self) -> None:
        a, used = self.fleet.deployment.architecture, self._used
        while self.waiting and len(self.reading) + len(self.decoding) < self.slots:
            used += held(a, self.waiting[0].to_read, 2 * self.fleet.server.pass_tokens)
            if used + self._growth > self.capacity and (self.reading or self.decoding):
                return
            self.reading.append(self.waiting.popleft())

    def _make_room(self) -> None:
        """The newest requests go back to the queue until each running one can have a token more."""
        while len(self.decoding) > 1 and self._used + self._growth > self.capacity:
            newest = self.reading.pop() if self.reading else self.decoding.pop()
            newest.to_read, newest.cached = newest.to_read + newest.cached, 0
            self.waiting.appendleft(newest)

    def _chunks(self) -> Iterator[tuple[_Request, int]]:
        """Parts of prompts that this pass reads."""
        budget = self.fleet.server.pass_tokens - len(self.decoding)
        for request in self.reading:
            if budget <= 0:
                return
            part = min(budget, request.to_read)
            budget -= part
            yield request, part

    def _alike(self, until: float) -> int:
        """Passes before a request ends, the next arrives, or the cache is full."""
        count = min(self.case.output_tokens - request.given for request in self.decoding)
        if self._growth * count > self.capacity - self._used:
            count = max(1, int((self.capacity - self._used) / self._growth))
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
        return step_seconds(self.fleet, len(self.decoding), cached, sum(part for _, part in chunks), pairs)

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


@cache
def caches(a: Architecture) -> list[int | None]:
    """The window of each block that vLLM makes room for, None where it keeps everything: groups of one size.

    Those that fill the last group of a kind up count as the others of it do.
    """
    kinds: list[list[int | None]] = [[None] * a.layers]
    if a.window is not None:
        kinds = [[None] * a.seeing_all, [a.window] * (a.layers - a.seeing_all)]
    kinds = [kind for kind in kinds if kind]
    least, most = min(map(len, kinds)), max(map(len, kinds))
    group = most if most < 1.5 * least else least
    for kind in kinds:
        while len(kind) % group:
            kind.append(kind[0])
    return [window for kind in kinds for window in kind]


def held(a: Architecture, tokens: int, beside: int = 0) -> float:
    """Tokens of all blocks that so many take, block by block."""
    return sum(tokens if window is None else min(tokens, window + beside) for window in caches(a)) / a.layers


def finished(
    fleet: Fleet, case: UseCase, sent: Sequence[float], again: bool, enough: int, end: float = math.inf
) -> list[tuple[int, float, float | None, float]]:
    """(number, sent, first token, end) of the requests that one copy answers, in the order they end."""
    copy, found, upcoming = _Copy(fleet, case, fleet.server.sequences), [], deque(sent)
    number = 0
    while len(found) < enough:
        while upcoming and (upcoming[0] <= copy.now or copy.idle):
            copy.now = max(copy.now, upcoming[0])
            copy.waiting.append(_Request(number=number, sent=upcoming.popleft(), to_read=case.prompt_tokens))
            number += 1
        if copy.idle:
            break
        done = copy.step(min(upcoming[0] if upcoming else math.inf, end))
        if copy.now > end:
            break
        found += [(request.number, request.sent, request.first, copy.now) for request in done]
        if again:
            upcoming.extend(copy.now for _ in done)
    return found


def step_seconds(fleet: Fleet, sequences: float, cached: float, prompt_tokens: float, pairs: float) -> float:
    """A pass that gives each sequence a token and reads so much of prompts."""
    passed = fleet.deployment.pass_seconds(
        sequences + prompt_tokens, sequences=max(sequences, 1.0), cached=cached, pairs=pairs
    )
    return passed + fleet.deployment.constants.host_s * sequences


def full_rate(fleet: Fleet, case: UseCase) -> float:
    """Queries a second of full batches, requests spread evenly: full chunks of prompts, then passes of tokens alone."""
    d, slots = fleet.deployment, fleet.slots(case)
    prompts = max(1.0, fleet.server.pass_tokens / case.prompt_tokens)
    tokens, pairs = prompts * case.prompt_tokens, prompts * d.pairs(case.prompt_tokens)
    prefill = d.pass_seconds(tokens, sequences=prompts, pairs=pairs) / prompts
    cached = slots * d.seen(case.prompt_tokens + case.output_tokens / 2)
    return fleet.copies / (prefill + case.output_tokens * step_seconds(fleet, slots, cached, 0.0, 0.0) / slots)
