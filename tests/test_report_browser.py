"""The report in a real browser: nothing is fetched, the choice is the rule's, everybody can read and work it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import contrast, faint, open_browser, open_page, overflow, violations
from folders import write_results
from test_report_compared import compared_result
from test_report_page import random_study, told, with_figures

from bitworth.assembly import assemble
from bitworth.paper.review import review, write_reports
from bitworth.recommendation import recommend
from bitworth.report import write_report
from bitworth.report.figures import hardware_name
from bitworth.report.words import shape_words
from bitworth.types import Constraint, QueryCost, Recommendation, Recovery, StudyResult

pytestmark = pytest.mark.slow
REPORTS = ("ledger", "everything", "paper")
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study from a ledger, one with every part that a report may have, and the paper's."""
    root: Path = tmp_path_factory.mktemp("reports")
    draw = random.Random(0)
    right = [float(draw.random() < 0.6) for _ in range(400)]
    worse = [score * (draw.random() < 0.9) for score in right]
    scores = {
        "baseline": {"arc_easy": right, "hellaswag": right[:200]},
        "w8a8-int-gptq": {"arc_easy": right, "hellaswag": right[:200]},
        "w4a16-int-gptq": {"arc_easy": worse, "hellaswag": worse[:200]},
    }
    seconds = {name: [took + 0.01 * at for at in range(8)] for name, took in zip(scores, (2.0, 1.2, 0.9), strict=True)}
    write_results(root / "ledger", scores, seconds)
    return {
        "ledger": write_report(assemble(root / "ledger"), root / "ledger"),
        "everything": write_report(compared_result(), root / "everything"),
        "paper": write_reports(review(), root / "paper", min_recovery_pct=95)[0],
    }


def test_the_checks_find_what_they_look_for(browser: Any, tmp_path: Path) -> None:
    """A page with each fault: else the tests below could pass for not looking."""
    faults = """<html lang="en"><title>x</title><body style="background: #fff"><img src="https://example.org/x.png">
        <p style="color: #ccc; width: 2000px">pale and wide</p><svg><text fill="#888">dim</text><text>clear</text></svg>
        <script>console.error("wrong"); nothing();</script>"""
    path = tmp_path / "faulty.html"
    path.write_text(faults)
    with open_page(browser, path) as watched:
        assert faint(watched.page, "text", "body") == ["dim: rgb(136, 136, 136) on rgb(255, 255, 255)"]
        found = " ".join(violations(watched.page))
        assert "color-contrast" in found
        assert "image-alt" in found
        assert overflow(watched.page) > 500
        assert watched.requests == ["https://example.org/x.png"]
        assert any("wrong" in line for line in watched.complaints)
        assert any("nothing is not defined" in line for line in watched.complaints)

    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)


# --- whoever reads it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_everybody_can_read_it(browser: Any, reports: dict[str, Path], name: str, width: int, scheme: str) -> None:
    """axe-core finds nothing serious, folded parts included; nothing is cut off or fetched."""
    with open_page(browser, reports[name], width=width, color_scheme=scheme) as watched:
        page = watched.page
        assert overflow(page) <= 0
        page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert violations(page) == []
        assert faint(page, ".plot > svg text", ".plot") == []
        assert overflow(page) <= 0
        watched.assert_clean()


@pytest.mark.parametrize("name", REPORTS)
def test_without_a_program_the_recommendation_is_there(browser: Any, reports: dict[str, Path], name: str) -> None:
    with open_page(browser, reports[name], java_script_enabled=False) as watched:
        page = watched.page
        assert page.locator("#ask").is_hidden()
        cards = page.locator("#recommendation .card")
        assert cards.count() >= 1
        for card in cards.all():
            assert card.locator(".deploy").is_visible()
            assert len(card.locator(".why").inner_text()) > 40
        watched.assert_clean()


@pytest.mark.parametrize("name", REPORTS)
def test_on_paper_nothing_is_lost(browser: Any, reports: dict[str, Path], name: str) -> None:
    """At the width of A4 between margins: controls are gone, every table is as wide as the sheet at most."""
    with open_page(browser, reports[name], width=718, color_scheme="dark") as watched:
        page = watched.page
        page.emulate_media(media="print")
        assert page.locator("#ask").is_hidden()
        assert page.locator("nav").is_hidden()
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert overflow(page) <= 0
        sheet = page.pdf(format="A4")
        assert sheet.startswith(b"%PDF")
        assert 20_000 < len(sheet) < 3_000_000
        watched.assert_clean()


# --- the choice ---------------------------------------------------------------------------------------------------


