"""How figures are written for people, and what is derived from costs: dollars per 1,000 queries, and a ratio of two.

>>> percent(98.96, apart_from=99), number(1234.5), seconds(0.0421)
('98.96 %', '1,230', '42.1 ms')
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from bitworth.types import BASELINE, QueryCost, Recovery

UNKNOWN = "–"


def number(value: float | None, *, digits: int = 3, apart_from: float | None = None) -> str:
    """Rounded to `digits` significant ones, with thousands separators; to more where that would hide `apart_from`.

    "Hide" means that the rounded figure no longer lies on the side of `apart_from` on which the value lies.
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "unbounded"
    for more in range(digits, 16):
        places = more - 1 - math.floor(math.log10(abs(value))) if value else 0
        if apart_from is None or _tells_apart(value, round(value, places), apart_from):
            break
    decimals = 0 if isinstance(value, int) else max(0, places)
    return f"{round(value, places):,.{decimals}f}"


def chance(value: float | None) -> str:
    """A p-value: two digits, and no more zeros than one can read."""
    return "< 0.001" if value is not None and value < 0.001 else number(value, digits=2)


def flips(row: Recovery) -> str:
    """`12 / 9`: questions that only the baseline answers right, and that only the format does."""
    return "" if row.lost is None or row.won is None else f"{row.lost:,} / {row.won:,}"


def percent(value: float | None, *, decimals: int = 1, apart_from: float | None = None) -> str:
    """With its sign, such as `99.2 %`; with more decimals where rounding would hide `apart_from`."""
    if value is None or not math.isfinite(value):
        return number(value)
    for more in range(decimals, 12):
        if apart_from is None or _tells_apart(value, round(value, more), apart_from):
            break
    return f"{value:,.{more}f} %"


def limit(value: float) -> str:
    """A figure that somebody chose, as it was written: `99`, `0.75`."""
    return f"{value:,.10g}"


def dollars(value: float) -> str:
    """A price as it was given, with cents at least: `0.10`, `3.29`, `0.125`."""
    return f"{value:,.2f}" if round(value, 2) == value else limit(value)


def interval(bounds: tuple[float, float] | None, *, decimals: int | None = None) -> str:
    """`97.0 to 101.3` with `decimals`, or with three significant digits."""
    if bounds is None or any(math.isnan(bound) for bound in bounds):
        return UNKNOWN
    return " to ".join(
        number(bound) if decimals is None or math.isinf(bound) else f"{bound:,.{decimals}f}" for bound in bounds
    )


def seconds(value: float | None, *, apart_from: float | None = None) -> str:
    """`1.24 s`, or `42.1 ms` below a tenth of a second."""
    if value is not None and 0 < value < 0.1 and apart_from is None:
        return f"{number(1000 * value)} ms"
    return f"{number(value, apart_from=apart_from)} s"


def usd_per_1k(cost: QueryCost) -> float | None:
    """Dollars a thousand queries, where there is a figure."""
    rate = cost.queries_per_usd
    return 1000 / rate if rate is not None and math.isfinite(rate) and rate > 0 else None


def hardware_name(cost: QueryCost) -> str:
    """`H100`, or `2 x H100`."""
    return cost.hardware if cost.count == 1 else f"{cost.count} × {cost.hardware}"


def counterpart(cost: QueryCost, costs: Iterable[QueryCost], *, baseline: str = BASELINE) -> QueryCost | None:
    """The baseline's figures under the same use case and load on the same hardware, taken the same way if they were.

    Where the baseline has none on as many devices, those on another number of the same kind count: a large model may
    need more of them than its quantized checkpoints, and dollars compare the two (paper, table 5).
    """
    fitting = [
        other
        for other in costs
        if other.format == baseline
        and (other.use_case, other.load, other.hardware) == (cost.use_case, cost.load, cost.hardware)
        and usd_per_1k(other) is not None
    ]
    place = (cost.count, cost.usd_per_hour)
    same = [other for other in fitting if (other.count, other.usd_per_hour) == place]
    elsewhere = [other for other in fitting if other.count != cost.count]
    return min(same or elsewhere, key=lambda other: (other.source != cost.source, other.queries_per_usd), default=None)


def times(cost: QueryCost, other: QueryCost | None) -> tuple[float, tuple[float, float] | None] | None:
    """How many times `other`'s queries per dollar, and its 95 % interval where both have one; None without figures.

    The two were measured apart, so each side's distance to its bound adds in quadrature on the log scale (the
    MOVER method, Zou and Donner 2008); the interval of a ratio of rates is then above zero.
    """
    if other is None or usd_per_1k(cost) is None or usd_per_1k(other) is None:
        return None
    assert cost.queries_per_usd is not None
    assert other.queries_per_usd is not None
    ratio = cost.queries_per_usd / other.queries_per_usd
    if cost is other:
        return 1.0, (1.0, 1.0)
    mine, theirs = cost.ci95_queries_per_usd, other.ci95_queries_per_usd
    if mine is None or theirs is None or not all(math.isfinite(b) and b > 0 for b in (*mine, *theirs)):
        return ratio, None
    down = math.hypot(math.log(cost.queries_per_usd / mine[0]), math.log(theirs[1] / other.queries_per_usd))
    up = math.hypot(math.log(mine[1] / cost.queries_per_usd), math.log(other.queries_per_usd / theirs[0]))
    return ratio, (ratio * math.exp(-down), ratio * math.exp(up))


def overlap(cost: QueryCost, other: QueryCost) -> bool | None:
    """Whether the 95 % intervals of queries per dollar overlap; None where one is missing."""
    mine, theirs = cost.ci95_queries_per_usd, other.ci95_queries_per_usd
    if mine is None or theirs is None or not all(math.isfinite(bound) for bound in (*mine, *theirs)):
        return None
    return mine[0] <= theirs[1] and theirs[0] <= mine[1]


def _tells_apart(value: float, rounded: float, other: float) -> bool:
    return (value < other) == (rounded < other) and (value > other) == (rounded > other)
