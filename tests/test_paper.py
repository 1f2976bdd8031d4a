"""The paper's tables: derived figures against its own, defects against those known and against injected ones."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitworth import cli, workloads
from bitworth.errors import BitworthError
from bitworth.hardware import hardware
from bitworth.paper.costs import LOADS, SYNCHRONOUS, price
from bitworth.paper.defects import Defect, defects
from bitworth.paper.guidelines import guidelines
from bitworth.paper.printed import Printed, Span, Tables, figure, read_tables
from bitworth.paper.recomputed import V1_TASKS, V2_SHORT, Check, checks
from bitworth.paper.repeats import repeats
from bitworth.paper.results import independent, result_of
from bitworth.paper.review import review, review_as_json, write_reports
from bitworth.paper.statements import statements
from bitworth.paper.timings import polish, strays

PUBLISHED = read_tables()


@cache
def found_defects() -> list[Defect]:
    return defects(PUBLISHED)


@cache
def published_checks() -> tuple[Check, ...]:
    return tuple(checks(PUBLISHED))


def of_kind(kind: str) -> list[Defect]:
    return [one for one in found_defects() if one.kind == kind]


# --- the published tables -----------------------------------------------------------------------------------------


def test_every_table_of_the_paper_is_there() -> None:
    assert sorted(PUBLISHED) == list(range(14))
    assert Counter(check.table for check in published_checks()) == {
        1: 12, 2: 24, 3: 24, 4: 48, 5: 150, 6: 150, 7: 12, 8: 6, 10: 63, 11: 54, 12: 6, 13: 6,
    }  # fmt: skip


def test_the_data_files_are_those_of_the_development_set(shared: Path) -> None:
    packaged = {
        entry.name: _figures(entry.read_text()) for entry in files("bitworth.paper").joinpath("tables").iterdir()
    }
    assert packaged == {path.name: _figures(path.read_text()) for path in (shared / "paper").glob("*.csv")}


def _figures(text: str) -> str:
    """Without what each table says of its source."""
    return re.sub(r" \(index id \d+\)", "", text.partition("\n")[2])


def test_what_disagrees_is_what_is_known_to() -> None:
    wrong = [check for check in published_checks() if not check.agrees]
    a100 = [check for check in wrong if check.row.startswith("405B 16xA100") and check.column.endswith("_q_per_usd")]
    assert len(a100) == 21
    assert {(check.table, check.row, check.column) for check in wrong if check not in a100} == {
        (6, "405B 16xA100 INT8", "speedup"),
        (8, "70B AWQ", "average"),
    }


def test_derived_figures_against_exact_fractions() -> None:
    """Means and recoveries of Table 2 by exact arithmetic on the printed decimals, without the project's code."""
    text = files("bitworth.paper").joinpath("tables", "table02_leaderboard_v1.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    mean = {(r["size"], r["format"]): sum(Fraction(r[task]) for task in V1_TASKS) / 7 for r in rows}
    found = {(check.row, check.column): check for check in published_checks() if check.table == 2}
    for (size, format), exact in mean.items():
        assert found[f"{size} {format}", "average"].recomputed == pytest.approx(float(exact))
        recovery = 100 * exact / mean[size, "BF16"]
        assert found[f"{size} {format}", "recovery_pct"].recomputed == pytest.approx(float(recovery))
        half = Fraction(5, 100)
        low = 100 * (exact - half) / (mean[size, "BF16"] + half)
        if format != "BF16":
            assert found[f"{size} {format}", "recovery_pct"].span.low == pytest.approx(float(low))


def test_costs_against_the_formula_of_the_paper() -> None:
    found = {(check.row, check.column): check for check in published_checks() if check.table == 5}
    check = found["405B 16xH100 BF16", "docstring_q_per_usd"]
    assert check.recomputed == pytest.approx(3600 / (6.5 * 2 * 23.92))
    assert check.span == Span(pytest.approx(3600 / (6.55 * 47.84)), pytest.approx(3600 / (6.45 * 47.84)))
    gains = [check for check in published_checks() if check.column == "cost_reduction"]
    first, second = (check for check in gains if check.row == "70B 1xA100 INT4")
    pairs = ((50.7, 35.0), (2.9, 2.8), (51.2, 35.8), (6.8, 5.2), (6.4, 4.6), (12.9, 9.2), (27.3, 21.0))
    assert first.recomputed == pytest.approx(sum(2 * b / q for b, q in pairs) / 7)
    assert second.recomputed == pytest.approx(
        sum(q / b for b, q in ((20, 57), (343, 718), (20, 56), (148, 390), (156, 439), (78, 220), (37, 96))) / 7
    )


@pytest.mark.parametrize(("gpu", "counts"), [("A6000", (1, 2, 4)), ("A100", (1, 2, 4, 8, 16)), ("H100", (1, 2, 4, 8))])
def test_prices_are_the_catalogue_s(gpu: str, counts: tuple[int, ...]) -> None:
    for count in counts:
        assert price(PUBLISHED, gpu, count) == pytest.approx(hardware(gpu, count).usd_per_hour)


def test_sixteen_h100_are_two_of_the_largest_bundle() -> None:
    assert price(PUBLISHED, "H100", 16) == 47.84
    with pytest.raises(BitworthError, match="no price of B200"):
        price(PUBLISHED, "B200", 1)


def test_the_use_cases_are_the_paper_s() -> None:
    text = files("bitworth.paper").joinpath("tables", "use_cases.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    printed = {row["use_case"]: (int(row["prefill_tokens"]), int(row["decode_tokens"])) for row in rows}
    shapes = {name: workloads.use_case(name) for name in workloads.NAMES}
    assert printed == {name: (shape.prompt_tokens, shape.output_tokens) for name, shape in shapes.items()}


# --- the defects that are known -----------------------------------------------------------------------------------


def test_a_wrong_price_is_found_with_whose_it_is() -> None:
    (found,) = of_kind("price")
    assert "405B on 16xA100" in found.says
    assert "28.64" in found.says
    assert "16xH100, 47.84" in found.says
    assert len(found.cells) == 21


def test_exchanged_cells_are_found() -> None:
    (found,) = of_kind("swapped")
    assert set(found.cells) == {
        (3, "70B W8A8-INT", "arena_hard_winrate"),
        (3, "70B W4A16-INT", "arena_hard_winrate"),
    }
    assert any("Table 1 (70B GPTQ" in words for words in found.evidence)


def test_a_mean_that_its_runs_do_not_give_is_found() -> None:
    found = {one.cells[0]: one for one in of_kind("arithmetic")}
    assert set(found) == {(8, "70B AWQ", "average"), (6, "405B 16xA100 INT8", "speedup")}
    assert any("56.7 in Table 1" in words for words in found[8, "70B AWQ", "average"].evidence)


def test_tables_that_differ_are_found() -> None:
    (found,) = of_kind("differs")
    assert {(table, column) for table, _, column in found.cells} == {
        (table, column) for table in (2, 12) for column in ("average", "mmlu_5shot")
    }
    assert all(row.startswith("70B") for _, row, _ in found.cells)


def test_timings_out_of_line_are_found() -> None:
    cells = {cell for one in of_kind("out of line") for cell in one.cells}
    known = {(5, f"70B {place}", "docstring_latency_s") for place in ("2xA100 BF16", "1xA100 INT8", "1xA100 INT4")}
    assert known | {(6, "70B 4xA100 INT4", "docstring_qps")} <= cells
    impossible = [one for one in strays(PUBLISHED, SYNCHRONOUS) if "instruction_following" in one.slower]
    assert {one.row for one in impossible} >= {row for _, row, _ in known}


def test_what_the_text_claims_and_the_tables_deny() -> None:
    against = {one.says: one.against for one in statements(PUBLISHED) if one.against}
    latency = next(rows for says, rows in against.items() if "latency 1.5 to 2.5" in says)
    assert [(row.name[:8], round(row.value, 2)) for row in latency] == [
        ("70B 2xA6", 1.48), ("70B 1xA1", 1.33), ("70B 1xH1", 1.09),
    ]  # fmt: skip
    assert any("99.75 %" in says for says in against)
    assert len(against) == 3
    assert len(of_kind("text")) == 3


# --- guidelines ---------------------------------------------------------------------------------------------------


def test_guidelines_beside_the_paper_s() -> None:
    found = {(one.size, one.gpu, one.load): one for one in guidelines(PUBLISHED)}
    assert len(found) == 12
    assert all(one.winner == "w4a16-int" and one.agrees for key, one in found.items() if key[2] == "synchronous")
    odd = {key for key, one in found.items() if not one.agrees}
    assert odd == {("8B", "A6000", "throughput"), ("405B", "H100", "throughput")}
    assert [key for key, one in found.items() if not one.settled] == [("70B", "A6000", "throughput")]


def test_gains_are_the_printed_ones_within_rounding() -> None:
    for one in guidelines(PUBLISHED):
        table = next(load for load in LOADS if load.load.name == one.load)
        for row in PUBLISHED[table.number].groups()[one.size, one.gpu]:
            if table.gain in row.figures and row.label != "405B 16xA100 INT8":
                assert one.gains[row.name] == pytest.approx(row.figures[table.gain].value, abs=0.011)


# --- hand-made tables ---------------------------------------------------------------------------------------------

PRICES = {("A6000", 1): 0.8, ("A6000", 4): 3.2, ("A100", 8): 14.32, ("H100", 1): 3.29, ("H100", 4): 12.36}
FORMATS = ("BF16", "INT8", "INT4")
GROUPS = (("8B", "A6000", 1), ("8B", "A100", 8), ("70B", "H100", 4))


def synthetic(seed: int, noise: float = 0.02) -> dict[str, list[dict[str, str]]]:
    """Tables without a defect: unrounded figures first, everything derived from those, then all of it rounded."""
    source = np.random.default_rng(seed)
    rows = [{"hardware": f"{count}x{gpu}", "usd_per_hour": str(usd)} for (gpu, count), usd in PRICES.items()]
    files = {"table09_gpu_prices": rows}
    files["table02_leaderboard_v1"] = _scores(source, V1_TASKS, "recovery_pct", "average", 2)
    files["table03_leaderboard_v2"] = _scores(source, V2_SHORT, "v2_recovery_pct", "v2_average", 1)
    files["table05_synchronous"] = _timings(source, noise, synchronous=True)
    files["table06_asynchronous"] = _timings(source, noise, synchronous=False)
    runs = [(size, format, source.uniform(20, 70, 2)) for size in ("8B", "70B") for format in FORMATS]
    files["table07_arena_hard_runs"] = [
        {"size": size, "format": format, "run1": f"{a:.1f}", "run2": f"{b:.1f}", "average": f"{(a + b) / 2:.1f}"}
        for size, format, (a, b) in runs
    ]
    for row, (_, _, values) in zip(files["table03_leaderboard_v2"], runs, strict=True):
        row["arena_hard_winrate"] = f"{values.mean():.1f}"
    return files


def _scores(
    source: np.random.Generator, tasks: tuple[str, ...], recovery: str, average: str, places: int
) -> list[dict[str, str]]:
    rows = []
    for size in ("8B", "70B"):
        base = source.uniform(3, 95, len(tasks))
        for format in FORMATS:
            scores = base if format == "BF16" else base * source.uniform(0.8, 1.1, len(tasks))
            row = {"size": size, "format": format, recovery: f"{100 * scores.mean() / base.mean():.{places}f}"}
            row[average] = f"{scores.mean():.{places}f}"
            rows.append(row | {task: f"{score:.1f}" for task, score in zip(tasks, scores, strict=True)})
    return rows


def _timings(source: np.random.Generator, noise: float, *, synchronous: bool) -> list[dict[str, str]]:
    shapes = [workloads.use_case(name) for name in workloads.NAMES]
    work = np.array([0.0005 * shape.prompt_tokens + 0.05 * shape.output_tokens for shape in shapes])
    rows = []
    for size, gpu, count in GROUPS:
        usd = price(PUBLISHED, gpu, count)
        base = work * source.uniform(0.3, 3) * np.exp(noise * source.uniform(-1, 1, 7))
        for format in FORMATS:
            speed = 1 if format == "BF16" else source.uniform(1.1, 3)
            seconds = base if format == "BF16" else base / speed * np.exp(noise * source.uniform(-1, 1, 7))
            rate = 1 / seconds if synchronous else 30 / seconds
            gain = "NA" if format == "BF16" else f"{np.mean(base / seconds):.2f}"
            place = {"gpu": gpu, "num_gpus": str(count)} if synchronous else {"hardware": f"{count}x{gpu}"}
            row = {"size": size, **place, "format": format, "cost_reduction" if synchronous else "speedup": gain}
            for name, value in zip(workloads.NAMES, rate, strict=True):
                timing = {f"{name}_latency_s": f"{1 / value:.1f}"} if synchronous else {f"{name}_qps": f"{value:.1f}"}
                row |= timing | {f"{name}_q_per_usd": f"{3600 * value / usd:.0f}"}
            rows.append(row)
    return rows


def written(tables: dict[str, list[dict[str, str]]], folder: Path) -> Tables:
    for name, rows in tables.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        (folder / f"{name}.csv").write_text(f"# made up\n{text.getvalue()}", encoding="utf-8")
    return read_tables(folder)


@pytest.mark.slow(beside=True)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0, 0.03))
def test_no_false_alarm_on_tables_without_a_defect(seed: int, noise: float, tmp_path: Path) -> None:
    assert [one.says for one in defects(written(synthetic(seed, noise), tmp_path)) if one.kind != "text"] == []


