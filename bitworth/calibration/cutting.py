"""Counts by weight, texts cut into parts for a tokenizer, and token streams cut into sequences of one length."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence

_PART, _PROBE = 1 << 17, 1 << 12  # characters
_WORD = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")  # between a letter and a space that another letter follows


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split by weight into whole numbers that add up to it, each within one of its exact share.

    Every part gets its share rounded down; what is left goes to the largest remainders, the earlier part first.

    >>> largest_remainder(256, [2, 1])
    [171, 85]
    """
    largest = max(weights)  # so that huge weights do not overflow their sum
    scaled = [weight / largest for weight in weights]
    shares = [total * weight / sum(scaled) for weight in scaled]
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda index: (counts[index] - shares[index], index))
    left = total - sum(counts)
    for index in order[:left]:
        counts[index] += 1
    return counts


def parts_of(text: str, encode: Callable[[str], list[int]]) -> Iterator[str]:
    """The text in parts that give the tokens of the whole, so that a tokenizer's working memory stays small.

    It takes more than a hundred bytes a character. Most tokenizers look at words one by one, each with the space before
    it, so that a text can be cut between two; that this one does is tried on the text's own beginning.
    """
    if len(text) > 2 * _PART and _takes_words(text[:_PROBE], encode):
        start = 0
        while len(text) - start > 2 * _PART and (word := _WORD.search(text, start + _PART)) is not None:
            yield text[start : word.start()]
            start = word.start()
        text = text[start:]
    yield text


def _takes_words(text: str, encode: Callable[[str], list[int]]) -> bool:
    words = _WORD.split(text)
    return len(words) > 1 and encode(text) == [token for word in words for token in encode(word)]


def cut(ids: Sequence[int], length: int, bos: int | None) -> list[list[int]]:
    """Sequences of exactly `length` tokens in order, without overlap; what is left over at the end is dropped.

    With `bos` each starts with it: it is put before a piece of `length - 1` tokens, unless the piece starts with it
    anyway, as a conversation does whose template writes it.
    """
    if bos is None:
        return [list(ids[at : at + length]) for at in range(0, len(ids) - length + 1, length)]
    pieces: list[list[int]] = []
    at = 0
    while at < len(ids):
        head = [] if ids[at] == bos else [bos]
        end = at + length - len(head)
        if end > len(ids):
            break
        pieces.append([*head, *ids[at:end]])
        at = end
    return pieces


def longest(ids: Sequence[int], bos: int | None) -> int:
    """Tokens of the one sequence that takes in the whole stream."""
    return len(ids) + (bos is not None and ids[0] != bos)
