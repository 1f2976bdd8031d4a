"""Several tests read together: with twenty tasks at 5 %, one is expected to look bad by chance."""

from __future__ import annotations

from collections.abc import Sequence

from bitworth.errors import BitworthError


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given: reject where the result is at most the level.

    The chance of rejecting any true hypothesis is then at most the level, however the tests depend on each other
    (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Raises:
        BitworthError: a value that is no probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise BitworthError("Holm's adjustment takes p-values between 0 and 1; one of these is not.")
    adjusted = [0.0] * len(p_values)
    most = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = most
    return adjusted
