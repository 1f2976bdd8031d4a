"""The paper's timings as the project's own costs: a printed latency or rate, at Table 9's price, through `cost_of`.

Table 9 prints bundles. What it leaves out is several of the largest bundle that fits (16xH100 is twice 8xH100), or a
share of it: A100 are sold by eight, and fewer are priced in proportion (A.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bitworth import workloads
from bitworth.benchmarking import cost_of
from bitworth.errors import BitworthError
from bitworth.hardware import hardware
from bitworth.paper.printed import PER_USD, Printed, Row, Span, Tables
from bitworth.report.figures import times
from bitworth.types import EngineFacts, Hardware, Load, Measurement, QueryCost, Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTable:
    """A table of timings: its number, the load, the columns of its timings and its average gain over BF16."""

    number: int
    load: Load
    timing: str
    gain: str

    def seconds(self, value: float) -> float:
        """Seconds a query of a printed timing."""
        return value if self.load.kind == "synchronous" else 1 / value


SYNCHRONOUS = LoadTable(number=5, load=Load(kind="synchronous"), timing="_latency_s", gain="cost_reduction")
ASYNCHRONOUS = LoadTable(number=6, load=Load(kind="throughput"), timing="_qps", gain="speedup")
LOADS = (SYNCHRONOUS, ASYNCHRONOUS)

Pick = Callable[[Printed, bool], float]
"""Given a printed figure and whether it is the baseline's, the value to compute with."""


def price(tables: Tables, gpu: str, count: int) -> float:
    """Dollars an hour of so many GPUs: Table 9's entry, else several of its largest bundle that fits, else its share.

    Raises:
        BitworthError: Table 9 is not there or has no such GPU.
    """
    rows = tables[9].rows if 9 in tables else ()
    bundles = {row.count: row.figures["usd_per_hour"].value for row in rows if row.gpu == gpu}
    if not bundles:
        raise BitworthError(f"Table 9 has no price of {gpu}; add a row for it.")
    size = max((size for size in bundles if count % size == 0), default=min(bundles))
    return round(bundles[size] * count / size, 4)


def place(tables: Tables, row: Row) -> Hardware:
    """The row's GPUs, as the catalogue has them, at Table 9's price."""
    usd = price(tables, row.gpu, row.count)
    return replace(hardware(row.gpu, row.count), usd_per_hour=usd, price_source="paper, table 9")


def cost(row: Row, use_case: str, table: LoadTable, machine: Hardware, *, timing: float | None = None) -> QueryCost:
    """What a printed timing costs; `timing` puts another value in its place.

    It has no interval and no count of requests, which the paper does not print, and no latency where only a rate is
    printed.
    """
    printed = row.figures[use_case + table.timing].value if timing is None else timing
    shape = workloads.use_case(use_case)
    asked = Timing(
        start_s=0.0,
        first_token_s=None,
        end_s=table.seconds(printed),
        prompt_tokens=shape.prompt_tokens,
        output_tokens=shape.output_tokens,
    )
    facts = EngineFacts(
        engine="vLLM, published figures",
        kernel=row.format,
        device=f"{machine.count} x {machine.name}",
        versions={"vllm": "0.6.4.post1"},
    )
    found = cost_of(row.name, Measurement(runs=((asked,),), facts=facts), shape, table.load, machine)
    latency = found.latency_s if table.load.kind == "synchronous" else None
    return replace(found, ci95_queries_per_usd=None, latency_s=latency, latency_p90_s=None, requests=0)


def use_cases(row: Row, suffix: str) -> list[str]:
    """The use cases that a row has a figure of."""
    return [name for name in workloads.NAMES if name + suffix in row.figures]


def mean_ratio(tables: Tables, row: Row, baseline: Row, table: LoadTable, pick: Pick) -> float:
    """The mean over use cases of queries per dollar over the baseline's, from timings; `pick` chooses each one's value.

    Args:
        tables: with the prices.
        row: a quantized row.
        baseline: the unquantized one.
        table: which load.
        pick: the value of each timing.
    """
    machines = place(tables, row), place(tables, baseline)
    ratios = []
    for name in use_cases(row, table.timing):
        mine, theirs = (
            cost(who, name, table, machine, timing=pick(who.figures[name + table.timing], who is baseline))
            for who, machine in zip((row, baseline), machines, strict=True)
        )
        found = times(mine, theirs)
        assert found is not None
        ratios.append(found[0])
    return fmean(ratios)


def printed_ratio(row: Row, baseline: Row, pick: Pick) -> float:
    """The same from the printed queries per dollar, which need no prices."""
    names = [name + PER_USD for name in use_cases(row, PER_USD)]
    return fmean(pick(row.figures[name], False) / pick(baseline.figures[name], True) for name in names)


def implied_price(pairs: Sequence[tuple[Span, Span]]) -> Span | None:
    """The prices an hour under which all (queries a second, queries per dollar) agree; None where there is none."""
    found: Span | None = Span(0.0, float("inf"))
    for rate, per_usd in pairs:
        one = Span(3600 * rate.low / per_usd.high, 3600 * rate.high / max(per_usd.low, 1e-12))
        found = found.shared(one) if found is not None else None
    return found
