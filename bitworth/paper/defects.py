"""Where the printed figures contradict each other or the text: found from the figures alone, none is listed by hand.

Contradictions that one cause explains are one defect: a price that all disagreeing cells of a group of rows imply, two
cells that agree when exchanged, a cell that its own row refutes. Whatever else involves a cell that is blamed already
is evidence for that defect, not another one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from bitworth.paper.costs import LOADS, LoadTable, implied_price, price, use_cases
from bitworth.paper.printed import PER_USD, Row, Span, Tables, title
from bitworth.paper.recomputed import Check, checks
from bitworth.paper.repeats import Repeat, repeats
from bitworth.paper.statements import Statement, statements
from bitworth.paper.timings import Stray, strays

Kind = Literal["price", "swapped", "arithmetic", "differs", "out of line", "text", "last place"]
Key = tuple[int, str, str]
"""Table, row and column."""
One = TypeVar("One")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One contradiction: what it is, the cells it lies in, and what shows it.

    - price: queries per dollar that imply another price than Table 9's.
    - swapped: two cells that agree with another table when exchanged.
    - arithmetic: a derived figure that its inputs do not give.
    - differs: a figure that two tables print differently.
    - out of line: timings that do not fit their neighbours: slips, or effects that nothing in the paper explains.
    - text: a statement that the tables do not bear out.
    - last place: two tables a rounding apart in the last place.
    """

    kind: Kind
    says: str
    cells: tuple[Key, ...] = ()
    evidence: tuple[str, ...] = ()


def defects(tables: Tables) -> list[Defect]:
    """All that is found, what contradicts outright first."""
    found: list[Defect] = []
    wrong = [check for check in checks(tables) if not check.agrees]
    twice = [repeat for repeat in repeats(tables) if not repeat.agrees]
    for load in LOADS:
        found += _prices(tables, load, [check for check in wrong if check.column.endswith(PER_USD)])
    found += _swaps([repeat for repeat in twice if not repeat.slip])
    blamed = {key for defect in found for key in defect.cells}
    found += _arithmetic([check for check in wrong if _key(check) not in blamed])
    blamed = {key for defect in found for key in defect.cells}
    found = [_with_evidence(defect, twice) for defect in found]
    found += _differing([repeat for repeat in twice if not repeat.slip and not _touches(repeat, blamed)])
    for load in LOADS:
        found += _out_of_line(list(strays(tables, load)))
    found += [_unborne(one) for one in statements(tables) if one.against]
    return [*found, *_last_places([repeat for repeat in twice if repeat.slip])]


# --- one kind each ------------------------------------------------------------------------------------------------


def _prices(tables: Tables, load: LoadTable, wrong: Sequence[Check]) -> Iterator[Defect]:
    for group, rows in tables[load.number].groups().items() if load.number in tables else ():
        mine = [check for check in wrong if check.table == load.number and check.group == group]
        counts = {row.count for row in rows}
        cells = [pair for row in rows for pair in _pairs(row, load)]
        implied = implied_price(cells) if len(counts) == 1 else None
        if not mine or 2 * len(mine) <= len(cells) or implied is None:
            continue
        size, gpu, count = *group, counts.pop()
        listed = price(tables, gpu, count)
        same = _priced(tables, implied, count)
        yield Defect(
            kind="price",
            says=f"Table {load.number} computes the queries per dollar of {size} on {count}x{gpu} at "
            f"{implied.low:.2f} to {implied.high:.2f} USD an hour, where Table 9 gives {listed:g}"
            + (f": the price of {same}." if same else "."),
            cells=tuple(_key(check) for check in mine),
            evidence=(f"{len(mine)} of {len(cells)} cells disagree with Table 9, all agree with that price",),
        )


def _pairs(row: Row, load: LoadTable) -> Iterator[tuple[Span, Span]]:
    """(queries a second, queries per dollar) of every use case."""
    for name in use_cases(row, PER_USD):
        timing = row.figures[name + load.timing].span
        one, other = load.seconds(timing.high), load.seconds(timing.low)
        yield Span(1 / max(one, other), 1 / min(one, other)), row.figures[name + PER_USD].span


def _priced(tables: Tables, implied: Span, count: int) -> str | None:
    """The GPUs, as many of them, that cost so much."""
    for gpu in dict.fromkeys(row.gpu for row in tables[9].rows):
        usd = price(tables, gpu, count)
        if implied.meets(Span(usd, usd)):
            return f"{count}x{gpu}, {usd:g}"
    return None


