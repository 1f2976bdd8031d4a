"""Intervals and verdicts on simulated pairs of known truth beside separate standard errors, then on real answers.

Do 95 % intervals cover 95 times in 100, and does asking until the verdict falls err at most 5 times in 100? How many
questions does it save against a comparison planned in advance from separate standard errors, which lm-eval reports?
That plan is given the truth: the recovery, the scores and the power that asking reached.

--quick takes fewer runs and cells; --answers FOLDER (results of `bitworth run`) adds orders of real answers.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from claims import Claim, say
from numpy.typing import NDArray
from pairs import Draw, Floats, Truth, exact_pool, graded_at_margin, passages, shuffles, truths
from scipy import stats

from bitworth.ledger import Ledger, revive
from bitworth.statistics import paired_recovery
from bitworth.statistics.settling import rounds_of, verdicts
from bitworth.types import BASELINE, Answer

RECOVERIES = (95.0, 98.0, 100.0)
MARGIN, ERROR = 0.99, 0.05
AT_ONCE = 4_000_000
"""Scores simulated at once, to bound memory."""
FEW_FLIPS = 15
"""Below so many expected flips an interval cannot both be honest about none and cover 95 %; see docs/statistics.md."""


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--answers", type=Path, action="append", default=[], help="results folder of a study")
    arguments = parser.parse_args()
    claims = [
        *coverage(arguments.quick),
        *other_coverage(arguments.quick),
        *boundary(arguments.quick),
        *questions_saved(arguments.quick),
        *whole_tasks(arguments.quick),
    ]
    if not arguments.answers:
        table("real answers: skipped, for no --answers FOLDER was given")
    for folder in arguments.answers:
        claims += real(folder, runs=50 if arguments.quick else 400)
    say(claims, as_json=arguments.json)


# --- intervals ------------------------------------------------------------------------------------------------------


def coverage(quick: bool) -> list[Claim]:
    """Right and wrong answers: how often the interval of `paired_recovery` covers the recovery that they came from."""
    runs, sizes = (1000, (100, 1000)) if quick else (4000, (100, 300, 1000, 5000))
    table("coverage of 95 % intervals: questions, baseline, recovery, flips expected, ours, separate standard errors")
    rows = []
    for n in sizes:
        for place, truth in enumerate(truths(RECOVERIES[::2] if quick else RECOVERIES)):
            b, q = truth.draw(np.random.default_rng([1, n, place]), runs, n)
            ours = covered(b, q, truth.recovery)
            peer, wider = separate(b, q, truth.recovery)
            flips = n * truth.flipped
            rows.append((flips, ours))
            mark = "" if within(ours) else " outside" if flips >= FEW_FLIPS else " outside, few flips"
            table(f"{n:6} {truth.base:4} {truth.recovery:6} {flips:7.0f} {ours:7.1f} {peer:7.1f} ×{wider:.1f}{mark}")
    many = [ours for flips, ours in rows if flips >= FEW_FLIPS]
    few = [ours for flips, ours in rows if flips < FEW_FLIPS]
    inside, least = 100 * float(np.mean([within(ours) for ours in many])), min(ours for _, ours in rows)
    return [
        Claim("cells whose coverage is 93.5 to 96.5 %, 15 flips or more", "= 100 %", inside, "%", inside == 100),
        Claim("least coverage of any cell", ">= 93.5 %", least, "%", least >= 93.5),
        Claim("most coverage of a cell with fewer flips", "<= 96.5 %", max(few), "%", max(few) <= 96.5),
    ]


def other_coverage(quick: bool) -> list[Claim]:
    """Graded scores, and questions that share passages, with and without saying so."""
    runs = 300 if quick else 4000
    table("coverage elsewhere: kind, size, ours, (clusters left unsaid)")
    graded, clustered, unsaid = [], [], []
    for n in (100, 500):
        random = np.random.default_rng([2, n])
        b = random.beta(2, 1, (runs, n))
        q = np.clip(b * 0.97 * random.choice([1.0, 0.5, 1.2], p=[0.8, 0.12, 0.08], size=b.shape), 0, 1)
        many = random.beta(2, 1, 4_000_000)
        factors = random.choice([1.0, 0.5, 1.2], p=[0.8, 0.12, 0.08], size=many.shape)
        true = 100 * float(np.clip(many * 0.97 * factors, 0, 1).mean()) / (2 / 3)
        graded.append(covered(b, q, true))
        table(f"graded    {n:5} questions {graded[-1]:7.1f}")
    for count, size in ((30, 10), (100, 10), (300, 5)):
        b, q, labels = passages(np.random.default_rng([3, count]), runs, count, size)
        clustered.append(covered(b, q, 97.0, labels))
        unsaid.append(covered(b, q, 97.0))
        table(f"clustered {count:5} passages of {size} {clustered[-1]:7.1f} ({unsaid[-1]:.1f})")
    few, theirs = sparse(50 if quick else 400)
    low, high = min(graded + clustered), max(graded + clustered)
    return [
        Claim("coverage where 2 of 100 questions flip, ours", ">= 93.5 %", few, "%", few >= 93.5),
        Claim("coverage there, scipy's bootstrap", "< ours", theirs, "%", theirs < few),
        Claim("coverage on graded and clustered scores, least", ">= 93.5 %", low, "%", low >= 93.5),
        Claim("coverage on graded and clustered scores, most", "<= 96.5 %", high, "%", high <= 96.5),
    ]


def sparse(runs: int) -> tuple[float, float]:
    """Coverage of ours and of scipy's percentile bootstrap where few questions flip and some runs see no flip."""
    truth = Truth(0.7, 98.0, 0.02)
    b, q = truth.draw(np.random.default_rng(4), runs, 100)
    kept = 0
    for pair in zip(b, q, strict=True):
        low, high = stats.bootstrap(
            pair,
            lambda one, other, axis: 100 * other.mean(axis) / one.mean(axis),
            paired=True,
            n_resamples=999,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        kept += bool(low <= truth.recovery <= high)
    found = covered(b, q, truth.recovery), 100 * kept / runs
    table(f"2 flips in   100 questions {found[0]:7.1f}, scipy's percentile bootstrap {found[1]:.1f}")
    return found


def covered(b: Floats, q: Floats, true_pct: float, labels: list[int] | None = None) -> float:
    """Percent of the runs whose interval holds the truth."""
    found = 0
    for one_b, one_q in zip(b, q, strict=True):
        low, high = paired_recovery(one_b, one_q, min_recovery_pct=99, clusters=labels).ci95_pct
        found += bool(low - 1e-9 <= true_pct <= high + 1e-9)
    return 100 * found / len(b)


def separate(b: Floats, q: Floats, true_pct: float) -> tuple[float, float]:
    """Coverage of intervals from two separate standard errors, and how much wider than paired ones they are."""
    mean_b, mean_q, n = b.mean(1), q.mean(1), b.shape[1]
    error_b, error_q = b.std(1, ddof=1) / math.sqrt(n), q.std(1, ddof=1) / math.sqrt(n)
    ratio = mean_q / mean_b
    half = 1.96 * np.hypot(error_q, ratio * error_b) / mean_b
    paired = 1.96 * (q - ratio[:, None] * b).std(1, ddof=1) / math.sqrt(n) / mean_b
    kept = 100 * float(np.mean(np.abs(ratio - true_pct / 100) <= half + 1e-12))
    return kept, float(half.mean() / paired.mean())


def within(percent: float) -> bool:
    """Whether a coverage is as near to 95 % as we want it."""
    return 93.5 <= percent <= 96.5


# --- verdicts -------------------------------------------------------------------------------------------------------


def boundary(quick: bool) -> list[Claim]:
    """Recovery a hair from the margin, watched after every question: how often a verdict is wrong."""
    runs, rounds = (300, 1500) if quick else (1000, 5000)
    table(f"recovery at the margin, watched {rounds} times: kind, holds %, loses %")
    draws = {
        f"baseline {truth.base}, {100 * truth.flipped:.0f} % flip": truth.asked(rounds)
        for truth in truths((100 * MARGIN,))
        if not quick or truth.base in (0.3, 0.9)
    }
    draws["graded scores"] = lambda random, count: graded_at_margin(random, count, rounds, MARGIN)
    shares = []
    for place, (name, draw) in enumerate(draws.items()):
        found = settled(draw, np.random.default_rng([4, place]), runs, rounds, [math.inf])[0]
        shares += [100 * float(np.mean(found > 0)), 100 * float(np.mean(found < 0))]
        table(f"{name:30} {shares[-2]:6.1f} {shares[-1]:6.1f}")
    noise = 100 * math.sqrt(ERROR * (1 - ERROR) / runs)
    worst, mean = max(shares), float(np.mean(shares))
    return [
        Claim("wrong verdicts at the margin, mean of cells", "<= 5 %", mean, "%", mean <= 5),
        Claim(
            f"wrong verdicts at the margin, worst of {len(shares)} cells (noise {noise:.1f} a cell)",
            "<= 5 % + 2 noise",
            worst,
            "%",
            worst <= 5 + 2 * noise,
        ),
    ]


def questions_saved(quick: bool) -> list[Claim]:
    """Questions until the verdict falls, against a comparison of separate standard errors planned with the truth."""
    runs, longest = (60, 4000) if quick else (250, 25000)
    table(
        "asking until settled against 99 %: baseline, recovery, flips, right, wrong, questions, planned, share, paired"
    )
    totals = np.zeros(2)
    ratios, wrongs, left_out = [], [], 0
    for place, truth in enumerate(truths((90.0, 95.0, 97.0, 100.0))):
        if truth.planned(MARGIN, ERROR, 0.9, paired=True) > longest:
            left_out += 1
            continue
        most = int(3 * truth.planned(MARGIN, ERROR, 0.9, paired=True)) + 200
        random = np.random.default_rng([5, place])
        found, fell = settled(truth.asked(most), random, runs, most, [math.inf])
        side = 1 if truth.gap(MARGIN) > 0 else -1
        right, wrong = float(np.mean(found == side)), float(np.mean(found == -side))
        asked = float(np.where(fell < 0, most, fell).mean())
        power = min(right, 0.99)
        planned = truth.planned(MARGIN, ERROR, power, paired=False)
        paired = truth.planned(MARGIN, ERROR, power, paired=True)
        totals += asked, planned
        ratios.append(asked / planned)
        wrongs.append(100 * wrong)
        table(
            f"{truth.base:4} {truth.recovery:6} {100 * truth.flipped:4.0f} % {100 * right:6.1f} {100 * wrong:5.1f} "
            f"{asked:8.0f} {planned:8.0f} {ratios[-1]:6.3f} {asked / paired:6.2f}"
        )
    table(f"{left_out} cells left out: they need more than {longest} pairs even when planned")
    whole, worst, typical = float(totals[0] / totals[1]), max(ratios), float(np.median(ratios))
    third = 100 * float(np.mean(np.array(ratios) <= 1 / 3))
    wrong = float(np.mean(wrongs))
    return [
        Claim("wrong verdicts away from the margin, mean of cells", "<= 5 %", wrong, "%", wrong <= 5),
        Claim("questions over the plan's, all cells together", "<= 0.333", whole, "of 1", whole <= 1 / 3),
        Claim("questions over the plan's, median cell", "<= 0.333", typical, "of 1", typical <= 1 / 3),
        Claim("questions over the plan's, worst cell", "<= 0.333", worst, "of 1", worst <= 1 / 3),
        Claim("cells that need at most a third of the plan's questions", "= 100 %", third, "%", third == 100),
    ]


def whole_tasks(quick: bool) -> list[Claim]:
    """Tasks of a leaderboard's sizes, asked in random order until the verdict about the task itself falls."""
    runs = 60 if quick else 300
    table("whole tasks: questions, recovery, right, wrong, share asked")
    shares, wrongs = [], []
    for size in (1172, 5000) if quick else (1172, 5000, 14042):
        for recovery in (95.0, 98.0, 98.9, 99.1, 100.0):
            b, q = exact_pool(size, recovery)
            orders = np.random.default_rng([6, size, int(10 * recovery)])
            found, fell = settled(shuffles(b, q), orders, runs, size, [float(size)])
            side = 1 if q.sum() >= MARGIN * b.sum() else -1
            wrong, asked = 100 * float(np.mean(found == -side)), 100 * float(fell.mean()) / size
            shares.append(asked)
            wrongs.append(wrong)
            table(f"{size:6} {recovery:6} {100 * float(np.mean(found == side)):6.1f} {wrong:5.1f} {asked:6.1f} %")
    mean, wrong, noise = float(np.mean(shares)), max(wrongs), 100 * math.sqrt(ERROR * (1 - ERROR) / runs)
    return [
        Claim("share of a whole task that is asked, mean of cells", "< 100 %", mean, "%", mean < 100),
        Claim("wrong verdicts about a whole task, worst cell", "<= 5 % + 2 noise", wrong, "%", wrong <= 5 + 2 * noise),
    ]


def settled(
    draw: Draw, random: np.random.Generator, runs: int, rounds: int, pools: list[float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Verdicts and when they fell, of so many runs, a few at a time."""
    step = max(1, AT_ONCE // rounds)
    parts = [
        verdicts(rounds_of([draw(random, min(step, runs - start))], pools), MARGIN, ERROR)
        for start in range(0, runs, step)
    ]
    return np.concatenate([found for found, _ in parts]), np.concatenate([fell for _, fell in parts])


# --- real answers ---------------------------------------------------------------------------------------------------


def real(folder: Path, runs: int) -> list[Claim]:
    """A study's answers: paired intervals beside those of lm-eval's standard errors, and random orders of asking."""
    from lm_eval.api.metrics import mean_stderr

    table(
        f"answers in {folder}: task, format, questions, recovery, ours ±, separate ±, verdict on the task, wrong, asked"
    )
    shares, widths, wrongs = [], [], []
    for task, format, b, q in answered(folder):
        found = paired_recovery(b, q, min_recovery_pct=100 * MARGIN)
        half = (found.ci95_pct[1] - found.ci95_pct[0]) / 2
        ratio = found.recovery_pct / 100
        peer = 196 * math.hypot(mean_stderr(q.tolist()), ratio * mean_stderr(b.tolist())) / b.mean()
        orders = np.random.default_rng(7)
        verdict, fell = settled(shuffles(b, q), orders, runs, len(b), [float(len(b))])
        side = 1 if q.sum() - MARGIN * b.sum() >= -1e-9 else -1
        wrongs.append(100 * float(np.mean(verdict == -side)))
        shares.append(100 * float(fell.mean()) / len(b))
        widths.append(peer / half)
        table(
            f"{task} {format} {len(b)} {100 * ratio:.2f} {half:.2f} {peer:.2f} {'holds' if side > 0 else 'loses'} "
            f"{wrongs[-1]:.1f} % {shares[-1]:.1f} %"
        )
    if not shares:
        return []
    wider, asked, wrong = float(np.median(widths)), float(np.mean(shares)), float(np.mean(wrongs))
    return [
        Claim(f"{folder.name}: separate intervals over paired ones, median", ">= 1", wider, "times", wider >= 1),
        Claim(f"{folder.name}: wrong verdicts over orders, mean", "<= 5 %", wrong, "%", wrong <= 5),
        Claim(f"{folder.name}: share of the questions asked, mean", "< 100 %", asked, "%", asked < 100),
    ]


def answered(folder: Path) -> Iterator[tuple[str, str, Floats, Floats]]:
    """Task, format, and both columns of every format's answers that the baseline answered too."""
    ledger = Ledger(folder)
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for cell in ledger.read_plan():
        result = ledger.get(cell) if cell.kind == "evaluate" else None
        if result is not None:
            rows = [revive(Answer, row) for row in result["answers"]]
            scores[cell.inputs["task"]["name"], cell.format] = {row.item: row.score for row in rows}
    for (task, format), mine in scores.items():
        before = scores.get((task, BASELINE), {})
        if format != BASELINE and before.keys() == mine.keys() and any(before.values()):
            yield task, format, np.array([before[item] for item in mine]), np.array(list(mine.values()))


def table(line: str) -> None:
    """A line for people, apart from the document."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
