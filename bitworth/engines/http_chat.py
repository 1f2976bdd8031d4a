"""Conversations through any OpenAI-compatible `/v1/chat/completions`, one request at a time.

For models that are only to be had through a service, such as judges. The key comes from the environment and is sent to
that server alone; `engines.http` sends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from bitworth.engines.exchange import body, connection, refusal
from bitworth.engines.http import HttpGenerator
from bitworth.errors import WorkFailed

Turns = Sequence[Mapping[str, str]]
"""`{"role", "content"}` each."""
TRIES = 4
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """What came back; token counts are the server's own, None where it gives none."""

    text: str
    finish: str
    input_tokens: int | None
    output_tokens: int | None


class HttpChat(HttpGenerator):
    """A model behind a URL that converses, greedily."""

    def __init__(self, url: str, model: str | None = None, *, max_tokens: int = 4096, pause_s: float = 1.0) -> None:
        """Talk to `model`, or to the server's only one; `pause_s` precedes the second try, each later one twice that.

        Raises:
            BitworthError: not a URL to send requests to, or not one model to choose.
            WorkFailed: no model was named and the server does not answer.
        """
        self._settings: dict[str, int] = {"max_tokens": max_tokens, "temperature": 0}
        self._pause_s = pause_s
        super().__init__(url, model=model, choice="given")  # taken at its name: not every service lists what it has

    @property
    def temperature(self) -> float | None:
        """What is asked for; None with a model that takes no temperature."""
        return self._settings.get("temperature")

    def session(self) -> aiohttp.ClientSession:
        """Connections to ask through."""
        return self._session()

    async def ask(self, session: aiohttp.ClientSession, turns: Turns) -> ChatReply:
        """The reply to a conversation; a busy or failing server is asked again a few times.

        Raises:
            WorkFailed: it refuses, or fails to the end; in one sentence without the key.
        """
        pause, cause = self._pause_s, ""
        for last in (*(False,) * (TRIES - 1), True):
            sent = dict(self._settings)
            status, answer, wait_s = await self._post(session, turns)
            if status == 200:
                return _reply(answer)
            cause = str(answer)
            if not self._adapt(cause, sent):
                if last or not (status in (0, 408, 409, 429) or status >= 500):
                    break
                await asyncio.sleep(max(pause, wait_s))
                pause *= 2
        raise WorkFailed(f"{self._url} does not answer a conversation: {cause}.")

    async def _post(self, session: aiohttp.ClientSession, turns: Turns) -> tuple[int, Any, float]:
        """Status (0: no answer), the answer or what went wrong, and how many seconds the server asks to wait."""
        fields = {"model": self._model, "messages": list(turns), **self._settings}
        try:
            async with session.post(f"{self._url}/chat/completions", json=fields, allow_redirects=False) as response:
                if response.status == 200:
                    return 200, await body(response), 0.0
                cause = self._without_key(f"HTTP {response.status}{await refusal(response)}")
                return response.status, cause, _seconds(response.headers.get("Retry-After"))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return 0, self._without_key(connection(error, self._timeout)), 0.0

    def _adapt(self, cause: str, sent: Mapping[str, int]) -> bool:
        """Whether what a server refuses can be left out: newer models take no `max_tokens`, some no temperature."""
        if not cause.startswith(("HTTP 400", "HTTP 422")):
            return False
        if sent != self._settings:  # another request met the same before
            return True
        if "max_completion_tokens" in cause and "max_tokens" in self._settings:
            self._settings["max_completion_tokens"] = self._settings.pop("max_tokens")
            return True
        return "temperature" in cause and self._settings.pop("temperature", None) is not None


def _reply(answer: Any) -> ChatReply:
    try:
        choice = answer["choices"][0]
        text, usage = choice["message"].get("content"), answer.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise WorkFailed("The server answers a conversation with something other than a reply.") from error
    return ChatReply(
        text=str(text or ""),
        finish=str(choice.get("finish_reason")),
        input_tokens=counts[0] if isinstance(counts[0], int) else None,
        output_tokens=counts[1] if isinstance(counts[1], int) else None,
    )


def _seconds(header: str | None) -> float:
    """`Retry-After` where it is a number of seconds."""
    return min(float(header), _LONGEST_PAUSE_S) if header and header.isdecimal() else 0.0