def shown(page: Any) -> list[list[str] | None]:
    """Choice, runner-up and contender as the table in the page says them: format, device, load."""
    rows = page.evaluate(
        """() => [...document.querySelectorAll("#ask-rows tr")].map((row) => [
            row.querySelector(".outcome .tag").innerText,
            [...row.children].slice(0, 3).map((cell) => cell.innerText),
        ])"""
    )
    found = dict(rows)
    return [found.get(role) for role in ("choice", "runner-up", "contender")]


def title(row: Recommendation) -> str:
    return f"{row.use_case.name.replace('_', ' ')} ({shape_words(row.use_case)})"


def decided(
    costs: Sequence[QueryCost],
    recoveries: Sequence[Recovery],
    constraint: Constraint,
    place: str | None,
    least: float,
) -> list[Recommendation]:
    """What `recommend` says of the rows on one device, or on all, at that least recovery."""
    here = [cost for cost in costs if place is None or hardware_name(cost) == place]
    return recommend(here, recoveries, replace(constraint, min_recovery_pct=least))


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, Path]:
    """Two use cases under two loads on two devices, four formats: the first random study that has all of it."""
    for seed in range(1000):
        costs, recoveries, constraint = random_study(random.Random(seed))
        places, formats = {cost.hardware for cost in costs}, {cost.format for cost in costs}
        if len(places) == 2 and len(formats) == 4 and len(recoveries) == 3 and not constraint.available:
            break
    rows = recommend(costs, recoveries, constraint)
    result = replace(
        with_figures(), costs=tuple(costs), recoveries=tuple(recoveries), constraint=constraint, recommendations=rows
    )
    return result, write_report(result, tmp_path_factory.mktemp("devices"))


def test_the_switches_decide_as_recommend_does(browser: Any, two_devices: tuple[StudyResult, Path]) -> None:
    """Every use case and load, each device and all of them, at seven tolerances."""
    result, path = two_devices
    outcomes = set()
    with open_page(browser, path) as watched:
        page = watched.page
        for place in (None, "A", "B"):
            for least in (0.0, 97.5, 98.0, 99.0, 100.0, 100.5, 102.0):
                page.fill("#ask-least", str(least))
                for row in decided(result.costs, result.recoveries, result.constraint, place, least):
                    page.select_option("#ask-use-case", title(row))
                    page.select_option("#ask-load", row.load)
                    page.select_option("#ask-hardware", place or "all hardware")
                    assert shown(page) == told(row), (place, least, row.use_case.name, row.load)
                    outcomes.add(row.choice.format if row.choice else None)
                    answer = page.locator("#ask-answer").inner_text()
                    assert (row.choice.format if row.choice else "Nothing meets the constraint") in answer
        watched.assert_clean()
    assert len(outcomes) >= 3


def focus(page: Any, wanted: str) -> None:
    """Press Tab until the element of that id has the focus."""
    for _ in range(200):
        if page.evaluate("() => document.activeElement.id") == wanted:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never comes to {wanted}")


def test_a_keyboard_alone_does(browser: Any, two_devices: tuple[StudyResult, Path]) -> None:
    """Tab and arrow keys choose a load, a device and a tolerance; the button takes the study's own back."""
    result, path = two_devices
    with open_page(browser, path) as watched:
        page = watched.page
        for name in ("ask-load", "ask-hardware"):
            focus(page, name)
            page.keyboard.press("ArrowDown")
        focus(page, "ask-slider")
        page.keyboard.press("Home")
        for _ in range(7):
            page.keyboard.press("ArrowRight")
        low = float(page.get_attribute("#ask-slider", "min"))
        least = float(page.input_value("#ask-least"))
        assert least == pytest.approx(low + 0.7)
        load, place = page.input_value("#ask-load"), page.input_value("#ask-hardware")
        assert (load, place) == (result.recommendations[1].load, "A")
        rows = decided(result.costs, result.recoveries, result.constraint, place, least)
        assert shown(page) == told(next(row for row in rows if row.load == load))
        focus(page, "ask-least")
        page.keyboard.press("Control+A")
        page.keyboard.type("100.5")
        rows = decided(result.costs, result.recoveries, result.constraint, place, 100.5)
        assert shown(page) == told(next(row for row in rows if row.load == load))
        focus(page, "ask-reset")
        page.keyboard.press("Enter")
        assert float(page.input_value("#ask-least")) == result.constraint.min_recovery_pct
        watched.assert_clean()


@pytest.mark.parametrize("name", REPORTS)
def test_asked_again_unchanged_it_says_what_the_cards_say(browser: Any, reports: dict[str, Path], name: str) -> None:
    with open_page(browser, reports[name]) as watched:
        page = watched.page
        card = page.locator("#recommendation .card .deploy").first.inner_text()
        answer = page.locator("#ask-answer").inner_text()
        assert answer.split(" on ")[0].split()[0] == card.split()[0]
        assert page.locator("#ask-rows .tag.choice").count() <= 1
        watched.assert_clean()
