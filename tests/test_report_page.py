"""The page's own decision against `recommend`, and what stands behind its plots against the document."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from test_report import CHAT, FORMATS, RAG, Page, attributes, cost_of, fake_result, recovery_of

from bitworth.load.savings import savings
from bitworth.recommendation import recommend
from bitworth.report import result_as_json, write_report
from bitworth.report.asking import asked_again
from bitworth.report.figures import hardware_name, seconds
from bitworth.statistics import verdict_of
from bitworth.types import Constraint, Figure, QueryCost, Recommendation, Recovery, StudyResult

NODE = shutil.which("node")
RUN = """
const rows = JSON.parse(require("fs").readFileSync(0, "utf8"));
const told = (option) => option && [option.format, option.hardware, option.load];
console.log(JSON.stringify(rows.map(({ options, least }) => {
  const found = decide(options, least);
  return [told(found.choice), told(found.runnerUp), told(found.contender)];
})));
"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(with_figures(), tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


def with_figures() -> StudyResult:
    """The fake study with percentiles, and predictions of what was measured too."""
    result = fake_result()
    costs = [
        replace(cost, figures={"latency_p95": Figure(value=2.5, low=2.25, high=math.inf)}) if cost.latency_s else cost
        for cost in result.costs
    ]
    told = [replace(c, source="predicted", latency_s=1.25 * c.latency_s, facts=None) for c in costs if c.latency_s]
    return replace(result, costs=(*costs, *told))


def scripts(html: str) -> tuple[str, str]:
    """The options as the page holds them, and its program."""
    found = re.search(
        r'<script type="application/json" id="options">(.*?)</script>\s*<script>(.*?)</script>', html, re.S
    )
    assert found is not None
    return found[1], found[2]


# --- the rule -----------------------------------------------------------------------------------------------------


def random_study(draw: random.Random) -> tuple[list[QueryCost], list[Recovery], Constraint]:
    """Few distinct figures, so that ties and bounds that equal the tolerance are common."""
    formats = FORMATS[: draw.randint(1, 4)]
    costs = [
        cost_of(
            format,
            use_case,
            load,
            draw.choice([None, 1000.0, 2000.0, 2000.0, 3000.0 + draw.random()]),
            hardware=place,
        )
        for use_case in (RAG, CHAT)
        for load in ("synchronous", "throughput")
        for place in ("A", "B")[: draw.randint(1, 2)]
        for format in formats
    ]
    recoveries = []
    for format in formats[1:]:
        pct, half = draw.choice([98.0, 99.0, 100.0, 101.5]), draw.choice([0.0, 0.5, 1.0, math.inf])
        if draw.random() < 0.8:
            recoveries.append(recovery_of(format, "average", pct, half, "undecided", None))
    constraint = Constraint(
        min_recovery_pct=draw.choice([90.0, 98.0, 99.0]),
        max_latency_s=draw.choice([None, 15.0]),
        max_usd_per_1k_queries=draw.choice([None, 0.6]),
        queries_per_second=draw.choice([None, 0.2]),
        confidence_pct=draw.choice([95.0, 80.0, 99.0]),
        available=draw.choice([{}, {"A": 2}]),
    )
    return costs, recoveries if draw.random() < 0.9 else [], constraint


def told(row: Recommendation) -> list[list[str] | None]:
    options = (row.choice, row.runner_up, row.contender)
    return [None if o is None else [o.format, hardware_name(o.cost), o.cost.load] for o in options]


@pytest.mark.skipif(NODE is None, reason="there is no Node.js here to run the page's program in")
@pytest.mark.parametrize("studies", [6, pytest.param(60, marks=pytest.mark.slow(beside=True))])
def test_the_pages_rule_is_that_of_recommend(html: str, studies: int) -> None:
    """At every tolerance, from the options that the page was given at another."""
    draw, asked, wanted = random.Random(studies), [], []
    for _ in range(studies):
        costs, recoveries, constraint = random_study(draw)
        across = draw.random() < 0.3
        rows = recommend(costs, recoveries, constraint, across_loads=across)
        page = json.loads(asked_again(replace(fake_result(), constraint=constraint, recommendations=rows)))
        assert [(scene["load"], len(scene["options"])) for scene in page["scenes"]] == [
            (row.load, len(row.options)) for row in rows
        ]
        for least in (0.0, 97.5, 98.0, 99.0, 100.0, 100.5, draw.uniform(95, 102)):
            changed = recommend(costs, recoveries, replace(constraint, min_recovery_pct=least), across_loads=across)
            asked += [{"options": scene["options"], "least": least} for scene in page["scenes"]]
            wanted += [told(row) for row in changed]
    answers = run_page(html, asked)
    assert len(answers) == len(wanted) > 16 * studies
    assert answers == wanted
    assert sum(row[0] is None for row in wanted) >= studies / 2
    assert sum(row[2] is not None for row in wanted) >= studies / 2


