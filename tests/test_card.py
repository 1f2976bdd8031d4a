"""The model card: huggingface_hub reads it, and every figure is that of recommendation.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from test_cli import Run, call, refused, study_file  # noqa: F401
from test_report import EVIL, fake_result

from bitworth.errors import BitworthError
from bitworth.recommendation import recommend
from bitworth.report import write_card, write_report
from bitworth.report.card import render_card, winner
from bitworth.report.figures import interval, number, percent, seconds
from bitworth.report.origin import read_license
from bitworth.report.recipes import grid_words
from bitworth.types import Audit, Awq, Calibration, Clip, Gptq, Grid, Recipe, Scheme, StudyResult, TextAudit

WINNER = "w8a8-int-gptq"
GRID = Grid(bits=4, granularity="group", group_size=64)
AUDIT = Audit(
    text=TextAudit(
        tokens=16384,
        samples=32,
        length=512,
        sources=(),
        scripts={"Latin": 0.75},
        chat_markers=(),
        chat_share=None,
        bos_token=None,
        tokenizer_adds_bos=False,
        bos_share=0.0,
        special_share=0.0,
        vocabulary_share=0.0814,
        duplicates=3,
    ),
    stages=(),
    experts=(),
    doubts=("the text is short",),
)


def provenance(base: Path) -> dict[str, Any]:
    """What quantizing writes beside the weights."""
    recipe = Recipe(
        name=WINNER,
        scheme=Scheme(name="w4a16-int", weight=GRID),
        rounding=Gptq(clip=Clip(norm=2.0, hessian_weighted=True), sweeps=2),
        transforms=(Awq(steps=10),),
    )
    calibration = Calibration(source="/somewhere/secret/chat.jsonl", samples=32)
    page = {"recipe": recipe, "calibration": calibration, "audit": AUDIT}
    rows = {name: asdict(noun) for name, noun in page.items()}
    return {**rows, "base": {"path": str(base)}, "versions": {"torch": "2.13.0"}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder whose winner has a checkpoint of a licensed model."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\nText with --- in it\n")
    made = tmp_path / "results" / "runs" / "demo" / "checkpoints" / WINNER
    made.mkdir(parents=True)
    (made / "bitworth.json").write_text(json.dumps(provenance(base)))
    return tmp_path / "results"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def read(path: Path) -> tuple[ModelCard, dict[str, Any]]:
    """The card as the Hub's own library reads it, and its front matter."""
    card = ModelCard(path.read_text(encoding="utf-8"))
    data: dict[str, Any] = card.data.to_dict()
    return card, data


@pytest.mark.usefixtures("offline")
def test_the_front_matter_is_what_the_hubs_library_takes_and_says_what_the_document_says(results: Path) -> None:
    result = replace(fake_result(), model="meta/Tiny-1B")
    write_report(result, results)
    card, data = read(results / "card.md")
    document = json.loads((results / "recommendation.json").read_text())
    assert (data["base_model"], data["base_model_relation"], data["license"]) == (
        "meta/Tiny-1B",
        "quantized",
        "apache-2.0",
    )
    assert {"bitworth", "compressed-tensors", "int4", WINNER} <= set(data["tags"])
    assert data["model-index"][0]["name"] == f"Tiny-1B-{WINNER}"
    found = {(row.dataset_type, row.metric_type): row for row in card.data.eval_results}
    rows = [row for row in document["recoveries"] if row["format"] == WINNER]
    assert len(found) == 2 * len(rows) == 8
    for row in rows:
        score, kept = found[row["task"], "score"], found[row["task"], "recovery_pct"]
        assert score.metric_value == row["score"]
        assert score.metric_args == {"questions": row["questions"], "baseline_score": row["baseline_score"]}
        assert kept.metric_value == row["recovery_pct"]
        assert kept.metric_args == {
            "ci95_low_pct": row["recovery_ci95_pct"][0],
            "ci95_high_pct": row["recovery_ci95_pct"][1],
            "min_recovery_pct": row["min_recovery_pct"],
            "verdict": row["verdict"],
            "source": row["source"],
        }
    assert ModelCard(str(card)).data.to_dict() == data


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_figure_of_the_text_is_that_of_the_document(results: Path) -> None:
    write_report(fake_result(), results)
    text = (results / "card.md").read_text(encoding="utf-8")
    document = json.loads((results / "recommendation.json").read_text())
    rows = table_rows(text)
    for row in (row for row in document["recoveries"] if row["format"] == WINNER):
        assert [
            row["task"],
            percent(100 * row["baseline_score"]),
            percent(100 * row["score"]),
            percent(row["recovery_pct"], apart_from=99),
            interval(row["recovery_ci95_pct"], decimals=1),
            f"{row['questions']:,}",
            row["verdict"],
            "measured",
        ] in rows
    options = [row for found in document["recommendations"] for row in found["options"] if row["format"] == WINNER]
    costs = [row for row in document["costs"] if row["format"] == WINNER]
    assert len(costs) == len(options) == 4
    for row, option in zip(costs, options, strict=True):
        told = next(cells for cells in rows if cells[0] == f"{row['use_case'].replace('_', ' ')}, {row['load']}")
        assert told[3] == "the choice"
        assert told[4] == f"{number(row['queries_per_usd'])} ({interval(row['queries_per_usd_ci95'])})"
        assert told[5] == f"{number(option['times_baseline'])} ({interval(option['times_baseline_ci95'])})"
        assert told[6:9] == [
            seconds(row["latency_s"]),
            seconds(row["first_token_s"]),
            number(row["queries_per_second"]),
        ]
        facts = row["facts"]
        assert told[9].startswith(f"measured: {facts['engine']}, {facts['kernel']}, {facts['device']}")
    made = document["checkpoints"][WINNER]
    size = f"{number(made['size_mib'], digits=4)} MiB, {number(made['bits_per_weight'])} bits per weight"
    assert ["size", size] in rows
    divergence = document["divergences"][WINNER]
    assert f"KL divergence {number(divergence['kl_nats'])} nats" in text
    assert "Intended hardware, where it was the cheapest that met the constraint: local (rag, synchronous," in text


