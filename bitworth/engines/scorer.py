"""What an evaluation asks of an engine, so that a fake can stand in for a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from bitworth.tasks.base import Request, Score

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@runtime_checkable
class Scorer(Protocol):
    """A causal language model with a tokenizer."""

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...

    def loglikelihoods(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Score]:
        """The score of every continuation given its context, in the order of the requests."""
        ...

    def logits(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """float32 logits [B, T, vocabulary] of token ids [B, T]; position t predicts token t + 1."""
        ...
