"""What is asked of an engine that writes: timings of requests (`Generator`), or the text itself (`Completer`).

with open_completer("torch", checkpoint, context_tokens=1024) as model:
    model.generate(["def add(a, b):"], Sampling(max_tokens=64, stop=("\\ndef",), temperature=0.2, top_p=0.95, n=50))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from bitworth.types import Completion, EngineFacts, Load, Prompt, Request, Sampling, Timing, UseCase

Progress = Callable[[int, int], None]
"""Called with (requests done, total)."""


class Generator(Protocol):
    """A model that can be timed; used as a context manager's value, so that servers are stopped on leaving."""

    @property
    def facts(self) -> EngineFacts:
        """What its figures are measured with."""
        ...

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        output_tokens: int,
        load: Load,
        progress: Progress | None = None,
    ) -> list[Timing]:
        """Send the prompts (token ids) under the load; exactly `output_tokens` are generated for each.

        Returns one Timing a prompt, in their order; a request that failed carries its cause in `error`.

        Raises:
            Unsupported: the engine has no way to run this load or format here.
            WorkFailed: the engine died or answered nothing.
        """
        ...


@runtime_checkable
class Completer(Protocol):
    """A model that writes; as `Generator`, a context manager's value."""

    @property
    def facts(self) -> EngineFacts:
        """What its answers are computed with."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations may be among the prompts."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, in the order of the prompts; `progress` counts completions.

        What is drawn depends on the seed, the prompt and the completion's number alone, as far as the engine can see
        to it, not on the prompts that are asked along with it.

        Raises:
            BitworthError: a conversation for a model without a chat template.
            WorkFailed: the engine died or answered nothing.
        """
        ...


@runtime_checkable
class Replayer(Protocol):
    """An engine that also takes requests of different lengths, at times of their own."""

    @property
    def facts(self) -> EngineFacts:
        """What its figures are measured with."""
        ...

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        """See `Generator`."""
        ...

    def replay(self, requests: Sequence[Request], streams: int, progress: Progress | None = None) -> list[Timing]:
        """Send the requests at their times or, where one of them has none, `streams` at once; one Timing each.

        Raises:
            WorkFailed: the engine died or answered nothing.
        """
        ...


@runtime_checkable
class Driver(Protocol):
    """Another program that makes requests and times them."""

    @property
    def facts(self) -> EngineFacts:
        """What its figures are measured with."""
        ...

    def drive(self, use_case: UseCase, load: Load, count: int, seed: int) -> list[Timing]:
        """`count` requests of a use case under a load, in order of their start.

        Raises:
            Unsupported: it cannot.
            WorkFailed: it did not finish.
        """
        ...