Injury = Callable[[dict[str, list[dict[str, str]]]], None]


def _price(tables: dict[str, list[dict[str, str]]]) -> None:
    """The A100 rows of Table 6 priced as if they were eight H100, by Table 9 without them: twice four."""
    for row in tables["table06_asynchronous"]:
        if row["hardware"] == "8xA100":
            for name in workloads.NAMES:
                row[f"{name}_q_per_usd"] = f"{float(row[f'{name}_q_per_usd']) * 14.32 / 24.72:.0f}"


def _swap(tables: dict[str, list[dict[str, str]]]) -> None:
    first, second = tables["table03_leaderboard_v2"][1:3]
    column = "arena_hard_winrate"
    first[column], second[column] = second[column], first[column]


def _raise(table: str, row: int, column: str, by: float, decimals: int = 1) -> Injury:
    def injure(tables: dict[str, list[dict[str, str]]]) -> None:
        cell = tables[table][row]
        cell[column] = f"{float(cell[column]) + by:.{decimals}f}"

    return injure


def _scale(table: str, row: int, names: tuple[str, ...], by: float) -> Injury:
    def injure(tables: dict[str, list[dict[str, str]]]) -> None:
        for name in names:
            cell = tables[table][row]
            cell[name] = f"{float(cell[name]) * by:.{0 if name.endswith('usd') else 1}f}"

    return injure


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow(beside=True)) for seed in (1, 2))])
@pytest.mark.parametrize(
    ("injure", "kind", "cell"),
    [
        (_price, "price", (6, "8B 8xA100 INT8", "rag_q_per_usd")),
        (_swap, "swapped", (3, "8B INT8", "arena_hard_winrate")),
        (_raise("table02_leaderboard_v1", 4, "average", 0.2, 2), "arithmetic", (2, "70B INT8", "average")),
        (_raise("table02_leaderboard_v1", 5, "recovery_pct", -0.7, 2), "arithmetic", (2, "70B INT4", "recovery_pct")),
        (_raise("table03_leaderboard_v2", 1, "gpqa_0shot", 9), "arithmetic", (3, "8B INT8", "v2_average")),
        (_raise("table05_synchronous", 2, "cost_reduction", 0.4, 2), "arithmetic",
         (5, "8B 1xA6000 INT4", "cost_reduction")),
        (_raise("table07_arena_hard_runs", 0, "average", 0.3), "arithmetic", (7, "8B BF16", "average")),
        (_raise("table03_leaderboard_v2", 3, "arena_hard_winrate", 1), "differs",
         (3, "70B BF16", "arena_hard_winrate")),
        (_scale("table06_asynchronous", 7, ("docstring_qps", "docstring_q_per_usd"), 2), "out of line",
         (6, "70B 4xH100 INT8", "docstring_qps")),
    ],
)  # fmt: skip
def test_an_injected_defect_is_found(
    injure: Injury, kind: str, cell: tuple[int, str, str], seed: int, tmp_path: Path
) -> None:
    tables = synthetic(seed)
    injure(tables)
    found = defects(written(tables, tmp_path))
    assert any(one.kind == kind and cell in one.cells for one in found), [one.says for one in found]


