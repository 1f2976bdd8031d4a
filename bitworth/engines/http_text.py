"""Writing through any OpenAI-compatible `/v1/completions`.

Prompts are rendered and tokenized here, with the checkpoint's own tokenizer and chat template, and go as token ids (as
text where the server refuses ids), so that every engine is asked exactly the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from bitworth.engines.exchange import body, connection, event_loop, refusal
from bitworth.engines.generator import Progress
from bitworth.engines.http import HttpGenerator
from bitworth.engines.prompts import cut_at, encode_prompt, has_chat_template, load_tokenizer
from bitworth.engines.served import BOTH_NAMED, Choice
from bitworth.errors import BitworthError, WorkFailed
from bitworth.types import Completion, EngineFacts, Prompt, Sampling

STREAMS = 32
"""Completions asked for at once, about."""


class HttpCompleter(HttpGenerator):
    """A model behind a URL that writes; see `engines.generator.Completer`."""

    def __init__(
        self,
        url: str,
        checkpoint: Path,
        *,
        model: str | None = None,
        choice: Choice = "preferred",
        facts: EngineFacts | None = None,
        send_key: bool = True,
    ) -> None:
        """Find the server's model, which is believed to be the checkpoint; see `HttpGenerator`.

        Its name is the checkpoint's folder's unless `model` says another. A model that the server calls otherwise than
        the folder is named in the facts.

        Raises:
            BitworthError: the checkpoint has no tokenizer, or see `HttpGenerator`.
        """
        self._tokenizer = load_tokenizer(checkpoint)
        super().__init__(url, model=model or checkpoint.name, choice=choice, facts=facts, send_key=send_key)
        if facts is None and self._model != checkpoint.name:
            self._facts = replace(self._facts, served=self._model)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations may be among the prompts."""
        return has_chat_template(self._tokenizer)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """See `engines.generator.Completer`; a server that gives one answer at a time is asked again with other seeds.

        Raises:
            WorkFailed: a request fails; nothing is returned for the others then.
        """
        ids = [encode_prompt(self._tokenizer, prompt) for prompt in prompts]
        return event_loop(self._write(ids, sampling, progress))

    async def _write(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None
    ) -> list[list[Completion]]:
        waiting = iter(range(len(prompts)))
        found: dict[int, list[Completion]] = {}
        async with self._session() as session:

            async def stream() -> None:
                for index in waiting:
                    found[index] = await self._complete(session, prompts[index], sampling)
                    if progress is not None:
                        progress(len(found) * sampling.n, len(prompts) * sampling.n)

            await _together([stream() for _ in range(max(1, STREAMS // sampling.n))])
        return [found[index] for index in range(len(prompts))]

    async def _complete(
        self, session: aiohttp.ClientSession, prompt: Sequence[int], sampling: Sampling
    ) -> list[Completion]:
        found: list[Completion] = []
        while len(found) < sampling.n:
            fields = self._fields(prompt, sampling, n=sampling.n - len(found), seed=sampling.seed + len(found))
            choices = (await self._ask(session, fields)).get("choices")
            if not (isinstance(choices, list) and choices and all(isinstance(choice, dict) for choice in choices)):
                raise WorkFailed(f"{self._url} answers without a completion.")
            found += [_completion(choice, sampling.stop) for choice in choices[: sampling.n - len(found)]]
        return found

    def _fields(self, prompt: Sequence[int], sampling: Sampling, *, n: int, seed: int) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": n,
            "seed": seed,
        }
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if "vllm" in self.facts.versions:  # it would take a checkpoint's own defaults for what is left out
            fields |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        return fields

    async def _ask(self, session: aiohttp.ClientSession, fields: dict[str, Any]) -> dict[str, Any]:
        if self._as_text:
            fields = {**fields, "prompt": self._tokenizer.decode(fields["prompt"])}
        try:
            async with session.post(f"{self._url}/completions", json=fields, allow_redirects=False) as response:
                if response.status in (400, 422) and not self._as_text:
                    self._as_text = True
                    return await self._ask(session, fields)
                if response.status != 200:
                    cause = self._without_key(f"HTTP {response.status}{await refusal(response)}")
                    raise WorkFailed(f"{self._url} does not complete a prompt: {cause}.")
                answer = await body(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WorkFailed(f"{self._url} does not complete a prompt: {connection(error, self._timeout)}.") from error
        return answer if isinstance(answer, dict) else {}


def _completion(choice: dict[str, Any], stop: tuple[str, ...]) -> Completion:
    """Cut here too: not every server knows stop strings."""
    text, cut = cut_at(str(choice.get("text", "")), stop)
    return Completion(text=text, finish="stop" if cut or choice.get("finish_reason") == "stop" else "length")


def check_apart(url: str, one: Path, other: Path) -> None:
    """Refuse two models to compare that a server, which knows them by their folders' names, cannot tell apart.

    Raises:
        BitworthError: two folders of one name.
    """
    if one != other and one.name == other.name:
        raise BitworthError(f"{url} cannot tell {one} from {other}, which have one name; {BOTH_NAMED}.")


def check_served(url: str, one: Path, other: Path, instead: str) -> None:
    """Refuse a server that does not serve both of two models to compare, each under its folder's name.

    Args:
        url: of the server.
        one: a model's folder.
        other: the other's.
        instead: what else the user can do, which ends the sentence.

    Raises:
        BitworthError: it lacks one of them, or cannot tell them apart.
        WorkFailed: it does not answer.
    """
    try:
        check_apart(url, one, other)
        for checkpoint in (one, other):
            HttpGenerator(url, model=checkpoint.name, choice="listed")
    except WorkFailed:
        raise
    except BitworthError as error:
        raise BitworthError(f"{str(error).rstrip('.')}, or {instead}.") from error


async def _together(work: Sequence[Any]) -> None:
    """All of it; the first failure ends the rest."""
    import asyncio

    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except* WorkFailed as failures:
        raise failures.exceptions[0] from None
