"""Engines without a model: one that computes its timings, and an OpenAI-compatible server that answers at once.

The server can also be told to misbehave, which is how clients are tested:

    python -m bitworth.engines.fake PORT
"""

from __future__ import annotations

import asyncio
import heapq
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web

from bitworth.engines.generator import Progress
from bitworth.engines.prompts import cut_at
from bitworth.engines.schedule import arrivals, streams_of
from bitworth.load.chunks import pack
from bitworth.types import Completion, EngineFacts, Load, Prompt, Request, Sampling, Timing

Fault = Literal[
    "none", "refuse", "break_off", "hang", "miscount", "no_ids", "report", "no_usage", "garbage", "no_extras", "stall"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGenerator:
    """Serves every request in the same time, on as many streams as asked; the timings are computed, not waited for.

    With `servers`, requests that arrive at a rate wait for the first free one of so many, in order (a G/D/c queue).
    """

    prefill_s: float = 1e-4
    """For a prompt token."""
    decode_s: float = 1e-3
    """For an output token."""
    seed: int = 0
    servers: int | None = None

    @property
    def facts(self) -> EngineFacts:
        """What its figures are measured with: nothing."""
        return EngineFacts(engine="fake", kernel="none", device="none")

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        """See `engines.generator.Generator`."""
        times = arrivals(load, len(prompts), self.seed) if load.rate is not None else [None] * len(prompts)
        requests = [
            Request(prompt=p, output_tokens=output_tokens, at_s=at) for p, at in zip(prompts, times, strict=True)
        ]
        return self.replay(requests, streams_of(load), progress)

    def replay(self, requests: Sequence[Request], streams: int, progress: Progress | None = None) -> list[Timing]:
        """See `engines.generator.Replayer`; requests at times of their own wait for one another at `servers` only."""
        free = [0.0] * (streams if any(request.at_s is None for request in requests) else self.servers or len(requests))
        timings = []
        for index, request in enumerate(requests):
            turn = heapq.heappop(free)
            at = turn if request.at_s is None else request.at_s
            first = max(turn, at) + self.prefill_s * len(request.prompt) + self.decode_s
            offsets = [first - at + self.decode_s * token for token in range(request.output_tokens)]
            heapq.heappush(free, at + offsets[-1])
            timings.append(
                Timing(
                    start_s=at,
                    first_token_s=first,
                    end_s=at + offsets[-1],
                    prompt_tokens=len(request.prompt),
                    output_tokens=request.output_tokens,
                    due_s=request.at_s,
                    chunks=pack(offsets, range(1, request.output_tokens + 1)),
                )
            )
            if progress is not None:
                progress(index + 1, len(requests))
        return timings


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeCompleter:
    """Writes `answers` in turn for every prompt, whatever it says."""

    answers: Sequence[str] = ("fake",)
    has_chat_template: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What its answers are computed with: nothing."""
        return EngineFacts(engine="fake", kernel="none", device="none")

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """See `engines.generator.Completer`."""
        turns = [cut_at(self.answers[number % len(self.answers)], sampling.stop)[0] for number in range(sampling.n)]
        if progress is not None:
            progress(len(prompts) * sampling.n, len(prompts) * sampling.n)
        return [[Completion(text=text, finish="stop") for text in turns] for _ in prompts]


class FakeServer:
    """An aiohttp application that completes prompts with the token `a`, and counts what it is asked.

    `faults[n]` is what happens to the n-th completion; those after the last go well. An event holds `event_tokens`
    tokens, and comes `token_s` after the one before; with `in_turn`, one request is served at a time, as they came.
    """

    def __init__(
        self,
        *,
        first_s: float = 0.0,
        token_s: float = 0.0,
        event_tokens: int = 1,
        in_turn: bool = False,
        faults: Sequence[Fault] = (),
        models: Sequence[str] = ("fake",),
        most_choices: int = 1000,
        tokenize: Callable[[str], Sequence[int]] = list,  # type: ignore[assignment]
    ) -> None:
        """Wait `first_s` before the first event, `token_s` before each other; count tokens of text by `tokenize`."""
        self.most_choices = most_choices
        self.first_s, self.token_s, self.models = first_s, token_s, tuple(models)
        self.event_tokens, self.tokenize = event_tokens, tokenize
        self._turn = asyncio.Lock() if in_turn else nullcontext()
        self._faults = iter(faults)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.active = self.most_active = 0

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        self.keys.add(request.headers.get("Authorization"))
        asked = await request.json()
        self.requests.append(asked)
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        try:
            return await self._answer(request, asked, next(self._faults, "none"))
        finally:
            self.active -= 1

    async def _answer(self, request: web.Request, asked: dict[str, Any], fault: Fault) -> web.StreamResponse:
        if fault == "refuse":
            key = request.headers.get("Authorization", "no key")
            return web.json_response({"error": {"message": f"out of order ({key})"}}, status=500)
        if fault == "no_ids" and not isinstance(asked["prompt"], str):
            return web.json_response({"detail": "prompt must be text"}, status=422)
        if fault == "no_extras" and "continuous_usage_stats" in asked["stream_options"]:
            return web.json_response({"error": "unknown field continuous_usage_stats"}, status=400)
        if fault == "hang":
            await asyncio.sleep(3600)
        if not asked.get("stream"):
            return self._whole(asked)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = asked["max_tokens"] - (fault in ("miscount", "break_off"))
        prompt = asked["prompt"]
        usage = {"prompt_tokens": len(self.tokenize(prompt) if isinstance(prompt, str) else prompt)}
        along = asked["stream_options"].get("continuous_usage_stats") and fault != "no_usage"
        async with self._turn:
            await self._tokens(response, count, usage if along else None)
        if fault == "stall":
            await asyncio.sleep(3600)
        if fault == "break_off":
            return response
        if fault == "garbage":
            await response.write(b"data: <html>\n\n")
        if fault == "report":
            await response.write(_event({"error": {"message": "engine dead"}}))
        tail = b"" if fault == "no_usage" else _event({"choices": [], "usage": {**usage, "completion_tokens": count}})
        await response.write(tail + b"data: [DONE]\n\n")
        return response

    def _whole(self, asked: dict[str, Any]) -> web.Response:
        """All completions at once; `most_choices` is what the server gives of them in one answer."""
        count = min(asked.get("n", 1), self.most_choices)
        text = f"{asked['prompt']} {asked.get('seed')}" if isinstance(asked["prompt"], str) else "a"
        choices = [{"index": i, "text": f"{text} {i}", "finish_reason": "stop"} for i in range(count)]
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": count}
        return web.json_response({"choices": choices, "usage": usage})

    async def _tokens(self, response: web.StreamResponse, count: int, usage: dict[str, int] | None) -> None:
        """Events until `count` tokens are out; each with the count so far, where the client asked for `usage`."""
        events = []
        for total in range(0, count, self.event_tokens):
            fields: dict[str, Any] = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
            if usage is not None:
                fields["usage"] = {**usage, "completion_tokens": min(total + self.event_tokens, count)}
            events.append(_event(fields))
        if not self.first_s and not self.token_s:
            await response.write(b"".join(events))
            return
        due = asyncio.get_running_loop().time() + self.first_s
        for event in events:
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            due += self.token_s
            await response.write(event)


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


if __name__ == "__main__":
    web.run_app(FakeServer().application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