# --- parts --------------------------------------------------------------------------------------------------------


@given(st.decimals(-999, 999, places=3), st.integers(0, 2))
def test_a_figure_s_span_holds_whatever_rounds_to_it(value: object, places: int) -> None:
    printed = figure(f"{value:.{places}f}")
    slack = 1e-9
    assert printed.span.low - slack <= float(value) <= printed.span.high + slack  # type: ignore[arg-type]
    assert printed.half == pytest.approx(0.5 * 10**-places)


@given(*[st.floats(-5, 5)] * 4)
def test_spans_meet_as_intervals_do(a: float, b: float, c: float, d: float) -> None:
    first, second = Span(min(a, b), max(a, b)), Span(min(c, d), max(c, d))
    expected = max(first.low, second.low) <= min(first.high, second.high)
    if expected or max(first.low, second.low) - min(first.high, second.high) > 1e-6:
        assert first.meets(second) == second.meets(first) == expected
        shared = first.shared(second)
        assert (shared is not None) == expected


def test_figures_in_thousands_are_known_by_their_row() -> None:
    assert {cell.half for name, cell in PUBLISHED[6].rows[0].figures.items() if name.endswith("usd")} == {50.0}
    assert {cell.half for name, cell in PUBLISHED[6].rows[-1].figures.items() if name.endswith("usd")} == {0.5}