def test_the_recipe_and_the_calibration_are_the_checkpoints_own(results: Path) -> None:
    write_report(fake_result(), results)
    text = (results / "card.md").read_text(encoding="utf-8")
    rows = table_rows(text)
    assert ["weights", "4-bit integers, a scale a group of 64, symmetric"] in rows
    assert ["prepared by", "AWQ, 10 steps"] in rows
    assert any("2 sweeps of refinement" in cells[-1] for cells in rows)
    assert ["vocabulary seen", "8.1 %"] in rows
    assert ["repeated sequences", "3"] in rows
    assert "- the text is short." in text
    assert "32 sequences of 512 tokens of chat.jsonl, seed 0." in text
    assert "secret" not in text
    assert f"vllm serve {WINNER}\n" in text
    assert grid_words(None) == "not quantized"


def test_nothing_is_claimed_that_is_not_known(tmp_path: Path) -> None:
    text = render_card(fake_result(), WINNER, tmp_path)
    data = ModelCard(text).data.to_dict()
    assert not {"base_model", "base_model_relation", "license"} & set(data)
    assert "states no licence" in text
    assert "was not kept" in text
    assert ModelCard(render_card(fake_result(), WINNER, tmp_path, base_model="a/b")).data.base_model == "a/b"
    odd = replace(fake_result(), recoveries=(), evaluated_with={}, divergences={}, costs=(), recommendations=())
    assert "was not timed" in render_card(odd, WINNER, tmp_path)
    assert "model-index" not in ModelCard(render_card(odd, WINNER, tmp_path)).data.to_dict()
    (tmp_path / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert read_license(tmp_path) == read_license(tmp_path / "nowhere") == {}


def test_predictions_and_unbounded_intervals_are_said(results: Path) -> None:
    result = fake_result()
    costs = tuple(replace(cost, source="predicted", facts=None) for cost in result.costs)
    unbounded = tuple(replace(row, ci95_pct=(0.0, math.inf), source="predicted") for row in result.recoveries)
    text = render_card(replace(result, costs=costs, recoveries=unbounded), WINNER, results)
    assert any(cells[-1] == "predicted" and cells[0].startswith("rag") for cells in table_rows(text))
    first = ModelCard(text).data.eval_results[1]
    assert first.metric_args["ci95_low_pct"] == 0.0
    assert "ci95_high_pct" not in first.metric_args
    assert first.metric_args["source"] == "predicted"


def test_names_of_users_stay_text(tmp_path: Path) -> None:
    result = fake_result()
    wild = replace(result, name=EVIL, model=EVIL, settings={EVIL: EVIL})
    text = render_card(wild, WINNER, tmp_path)
    assert "<script" not in text.split("---", 2)[2].replace("\\<", "")
    assert EVIL.rpartition("/")[2] in ModelCard(text).data.to_dict()["model-index"][0]["name"]


def test_the_winner_is_chosen_most_often_and_the_baseline_has_no_card(tmp_path: Path) -> None:
    result = fake_result()
    assert winner(result) == WINNER
    stays = replace(result, recommendations=recommend(result.costs, (), result.constraint), checkpoints={})
    write_report(result, tmp_path)
    assert (tmp_path / "card.md").is_file()
    write_report(stays, tmp_path)
    assert not (tmp_path / "card.md").exists()


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda result, folder: write_card(result, folder, "baseline"), "card of its own"),
        (lambda result, folder: write_card(result, folder, "w3"), "there are: w8a8-fp, w8a8-int-gptq"),
        (lambda result, folder: write_card(result, folder, WINNER, base_model="no name"), "ORGANIZATION/NAME"),
    ],
)
def test_what_cannot_be_written_is_refused(
    change: Callable[[StudyResult, Path], Path], wrong: str, tmp_path: Path
) -> None:
    with pytest.raises(BitworthError, match=wrong):
        change(fake_result(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow(beside=True)
def test_the_command_line(call: Run, study_file: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    assert call("run", study_file, "--out", out, "--quiet")[0] == 0
    (out / "report.html").unlink()
    refused(call("report", out, "--card", "w3"), "has made no checkpoint of format w3")
    assert not (out / "report.html").exists()
    code, stdout, _ = call("report", out, "--card", "w8a8-fp", "--base-model", "some/llama", "--json")
    document = json.loads(stdout)
    assert (code, document["card_of"]) == (0, "w8a8-fp")
    card = ModelCard.load(document["card"])
    assert card.data.base_model == "some/llama"
    assert "It needs none: the recipe reads no activations." in card.text
