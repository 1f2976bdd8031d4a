from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitworth import recipes
from bitworth.assembly import assemble
from bitworth.engines.schedule import DEFAULT_STREAMS
from bitworth.hardware import hardware
from bitworth.predicted_rows import PredictedRows
from bitworth.prediction import predict
from bitworth.prediction.evidence import MODELS
from bitworth.running import run
from bitworth.types import Load, QueryCost
from bitworth.workloads import use_case

SIZES = MODELS["8B"]
LLAMA = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
RECIPES = {"baseline": None, "int4": recipes.recipe("w4a16-int-gptq"), "kv": recipes.recipe("w8a8-fp+kv-fp8")}
HERE = PredictedRows(config=LLAMA, recipes=RECIPES)
RAG, ALONE = use_case("rag"), Load(kind="synchronous")
FEW = Load(kind="throughput", streams=8)


def cost(of: PredictedRows = HERE, format: str = "int4", load: Load = ALONE, **more: Any) -> QueryCost:
    return of.cost(format, RAG, load, hardware("A6000"), **more)


@pytest.mark.parametrize(("format", "scheme"), [("baseline", "bf16"), ("int4", "w4a16-int")])
@pytest.mark.parametrize("load", [ALONE, FEW, Load(kind="throughput"), Load(kind="poisson", rate=0.5)])
def test_a_row_is_the_prediction_and_says_so(format: str, scheme: str, load: Load) -> None:
    found = cost(format=format, load=load)
    # where a study does not say how many streams, rows are measured under so many
    asked = Load(kind="throughput", streams=DEFAULT_STREAMS) if load == Load(kind="throughput") else load
    expected = predict(SIZES, scheme, hardware("A6000"), RAG, asked, group_size=128 if format == "int4" else None)
    assert (found.source, found.unsupported, found.hardware, found.load) == ("predicted", None, "A6000", load.name)
    assert found.latency_s == pytest.approx(expected.latency_s.value)
    assert found.figures["latency_p90"].value == pytest.approx(expected.latency_p90_s.value)
    assert found.queries_per_usd == pytest.approx(expected.queries_per_usd.value)
    assert found.ci95_queries_per_usd is not None
    low, high = found.ci95_queries_per_usd  # 95 % are within more than the 90 % that a prediction's range holds
    assert low <= expected.queries_per_usd.low <= expected.queries_per_usd.high <= high
    assert found.figures["latency_mean"].origin == "predicted"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"of": PredictedRows(config=None, recipes=RECIPES)}, "config is not among the results"),
        ({"of": PredictedRows(config={}, recipes=RECIPES)}, "num_hidden_layers"),
        ({"format": "kv"}, "key-value cache is measured only"),
        ({"one_shape": False}, "measured only"),
        ({"load": Load(kind="sweep")}, "measured only"),
        ({"load": Load(kind="poisson", rate=1e6)}, "less than the"),
    ],
)
def test_what_cannot_be_predicted_has_no_figure_and_a_reason(changed: dict[str, Any], said: str) -> None:
    found = cost(**changed)
    assert found.queries_per_usd is None
    assert found.unsupported is not None
    assert found.unsupported.startswith("not timed on A6000")
    assert said in found.unsupported


@pytest.mark.slow(beside=True)
def test_a_study_measures_here_and_predicts_elsewhere(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    study = {**tiny_study, "hardware": [{"name": "local", "usd_per_hour": 1.0}, "A6000"], "loads": ["synchronous"]}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    run(tmp_path / "study.yaml", tmp_path / "out")
    found = assemble(tmp_path / "out")
    by_row = {(row.hardware, row.format): row for row in found.costs}
    assert {row.source for (place, _), row in by_row.items() if place == "local"} == {"measured"}
    assert by_row["A6000", "w4a16-int-gptq"].source == "predicted"
    (entry,) = found.recommendations  # the A6000 is far cheaper than a dollar an hour for these two cores
    assert entry.choice is not None
    assert entry.choice.cost.source == "predicted"
    assert "is predicted, not measured" in entry.why
    (tmp_path / "out" / "model.json").unlink()  # as an earlier version left it
    without = [row for row in assemble(tmp_path / "out").costs if row.hardware == "A6000"]
    assert all(row.unsupported and "earlier version" in row.unsupported for row in without)