def test_polishing_leaves_what_does_not_add_up() -> None:
    rows, columns = np.arange(5.0)[:, None], np.array([0.0, 2, 5, 1, 7])[None]
    values = rows + columns
    values[1, 3] += 4
    left = polish(values)
    assert left[1, 3] == pytest.approx(4)
    left[1, 3] = 0
    assert np.abs(left).max() < 1e-12


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.integers(200, 3000))
def test_independent_answers_have_their_shares_and_no_correlation(b: float, q: float, count: int) -> None:
    first, second = (np.array(one) for one in independent(b, q, count))
    assert len(first) == len(second) == count
    assert first.mean() == pytest.approx(b, abs=1 / count)
    assert second.mean() == pytest.approx(q, abs=1 / count)
    assert abs(np.cov(first, second, bias=True)[0, 1]) <= 1 / count


def test_a_slip_is_a_rounding_apart() -> None:
    slips = {(one.first.printed.value, one.second.printed.value) for one in repeats(PUBLISHED) if one.slip}
    assert slips == {(86.06, 86.0), (85.54, 85.6), (77.8, 77.86), (4.1, 4.04), (18.1, 18.16)}
    assert Check(
        table=1, row="", column="", printed=Printed(value=1.0, half=0.05), recomputed=1.1, span=Span(1.05, 1.2),
        formula="",
    ).agrees  # fmt: skip


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="holds no table"):
        read_tables(tmp_path)
    (tmp_path / "table05_x.csv").write_text("size,format,average\n8B,BF16,many\n")
    with pytest.raises(BitworthError, match=r"table05_x\.csv is not a table"):
        read_tables(tmp_path)
    with pytest.raises(BitworthError, match="cannot be read"):
        read_tables(tmp_path / "none")


