"""Many token sequences as one row: shared prefixes are computed once and nothing is padded.

The sequences of a pack form a trie. Its nodes are laid out in one row; a node attends to its ancestors only and its
position is its depth, so a causal model computes for it what it would compute in the sequence alone.

>>> pack([[5, 6, 7], [5, 6, 8]], depth=0).tokens
[5, 6, 7, 8]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A trie of N nodes below a prefix of `depth` tokens that is already in the key-value cache.

    `parents[n]` is the node before n, -1 directly below the prefix; `paths[s][i]` is the node that holds token
    depth + i of sequence s.
    """

    depth: int
    tokens: list[int]
    positions: list[int]
    parents: list[int]
    paths: list[list[int]]

    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[N, depth + N], true where a node may look: the whole prefix, its ancestors, itself."""
        size = len(self.tokens)
        seen = np.zeros((size, self.depth + size), dtype=np.bool_)
        seen[:, : self.depth] = True
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, self.depth + node] = True
        return seen


def common(first: Tokens, second: Tokens) -> int:
    """Length of the common prefix."""
    limit = min(len(first), len(second))
    return next((index for index in range(limit) if first[index] != second[index]), limit)


def pack(sequences: Sequence[Tokens], *, depth: int) -> Pack:
    """Lay out sequences, in lexicographic order and alike in their first `depth` tokens, as one trie."""
    tokens: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    paths: list[list[int]] = []
    for index, sequence in enumerate(sequences):
        shared = common(sequences[index - 1], sequence) - depth if index else 0
        path = paths[-1][:shared] if index else []
        for position in range(depth + len(path), len(sequence)):
            parents.append(path[-1] if path else -1)
            path.append(len(tokens))
            tokens.append(sequence[position])
            positions.append(position)
        paths.append(path)
    return Pack(depth=depth, tokens=tokens, positions=positions, parents=parents, paths=paths)


def size(sequences: Sequence[Tokens], depth: int) -> int:
    """Nodes of the trie of sorted sequences below `depth`."""
    total = len(sequences[0]) - depth
    for before, sequence in pairwise(sequences):
        total += len(sequence) - common(before, sequence)
    return total


def families(sequences: Sequence[Tokens], least: int) -> Iterator[range]:
    """Cut sorted sequences into runs whose neighbours share at least `least` tokens."""
    start = 0
    for index in range(1, len(sequences) + 1):
        if index == len(sequences) or common(sequences[index - 1], sequences[index]) < least:
            yield range(start, index)
            start = index
