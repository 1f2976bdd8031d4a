"""Times any OpenAI-compatible server: one process, no queue between the clock and the socket.

A request goes to its socket in the step of the event loop that reads its start; arrivals at a given rate wait for no
earlier answer, so a slow server cannot slow its own load down (open loop). Answers are streamed, which tells when each
token came, and the server's own count says whether exactly as many came as were asked for: `ignore_eos` and
`min_tokens` are vLLM's, and a server that knows neither shows as requests that failed. What a server refuses outright
(fields it does not know, prompts as token ids) is left out, and the requests are sent again.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import aiohttp

from bitworth.engines.exchange import SILENT, base_of, connection, event_loop, key, refusal
from bitworth.engines.generator import Progress
from bitworth.engines.schedule import arrivals, at_times, closed_loop, streams_of
from bitworth.engines.served import Choice, discover
from bitworth.engines.stream import Reply
from bitworth.errors import WorkFailed
from bitworth.types import EngineFacts, Load, Request, Timing

#: After so many failures in a row the server is taken for lost, and the rest is not sent; a request that met nothing
#: but silence, while no other was answered either, weighs half of that.
LOST_AFTER = 50
#: What only some servers know; see `HttpGenerator._concede`.
EXTRAS = ("continuous_usage_stats", "min_tokens", "ignore_eos")


class HttpGenerator:
    """A model behind an OpenAI-compatible `/v1/completions`; see `engines.generator.Generator`."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        choice: Choice = "preferred",
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
            model: the model's name; None takes a server's only one.
            choice: what the name is worth where the server lists others.
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
        self._url = base_of(url)
        self._decode, self._send_key, self._seed = decode, send_key, seed
        self._timeout = aiohttp.ClientTimeout(total=total_s, sock_read=idle_s, sock_connect=min(idle_s, 30.0))
        self._as_text = False
        self._extras = set(EXTRAS)
        told: dict[str, str] = {}
        if choice == "given" and model is not None:
            self._model = model
        else:
            self._model, told = event_loop(self._found(model, choice, wait_s))
        self._facts = facts or EngineFacts(
            engine=self._url,
            kernel="the server's own",
            device=f"server {urlsplit(self._url).netloc}",
            versions=told,
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

    async def _found(self, name: str | None, choice: Choice, wait_s: float) -> tuple[str, dict[str, str]]:
        async with self._session() as session:
            return await discover(session, self._url, name, choice, wait_s)

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
        secret = key() if self._send_key else None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        return aiohttp.ClientSession(
            headers=headers,
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def _without_key(self, cause: str | None) -> str | None:
        """Servers like to repeat a key that they refuse."""
        secret = key() if self._send_key else None
        return cause.replace(secret, "(key)") if cause and secret else cause


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
