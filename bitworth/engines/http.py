"""Times any OpenAI-compatible server: one process, no queue between the clock and the socket.

A request goes to its socket in the step of the event loop that reads its start; arrivals at a given rate wait for no
earlier answer, so a slow server cannot slow its own load down (open loop). Answers are streamed, which tells when each
token came, and the server's own count says whether exactly as many came as were asked for: `ignore_eos` and
`min_tokens` are vLLM's, and a server that knows neither shows as requests that failed. What a server refuses outright
(fields it does not know, prompts as token ids) is left out, and the requests are sent again.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from bitworth.engines.generator import Progress
from bitworth.engines.schedule import arrivals, at_times, closed_loop, streams_of
from bitworth.engines.stream import Reply, complaint, one_line
from bitworth.errors import BitworthError, WorkFailed
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.guard.keys import without_secrets
from bitworth.types import EngineFacts, Load, Request, Timing

#: Where the key is looked for; it goes into the request's header and nowhere else.
KEY_VARIABLES = ("BITWORTH_API_KEY", "OPENAI_API_KEY")
#: After so many failures in a row the server is taken for lost, and the rest is not sent; a request that met nothing
#: but silence, while no other was answered either, weighs half of that.
LOST_AFTER = 50
#: What only some servers know; see `HttpGenerator._concede`.
EXTRAS = ("continuous_usage_stats", "min_tokens", "ignore_eos")
#: Of an answer that comes as a whole.
MOST_BYTES = 256 << 20
SILENT = "the server was silent"
#: What to do where a server cannot tell two models apart.
BOTH_NAMED = "models that are compared have to be served under the names of their folders"
_RETRY_S = 0.2

Result = TypeVar("Result")


class HttpGenerator:
    """A model behind an OpenAI-compatible `/v1/completions`; see `engines.generator.Generator`."""

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        model: str | None = None,
        by_name: bool = False,
        facts: EngineFacts | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        send_key: bool = True,
        seed: int = 0,
        idle_s: float = 600.0,
        total_s: float = 3600.0,
        wait_s: float = 0.0,
    ) -> None:
        """Find the server's model.

        Args:
            url: of the server, with or without `/v1`.
            name: the model's, where the server has several; None takes its only one.
            model: the name to ask for, whatever the server lists; it is not asked then.
            by_name: take no model but the one of that name, not even a server's only one.
            facts: what to say of the server; None asks the server.
            decode: token ids to text, for servers that take no token ids.
            send_key: whether to send the key of the environment.
            seed: of Poisson arrivals.
            idle_s: a request fails when the server is silent for so long,
            total_s: or takes so long in all.
            wait_s: how long to wait for a server that is still starting.

        Raises:
            BitworthError: not a URL to send requests to, or not one model to choose.
            WorkFailed: the server does not answer.
        """
        self._url, self._by_name = _base(url), by_name
        self._decode, self._send_key, self._seed = decode, send_key, seed
        self._timeout = aiohttp.ClientTimeout(total=total_s, sock_read=idle_s, sock_connect=min(idle_s, 30.0))
        self._as_text = False
        self._extras = set(EXTRAS)
        self._model, versions = (model, {}) if model is not None else event_loop(self._discover(name, wait_s))
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

    @property
    def url(self) -> str:
        """Where requests go, up to `/v1`."""
        return self._url

    @property
    def model(self) -> str:
        """The name under which the server has the model."""
        return self._model

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        """See `engines.generator.Generator`.

        Raises:
            WorkFailed: no request succeeded; names the first cause.
        """
        times = arrivals(load, len(prompts), self._seed) if load.rate is not None else [None] * len(prompts)
        requests = [
            Request(prompt=prompt, output_tokens=output_tokens, at_s=at)
            for prompt, at in zip(prompts, times, strict=True)
        ]
        return self.replay(requests, streams_of(load), progress)

    def replay(self, requests: Sequence[Request], streams: int, progress: Progress | None = None) -> list[Timing]:
        """See `engines.generator.Replayer`; prompts go as token ids, or as text where the server refuses ids.

        Raises:
            WorkFailed: no request succeeded; names the first cause.
        """
        timings = event_loop(self._drive(requests, streams, progress))
        causes = [timing.error for timing in timings if timing.error is not None]
        if not timings or len(causes) < len(timings):
            return timings
        if self._concede(causes[0]):
            return self.replay(requests, streams, progress)
        raise WorkFailed(f"None of {len(timings)} requests to {self._url} succeeded: {causes[0]}.")

    def _concede(self, cause: str) -> bool:
        """Ask for less where the server refuses what it was asked; whether there was something left to leave out."""
        if not cause.startswith(("HTTP 400", "HTTP 422")):
            return False
        named = {field for field in self._extras if field in cause}
        if named:
            self._extras -= named
        elif self._decode is not None and not self._as_text:
            self._as_text = True
        elif self._extras:
            self._extras.clear()
        else:
            return False
        return True

    async def _discover(self, name: str | None, wait_s: float) -> tuple[str, dict[str, str]]:
        """The model's id, and the versions that the server tells."""
        deadline = time.monotonic() + wait_s
        async with self._session() as session:
            while True:
                try:
                    status, listing = await _get(session, f"{self._url}/models")
                    if status != 503 or time.monotonic() >= deadline:
                        break
                except (aiohttp.ClientError, OSError) as error:
                    if time.monotonic() >= deadline:
                        cause = connection(error, self._timeout)
                        raise WorkFailed(f"{self._url} does not answer: {cause}.") from error
                await asyncio.sleep(_RETRY_S)
            if status != 200:
                raise WorkFailed(f"{self._url}/models answers HTTP {status}{_hint(status)}.")
            return self._choose(listing, name), await self._versions(session)

    def _choose(self, listing: Any, name: str | None) -> str:
        served = listing.get("data") if isinstance(listing, dict) else None
        rows = served if isinstance(served, list) else []
        ids = [one_line(str(row["id"])) for row in rows if isinstance(row, dict) and "id" in row]
        found = [model for model in ids if model == name]
        if self._by_name and not found:
            listed = ", ".join(ids[:3]) or "no model"
            raise BitworthError(f"{self._url} serves {listed} and nothing called {name}; {BOTH_NAMED}.")
        found = found or ids
        if len(found) != 1:
            listed = f"several models ({', '.join(found[:3])}, ...)" if found else "no model"
            raise BitworthError(f"{self._url} serves {listed}; it should serve one, or one named as the checkpoint.")
        return found[0]

    async def _versions(self, session: aiohttp.ClientSession) -> dict[str, str]:
        try:
            _, about = await _get(session, f"{self._url.removesuffix('/v1')}/version")
        except (aiohttp.ClientError, OSError):
            return {}  # it lists its models, so it does serve
        told = about.get("version") if isinstance(about, dict) else None
        return {"vllm": one_line(str(told))} if told else {}

    async def _drive(self, requests: Sequence[Request], streams: int, progress: Progress | None) -> list[Timing]:
        losses, done = _Losses(), 0
        prompts = self._prompts(requests)
        times = [request.at_s for request in requests if request.at_s is not None]

        def body_of(index: int) -> bytes:
            return self._body(prompts[index], requests[index].output_tokens)

        with _short_collections():
            async with self._session() as session:
                began = time.monotonic()

                async def send(index: int, body: bytes) -> Timing:
                    nonlocal done
                    if losses.lost:
                        timing = _unsent(requests[index], time.monotonic() - began, losses.cause)
                    else:
                        timing = await self._send(session, body, requests[index], began)
                        losses.count(timing)
                    done += 1
                    if progress is not None:
                        progress(done, len(requests))
                    return timing

                if len(times) == len(requests):
                    return await at_times(times, body_of, send, began)
                return await closed_loop(len(requests), streams, body_of, send)

    def _prompts(self, requests: Sequence[Request]) -> list[str | Sequence[int]]:
        """Token ids, or texts, which take too long to write while others wait to be sent."""
        if self._as_text and self._decode is not None:
            return [self._decode(request.prompt) for request in requests]
        return [request.prompt for request in requests]

    def _body(self, prompt: str | Sequence[int], count: int) -> bytes:
        usage = {"include_usage": True, "continuous_usage_stats": True}
        extras = {"min_tokens": count, "ignore_eos": True}
        fields = {
            "model": self._model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": count,
            "temperature": 0,
            "stream": True,
            "stream_options": {k: v for k, v in usage.items() if k in self._extras or k not in EXTRAS},
            **{k: v for k, v in extras.items() if k in self._extras},
        }
        return json.dumps(fields).encode()

    async def _send(self, session: aiohttp.ClientSession, body: bytes, request: Request, began: float) -> Timing:
        reply = Reply()
        start = time.monotonic()
        try:
            async with session.post(f"{self._url}/completions", data=body, allow_redirects=False) as response:
                if response.status == 200:
                    async for chunk in response.content.iter_any():
                        reply.feed(chunk, time.monotonic())
                    cause = reply.fault(request.output_tokens)
                else:
                    cause = f"HTTP {response.status}{await refusal(response)}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = connection(error, self._timeout)
            if reply.events:
                cause += f" after {reply.tokens} of {request.output_tokens} tokens"
        end = time.monotonic() if cause is not None else reply.last
        return Timing(
            start_s=start - began,
            first_token_s=reply.first - began if reply.events else None,
            end_s=end - began,
            prompt_tokens=reply.prompt_tokens or len(request.prompt),
            output_tokens=reply.output_tokens or 0,
            error=self._without_key(cause),
            due_s=request.at_s,
            chunks=reply.packed(start),
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


class _Losses:
    """Failures in a row."""

    def __init__(self) -> None:
        self._weight = 0
        self._answered_s = -1.0  # when the last request that went well ended
        self.cause = ""

    @property
    def lost(self) -> bool:
        """Whether there have been so many that no more requests should go out."""
        return self._weight >= LOST_AFTER

    def count(self, timing: Timing) -> None:
        """Take note of how a request ended."""
        if timing.error is None:
            self._weight, self._answered_s = 0, timing.end_s
            return
        hangs = timing.error.startswith(SILENT) and self._answered_s < timing.start_s
        self._weight += LOST_AFTER // 2 if hangs else 1
        self.cause = f"not sent, the server seems lost ({timing.error})"


def _unsent(request: Request, now: float, cause: str) -> Timing:
    return Timing(
        start_s=now,
        first_token_s=None,
        end_s=now,
        prompt_tokens=len(request.prompt),
        output_tokens=0,
        error=cause,
        due_s=request.at_s,
    )


@contextmanager
def _short_collections() -> Iterator[None]:
    """Garbage collections look at what the run makes only: going through all that lives takes up to 0.1 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def event_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, on uvloop where it is installed."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(work)
    result: Result = importlib.import_module("uvloop").run(work)
    return result


def _base(url: str) -> str:
    """The URL up to `/v1`."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half a bracket, or a port that is none
        sound = False
    if not sound:
        raise BitworthError(f"'{without_secrets(url)}' is not the http:// or https:// URL of a server.")
    if parts.username or parts.password or parts.query:
        raise BitworthError(f"The URL of {parts.hostname} holds more than a path; give a key in {KEY_VARIABLES[0]}.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}/v1"


def _key() -> str | None:
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    """Status and JSON body (None where it is none)."""
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=30), allow_redirects=False) as response:
        try:
            return response.status, await body(response)
        except ValueError:
            return response.status, None


