"""The serving loop of one copy, compiled: a pass at a time, over arrays of requests.

Requests are numbered in the order they are sent, and wait in it. `_State` says how each stands; `line` holds those that
read their prompt and those that decode, oldest first, and `back` those that gave their room back, newest on top: they
start again before any that never ran. `simulation` says what the loop does; this file only how.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitworth.jit import kept

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_READING, _DECODING, _BACK, _NEXT = range(4)  # how many of each; the first that never ran


class Costs(NamedTuple):
    """Seconds of a pass: by its tokens, by its sequences, a cached token read, a pair of a prompt, whatever it holds.

    `window`: tokens back that attention looks, 0 where it looks at all, in that share of the blocks (`windowed`).
    """

    by_tokens: Floats
    by_sequences: Floats
    a_cached: float
    a_pair: float
    a_pass: float
    window: int
    windowed: float


class Limits(NamedTuple):
    """Sequences at once, tokens of a pass, tokens of the cache.

    Of each token the cache keeps a share of the blocks (`whole`); of the `windowed` share it keeps the window alone,
    and `beside` it what a prompt that is being read adds.
    """

    slots: int
    budget: int
    capacity: int
    whole: float
    windowed: float
    window: int
    beside: int


class _State(NamedTuple):
    to_read: Integers
    cached: Integers
    given: Integers
    reading: Integers
    decoding: Integers
    back: Integers
    line: Integers


@kept(nogil=True)
def serve(
    sent: Floats,
    wanted: Integers,
    prompt: int,
    arrived: int,
    again: bool,
    enough: int,
    costs: Costs,
    limits: Limits,
    end: float,
) -> tuple[Integers, Floats, Floats]:
    """Run until `enough` requests are answered, none is left, or the clock passes `end`.

    Args:
        sent: when each request is sent, ascending; those after the first `arrived` are filled in where `again` is true.
        wanted: tokens that each asks for.
        prompt: tokens of every prompt.
        arrived: how many requests there are before any is answered.
        again: whether an answer brings the next request, as long as `sent` has room.
        enough: answers; a last pass may give more.
        costs: of a pass.
        limits: of the server.
        end: seconds, may be infinite.

    Returns:
        The numbers of those answered, in the order of their ends; first tokens and ends, seconds, by number.
    """
    most = len(sent)
    of = _State(
        to_read=np.full(most, prompt),
        cached=np.zeros(most, np.int64),
        given=np.zeros(most, np.int64),
        reading=np.empty(most, np.int64),
        decoding=np.empty(most, np.int64),
        back=np.empty(most, np.int64),
        line=np.zeros(4, np.int64),
    )
    order, first, ended = np.empty(most, np.int64), np.full(most, np.nan), np.full(most, np.nan)
    parts = np.zeros(limits.slots, np.int64)
    now, seen, answered = 0.0, 0, 0
    while answered < enough:
        idle = of.line[:_NEXT].sum() == 0 and of.line[_NEXT] == seen
        while seen < arrived and (sent[seen] <= now or idle):
            now, idle, seen = max(now, sent[seen]), False, seen + 1
        if idle:
            break
        used = _make_room(of, limits, _admit(of, seen, limits))
        reads = _share_out(of, parts, limits)
        until = min(sent[seen] if seen < arrived else math.inf, end)
        count = 1 if reads else _alike(of, wanted, costs, limits, limits.capacity - used, until - now)
        now += count * _seconds(of, parts, costs, count)
        _decode(of, count)
        _take_in(of, parts, first, now)
        done = _finish(of, wanted, order, answered)
        if now > end:
            break
        ended[order[answered : answered + done]] = now
        answered += done
        if again:
            for _ in range(min(done, most - arrived)):
                sent[arrived] = now
                arrived += 1
    return order[:answered], first, ended


@kept()
def _held(tokens: int, limits: Limits, beside: int) -> float:
    """Tokens of all blocks whose room so many take."""
    return limits.whole * tokens + limits.windowed * min(tokens, limits.window + beside)


@kept()
def _growth(of: _State, limits: Limits) -> float:
    """Tokens of all blocks that a token more for each running sequence takes."""
    growth = 0.0
    for at in of.decoding[: of.line[_DECODING]]:
        growth += limits.whole + (limits.windowed if of.cached[at] < limits.window else 0.0)
    return growth


@kept()
def _admit(of: _State, seen: int, limits: Limits) -> float:
    """Those that wait start, in their order, while there is a slot and room for the prompt.

    Returns the tokens of the cache that are taken, or promised to a prompt.
    """
    line, used, growth = of.line, 0.0, _growth(of, limits)
    for at in of.decoding[: line[_DECODING]]:
        used += _held(of.cached[at], limits, 0)
    for at in of.reading[: line[_READING]]:
        used += _held(of.cached[at] + of.to_read[at], limits, limits.beside)
    while line[_READING] + line[_DECODING] < limits.slots and (line[_BACK] or line[_NEXT] < seen):
        at = of.back[line[_BACK] - 1] if line[_BACK] else line[_NEXT]
        wanted = _held(of.to_read[at], limits, limits.beside)
        if used + wanted + growth > limits.capacity and line[_READING] + line[_DECODING]:
            break
        used += wanted
        line[_BACK if line[_BACK] else _NEXT] += -1 if line[_BACK] else 1
        of.reading[line[_READING]] = at
        line[_READING] += 1
    return used


@kept()
def _make_room(of: _State, limits: Limits, used: float) -> float:
    """The newest go back to waiting until each running one can have a token more; what is taken then."""
    line = of.line
    while line[_DECODING] > 1 and used + _growth(of, limits) > limits.capacity:
        kind, who = (_READING, of.reading) if line[_READING] else (_DECODING, of.decoding)
        line[kind] -= 1
        at = who[line[kind]]
        if kind == _READING:
            used -= _held(of.cached[at] + of.to_read[at], limits, limits.beside)
        else:
            used -= _held(of.cached[at], limits, 0)
        of.to_read[at] += of.cached[at]
        of.cached[at] = 0
        of.back[line[_BACK]] = at
        line[_BACK] += 1
    return used


@kept()
def _share_out(of: _State, parts: Integers, limits: Limits) -> bool:
    """Parts of prompts that the pass reads, oldest first; whether there are any."""
    left = max(0, limits.budget - of.line[_DECODING])
    any_read = bool(left > 0 and of.line[_READING] > 0)
    for place, at in enumerate(of.reading[: of.line[_READING]]):
        parts[place] = min(left, of.to_read[at])
        left -= parts[place]
    return any_read


@kept()
def _alike(of: _State, wanted: Integers, costs: Costs, limits: Limits, room: float, left: float) -> int:
    """Passes before a request ends, the next arrives, or the cache is full, which has room for so many tokens."""
    decoding = of.decoding[: of.line[_DECODING]]
    count = wanted[decoding[0]] - of.given[decoding[0]]
    for at in decoding:
        count = min(count, wanted[at] - of.given[at])
    growth = _growth(of, limits)  # it only falls
    if growth * count > room:
        count = max(1, math.floor(room / growth))
    if math.isfinite(left):
        count = min(count, max(1, math.ceil(left / _seconds(of, decoding[:0], costs, 1))))
    return int(count)


@kept()
def _seconds(of: _State, parts: Integers, costs: Costs, count: int) -> float:
    """One pass, in the middle of `count` of them."""
    cached, pairs, tokens, decoding = 0.0, 0.0, of.line[_DECODING], of.line[_DECODING]
    for at in of.decoding[:decoding]:
        cached += _in_sight(of.cached[at] + (count - 1) / 2, costs)
    for place, part in enumerate(parts[: of.line[_READING]]):
        before = of.cached[of.reading[place]]
        pairs += _pairs(before + part, costs) - _pairs(before, costs)
        tokens += part
    both = costs.by_tokens[tokens] + costs.by_sequences[decoding]
    return float(both + costs.a_cached * cached + costs.a_pair * pairs + costs.a_pass)


@kept()
def _in_sight(context: float, costs: Costs) -> float:
    beyond = max(0.0, context - costs.window) if costs.window else 0.0
    return context - costs.windowed * beyond


@kept()
def _pairs(prompt: float, costs: Costs) -> float:
    band = min(prompt, costs.window) if costs.window else prompt
    return (1 - costs.windowed) * prompt**2 / 2 + costs.windowed * band * (prompt - band / 2)


@kept()
def _decode(of: _State, count: int) -> None:
    for at in of.decoding[: of.line[_DECODING]]:
        of.given[at] += count
        of.cached[at] += count


@kept()
def _take_in(of: _State, parts: Integers, first: Floats, now: float) -> None:
    """Prompts that were read to their end give their next token and start to decode."""
    kept = 0
    for place in range(of.line[_READING]):
        at = of.reading[place]
        of.to_read[at] -= parts[place]
        of.cached[at] += parts[place]
        parts[place] = 0
        if of.to_read[at]:
            of.reading[kept] = at
            kept += 1
            continue
        of.given[at] += 1
        if math.isnan(first[at]):
            first[at] = now
        of.decoding[of.line[_DECODING]] = at
        of.line[_DECODING] += 1
    of.line[_READING] = kept


@kept()
def _finish(of: _State, wanted: Integers, order: Integers, answered: int) -> int:
    """Move those that have all their tokens to `order`; how many."""
    kept = done = 0
    for place in range(of.line[_DECODING]):
        at = of.decoding[place]
        if of.given[at] >= wanted[at]:
            order[answered + done] = at
            done += 1
        else:
            of.decoding[kept] = at
            kept += 1
    of.line[_DECODING] = kept
    return done
