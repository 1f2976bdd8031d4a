"""A settlement in a sentence: the verdict, the figure, what it cost, and what it does not say."""

from __future__ import annotations

from bitworth.report.figures import interval, limit, percent
from bitworth.statistics import Settlement
from bitworth.types import Estimand

_SAYS = {"holds": "holds", "loses": "does not hold", "undecided": "it is not yet known whether it holds"}


def settlement_words(task: str, about: Estimand, found: Settlement, min_recovery_pct: float) -> str:
    """`arc_challenge: holds 99 % of the baseline, settled after 464 of 1,172 questions ...`."""
    least = f"{limit(min_recovery_pct)} % of the baseline"
    if found.exhausted:
        return (
            f"{task}: {_SAYS[found.verdict]} {least} on its {found.questions:,} questions, which were all answered: "
            f"recovery {percent(found.recovery_pct, apart_from=min_recovery_pct)}. That is exact for these questions "
            "and says nothing yet of others like them."
        )
    whole = f" of {found.pool:,}" if found.pool is not None else ""
    subject = task if about == "task" else f"questions like those of {task}"
    figure = (
        f"recovery {percent(found.recovery_pct, apart_from=min_recovery_pct)}, bounds "
        f"{interval(found.bounds_pct, decimals=1)} %"
    )
    if found.settled_after is None:
        return f"{subject}: {_SAYS['undecided']} {least}; {found.questions:,}{whole} questions, {figure}."
    return (
        f"{subject}: {_SAYS[found.verdict]} {least}, settled after {found.settled_after:,}{whole} questions; {figure}. "
        f"A wrong verdict has a chance of at most {limit(100 * found.error)} %."
    )
