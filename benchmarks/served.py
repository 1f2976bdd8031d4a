"""What servers and load generators answer, read as the clients read it, without a network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
from mutations import written

from bitworth.engines.exchange import body, refusal
from bitworth.engines.guidellm import read_report
from bitworth.engines.http_chat import ChatReply, HttpChat
from bitworth.engines.http_text import HttpCompleter
from bitworth.engines.served import chosen, versions_of
from bitworth.engines.stream import Reply
from bitworth.judging.wording import read_verdict
from bitworth.load.metrics import metrics_of
from bitworth.types import EngineFacts, Sampling


def read_guidellm(path: Path) -> object:
    """A report, and the metrics of its runs."""
    runs = read_report(path)
    return [metrics_of(run.timings, whole=True) for run in runs if any(timing.error is None for timing in run.timings)]


def read_stream(data: bytes) -> object:
    """In reads of other sizes than the events'."""
    reply, size = Reply(), 1 + len(data) % 97
    for at in range(0, len(data), size):
        reply.feed(data[at : at + size], 0.001 * at)
    return reply.fault(4), reply.tokens, reply.packed(0.0)


class _Content:
    """The body of an answer that is already there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def iter_any(self) -> Any:
        """All of it, in two parts."""
        for part in (self._data[:7], self._data[7:]):
            yield part

    async def read(self, count: int) -> bytes:
        """The first bytes."""
        return self._data[:count]


class _Answer:
    """An answer of a server, of whatever bytes."""

    def __init__(self, data: bytes, status: int = 200) -> None:
        self.content, self.status, self.headers = _Content(data), status, {"Retry-After": "1"}

    async def __aenter__(self) -> _Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


class _Session:
    """Answers everything with the same bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def post(self, *_: object, **__: object) -> _Answer:
        """Answer."""
        return _Answer(self._data)

    get = post


class _Completer(HttpCompleter):
    """A completer that has found its server."""

    def __init__(self) -> None:
        self._url, self._model, self._as_text, self._send_key = "http://x/v1", "m", False, False
        self._timeout = aiohttp.ClientTimeout(total=1)
        self._facts = EngineFacts(engine="x", kernel="none", device="none", versions={"vllm": "1"})


_COMPLETER, _CHAT = _Completer(), HttpChat("http://x/v1", "m", pause_s=0.0)


def _at_once(work: Any) -> Any:
    """The result of a coroutine that waits for nothing but its turn."""
    try:
        while True:
            work.send(None)
    except StopIteration as ended:
        return ended.value
    finally:
        work.close()


def read_completion(data: bytes) -> object:
    """Two completions of a prompt."""
    asked = Sampling(n=2, max_tokens=4, stop=("b",))
    return _at_once(_COMPLETER._complete(_Session(data), [1, 2], asked))  # type: ignore[arg-type]


def read_conversation(data: bytes) -> object:
    """A reply, and the verdict in it."""
    turns = [{"role": "user", "content": "x"}]
    reply: ChatReply = _at_once(_CHAT.ask(_Session(data), turns))  # type: ignore[arg-type]
    return read_verdict(reply.text), written(asdict(reply))


def read_listing(data: bytes) -> object:
    """Which model is served, by which version."""
    try:
        found = _at_once(body(_Answer(data)))  # type: ignore[arg-type]
    except ValueError:
        found = None  # as `exchange.get` has it
    version = _at_once(versions_of(_Session(data), "http://x/v1"))  # type: ignore[arg-type]
    return chosen(found, "http://x/v1", None), version


def read_refusal(data: bytes) -> object:
    """What a server says of an error: one short line."""
    said = _at_once(refusal(_Answer(data, 500)))  # type: ignore[arg-type]
    if len(said) > 250 or len(said.splitlines()) > 1:
        raise AssertionError(f"not one short line: {said[:300]!r}")
    return said