async def body(response: aiohttp.ClientResponse) -> Any:
    """The JSON of an answer.

    Raises:
        ValueError: it is not JSON, or longer than any answer.
    """
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > MOST_BYTES:
            raise ValueError(f"the server's answer is longer than {MOST_BYTES >> 20} MiB")
    return json_of(bytes(data), nested=MOST_NESTED)


async def refusal(response: aiohttp.ClientResponse) -> str:
    """What the server says about refusing, in brackets."""
    text = (await response.content.read(4096)).decode(errors="replace")
    try:
        message = complaint(json_of(text, nested=MOST_NESTED))
    except ValueError:
        message = one_line(text)
    return f" ({message})" if message else ""


def _hint(status: int) -> str:
    return f"; is the key in {KEY_VARIABLES[0]} right?" if status in (401, 403) else ""


def connection(error: Exception, timeout: aiohttp.ClientTimeout) -> str:
    """A failed exchange in words."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.SocketTimeoutError):
        return f"{SILENT} for {timeout.sock_read:g} s"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout.total:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        reason = os.strerror(number) if number > 0 else "no such host, or it refuses"
        return f"cannot connect to {error.host}:{error.port} ({reason})"
    closed = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionError)
    # What aiohttp raises of the system's errors is no ConnectionError; without a number it could not write a request.
    if closed or (isinstance(error, aiohttp.ClientOSError) and error.errno in (None, errno.ECONNRESET, errno.EPIPE)):
        return "the server closed the connection"
    if isinstance(error, json.JSONDecodeError):
        return "the server sends something other than JSON"
    return one_line(str(error)) or type(error).__name__
