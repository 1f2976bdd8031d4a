"""The report: complete, self-contained, escaped, deterministic, and readable where parts of a study are absent."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bitworth.errors import WorkFailed
from bitworth.recommendation import mix_costs, recommend
from bitworth.report import cost_as_json, result_as_json, summary_rows, write_report
from bitworth.report.figures import chance, counterpart, interval, number, overlap, percent, seconds, times
from bitworth.report.labels import Anchor, place_labels
from bitworth.report.marks import marks_of
from bitworth.report.plots import Point, best, shortened
from bitworth.report.terminal import terminal_summary
from bitworth.report.words import probability
from bitworth.types import (
    Constraint,
    Divergence,
    EngineFacts,
    Hardware,
    Missing,
    QuantizeResult,
    QueryCost,
    Recovery,
    StudyResult,
    UseCase,
    Verdict,
)

FORMATS = ("baseline", "w8a8-fp", "w8a8-int-gptq", "w4a16-int-gptq")
TASKS = ("arc_challenge", "hellaswag", "winogrande")
RAG = UseCase(name="rag", prompt_tokens=103, output_tokens=13, scale=0.1)
CHAT = UseCase(name="multi_turn_chat", prompt_tokens=512, output_tokens=256)
NO_FP8 = "the torch engine has no FP8 matrix product on this processor; time it where there is one"


def facts_of(format: str) -> EngineFacts:
    kernels = {"w8a8-int-gptq": "fbgemm dynamic int8", "w4a16-int-gptq": "int4 packed, bf16 activations"}
    return EngineFacts(
        engine="torch",
        kernel=kernels.get(format, "float32"),
        device="AMD EPYC 7B13, 2 threads",
        versions={"torch": "2.13.0", "bitworth": "0.1.0"},
    )


def cost_of(format: str, use_case: UseCase, load: str, rate: float | None, **changes: Any) -> QueryCost:
    """A row whose queries per dollar are `rate`, at USD 0.10 an hour."""
    row = QueryCost(
        format=format, use_case=use_case, load=load, hardware="local", count=1, usd_per_hour=0.10, unsupported=NO_FP8
    )
    if rate is not None:
        second = rate * 0.10 / 3600
        row = replace(
            row,
            unsupported=None,
            latency_s=1 / second,
            latency_p90_s=1.17 / second,
            first_token_s=0.31 / second,
            queries_per_second=second,
            queries_per_usd=rate,
            ci95_queries_per_usd=(0.955 * rate, 1.05 * rate),
            requests=24,
            facts=facts_of(format),
        )
    return replace(row, **changes)


def recovery_of(format: str, task: str, pct: float, half: float, verdict: Verdict, needed: int | None) -> Recovery:
    return Recovery(
        task=task,
        format=format,
        baseline=0.4312,
        quantized=0.4312 * pct / 100,
        recovery_pct=pct,
        ci95_pct=(pct - half, pct + half),
        questions=400,
        min_recovery_pct=99,
        verdict=verdict,
        questions_needed=needed,
    )


def fake_result() -> StudyResult:
    """A study like the demo's: a format without speed figures, one that loses, a cell that failed."""
    recoveries = (
        recovery_of("w8a8-fp", "arc_challenge", 99.83, 1.52, "undecided", 1234),
        recovery_of("w8a8-fp", "hellaswag", 100.41, 1.11, "holds", None),
        recovery_of("w8a8-fp", "winogrande", 99.92, 0.81, "holds", None),
        recovery_of("w8a8-fp", "average", 100.05, 0.71, "holds", None),
        recovery_of("w8a8-int-gptq", "arc_challenge", 99.57, 1.66, "undecided", 3456),
        recovery_of("w8a8-int-gptq", "hellaswag", 99.95, 0.83, "holds", None),
        recovery_of("w8a8-int-gptq", "winogrande", 100.22, 1.01, "holds", None),
        recovery_of("w8a8-int-gptq", "average", 99.91, 0.74, "holds", None),
        recovery_of("w4a16-int-gptq", "arc_challenge", 91.37, 4.13, "loses", None),
        recovery_of("w4a16-int-gptq", "hellaswag", 96.06, 2.27, "loses", None),
        recovery_of("w4a16-int-gptq", "average", 94.68, 2.36, "loses", None),
    )
    rates = {
        (RAG, "synchronous"): (30417.0, None, 49633.0, 61872.0),
        (RAG, "throughput"): (118203.0, None, 211377.0, 96517.0),
        (CHAT, "synchronous"): (2413.0, None, 3822.0, 5127.0),
        (CHAT, "throughput"): (9711.0, None, 9898.0, 7766.0),
    }
    costs = tuple(
        cost_of(format, use_case, load, rate)
        for (use_case, load), row in rates.items()
        for format, rate in zip(FORMATS, row, strict=True)
    )
    constraint = Constraint(min_recovery_pct=99, max_latency_s=20)
    return StudyResult(
        name="demo",
        model="demo:smollm2",
        formats=FORMATS,
        constraint=constraint,
        checkpoints=_checkpoints(),
        recoveries=recoveries,
        divergences={
            "baseline": Divergence(
                perplexity=28.771, baseline_perplexity=None, kl_nats=None, top1_flip_pct=None, tokens=19929
            ),
            "w8a8-int-gptq": Divergence(
                perplexity=29.593, baseline_perplexity=28.771, kl_nats=0.01293, top1_flip_pct=6.418, tokens=19929
            ),
            "w4a16-int-gptq": Divergence(
                perplexity=32.724, baseline_perplexity=28.771, kl_nats=0.1377, top1_flip_pct=18.93, tokens=19929
            ),
        },
        costs=costs,
        recommendations=recommend(costs, recoveries, constraint),
        missing=(
            Missing(
                title="evaluate w4a16-int-gptq on winogrande",
                cause="The disk is full; free some space and run the same command again, finished work is kept.",
            ),
        ),
        evaluated_with={format: replace(facts_of(format), kernel="exact, float32") for format in FORMATS},
        hardware=(
            Hardware(name="local", usd_per_hour=0.10, memory_gib=15.6, price_source="a placeholder"),
            Hardware(
                name="H100",
                usd_per_hour=3.29,
                memory_gib=80,
                bandwidth_gb_s=3350,
                tera_ops={"bf16": 989, "fp8": 1979},
                price_source="paper, table 9",
            ),
        ),
        machine={"processor": "AMD EPYC 7B13", "cores": "2", "memory": "16 GiB", "system": "Linux x86_64"},
        settings={
            "tasks": "arc_challenge (400 questions, seed 0), hellaswag (400 questions, seed 0), winogrande (all)",
            "calibration": "32 x 512 tokens of demo:calibration, seed 0",
            "engine for speed": "torch",
        },
        finished="2026-11-24T17:44:37+00:00",
        groups=(
            replace(recovery_of("w8a8-fp", "mmlu/virology", 88.12, 9.4, "loses", None), p_value=0.011, p_holm=0.022),
            replace(recovery_of("w8a8-fp", "mmlu/law", 77.31, 8.6, "loses", None), p_value=1e-9, p_holm=2e-9),
        ),
    )


