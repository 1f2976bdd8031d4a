"""What a judge costs: estimated before anything is asked, and held below a limit while it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.judging.wording import Conversation, once_more

Counter = Callable[[str], int]
"""Tokens of a text."""
MESSAGE_TOKENS = 4
"""What a chat format adds to each message, about."""
_BYTES_A_TOKEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Dollars for a million tokens read and written."""

    usd_per_million_in: float
    usd_per_million_out: float

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Of so many tokens."""
        return (input_tokens * self.usd_per_million_in + output_tokens * self.usd_per_million_out) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is left to ask. `usd` takes replies of the assumed length; `most_usd` takes every reply to be as long as
    allowed and without a verdict, so that it is asked for once more. None where no price was given.
    """

    judgements: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    most_usd: float | None


def token_counter(tokenizer: Path | None) -> Counter:
    """Count by a tokenizer in a model folder; without one, a token for every three bytes, rounded up.

    Three bytes a token is on the high side for English text and about right for code.

    Raises:
        BitworthError: the folder has no tokenizer.
    """
    if tokenizer is None:
        return lambda text: -(-len(text.encode()) // _BYTES_A_TOKEN)
    from bitworth.engines.prompts import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    return lambda text: len(loaded.encode(text, add_special_tokens=False))


def tokens_of(turns: Conversation, count: Counter) -> int:
    """What a conversation is to read."""
    return sum(count(turn["content"]) + MESSAGE_TOKENS for turn in turns)


def estimate(
    asked: Sequence[Conversation], count: Counter, price: Price | None, *, reply_tokens: int, max_tokens: int
) -> Estimate:
    """Of one reply to each conversation, `reply_tokens` long on average and `max_tokens` at most."""
    reads = [tokens_of(turns, count) for turns in asked]
    writes = len(asked) * min(reply_tokens, max_tokens)
    most = [worst_case(turns, count, price, max_tokens) for turns in asked] if price else None
    return Estimate(
        judgements=len(asked),
        input_tokens=sum(reads),
        output_tokens=writes,
        usd=price.usd(sum(reads), writes) if price else None,
        most_usd=sum(most) if most is not None else None,
    )


def worst_case(turns: Conversation, count: Counter, price: Price, max_tokens: int) -> float:
    """Dollars when the reply is as long as allowed and holds no verdict, and the next one too."""
    again = tokens_of(once_more(turns, ""), count) + max_tokens
    return price.usd(tokens_of(turns, count) + again, 2 * max_tokens)


class Budget:
    """Dollars spent and promised; what might go beyond the limit is not begun."""

    def __init__(self, limit_usd: float | None) -> None:
        """None: no limit.

        Raises:
            BitworthError: a limit below zero, or none at all (NaN).
        """
        if limit_usd is not None and not limit_usd >= 0:
            raise BitworthError(f"--max-usd {limit_usd:g} is no amount of dollars.")
        self.limit_usd = limit_usd
        self.promises = 0
        self.spent_usd = self._promised_usd = 0.0

    def promise(self, worst_usd: float) -> bool:
        """Set a worst case aside; False where the limit leaves no room for it."""
        after = self.spent_usd + self._promised_usd + worst_usd
        if self.limit_usd is not None and after > self.limit_usd:
            return False
        self._promised_usd += worst_usd
        self.promises += 1
        return True

    def settle(self, worst_usd: float, usd: float) -> None:
        """Replace a promise by what it came to."""
        self._promised_usd -= worst_usd
        self.promises -= 1
        self.spent_usd += usd