# --- documents and reports ----------------------------------------------------------------------------------------


@pytest.mark.slow(beside=True)
def test_the_document_lists_every_cell() -> None:
    document = json.loads(json.dumps(review_as_json(review())))
    assert document["summary"]["derived"] == len(document["cells"]) == 555
    assert {"table", "row", "column", "printed", "recomputed", "agrees"} <= document["cells"][0].keys()
    assert sum(cell["agrees"] for cell in document["cells"]) == 532
    assert len(document["guidelines"]) == 12


def test_a_size_as_a_study_s_result() -> None:
    found = result_of(PUBLISHED, "70B", min_recovery_pct=95, defects=found_defects())
    averages = {row.format: row for row in found.recoveries if row.task == "average"}
    assert {format: round(row.recovery_pct, 2) for format, row in averages.items()} == {
        "w8a8-fp": 99.71, "w8a8-int": 99.86, "w4a16-int": 99.53,
    }  # fmt: skip
    assert all(row.ci95_pct[0] < row.recovery_pct < row.ci95_pct[1] for row in averages.values())
    assert len(found.costs) == 7 * 18
    docstring = [row for row in found.costs if row.use_case.name == "docstring" and row.hardware == "A100"]
    assert all(row.unsupported is not None for row in docstring)
    chosen = {(row.use_case.name, row.load): row.choice.format for row in found.recommendations if row.choice}
    assert all(format == "w4a16-int" for (_, load), format in chosen.items() if load == "synchronous")


