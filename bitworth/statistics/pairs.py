"""Two columns of scores of the same questions, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitworth.errors import BitworthError

Floats = NDArray[np.float64]
Labels = Sequence[Any]
"""One hashable label a question; questions with the same label belong together."""


def pair(name: str, baseline: ArrayLike, quantized: ArrayLike) -> tuple[Floats, Floats]:
    """Both columns as float arrays of shape (n,).

    Raises:
        BitworthError: no questions, different numbers of them, or a score that is not a finite number.
    """
    b, q = np.asarray(baseline, dtype=np.float64), np.asarray(quantized, dtype=np.float64)
    if b.shape != q.shape or b.ndim != 1:
        raise BitworthError(f"{name}: {b.size} baseline and {q.size} quantized scores cannot be paired.")
    if not b.size:
        raise BitworthError(f"{name}: there are no answers to compare.")
    if not (np.isfinite(b).all() and np.isfinite(q).all()):
        raise BitworthError(f"{name}: some scores are not finite numbers; evaluate it again.")
    return b, q


def cluster_sums(name: str, columns: Sequence[Floats], labels: Labels | None) -> tuple[list[Floats], Floats]:
    """Each column summed within clusters, shape (clusters,), and the clusters' sizes; no labels: one a question.

    Raises:
        BitworthError: another number of labels than of questions, or a single cluster, which has no variance.
    """
    if labels is None:
        return list(columns), np.ones(len(columns[0]))
    if len(labels) != len(columns[0]):
        raise BitworthError(f"{name}: {len(labels)} cluster labels do not fit {len(columns[0])} questions.")
    if len(set(labels)) < 2:
        raise BitworthError(f"{name}: all questions share one cluster, so nothing tells how much clusters differ.")
    totals = [cluster_totals(column, labels) for column in columns]
    return [sums for sums, _ in totals], totals[0][1]


def cluster_totals(column: Floats, labels: Labels | None) -> tuple[Floats, Floats]:
    """A column summed within clusters, shape (clusters,), and the clusters' sizes; no labels: one a question."""
    if labels is None:
        return column, np.ones(len(column))
    places = {label: at for at, label in enumerate(dict.fromkeys(labels))}
    index = np.array([places[label] for label in labels])
    return np.bincount(index, weights=column).astype(np.float64), np.bincount(index).astype(np.float64)