@pytest.mark.skipif(NODE is None, reason="there is no Node.js here to run the page's program in")
@pytest.mark.parametrize("studies", [5, pytest.param(40, marks=pytest.mark.slow(beside=True))])
def test_one_device_alone_is_decided_as_if_there_were_no_other(html: str, studies: int) -> None:
    draw, asked, wanted = random.Random(studies), [], []
    for _ in range(studies):
        costs, recoveries, constraint = random_study(draw)
        page = json.loads(asked_again(replace(fake_result(), recommendations=recommend(costs, recoveries, constraint))))
        alone = recommend([cost for cost in costs if cost.hardware == "A"], recoveries, constraint)
        for scene, row in zip(page["scenes"], alone, strict=True):
            options = [option for option in scene["options"] if option["hardware"] == "A"]
            asked.append({"options": options, "least": constraint.min_recovery_pct})
            wanted.append(told(row))
    assert run_page(html, asked) == wanted


def run_page(html: str, asked: list[dict[str, Any]]) -> Any:
    assert NODE is not None
    program = scripts(html)[1] + RUN
    ran = subprocess.run([NODE, "-e", program], input=json.dumps(asked), capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_page_holds_what_the_recommendation_holds(html: str) -> None:
    page, result = json.loads(scripts(html)[0]), with_figures()
    document = result_as_json(result)
    assert page["least"] == document["constraint"]["min_recovery_pct"]
    assert page["slider"]["low"] <= page["least"] <= page["slider"]["high"]
    for scene, row, found in zip(page["scenes"], document["recommendations"], result.recommendations, strict=True):
        for one, other, option in zip(scene["options"], row["options"], found.options, strict=True):
            for name in ("format", "usd_per_1k_queries", "latency_s", "recovery_pct", "source", "times_baseline"):
                assert one[name] == other[name]
            assert [one["low"], one["high"]] == other["recovery_ci95_pct"]
            assert verdict_of(one["low"], one["high"], page["least"]) == other["verdict"] == option.recovery_verdict
            assert set(one["blocked"]) <= set(other["rejected"])


# --- what the browser is allowed ----------------------------------------------------------------------------------


def test_only_the_pages_own_program_may_run(html: str) -> None:
    page = Page(html)
    policy = next(
        value or "" for _, name, value in page.attributes if name == "content" and "default-src" in (value or "")
    )
    own = base64.b64encode(hashlib.sha256(scripts(html)[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{own}'" in policy
    assert "default-src 'none'" in policy
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "innerHTML" not in html
    assert "eval(" not in html


def test_without_a_program_nothing_of_it_shows(html: str, tmp_path: Path) -> None:
    assert len(re.findall(r"<(?:section|li)[^>]*class=\"scripted\"[^>]* hidden>", html)) == 2
    bare = replace(fake_result(), costs=(), recommendations=())
    assert "<script" not in write_report(bare, tmp_path).read_text(encoding="utf-8")


# --- tables behind the plots --------------------------------------------------------------------------------------


def sheets(html: str) -> dict[str, list[dict[str, str]]]:
    page = Page(html)
    names, addresses = attributes(page, "download"), [a for a in attributes(page, "href") if a.startswith("data:")]
    texts = [unquote(address.partition(",")[2]) for address in addresses]
    return {name: list(csv.DictReader(io.StringIO(text))) for name, text in zip(names, texts, strict=True)}


def test_every_plot_has_its_figures_as_csv(html: str) -> None:
    result, found = with_figures(), sheets(html)
    assert html.count('role="img"') == sum(name.startswith(("recovery-", "cost-")) for name in found) == 8
    for row in result.recoveries:
        line = next(r for r in found[f"recovery-{row.task.replace('_', '-')}.csv"] if r["format"] == row.format)
        assert float(line["recovery_pct"]) == row.recovery_pct
        assert (float(line["ci95_low_pct"]), float(line["ci95_high_pct"])) == row.ci95_pct
    for scene in result.recommendations:
        lines = found[f"cost-{scene.use_case.name.replace('_', '-')}-{scene.load}.csv"]
        for line, option in zip(lines, scene.options, strict=True):
            assert line["format"] == option.format
            assert line["queries_per_usd"] == (
                "" if option.cost.queries_per_usd is None else str(option.cost.queries_per_usd)
            )


def test_percentiles_savings_and_predictions_are_shown(html: str) -> None:
    text, found = Page(html).text, sheets(html)
    assert "latency, p95" in text
    assert "2.50 s (2.25 s to unbounded)" in text
    assert {row["figure"] for row in found["percentiles-rag-synchronous.csv"]} == {"latency_p95"}
    want = [row for row in savings(with_figures().costs) if len(row.use_cases) > 1]
    assert want
    for row, line in zip(want, found["savings.csv"], strict=True):
        assert (line["format"], float(line["cost_reduction"])) == (row.format, row.cost_reduction)
    assert all(float(line["ratio"]) == pytest.approx(1.25) for line in found["predictions.csv"])
    first = found["predictions.csv"][0]
    assert seconds(float(first["measured_latency_s"])) in text
    assert '<span class="tag open">predicted</span>' in html