def _checkpoints() -> dict[str, QuantizeResult]:
    sizes = {
        "w8a8-fp": (162.41, 8.06, 6.2, ()),
        "w8a8-int-gptq": (162.73, 8.09, 123.4, ("lm_head shares the embedding and stays in bfloat16.",)),
        "w4a16-int-gptq": (
            112.95,
            4.27,
            131.8,
            (
                "Groups of 64: 128 does not divide the hidden size 576.",
                "2 of 210 layers fell back to round-to-nearest because their second moments were singular: "
                "model.layers.3.mlp.down_proj and model.layers.17.mlp.down_proj.",
            ),
        ),
    }
    return {
        format: QuantizeResult(
            format=format,
            path=Path("runs/demo/checkpoints") / format,
            seconds=took,
            peak_rss_mib=1873.2,
            size_mib=size,
            bits_per_weight=bits,
            notes=notes,
        )
        for format, (size, bits, took, notes) in sizes.items()
    }


# --- the page -----------------------------------------------------------------------------------------------------

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "line", "rect"}
EVIL = '<script>alert("x")</script> & <b>"\'bold\'</b> {{ 7 * 7 }} | `code`'


class Page(HTMLParser):
    """Checks that tags balance, and collects elements, attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def attributes(page: Page, name: str) -> list[str]:
    return [value or "" for _, attribute, value in page.attributes if attribute == name]


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return fake_result()


@pytest.fixture(scope="module")
def written(result: StudyResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "made" / "here"
    assert write_report(result, folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return (written / "report.html").read_text(encoding="utf-8")


def test_the_page_is_one_file_that_reads_nothing_else(html: str, written: Path) -> None:
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not re.search(r"https?:|//|@import|url\(", html)
    assert all(value.startswith(("#", "data:text/csv;charset=utf-8,")) for value in attributes(page, "href"))
    assert not attributes(page, "src")
    assert len(html.encode()) < 1_000_000
    names = ["card.md", "recommendation.json", "report.html", "report.md"]
    assert sorted(path.name for path in written.iterdir()) == names


def test_the_page_speaks_to_screen_readers(html: str) -> None:
    page = Page(html)
    identifiers = attributes(page, "id")
    assert len(identifiers) == len(set(identifiers))
    inside = {value.removeprefix("#") for value in attributes(page, "href") if value.startswith("#")}
    assert inside <= set(identifiers)
    assert {word for value in attributes(page, "aria-labelledby") for word in value.split()} <= set(identifiers)
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.tags.count("caption") == page.tags.count("table")
    assert sum(attribute == "scope" for _, attribute, _ in page.attributes) == page.tags.count("th")
    assert html.count('role="img" aria-label="Recovery ') == html.count('role="img"') == 8
    assert 'lang="en"' in html


def test_every_figure_is_on_the_page(html: str, result: StudyResult) -> None:
    text = Page(html).text
    wanted = [result.model, result.name, "2026-11-24 17:44 UTC", "recovery at least 99 %", "mean latency at most 20 s"]
    for row in result.recoveries:
        wanted += [row.task, row.format, percent(row.recovery_pct), interval(row.ci95_pct, decimals=1), row.verdict]
        wanted += [percent(100 * row.baseline), percent(100 * row.quantized), f"{row.questions}"]
        wanted += [f"{row.questions_needed:,}"] if row.questions_needed else []
    for row in result.groups:
        wanted += [row.task, percent(row.recovery_pct), interval(row.ci95_pct, decimals=1), chance(row.p_holm)]
    for cost in result.costs:
        if cost.unsupported is not None:
            wanted.append(cost.unsupported)
            continue
        figures = (cost.queries_per_usd, cost.queries_per_second)
        wanted += [number(value) for value in figures]
        wanted += [seconds(value) for value in (cost.latency_s, cost.latency_p90_s, cost.first_token_s)]
        found = times(cost, counterpart(cost, result.costs))
        assert found is not None
        wanted += [number(1000 / (cost.queries_per_usd or 1)), number(found[0]), interval(cost.ci95_queries_per_usd)]
        assert cost.facts is not None
        wanted += [cost.source, cost.facts.engine, cost.facts.kernel, cost.facts.device, "torch 2.13.0"]
    for divergence in result.divergences.values():
        wanted += [number(divergence.perplexity, digits=4), f"{divergence.tokens:,}", number(divergence.kl_nats)]
        wanted += [percent(divergence.top1_flip_pct), number(divergence.baseline_perplexity, digits=4)]
    for made in result.checkpoints.values():
        wanted += [number(made.size_mib, digits=4), number(made.bits_per_weight), seconds(made.seconds), *made.notes]
        wanted += [number(made.peak_rss_mib, digits=4), str(made.path)]
    wanted += [part for row in result.missing for part in (row.title, row.cause)]
    wanted += ["3.29", "80", "3,350", "989", "1,979", "paper, table 9", "exact, float32"]
    wanted += [*result.machine.values(), *result.settings.values(), *result.settings]
    for row in result.recommendations:
        wanted += [row.why, "103 prompt + 13 output tokens, 0.1 × the published shape", "as published"]
    assert [part for part in wanted if re.sub(r"\s+", " ", part) not in text] == []


def test_the_verdicts_of_the_cards_are_right(html: str, result: StudyResult) -> None:
    text = Page(html).text
    assert "Deploy w8a8-int-gptq" in text
    assert "1.02 to 1.79 times as many queries per dollar as the baseline, recovering 99.9 % of its accuracy." in text
    assert text.count("ahead of the runner-up") == 3
    assert text.count("not told apart from the runner-up") == 1
    assert text.count("recovery settled") == 4
    assert text.count("Not drawn, for want of a figure: w8a8-fp") == 4


def test_what_users_named_stays_text(result: StudyResult, tmp_path: Path) -> None:
    wild = replace(
        result,
        name=EVIL,
        model=EVIL,
        missing=(Missing(title=EVIL, cause=EVIL),),
        machine={EVIL: EVIL},
        settings={EVIL: EVIL},
        costs=tuple(replace(cost, hardware=EVIL) for cost in result.costs),
        checkpoints={
            format: replace(row, notes=(EVIL,), path=Path("/tmp") / EVIL) for format, row in result.checkpoints.items()
        },
        recoveries=tuple(replace(row, task=EVIL) if row.task == "hellaswag" else row for row in result.recoveries),
    )
    wild = replace(wild, recommendations=recommend(wild.costs, wild.recoveries, wild.constraint))
    html = write_report(wild, tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("script") == html.count("<script") == html.count("</script") == 2
    assert page.text.count(EVIL) > 10
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<script", markdown)
    assert json.loads((tmp_path / "recommendation.json").read_text(encoding="utf-8"))["model"] == EVIL


def test_equal_results_give_equal_bytes(result: StudyResult, written: Path, tmp_path: Path) -> None:
    write_report(fake_result(), tmp_path)
    for path in written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow(beside=True)
def test_another_process_writes_the_same_bytes_without_torch(written: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "import bitworth.recommendation, bitworth.report, bitworth.report.terminal, test_report\n"
        "bitworth.report.write_report(test_report.fake_result(), pathlib.Path(sys.argv[2]))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "report.html").read_bytes() == (written / "report.html").read_bytes()


def test_importing_the_report_does_not_load_the_plotting_libraries() -> None:
    code = (
        "import sys, bitworth.report, bitworth.report.terminal\n"
        "assert not {'altair', 'vl_convert', 'jinja2', 'torch'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_folder_that_cannot_be_written_is_said(result: StudyResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkFailed, match="could not be written"):
        write_report(result, tmp_path / "file")


def test_flips_chances_steps_and_deployments_are_shown(result: StudyResult, tmp_path: Path) -> None:
    mix = recommend(mix_costs(result.costs, {"rag": 3, "multi_turn_chat": 1}), result.recoveries, result.constraint)
    whole = replace(result, deployments=mix)
    page = Page(write_report(whole, tmp_path).read_text(encoding="utf-8")).text
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8").replace("\\", "")
    document = json.loads((tmp_path / "recommendation.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    shown = re.sub(r"\s+", " ", _terminal(whole))
    assert len(document["deployments"]) == 2
    for row, told in zip(
        (*result.recommendations, *mix), (*document["recommendations"], *document["deployments"]), strict=True
    ):
        assert row.flips
        assert row.chance is not None
        assert [flip["says"] for flip in told["flips"]] == [flip.says for flip in row.flips]
        assert told["chance"]["probability"] == row.chance.probability
        assert {option["format"] for option in told["frontier"]} == {option.format for option in row.frontier}
        assert row.flips[0].says in shown
        for text in (page, markdown):
            assert row.flips[0].says in text
            assert all(step.says in text for step in row.steps)
        assert probability(row.chance.probability) in page
    assert "25 % multi turn chat + 75 % rag, synchronous" in markdown


# --- parts that are absent, and many -------------------------------------------------------------------------------

EMPTY: dict[str, Any] = {
    "tasks": {"recoveries": ()},
    "costs": {"costs": ()},
    "checkpoints": {"checkpoints": {}, "divergences": {}, "missing": ()},
    "provenance": {"machine": {}, "settings": {}, "hardware": (), "evaluated_with": {}, "finished": None},
}


@pytest.mark.parametrize("absent", [["tasks"], ["costs"], ["checkpoints"], ["provenance"], list(EMPTY)])
def test_absent_pieces_are_said_and_break_nothing(result: StudyResult, absent: list[str], tmp_path: Path) -> None:
    changes = {name: value for piece in absent for name, value in EMPTY[piece].items()}
    poor = replace(result, **changes)
    poor = replace(poor, recommendations=recommend(poor.costs, poor.recoveries, poor.constraint))
    text = Page(write_report(poor, tmp_path).read_text(encoding="utf-8")).text
    said = {
        "tasks": "No task has been evaluated",
        "costs": "Nothing was timed.",
        "checkpoints": "No checkpoint has been made.",
        "provenance": "none yet",
    }
    assert all(said[piece] in text for piece in absent)
    assert "nan" not in text.split()
    json.loads((tmp_path / "recommendation.json").read_text(), parse_constant=pytest.fail)
    assert (tmp_path / "report.md").read_text().startswith("# ")
    assert _terminal(poor).strip()


def test_the_headline_counts_scenarios_and_calls_predictions_predicted(result: StudyResult, tmp_path: Path) -> None:
    slow = [replace(c, latency_s=25.0) if c.use_case == CHAT else replace(c, source="predicted") for c in result.costs]
    mixed = replace(result, costs=tuple(slow))
    mixed = replace(mixed, recommendations=recommend(slow, mixed.recoveries, mixed.constraint))
    text = Page(write_report(mixed, tmp_path).read_text(encoding="utf-8")).text
    assert "w8a8-int-gptq in 2 of 4 scenarios; nothing fits in 2. 1.63 to 1.79 times" in text
    assert "as the baseline (predicted), recovering 99.9 %" in text
    nothing = replace(
        result, recommendations=recommend(result.costs, result.recoveries, Constraint(max_latency_s=0.01))
    )
    assert "No option meets the constraint" in write_report(nothing, tmp_path).read_text(encoding="utf-8")


def test_figures_that_are_unknown_or_unbounded(result: StudyResult, tmp_path: Path) -> None:
    odd = replace(result.recoveries[3], ci95_pct=(0.0, math.inf), verdict="undecided")
    costs = tuple(
        replace(cost, ci95_queries_per_usd=None, latency_p90_s=None, first_token_s=None, facts=None, source="predicted")
        for cost in result.costs
    )
    poor = replace(result, recoveries=(odd, *result.recoveries[4:]), costs=costs)
    poor = replace(poor, recommendations=recommend(poor.costs, poor.recoveries, Constraint()))
    text = Page(write_report(poor, tmp_path).read_text(encoding="utf-8")).text
    assert "0.0 to unbounded" in text
    assert "cost predicted" in text
    assert "is predicted, not measured." in text
    document = json.loads((tmp_path / "recommendation.json").read_text(), parse_constant=pytest.fail)
    assert document["recoveries"][0]["recovery_ci95_pct"] == [0.0, None]
    assert "predicted" in _terminal(poor)


@pytest.mark.slow(beside=True)
def test_fifty_formats_and_ten_tasks_take_seconds_and_stay_small(tmp_path: Path) -> None:
    formats = ["baseline", *(f"w4a16-int-gptq-group{index}-with-a-rather-long-name" for index in range(49))]
    tasks = [f"task_{index}" for index in range(10)]
    recoveries = tuple(
        recovery_of(format, task, 100 - index / 9, 0.7, "undecided", 10)
        for index, format in enumerate(formats[1:])
        for task in [*tasks, "average"]
    )
    costs = tuple(
        cost_of(format, use_case, load, 1000.0 + 37 * ((7 * index) % 50))
        for use_case in (RAG, CHAT)
        for load in ("synchronous", "throughput")
        for index, format in enumerate(formats)
    )
    many = replace(fake_result(), formats=tuple(formats), costs=costs, recoveries=recoveries)
    many = replace(many, recommendations=recommend(costs, recoveries, many.constraint))
    began = time.process_time()
    page = write_report(many, tmp_path)
    assert time.process_time() - began < 10
    assert page.stat().st_size < 1_500_000  # with a table and a CSV a plot, and the options once more
    assert Page(page.read_text(encoding="utf-8")).text.count("with-a-rather-long-name") > 49 * 11


# --- the document and the terminal --------------------------------------------------------------------------------


def test_the_document_is_plain_json_that_reads_back(result: StudyResult, written: Path) -> None:
    document = json.loads((written / "recommendation.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert document == result_as_json(result)
    assert list(document) == [
        "study",
        "model",
        "constraint",
        "recommendations",
        "deployments",
        "recoveries",
        "recoveries_by_group",
        "noise",
        "divergences",
        "likenesses",
        "answers_apart",
        "costs",
        "savings",
        "checkpoints",
        "missing",
        "evaluated_with",
        "hardware",
        "machine",
        "settings",
        "finished",
    ]
    first = document["recommendations"][0]
    assert {name: first[name] for name in ("use_case", "prompt_tokens", "output_tokens", "scale", "load")} == {
        "use_case": "rag",
        "prompt_tokens": 103,
        "output_tokens": 13,
        "scale": 0.1,
        "load": "synchronous",
    }
    choice = first["choice"]
    assert (choice["format"], choice["verdict"], choice["source"]) == ("w8a8-int-gptq", "holds", "measured")
    assert choice["recovery_pct"] == 99.91
    assert choice["recovery_ci95_pct"] == pytest.approx([99.17, 100.65])
    assert choice["queries_per_usd"] == 49633.0
    assert choice["usd_per_1k_queries"] == pytest.approx(1000 / 49633)
    assert choice["times_baseline"] == pytest.approx(49633 / 30417)
    assert choice["facts"]["kernel"] == "fbgemm dynamic int8"
    assert first["runner_up"]["format"] == "baseline"
    assert len(first["options"]) == 4
    assert first["options"][-1]["rejected"] == [NO_FP8]
    assert document["checkpoints"]["w8a8-fp"]["size_mib"] == 162.41
    assert document["divergences"]["baseline"]["kl_nats"] is None
    assert document["recoveries"][0]["questions_needed"] == 1234


def test_a_cost_alone_as_json() -> None:
    row = cost_as_json(cost_of("w8a8-fp", RAG, "synchronous", None))
    assert (row["use_case"], row["unsupported"], row["queries_per_usd"]) == ("rag", NO_FP8, None)
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_summary_rows_and_terminal_say_the_same(result: StudyResult) -> None:
    rows = summary_rows(result)
    assert [row["choice"] for row in rows] == ["w8a8-int-gptq"] * 4
    assert rows[0]["times_baseline"] == pytest.approx(49633 / 30417)
    shown = re.sub(r"\s+", " ", _terminal(result))
    for row in result.recommendations:
        assert row.why in shown
    for row in result.recoveries:
        assert f"{percent(row.recovery_pct)} ({interval(row.ci95_pct, decimals=1)}) {row.verdict}" in shown
    assert result.missing[0].cause in shown


def test_the_terminal_wraps_within_its_width(result: StudyResult) -> None:
    assert max(map(len, _terminal(result, width=72).splitlines())) <= 72


def _terminal(result: StudyResult, width: int = 110) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(terminal_summary(result), soft_wrap=True)
    return captured.get()


# --- figures, marks, labels, drawings -----------------------------------------------------------------------------


def test_figures_are_written_sensibly() -> None:
    assert [number(v) for v in (1234.5, 0.08123, 12.345, 0, 1.0, math.nan, math.inf, None)] == [
        "1,230",
        "0.0812",
        "12.3",
        "0",
        "1.00",
        "–",
        "unbounded",
        "–",
    ]
    assert percent(98.96, apart_from=99) == "98.96 %"
    assert percent(98.9999999999999, apart_from=99).startswith("9")
    assert percent(99.0, apart_from=99) == "99.0 %"
    assert seconds(0.0421) == "42.1 ms"
    assert interval((97.04, 101.26), decimals=1) == "97.0 to 101.3"


def test_the_interval_of_a_ratio_covers_what_simulation_says() -> None:
    rng = np.random.default_rng(0)
    one = replace(cost_of("a", RAG, "synchronous", 160.0), ci95_queries_per_usd=(150.0, 170.0))
    other = replace(cost_of("baseline", RAG, "synchronous", 100.0), ci95_queries_per_usd=(96.0, 104.0))
    found = times(one, other)
    assert found is not None
    draws = rng.normal(160, 10 / 1.96, 200_000) / rng.normal(100, 4 / 1.96, 200_000)
    assert found[0] == pytest.approx(1.6)
    assert found[1] == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), rel=0.005)
    assert times(one, replace(other, queries_per_usd=None)) is None
    assert times(one, replace(other, ci95_queries_per_usd=None)) == (1.6, None)


@given(st.floats(1, 100), st.floats(1, 100), st.floats(0, 20), st.floats(0, 20))
def test_overlap_is_that_of_intervals(a: float, b: float, wide_a: float, wide_b: float) -> None:
    one = replace(cost_of("a", RAG, "synchronous", a), ci95_queries_per_usd=(a - wide_a, a + wide_a))
    other = replace(cost_of("b", RAG, "synchronous", b), ci95_queries_per_usd=(b - wide_b, b + wide_b))
    assert overlap(one, other) == overlap(other, one) == (max(a - wide_a, b - wide_b) <= min(a + wide_a, b + wide_b))


def test_fifty_formats_look_different_and_keep_their_look() -> None:
    names = [f"f{index}" for index in range(50)]
    marks = marks_of(["baseline", *names])
    assert len(set(marks.values())) == 51
    assert marks_of(["baseline", *names[:3]]) == {name: marks[name] for name in ("baseline", *names[:3])}


def test_names_are_cut_where_they_stay_different() -> None:
    assert shortened(["short", "b" * 40], 21) == ["short", "b" * 10 + "…" + "b" * 10]
    names = [f"w4a16-int-gptq-group{index}-with-a-rather-long-name" for index in range(49)]
    ends = [f"a-rather-long-name-with-group-{index}" for index in range(49)]
    for few in (names, ends):
        cut = shortened(few, 24)
        assert len(set(cut)) == 49
        assert max(map(len, cut)) <= 24


boxes = st.tuples(st.floats(0, 300), st.floats(0, 200))


@given(st.lists(boxes, max_size=12))
def test_labels_cover_neither_points_nor_each_other(places: list[tuple[float, float]]) -> None:
    anchors = [Anchor(name=f"name{index}", x=x, y=y) for index, (x, y) in enumerate(places)]
    spots = place_labels(anchors, width=300, height=200)
    taken = [anchor.box for anchor in anchors]
    for anchor, spot in zip(anchors, spots, strict=True):
        if spot is None:
            continue
        width = 7 * len(anchor.name)
        left = anchor.x + spot.dx - {"left": 0, "center": width / 2, "right": width}[spot.align]
        box = left, anchor.y + spot.dy - 6, left + width, anchor.y + spot.dy + 6
        assert all(box[0] >= r or box[2] <= l or box[1] >= b or box[3] <= t for l, t, r, b in taken)
        taken.append(box)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(90, 101)), min_size=1, max_size=8))
def test_best_points_are_those_that_none_beats_on_both(places: list[tuple[int, int]]) -> None:
    mark = marks_of([])["baseline"]
    points = [Point(name="p", x=float(x), x_bounds=(x, x), y=float(y), y_bounds=(y, y), mark=mark) for x, y in places]
    unbeaten = {(x, y) for x, y in places if not any((a > x and b >= y) or (a >= x and b > y) for a, b in places)}
    found = [(point.x, point.y) for point in best(points)]
    assert set(found) == unbeaten
    assert found == sorted(unbeaten)


def test_drawings_take_colours_from_the_page_and_name_no_address(html: str) -> None:
    drawings = re.findall(r'<svg [^>]*role="img".*?</svg>', html, re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        colours = {value for part in root.iter() for name, value in part.attrib.items() if name in ("fill", "stroke")}
        assert all(value == "none" or value.startswith("var(--") for value in colours), colours
        assert not any(name in part.attrib for part in root.iter() for name in ("id", "href", "font-family"))
        assert (root.get("aria-label") or "").startswith("Recovery ")
    variables = set(re.findall(r"var\((--[a-z0-9-]+)\)", html))
    assert variables <= set(re.findall(r"(--[a-z0-9-]+):", html))


def test_colours_keep_their_contrast_on_light_and_dark(html: str) -> None:
    light, dark = (dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", part)) for part in _palettes(html))
    for palette in (light, dark):
        for name in palette:
            if name.startswith("--hue") or name == "--neutral":
                assert _contrast(palette[name], palette["--card"]) >= 3
        for ink, ground in (
            ("--ink", "--paper"),
            ("--ink", "--card"),
            ("--muted", "--paper"),
            ("--muted", "--card"),
            ("--muted", "--shade"),
            ("--accent", "--card"),
            ("--sure", "--sure-bg"),
            ("--open", "--open-bg"),
            ("--bad", "--bad-bg"),
            ("--bad", "--card"),
        ):
            assert _contrast(palette[ink], palette[ground]) >= 4.5, (ink, ground)


def _palettes(html: str) -> Sequence[str]:
    first, _, rest = html.partition("@media screen and (prefers-color-scheme: dark)")
    return first, rest.partition("* {")[0]


def _contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""
    lights = []
    for colour in (one, other):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
