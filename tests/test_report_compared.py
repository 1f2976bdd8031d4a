"""Latency curves, likeness and answers side by side in the page, and its plots as files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_report import RAG, cost_of, fake_result

from bitworth.load.goodput import judge, sweep
from bitworth.report import write_report
from bitworth.report.compared import curves
from bitworth.report.marks import marks_of
from bitworth.report.plot_files import drawings, light_colours, write_plots
from bitworth.types import AnswerPair, Figure, Likeness, Limits, RatePoint, StudyResult, Timing


def point(rate: float, latency: float) -> RatePoint:
    return RatePoint(
        rate=rate,
        queries_per_second=rate,
        latency_p50_s=latency / 2,
        latency_p95_s=latency,
        first_token_p95_s=None,
        keeps=latency < 1,
    )


def compared_result() -> StudyResult:
    """The fake study with a sweep, two rates of another format, written answers and some that differ."""
    swept = cost_of("baseline", RAG, "sweep (p95 of latency <= 1 s)", 9000.0, rates=(point(1, 0.3), point(4, 2.5)))
    figures = [
        {"latency_p50": Figure(value=value / 2, low=0, high=9), "latency_p95": Figure(value=value, low=0, high=9)}
        for value in (0.2, 0.4)
    ]
    rated = [
        cost_of("w8a8-int-gptq", RAG, f"poisson@{rate}", 9000.0, figures=found)
        for rate, found in zip((1, 2), figures, strict=True)
    ]
    lone = cost_of("w8a8-fp", RAG, "poisson@1", 9000.0, figures=figures[0])
    rows = [
        Likeness(task="gsm8k", format=format, measure="rougeL", mean=0.7, p10=0.3, median=0.75, p90=1.0, questions=40)
        for format in ("w8a8-fp", "w4a16-int-gptq")
    ]
    pair = AnswerPair(
        task="gsm8k",
        format="w4a16-int-gptq",
        item="17",
        baseline="<script>alert(1)</script> So 5 + 7 = 12",
        quantized="So 5 + 7 = 13",
        baseline_score=1.0,
        quantized_score=0.0,
        distance=0.25,
    )
    result = fake_result()
    return replace(result, costs=(*result.costs, swept, *rated, lone), likenesses=tuple(rows), apart=(pair,))


def test_a_curve_has_a_line_for_each_format_timed_at_two_rates() -> None:
    result = compared_result()
    (drawn,) = curves(result, marks_of(result.formats))
    label = ElementTree.fromstring(drawn.svg).get("aria-label") or ""
    assert "baseline 0.300 s at 1 a second to 2.50 s at 4" in label
    assert "w8a8-int-gptq 0.200 s at 1.00 a second to 0.400 s at 2.00" in label
    assert "w8a8-fp" not in label
    assert len(drawn.sheet.rows) == 4


def test_requests_at_constant_intervals_have_a_plot_of_their_own() -> None:
    result = compared_result()
    figures = {"latency_p50": Figure(value=0.1, low=0, high=9), "latency_p95": Figure(value=0.1, low=0, high=9)}
    even = [cost_of("w8a8-int-gptq", RAG, f"constant@{rate}", 9000.0, figures=figures) for rate in (1, 4)]
    drawn = curves(replace(result, costs=(*result.costs, *even)), marks_of(result.formats))
    assert [one.title.rpartition(", ")[2] for one in drawn] == ["Poisson arrivals", "constant rates"]
    assert [len(one.sheet.rows) for one in drawn] == [4, 2]


def test_the_page_shows_them_and_what_a_model_said_stays_text(tmp_path: Path) -> None:
    html = write_report(compared_result(), tmp_path).read_text(encoding="utf-8")
    assert "ROUGE-L on gsm8k" in html
    assert "likeness-rouge-l-on-gsm8k.csv" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; So 5 + 7 = 12" in html
    assert "<script>alert" not in html
    document = json.loads((tmp_path / "recommendation.json").read_text())
    assert document["answers_apart"][0]["item"] == "17"
    assert document["likenesses"][0]["median"] == 0.75
    assert [row["rate"] for row in document["costs"][-4]["rates"]] == [1, 4]
    assert "| gsm8k" in (tmp_path / "report.md").read_text()


@pytest.mark.slow(beside=True)
def test_every_plot_becomes_two_files_that_stand_alone(tmp_path: Path) -> None:
    result = compared_result()
    written = write_plots(result, tmp_path / "plots")
    names = [name for name, _ in drawings(result)]
    assert len(set(names)) == len(names)
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    for vector, pixels in zip(written[::2], written[1::2], strict=True):
        text = vector.read_text()
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in text
        assert not re.search(r'(href|src)="(?!#)', text)
        assert pixels.read_bytes().startswith(b"\x89PNG\r\n")
    assert light_colours()["--ink"] == "#16191d"


@pytest.mark.parametrize("slowest", [0.05, 5.0])
def test_a_sweep_keeps_what_it_saw_at_each_rate(slowest: float) -> None:
    limits = Limits(max_latency_s=1.0)

    def run(rate: float) -> list[Timing]:
        took = slowest if rate > 3 else 0.05
        return [
            Timing(start_s=n / rate, first_token_s=None, end_s=n / rate + took, prompt_tokens=1, output_tokens=1)
            for n in range(40)
        ]

    found = sweep(run, limits, start_rate=1.0)
    points = found.points
    assert [one.rate for one in points] == sorted(trial.rate for trial in found.trials)
    for one in points:
        trial = judge(one.rate, run(one.rate), limits)
        assert (one.keeps, one.first_token_p95_s) == (trial.passes, None)
        assert one.latency_p95_s == pytest.approx(slowest if one.rate > 3 else 0.05)