def _swaps(twice: Sequence[Repeat]) -> Iterator[Defect]:
    for (columns, size), group in _grouped(twice, lambda one: ((_column(one)), one.size)):
        if len(group) != 2:
            continue
        first, second = group
        crossed = (first.first, second.second), (second.first, first.second)
        if not all(mine.printed.span.meets(theirs.printed.span) for mine, theirs in crossed):
            continue
        summary, source = columns[0], columns[2]
        yield Defect(
            kind="swapped",
            says=f"{title(summary)} has the {columns[1]} of {size} {first.format} ({first.first.printed.value:g}) and "
            f"{second.format} ({second.first.printed.value:g}) exchanged against {title(source)}.",
            cells=(first.first.key, second.first.key),
            evidence=tuple(f"{one.first.words}, {one.second.words}" for one in group),
        )


def _arithmetic(wrong: Sequence[Check]) -> Iterator[Defect]:
    for check in wrong:
        yield Defect(
            kind="arithmetic",
            says=f"{title(check.table)} prints {check.printed.value:g} as the {check.column} of {check.row}, and its "
            f"inputs give {check.recomputed:.4g} ({check.span.low:.4g} to {check.span.high:.4g} with their rounding).",
            cells=(_key(check),),
            evidence=(check.formula,),
        )


def _differing(twice: Sequence[Repeat]) -> Iterator[Defect]:
    for (first, second, size), group in _grouped(twice, lambda one: (one.first.table, one.second.table, one.size)):
        columns = ", ".join(dict.fromkeys(one.first.column for one in group))
        yield Defect(
            kind="differs",
            says=f"{title(first)} and {title(second)} print different figures of the same {size} models: {columns}.",
            cells=tuple(key for one in group for key in (one.first.key, one.second.key)),
            evidence=tuple(f"{one.first.words}, {one.second.words}" for one in group),
        )


def _out_of_line(found: Sequence[Stray]) -> Iterator[Defect]:
    for (number, (size, gpu)), group in _grouped(found, lambda one: (one.table, one.group)):
        named = "; ".join(
            f"{one.row} {one.column} {one.printed.value:g}, {one.factor:.2f} times what it would be" for one in group
        )
        slower = sorted({f"{one.column.removesuffix('_latency_s')} faster than {', '.join(one.slower)}"
                         for one in group if one.slower})  # fmt: skip
        yield Defect(
            kind="out of line",
            says=f"{title(number)}: timings of {size} on {gpu} are out of line with how its use cases compare in the "
            f"other rows: {named}.",
            cells=tuple((one.table, one.row, one.column) for one in group),
            evidence=(
                *(f"{one.row} {one.column}: {abs(one.deviations):.0f} robust standard deviations" for one in group),
                *(f"{words}, which ask for fewer tokens" for words in slower),
            ),
        )


def _unborne(statement: Statement) -> Defect:
    low, high = statement.claimed.low, statement.claimed.high
    given = "; ".join(f"{one.name}: {one.value:.4g}" for one in statement.against)
    return Defect(
        kind="text",
        says=f"{statement.where[0].upper()}{statement.where[1:]} says that {statement.says}; the tables give {given}.",
        evidence=(f"claimed: {low:g} to {high:g}", f"{len(statement.against)} of {len(statement.figures)} figures"),
    )


def _last_places(slips: Sequence[Repeat]) -> Iterator[Defect]:
    for (first, second), group in _grouped(slips, lambda one: (one.first.table, one.second.table)):
        yield Defect(
            kind="last place",
            says=f"{title(first)} and {title(second)} are a rounding apart in {len(group)} figures.",
            cells=tuple(key for one in group for key in (one.first.key, one.second.key)),
            evidence=tuple(f"{one.first.words}, {one.second.words}" for one in group),
        )


# --- what belongs together ----------------------------------------------------------------------------------------


def _with_evidence(defect: Defect, twice: Sequence[Repeat]) -> Defect:
    """The defect with the disagreeing repeats of its cells as evidence."""
    cells = set(defect.cells)
    more = [f"{one.first.words}, {one.second.words}" for one in twice if _touches(one, cells)]
    evidence = tuple(dict.fromkeys((*defect.evidence, *more)))
    return Defect(kind=defect.kind, says=defect.says, cells=defect.cells, evidence=evidence)


def _touches(repeat: Repeat, cells: Collection[Key]) -> bool:
    return repeat.first.key in cells or repeat.second.key in cells


def _grouped(found: Sequence[One], by: Callable[[One], Any]) -> list[tuple[Any, list[One]]]:
    """The found by what they have in common, in order."""
    groups: dict[Any, list[One]] = {}
    for one in found:
        groups.setdefault(by(one), []).append(one)
    return list(groups.items())


def _column(repeat: Repeat) -> tuple[int, str, int, str]:
    first, second = repeat.first, repeat.second
    return first.table, first.column, second.table, second.column


def _key(check: Check) -> Key:
    return check.table, check.row, check.column
