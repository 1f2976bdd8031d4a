"""Engines without a model: one that computes its timings, and an OpenAI-compatible server that answers at once.

The server can also be told to misbehave, which is how clients are tested:

    python -m bitworth.engines.fake PORT
"""

from __future__ import annotations

import asyncio
import heapq
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web

from bitworth.engines.generator import Progress
from bitworth.engines.http import DEFAULT_STREAMS, arrivals
from bitworth.engines.prompts import cut_at
from bitworth.types import Completion, EngineFacts, Load, Prompt, Sampling, Timing

Fault = Literal["none", "refuse", "break_off", "hang", "miscount", "no_ids", "report", "no_usage", "garbage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGenerator:
    """Serves every request in the same time, on as many streams as asked; the timings are computed, not waited for."""

    prefill_s: float = 1e-4
    """For a prompt token."""
    decode_s: float = 1e-3
    """For an output token."""
    seed: int = 0

    @property
    def facts(self) -> EngineFacts:
        """What its figures are measured with: nothing."""
        return EngineFacts(engine="fake", kernel="none", device="none")

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        """See `engines.generator.Generator`; requests at a given rate do not wait for one another."""
        starts = arrivals(load, len(prompts), self.seed) if load.rate is not None else None
        streams = 1 if load.kind == "synchronous" else load.streams or DEFAULT_STREAMS
        free = [0.0] * streams
        timings = []
        for index, prompt in enumerate(prompts):
            start = starts[index] if starts is not None else heapq.heappop(free)
            first = start + self.prefill_s * len(prompt) + self.decode_s
            end = first + self.decode_s * (output_tokens - 1)
            heapq.heappush(free, end)
            timings.append(
                Timing(
                    start_s=start,
                    first_token_s=first,
                    end_s=end,
                    prompt_tokens=len(prompt),
                    output_tokens=output_tokens,
                )
            )
            if progress is not None:
                progress(index + 1, len(prompts))
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

    `faults[n]` is what happens to the n-th completion; those after the last go well.
    """

    def __init__(
        self,
        *,
        first_s: float = 0.0,
        token_s: float = 0.0,
        faults: Sequence[Fault] = (),
        models: Sequence[str] = ("fake",),
        most_choices: int = 1000,
    ) -> None:
        """Wait `first_s` before the first token, `token_s` before each other."""
        self.most_choices = most_choices
        self.first_s, self.token_s, self.models = first_s, token_s, tuple(models)
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
        if fault == "hang":
            await asyncio.sleep(3600)
        if not asked.get("stream"):
            return self._whole(asked)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = asked["max_tokens"] - (fault in ("miscount", "break_off"))
        await self._tokens(response, count)
        if fault == "break_off":
            return response
        if fault == "garbage":
            await response.write(b"data: <html>\n\n")
        if fault == "report":
            await response.write(_event({"error": {"message": "engine dead"}}))
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": count}
        tail = b"" if fault == "no_usage" else _event({"choices": [], "usage": usage})
        await response.write(tail + b"data: [DONE]\n\n")
        return response

    def _whole(self, asked: dict[str, Any]) -> web.Response:
        """All completions at once; `most_choices` is what the server gives of them in one answer."""
        count = min(asked.get("n", 1), self.most_choices)
        text = f"{asked['prompt']} {asked.get('seed')}" if isinstance(asked["prompt"], str) else "a"
        choices = [{"index": i, "text": f"{text} {i}", "finish_reason": "stop"} for i in range(count)]
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": count}
        return web.json_response({"choices": choices, "usage": usage})

    async def _tokens(self, response: web.StreamResponse, count: int) -> None:
        token = _event({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
        if not self.first_s and not self.token_s:
            await response.write(token * count)
            return
        for index in range(count):
            await asyncio.sleep(self.token_s if index else self.first_s)
            await response.write(token)


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


if __name__ == "__main__":
    web.run_app(FakeServer().application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
