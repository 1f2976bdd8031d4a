"""How well `bitworth predict` foretells the paper's tables 5 and 6, on (model size, GPU) pairs it was not fitted on.

Each of the six pairs is held out in turn, its cells of both tables; the constants are fitted on the rest. The ratio to
BF16 is that of seconds (table 5) or of queries a second (table 6) of a format and BF16 in the same pair and use case. A
winner answers most queries a dollar; only cells that the printed winner leads by more than 5 % count. The misses follow
the claims. The form of the model was chosen with all groups in view (docs/prediction.md): only constants are held out.
One choice, which clock a kernel's cycles are of, is also made anew inside each fold.
--quick holds out two pairs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from claims import Claim, say

from bitworth.prediction.evidence import Cell, cells
from bitworth.prediction.fitting import Guess, held_out, ratio_errors, winners

QUICK = {("8B", "A6000"), ("70B", "H100")}
#: Greatest clocks (the catalogue's), boost clocks of the data sheets, and none, GHz.
CLOCKS = {
    "greatest": {"A6000": 2.10, "A100": 1.41, "H100": 1.98},
    "boost": {"A6000": 1.80, "A100": 1.41, "H100": 1.83},
    "alike": {"A6000": 1.0, "A100": 1.0, "H100": 1.0},
}
MISSED = {"synchronous": 0.10, "throughput": 0.30}


def main() -> None:
    """Hold out, report, list the misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows, only = cells("synchronous") + cells("throughput"), QUICK if arguments.quick else None
    guesses, _ = held_out(rows, only=only, processes=min(6, os.cpu_count() or 1))
    alone = [guess for guess in guesses if guess.cell.table == "synchronous"]
    loaded = [guess for guess in guesses if guess.cell.table == "throughput"]
    claims = [*claims_alone(alone), *claims_loaded(loaded)]
    if not arguments.quick:
        claims.append(at_most("synchronous, clock chosen inside each fold: median error", 5.0, nested()))
    say(claims, as_json=arguments.json)
    if not arguments.json:
        print_misses(alone, "synchronous")
        print_misses(loaded, "throughput")


def claims_alone(guesses: Sequence[Guess]) -> list[Claim]:
    """Table 5."""
    groups = by_group(guesses)
    worst = max(middle(rows) for rows in groups.values())
    farthest = max(abs(guess.error) for guess in guesses)
    ratio = 100 * median(abs(error) for _, error in ratio_errors(guesses))
    return [
        at_most("synchronous latency, held out: median error", 5.0, middle(guesses)),
        at_most("the worst (size, GPU) pair's median error", 12.0, worst),
        at_most("the worst single cell's error", 12.0, 100 * farthest),
        at_most("synchronous ratio to BF16: median error", 5.0, ratio),
        right_winners("synchronous", guesses, 95.0),
    ]


def claims_loaded(guesses: Sequence[Guess]) -> list[Claim]:
    """Table 6."""
    return [
        at_most("throughput, held out: median error", 15.0, middle(guesses)),
        right_winners("throughput", guesses, 85.0),
    ]


def nested() -> float:
    """Held-out median error of table 5 where each fold also chooses, by its own held-out errors, which clock counts."""
    variants = [[reclocked(cell, clocks) for cell in cells("synchronous")] for clocks in CLOCKS.values()]
    errors = []
    for group in by_group(Guess(cell=cell, value=cell.value) for cell in variants[0]):
        seen = [[cell for cell in variant if cell.group != group] for variant in variants]
        inner = [middle(held_out(variant)[0]) for variant in seen]
        chosen = variants[inner.index(min(inner))]
        errors += [abs(guess.error) for guess in held_out(chosen, only={group})[0]]
    return 100 * median(errors)


def reclocked(cell: Cell, clocks: Mapping[str, float]) -> Cell:
    """The cell on a device with another clock."""
    return replace(cell, hardware=replace(cell.hardware, clock_ghz=clocks[cell.hardware.name]))


def right_winners(what: str, guesses: Sequence[Guess], target: float) -> Claim:
    """Share of clear winners that are named."""
    rows = winners(guesses)
    share = 100 * sum(printed == named for _, printed, named in rows) / len(rows)
    return Claim(f"{what}: winners named, of {len(rows)}", f">= {target:g}", share, "%", share >= target)


def at_most(name: str, target: float, measured: float) -> Claim:
    """A claim in percent."""
    return Claim(name, f"<= {target:g}", measured, "%", measured <= target)


def by_group(guesses: Iterable[Guess]) -> dict[tuple[str, str], list[Guess]]:
    """Guesses by (size, GPU)."""
    groups: dict[tuple[str, str], list[Guess]] = {}
    for guess in guesses:
        groups.setdefault(guess.cell.group, []).append(guess)
    return groups


def middle(guesses: Iterable[Guess]) -> float:
    """Median error, percent."""
    return 100 * median(abs(guess.error) for guess in guesses)


def print_misses(guesses: Sequence[Guess], table: str) -> None:
    """Errors by pair, then each cell beyond the table's limit and each wrong winner."""
    print(f"\n{table}: median and greatest error by held-out pair")
    for group, rows in by_group(guesses).items():
        print(f"  {' '.join(group):<12}{middle(rows):6.1f} %{100 * max(abs(row.error) for row in rows):8.1f} %")
    print(f"{table}: cells missed by more than {100 * MISSED[table]:.0f} % (printed, predicted, error)")
    for guess in guesses:
        if abs(guess.error) > MISSED[table]:
            cell = guess.cell
            place = f"{cell.size} {cell.hardware.count} x {cell.hardware.name} {cell.format} {cell.case.name}"
            print(f"  {place:<52}{cell.value:8.2f}{guess.value:8.2f}{100 * guess.error:+8.1f} %")
    print(f"{table}: winners missed (printed, predicted)")
    for cell, printed, named in winners(guesses):
        if printed != named:
            print(f"  {cell.size} {cell.hardware.name} {cell.case.name}: {printed}, {named}")


if __name__ == "__main__":
    main()
