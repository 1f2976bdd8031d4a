"""The paper's averages, from its own tables' rows (arXiv 2411.02355, tables 5 and 6)."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from bitworth.benchmarking import cost_of
from bitworth.gating import Where
from bitworth.hardware import hardware
from bitworth.load.savings import savings
from bitworth.recommendation import recommend
from bitworth.report.document import result_as_json
from bitworth.report.markdown import render_markdown
from bitworth.types import Constraint, EngineFacts, Load, Measurement, QueryCost, Timing
from bitworth.workloads import NAMES, use_case

#: Table 5, 8B on an A6000: seconds and queries per dollar, use case by use case.
TABLE_5 = {
    "baseline": ((24.5, 183), (3.2, 1395), (25.0, 180), (3.3, 1374), (3.1, 1445), (6.2, 723), (13.4, 335)),
    "w8a8-int": ((15.9, 284), (2.1, 2157), (16.3, 276), (2.1, 2139), (2.0, 2249), (4.0, 1120), (8.9, 506)),
    "w4a16-int": ((9.7, 462), (1.4, 3290), (10.1, 445), (1.4, 3136), (1.3, 3543), (2.5, 1787), (6.1, 736)),
}


def cost(format: str, name: str, latency_s: float, per_usd: float, *, count: int = 1) -> QueryCost:
    return QueryCost(
        format=format,
        use_case=use_case(name),
        load="synchronous",
        hardware="A6000",
        count=count,
        usd_per_hour=0.8 * count,
        latency_s=latency_s,
        queries_per_second=1 / latency_s,
        queries_per_usd=per_usd,
    )


def table() -> list[QueryCost]:
    return [
        cost(format, name, *figures)
        for format, rows in TABLE_5.items()
        for name, figures in zip(NAMES, rows, strict=True)
    ]


def test_the_papers_cost_reductions_come_out() -> None:
    int8, int4 = savings(table())
    assert (int8.format, int4.format) == ("w8a8-int", "w4a16-int")
    assert round(int8.cost_reduction, 2) == 1.54  # as printed
    assert round(int4.cost_reduction, 2) == 2.39
    assert int8.use_cases == NAMES
    # Alone, a query costs its latency: the ratios agree within the rounding of the printed latencies.
    assert int8.latency_reduction == pytest.approx(int8.cost_reduction, rel=0.02)


def closed_loop(format: str, streams: int, seconds: float) -> QueryCost:
    """As many requests at once as there are streams, each of so many seconds."""
    timings = tuple(
        Timing(start_s=at * seconds, first_token_s=None, end_s=(at + 1) * seconds, prompt_tokens=8, output_tokens=4)
        for at in range(5)
        for _ in range(streams)
    )
    facts = EngineFacts(engine="fake", kernel="none", device="none")
    load = Load(kind="throughput", streams=streams)
    return cost_of(format, Measurement(runs=(timings,), facts=facts), use_case("rag"), load, hardware("A6000"))


def test_loads_of_different_streams_are_never_compared_with_each_other() -> None:
    rows = [
        closed_loop(format, streams, seconds / faster)
        for streams, seconds in ((8, 1.5), (64, 3.0))
        for format, faster in (("baseline", 1.0), ("w8a8-fp", 1.5))
    ]
    eight, many = savings(rows)
    assert (eight.load, many.load) == ("throughput (8 streams)", "throughput (64 streams)")
    assert (eight.speedup, many.speedup) == pytest.approx((1.5, 1.5))
    decided = recommend(rows, [], Constraint())
    assert [(found.load, len(found.options)) for found in decided] == [(eight.load, 2), (many.load, 2)]
    assert all("1.50 times" in found.why for found in decided)
    assert [Where(load=eight.load).takes(row) for row in rows] == [True, True, False, False]
    kind = Where(load="throughput")
    kind.check(rows)
    assert all(kind.takes(row) for row in rows)


def test_fewer_devices_are_compared_with_those_of_the_baseline() -> None:
    rows = [cost("baseline", "rag", 8.1, 138, count=4), cost("baseline", "rag", 7.0, 120, count=8)]
    (found,) = savings([*rows, cost("w8a8-int", "rag", 8.4, 267, count=2)])
    assert (found.count, found.baseline_count) == (2, 4)  # the cheaper of the baseline's two
    assert found.cost_reduction == pytest.approx(267 / 138)
    (same,) = savings([*rows, cost("w8a8-int", "rag", 5.0, 130, count=8)])
    assert (same.baseline_count, same.cost_reduction) == (8, pytest.approx(130 / 120))


def test_only_what_has_figures_on_both_sides_is_compared() -> None:
    rows = table()[:14]
    gone = replace(rows[0], latency_s=None, queries_per_second=None, queries_per_usd=None, unsupported="no kernel")
    (found,) = savings([gone, *rows[1:]])
    assert found.use_cases == NAMES[1:]
    assert savings(rows[7:]) == ()
    assert savings([replace(row, source="predicted") if row.format == "baseline" else row for row in rows]) == ()


def test_the_report_has_them_where_there_are_several_use_cases(tmp_path: Path) -> None:
    from test_report import fake_result

    shown = replace(fake_result(), costs=tuple(table()))
    assert "| w8a8-int | synchronous | A6000 | 7 | 1.54 | 1.54 | 1.54 |" in render_markdown(shown)
    assert result_as_json(shown)["savings"][1]["cost_reduction"] == savings(table())[1].cost_reduction
    assert "## Savings" not in render_markdown(replace(shown, costs=tuple(table()[::7])))


def rounded_from(text: str) -> tuple[float, float]:
    """The values that are printed so."""
    half = 0.5 * 10.0 ** -len(text.partition(".")[2])
    return float(text) - half, float(text) + half


@pytest.mark.parametrize(
    ("name", "column", "figure"),
    [("table05_synchronous", "cost_reduction", "q_per_usd"), ("table06_asynchronous", "speedup", "qps")],
)
def test_every_printed_average_follows_from_its_row(shared: Path, name: str, column: str, figure: str) -> None:
    """Within what rounding allows: the cells have one to four digits."""
    lines = (shared / "paper" / f"{name}.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    baselines = {scene(row): row for row in rows if row["format"] == "BF16"}
    compared = [row for row in rows if row[column] != "NA" and scene(row) in baselines]
    for row in compared:
        low, high = (
            average(
                {use: rounded_from(row[f"{use}_{figure}"])[side] for use in NAMES},
                {use: rounded_from(baselines[scene(row)][f"{use}_{figure}"])[1 - side] for use in NAMES},
            )
            for side in (0, 1)
        )
        assert low - 0.005 <= float(row[column]) <= high + 0.005, (scene(row), row["format"], low, high)
    assert len(compared) == 12


def scene(row: dict[str, str]) -> tuple[str, str]:
    return row["size"], row.get("gpu") or row["hardware"]


def average(small: dict[str, float], base: dict[str, float]) -> float:
    """Of rates that are the format's and the baseline's."""
    costs = [
        replace(cost(format, use, 1.0, rate), queries_per_second=rate)
        for format, rates in (("baseline", base), ("small", small))
        for use, rate in rates.items()
    ]
    (found,) = savings(costs)
    assert found.cost_reduction == found.speedup
    return found.speedup
