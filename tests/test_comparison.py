"""Two folders side by side: pairs where the questions are the same, samples where not, and what was run differently."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import write_results

from bitworth import cli
from bitworth.cli.diff import parse_side
from bitworth.comparison import compare_sides
from bitworth.errors import BitworthError
from bitworth.ledger import Ledger
from bitworth.sides import read_side
from bitworth.statistics import independent_ratio, mcnemar_exact, paired_recovery
from bitworth.types import Answer, Cell

RANDOM = np.random.default_rng(1)
BEFORE = (RANDOM.random(600) < 0.6).astype(float)
AFTER = np.where(RANDOM.random(600) < 0.1, 0.0, BEFORE)


def folder(root: Path, scores: dict[str, dict[str, list[float]]], **options: object) -> Path:
    write_results(root, scores, **options)  # type: ignore[arg-type]
    return root


def test_same_questions_are_paired(tmp_path: Path) -> None:
    one = folder(tmp_path / "a", {"baseline": {"arc_easy": BEFORE.tolist()}})
    other = folder(tmp_path / "b", {"baseline": {"arc_easy": AFTER.tolist()}})
    (row,) = compare_sides(read_side(one), read_side(other)).scores
    exact = paired_recovery(BEFORE, AFTER, min_recovery_pct=100)
    # Folders are read in the order of their questions' names, and sums in another order differ in the last bits.
    assert row.ratio_pct == pytest.approx(exact.recovery_pct)
    assert row.ci95_pct == pytest.approx(exact.ci95_pct, rel=1e-12)
    assert row.p_value == pytest.approx(exact.p_value, rel=1e-10)
    assert (row.paired, row.questions, row.change) == (True, 600, "worse")
    assert mcnemar_exact(BEFORE, AFTER) < 1e-6
    (back,) = compare_sides(read_side(other), read_side(one)).scores
    assert back.change == "better"
    (same,) = compare_sides(read_side(one), read_side(one)).scores
    assert (same.ratio_pct, same.change) == (100.0, "no change shown")


def test_part_of_the_questions_is_paired_and_other_data_are_not(tmp_path: Path) -> None:
    one = folder(tmp_path / "a", {"baseline": {"arc_easy": BEFORE.tolist()}})
    fewer = folder(tmp_path / "b", {"baseline": {"arc_easy": AFTER[:200].tolist()}})
    (row,) = compare_sides(read_side(one), read_side(fewer)).scores
    assert (row.paired, row.questions, row.before) == (True, 200, BEFORE[:200].mean())
    other = folder(tmp_path / "c", {"baseline": {"arc_easy": AFTER.tolist()}}, data="other rows")
    (apart,) = compare_sides(read_side(one), read_side(other)).scores
    assert not apart.paired
    assert apart.ci95_pct[0] < row.ratio_pct < apart.ci95_pct[1]
    assert apart.ci95_pct[1] - apart.ci95_pct[0] > 2 * (row.ci95_pct[1] - row.ci95_pct[0]) / math.sqrt(3)


def test_the_interval_of_samples_drawn_apart_covers() -> None:
    random, inside = np.random.default_rng(5), 0
    for _ in range(1000):
        b, a = (random.random(300) < 0.6).astype(float), (random.random(250) < 0.5).astype(float)
        (low, high), _ = independent_ratio([(b, None)], [(a, None)])
        inside += low <= 100 * 0.5 / 0.6 <= high
    assert 930 <= inside <= 970


def test_the_interval_of_clusters_drawn_apart_covers() -> None:
    """Questions of a passage share its difficulty; taken for independent, they would cover much less often."""
    random, inside, naive = np.random.default_rng(6), 0, 0
    means = [float(np.clip(np.random.default_rng(0).normal(level, 0.25, 200_000), 0, 1).mean()) for level in (0.6, 0.5)]
    for _ in range(600):
        sides = []
        for level in (0.6, 0.5):
            ease = np.clip(random.normal(level, 0.25, 40), 0, 1)
            sizes = random.integers(3, 9, 40)
            labels = np.repeat(np.arange(40), sizes).tolist()
            sides.append(((random.random(len(labels)) < np.repeat(ease, sizes)).astype(float), labels))
        (low, high), _ = independent_ratio(sides[:1], sides[1:])
        inside += low <= 100 * means[1] / means[0] <= high
        (low, high), _ = independent_ratio([(sides[0][0], None)], [(sides[1][0], None)])
        naive += low <= 100 * means[1] / means[0] <= high
    assert 550 <= inside <= 590
    assert naive < inside - 30


def test_questions_of_one_passage_are_not_paired() -> None:
    """Nothing tells then how much passages differ; drawn apart, each side's passages do."""
    from bitworth.comparison import _columns
    from bitworth.sides import Answered

    def side(*items: tuple[str, str]) -> Answered:
        answers = {
            item: Answer(task="t", item=item, prediction="", score=float(len(item) % 2), cluster=passage)
            for item, passage in items
        }
        return Answered(answers=answers, data="rows")

    one, other = side(("a", "p"), ("b", "p"), ("cc", "q")), side(("a", "p"), ("b", "p"), ("d", "r"))
    apart = _columns(one, other)
    assert not apart.paired
    assert apart.clusters == ([("cluster", c) for c in "ppq"], [("cluster", c) for c in "ppr"])
    together = _columns(one, one)
    assert (together.paired, together.clusters[0]) == (True, [("cluster", c) for c in "ppq"])


def test_a_model_that_answers_nothing_right_is_worse_apart_too() -> None:
    before, after = np.repeat([1.0, 0.0], [900, 100]), np.zeros(1000)
    (low, high), p_value = independent_ratio([(before, None)], [(after, None)])
    assert low == 0
    assert 0 < high < 2
    assert p_value < 1e-6


