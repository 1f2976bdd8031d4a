"""Times any OpenAI-compatible server: one process, no queue between the clock and the socket.

A request goes to its socket in the step of the event loop that reads its start; arrivals at a given rate wait for no
earlier answer, so a slow server cannot slow its own load down (open loop). Answers are streamed, which tells the first
token from the last, and the server's own count says whether exactly as many tokens came as were asked for: `ignore_eos`
and `min_tokens` are vLLM's, and a server that knows neither shows as requests that failed.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from bitworth.engines.generator import Progress
from bitworth.errors import BitworthError, WorkFailed
from bitworth.types import EngineFacts, Load, Timing

#: Requests at once under `throughput` when the load does not say.
DEFAULT_STREAMS = 64
#: Where the key is looked for; it goes into the request's header and nowhere else.
KEY_VARIABLES = ("BITWORTH_API_KEY", "OPENAI_API_KEY")
_LONGEST_LINE = 1 << 20

Result = TypeVar("Result")
Send = Callable[[int], Awaitable[Timing]]
"""Sends the request of that index."""


class HttpGenerator:
    """A model behind an OpenAI-compatible `/v1/completions`; see `engines.generator.Generator`."""

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        facts: EngineFacts | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        send_key: bool = True,
        seed: int = 0,
        idle_s: float = 600.0,
        total_s: float = 3600.0,
    ) -> None:
        """Find the server's model.

        Args:
            url: of the server, with or without `/v1`.
            name: the model's, where the server has several; None takes its only one.
            facts: what to say of the server; None asks the server.
            decode: token ids to text, for servers that take no token ids.
            send_key: whether to send the key of the environment.
            seed: of Poisson arrivals.
            idle_s: a request fails when the server is silent for so long,
            total_s: or takes so long in all.

        Raises:
            BitworthError: not a URL to send requests to, or not one model to choose.
            WorkFailed: the server does not answer.
        """
        self._url = _base(url)
        self._decode, self._send_key, self._seed = decode, send_key, seed
        self._timeout = aiohttp.ClientTimeout(total=total_s, sock_read=idle_s, sock_connect=min(idle_s, 30.0))
        self._as_text = False
        self._model, versions = event_loop(self._discover(name))
        self._facts = facts or EngineFacts(
            engine=self._url,
            kernel="the server's own",
            device=f"server {urlsplit(self._url).netloc}",
            versions=versions,
        )

    @property
    def facts(self) -> EngineFacts:
        """What its figures are measured with, as far as a client can know."""
        return self._facts

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        """See `engines.generator.Generator`; prompts go as token ids, or as text where the server refuses ids.

        Raises:
            WorkFailed: no request succeeded; names the first cause.
        """
        timings = event_loop(self._drive(prompts, output_tokens, load, progress))
        causes = [timing.error for timing in timings if timing.error is not None]
        if not timings or len(causes) < len(timings):
            return timings
        if self._decode is not None and not self._as_text and causes[0].startswith(("HTTP 400", "HTTP 422")):
            self._as_text = True
            return self.run(prompts, output_tokens, load, progress)
        raise WorkFailed(f"None of {len(timings)} requests to {self._url} succeeded: {causes[0]}.")

    async def _discover(self, name: str | None) -> tuple[str, dict[str, str]]:
        """The model's id, and the versions that the server tells."""
        try:
            async with self._session() as session:
                status, listing = await _get(session, f"{self._url}/models")
                _, about = await _get(session, f"{self._url.removesuffix('/v1')}/version")
        except (aiohttp.ClientError, OSError) as error:
            raise WorkFailed(f"{self._url} does not answer: {connection(error, self._timeout)}.") from error
        if status != 200:
            raise WorkFailed(f"{self._url}/models answers HTTP {status}{_hint(status)}.")
        served = listing.get("data") if isinstance(listing, dict) else None
        ids = [str(row["id"]) for row in served or [] if isinstance(row, dict) and "id" in row]
        found = [model for model in ids if model == name] or ids
        if len(found) != 1:
            listed = f"several models ({', '.join(found[:3])}, ...)" if found else "no model"
            raise BitworthError(f"{self._url} serves {listed}; it should serve one, or one named as the checkpoint.")
        told = about.get("version") if isinstance(about, dict) else None
        return found[0], {"vllm": str(told)} if told else {}

    async def _drive(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None
    ) -> list[Timing]:
        bodies = [self._body(prompt, output_tokens) for prompt in prompts]
        done = 0
        async with self._session() as session:
            began = time.monotonic()

            async def send(index: int) -> Timing:
                nonlocal done
                timing = await self._send(session, bodies[index], len(prompts[index]), output_tokens, began)
                done += 1
                if progress is not None:
                    progress(done, len(bodies))
                return timing

            if load.rate is not None:
                return await _at_times(arrivals(load, len(bodies), self._seed), send, began)
            streams = 1 if load.kind == "synchronous" else load.streams or DEFAULT_STREAMS
            return await _closed_loop(len(bodies), streams, send)

    def _body(self, prompt: Sequence[int], output_tokens: int) -> bytes:
        fields = {
            "model": self._model,
            "prompt": self._decode(prompt) if self._as_text and self._decode else list(prompt),
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(fields).encode()

    async def _send(
        self, session: aiohttp.ClientSession, body: bytes, prompt_tokens: int, output_tokens: int, began: float
    ) -> Timing:
        reply = Reply()
        start = time.monotonic()
        try:
            async with session.post(f"{self._url}/completions", data=body, allow_redirects=False) as response:
                if response.status == 200:
                    async for chunk in response.content.iter_any():
                        reply.feed(chunk, time.monotonic())
                    cause = reply.fault(output_tokens)
                else:
                    cause = f"HTTP {response.status}{await refusal(response)}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = connection(error, self._timeout)
            if reply.events:
                cause += f" after {reply.events} of {output_tokens} tokens"
        end = time.monotonic() if cause is not None else reply.last
        return Timing(
            start_s=start - began,
            first_token_s=reply.first - began if reply.events else None,
            end_s=end - began,
            prompt_tokens=reply.prompt_tokens or prompt_tokens,
            output_tokens=reply.output_tokens or 0,
            error=self._without_key(cause),
        )

    def _session(self) -> aiohttp.ClientSession:
        key = _key() if self._send_key else None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return aiohttp.ClientSession(
            headers=headers,
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _without_key(self, cause: str | None) -> str | None:
        """Servers like to repeat a key that they refuse."""
        key = _key() if self._send_key else None
        return cause.replace(key, "(key)") if cause and key else cause


class Reply:
    """One streamed completion as it arrives: a line `data: {...}` a token, then the usage, then `data: [DONE]`.

    Times are those of the reads that brought the events; `first` and `last` mean something once `events` is not 0.
    """

    __slots__ = ("error", "events", "finished", "first", "last", "output_tokens", "prompt_tokens", "rest")

    def __init__(self) -> None:
        self.events = 0
        self.first = self.last = 0.0
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.finished = False
        self.error: str | None = None
        self.rest = b""

    def feed(self, data: bytes, now: float) -> None:
        """Take in what has just been read.

        Raises:
            ValueError: a line without an end.
        """
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _LONGEST_LINE:
            raise ValueError("the server sends a line without an end")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def fault(self, output_tokens: int) -> str | None:
        """What is wrong with the finished answer, if anything."""
        if self.error is not None:
            return self.error
        if not self.finished:
            return f"the answer broke off after {self.events} of {output_tokens} tokens"
        if self.output_tokens is None:
            return "the server does not say how many tokens it generated (stream_options.include_usage)"
        if self.output_tokens != output_tokens or not self.events:
            return f"{self.output_tokens} tokens were generated instead of {output_tokens}"
        return None

    def _event(self, event: bytes, now: float) -> None:
        # Most events are one more token, and parsing those would be most of the client's work.
        if self.events and b'"usage"' not in event and b'"error"' not in event and event.startswith(b"{"):
            self.events, self.last = self.events + 1, now
            return
        if event == b"[DONE]":
            self.finished = True
            return
        fields = json.loads(event)
        if not isinstance(fields, dict):
            raise ValueError("the server sends something other than completions")
        if fields.get("error"):
            self.error = self.error or f"the server reports: {_message(fields)}"
        if fields.get("choices"):
            self.first, self.last = (self.first if self.events else now), now
            self.events += 1
        usage = fields.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens, self.output_tokens = (
                _count(usage, f"{side}_tokens") for side in ("prompt", "completion")
            )


def arrivals(load: Load, count: int, seed: int) -> list[float]:
    """Seconds at which requests start: the first at 0, then 1 / rate apart, or exponentially so for Poisson."""
    if load.rate is None or load.rate <= 0:
        raise BitworthError(f"A {load.kind} load needs a rate above 0 requests a second.")
    gaps = np.full(count, 1 / load.rate)
    if load.kind == "poisson":
        gaps = np.random.default_rng(seed).exponential(1 / load.rate, count)
    return [0.0, *np.cumsum(gaps)[: count - 1].tolist()][:count]


async def _at_times(times: Sequence[float], send: Send, began: float) -> list[Timing]:
    async def wait(index: int, at: float) -> Timing:
        await asyncio.sleep(began + at - time.monotonic())
        return await send(index)

    return list(await asyncio.gather(*(wait(index, at) for index, at in enumerate(times))))


async def _closed_loop(count: int, streams: int, send: Send) -> list[Timing]:
    """As many requests at once as there are streams, each followed by the next one as soon as it is answered."""
    waiting = iter(range(count))
    timings: dict[int, Timing] = {}

    async def stream() -> None:
        for index in waiting:
            timings[index] = await send(index)

    await asyncio.gather(*(stream() for _ in range(min(streams, count))))
    return [timings[index] for index in range(count)]


def event_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, on uvloop where it is installed."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(work)
    result: Result = importlib.import_module("uvloop").run(work)
    return result


def _base(url: str) -> str:
    """The URL up to `/v1`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BitworthError(f"'{url}' is not the http:// or https:// URL of a server.")
    if parts.username or parts.password or parts.query:
        raise BitworthError(f"The URL of {parts.hostname} holds more than a path; give a key in {KEY_VARIABLES[0]}.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}/v1"


def _key() -> str | None:
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    """Status and JSON body (None where it is none)."""
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=30), allow_redirects=False) as response:
        try:
            return response.status, json.loads(await response.read())
        except ValueError:
            return response.status, None


async def refusal(response: aiohttp.ClientResponse) -> str:
    """What the server says about refusing, in brackets."""
    text = (await response.content.read(4096)).decode(errors="replace")
    try:
        message = _message(json.loads(text))
    except ValueError:
        message = _line(text)
    return f" ({message})" if message else ""


def _message(fields: Any) -> str:
    """The sentence in an error's body, wherever the server puts it."""
    inner = fields.get("error", fields) if isinstance(fields, dict) else fields
    found = (
        next((inner[key] for key in ("message", "detail") if inner.get(key)), inner)
        if isinstance(inner, dict)
        else inner
    )
    return _line(str(found))


def _count(usage: dict[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if isinstance(value, int) else None


def _line(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 200 else line[:200] + "..."


def _hint(status: int) -> str:
    return f"; is the key in {KEY_VARIABLES[0]} right?" if status in (401, 403) else ""


def connection(error: Exception, timeout: aiohttp.ClientTimeout) -> str:
    """A failed exchange in words."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.SocketTimeoutError):
        return f"the server was silent for {timeout.sock_read:g} s"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout.total:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        reason = os.strerror(number) if number > 0 else "no such host, or it refuses"
        return f"cannot connect to {error.host}:{error.port} ({reason})"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionError):
        return "the server closed the connection"
    if isinstance(error, json.JSONDecodeError):
        return "the server sends something other than JSON"
    return _line(str(error)) or type(error).__name__
