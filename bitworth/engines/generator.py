"""What a benchmark asks of an engine: prompts in, one Timing a request out. Each engine is one file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from bitworth.types import EngineFacts, Load, Request, Timing, UseCase

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