def test_several_tasks_have_an_average_and_adjusted_p_values(tmp_path: Path) -> None:
    columns = {"arc_easy": BEFORE.tolist(), "hellaswag": BEFORE.tolist()}
    one = folder(tmp_path / "a", {"baseline": {**columns, "winogrande": [1.0]}})
    other = folder(tmp_path / "b", {"baseline": {"arc_easy": AFTER.tolist(), "hellaswag": BEFORE.tolist()}})
    found = compare_sides(read_side(one), read_side(other))
    assert [row.task for row in found.scores] == ["arc_easy", "hellaswag", "average"]
    assert found.scores[0].p_holm == pytest.approx(2 * found.scores[0].p_value)
    assert found.scores[2].ratio_pct == pytest.approx(100 * (AFTER.mean() + BEFORE.mean()) / 2 / BEFORE.mean())
    assert found.notes == ("winogrande, baseline: only one side answered it.",)


def test_speed_settings_and_choices(tmp_path: Path) -> None:
    scores = {"baseline": {"arc_easy": BEFORE.tolist()}, "w8a8-fp": {"arc_easy": BEFORE.tolist()}}
    slow = {"baseline": [1.0, 1.1] * 20, "w8a8-fp": [2.0, 2.1] * 20}
    fast = {"baseline": [1.0, 1.1] * 20, "w8a8-fp": [0.5, 0.55] * 20}
    one, other = tmp_path / "a", tmp_path / "b"
    write_results(one, scores, slow)
    write_results(other, scores, fast, hardware=[{"name": "local", "usd_per_hour": 7.2}])
    found = compare_sides(read_side(one), read_side(other))
    same, changed = found.speeds
    assert (same.speed_ratio, same.queries_per_usd_ratio) == (1.0, 0.5)
    assert changed.speed_ratio == pytest.approx(2.05 / 0.525)
    assert changed.queries_per_usd_ratio == pytest.approx(2.05 / 0.525 / 2)
    assert changed.speed_ci95 is not None
    assert changed.speed_ci95[0] < changed.speed_ratio < changed.speed_ci95[1]
    assert (same.change, changed.change) == ("worse", "better")
    assert [asdict(row) for row in found.settings] == [
        {"what": "hardware.local.usd_per_hour", "before": 3.6, "after": 7.2}
    ]
    assert [(row.before, row.after) for row in found.choices] == [("baseline on local", "w8a8-fp on local")]


def test_two_formats_of_one_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", {"baseline": {"arc_easy": BEFORE.tolist()}, "w8a8-fp": {"arc_easy": AFTER.tolist()}})
    side = read_side(root)
    found = compare_sides(side, side, before_format="baseline", after_format="w8a8-fp")
    assert [(row.before_format, row.after_format, row.change) for row in found.scores] == [
        ("baseline", "w8a8-fp", "worse")
    ]
    assert [row.what for row in found.settings] == ["evaluate arc_easy the format: checkpoint"]
    with pytest.raises(BitworthError, match="no results of format 'w4'"):
        compare_sides(side, side, before_format="w4", after_format="baseline")


def test_answers_that_evaluate_kept_need_no_study(tmp_path: Path) -> None:
    for name, scores in (("a", BEFORE), ("b", AFTER)):
        ledger = Ledger(tmp_path / name)
        for start in (0, 300):  # two batches of one task
            answers = [
                asdict(Answer(task="arc_easy", item=str(at), prediction="A", score=float(scores[at])))
                for at in range(start, start + 300)
            ]
            inputs = {"task": {"name": "arc_easy"}, "data": "rows", "batch": [start, 300]}
            ledger.put(Cell(kind="evaluate", title="t", format="model", inputs=inputs), {"answers": answers})
    (row,) = compare_sides(read_side(tmp_path / "a"), read_side(tmp_path / "b")).scores
    assert (row.questions, row.ratio_pct) == (600, pytest.approx(100 * AFTER.mean() / BEFORE.mean()))
    with pytest.raises(BitworthError, match="holds no results"):
        read_side(tmp_path)


@pytest.mark.parametrize("other", [{"checkpoint": "two"}, {"task": {"name": "arc_easy", "chat": True}}])
def test_answers_of_two_checkpoints_or_asked_in_two_ways_are_not_mixed(tmp_path: Path, other: dict[str, Any]) -> None:
    inputs = {"task": {"name": "arc_easy"}, "data": "rows", "checkpoint": "one"}
    answers = [asdict(Answer(task="arc_easy", item="1", prediction="A", score=1.0))]
    ledger = Ledger(tmp_path)
    for found in (inputs, {**inputs, **other}):
        ledger.put(Cell(kind="evaluate", title="t", format="model", inputs=found), {"answers": answers})
    with pytest.raises(BitworthError, match="two checkpoints called model, or asked in two ways"):
        read_side(tmp_path).answered()


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    one = folder(tmp_path / "a", {"baseline": {"arc_easy": BEFORE.tolist()}})
    other = folder(tmp_path / "b", {"baseline": {"arc_easy": AFTER.tolist()}})

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bitworth", "diff", *arguments])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return int(leave.value.code or 0), capfd.readouterr().out

    code, out = call(str(one), str(other), "--json")
    document = json.loads(out)
    assert (code, document["scores"][0]["change"]) == (0, "worse")
    assert set(document) == {"before", "after", "settings", "scores", "speeds", "choices", "notes"}
    code, out = call(str(one), f"{other}:baseline")
    assert code == 0
    assert "worse" in out
    assert call(str(tmp_path / "none"), str(other))[0] == 2
    assert parse_side(str(one)) == (one, None)