@pytest.mark.slow(beside=True)
def test_reports_are_written_the_same_twice(tmp_path: Path) -> None:
    found = review()
    pages = [write_reports(found, tmp_path / name, min_recovery_pct=95) for name in ("one", "two")]
    assert [page.parent.name for page in pages[0]] == ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"]
    digests = [[hashlib.sha256(page.read_bytes()).hexdigest() for page in each] for each in pages]
    assert digests[0] == digests[1]


@pytest.mark.slow(beside=True)
def test_the_verb_prints_one_document_in_time() -> None:
    command = [sys.executable, "-m", "bitworth", "paper", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 10  # of the processor: a clock may be busy
    document = json.loads(done.stdout)
    assert {one["kind"] for one in document["defects"]} >= {"price", "swapped", "arithmetic", "differs", "text"}


def test_the_verb_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["paper"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "532 of 555 derived figures agree" in shown
    assert "15 defects" in shown


@pytest.mark.slow(beside=True)
def test_tables_may_lack_columns() -> None:
    """What needs a figure that is not there is left out, and the rest is as it was."""
    scores = {number: table for number, table in PUBLISHED.items() if number not in (5, 6, 9)}
    whole = {(check.table, check.row, check.column): check for check in checks(scores)}
    for number, table in scores.items():
        for column in (table.columns[0], table.columns[-1]):
            rows = tuple(
                replace(row, figures={name: cell for name, cell in row.figures.items() if name != column})
                for row in table.rows
            )
            cut = {**scores, number: replace(table, rows=rows)}
            assert all(whole[check.table, check.row, check.column] == check for check in checks(cut))
            assert len(statements(cut)) <= len(statements(scores))
