"""Exports against what the results say: Parquet read back, MLflow asked through its own client where it is there."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_cli
from folders import write_results
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Run

from bitworth.assembly import assemble
from bitworth.errors import BitworthError, WorkFailed
from bitworth.export.parquet import write_parquet
from bitworth.export.tables import tables_of
from bitworth.export.tracking import URI_VARIABLE, _first_line, _key, _part, log_study, runs_of
from bitworth.ledger import Ledger
from bitworth.report import result_as_json
from bitworth.types import StudyResult

call = test_cli.call  # a fixture

SCORES = {
    "baseline": {"arc_challenge": [1, 1, 0, 1] * 20, "mmlu": [1, 0, 1, 1] * 20},
    "w8a8-fp": {"arc_challenge": [1, 1, 0, 1] * 20, "mmlu": [1, 0, 1, 0] * 20},
    "w4a16-int-rtn": {"arc_challenge": [1, 0, 0, 1] * 20, "mmlu": [1, 0, 0, 1] * 20},
}
SECONDS = {"baseline": [1.0, 1.1, 0.9], "w8a8-fp": [0.5, 0.6, 0.5]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with an answer of every kind and a cell that failed."""
    folder = tmp_path_factory.mktemp("export")
    write_results(folder, SCORES, SECONDS)
    ledger = Ledger(folder)
    first, *_, last = ledger.read_plan()
    found = ledger.get(first)
    assert found is not None
    found["answers"][0] |= {
        "logprobs": [-1.5, float("-inf")],
        "measures": {"strict": 0.5},
        "group": "physics",
        "text": "so it goes",
        "samples": [{"text": "def f(): ...", "passed": False, "reason": "timed out"}],
    }
    ledger.put(first, found, seconds=50.0)
    ledger.path(last).unlink()
    ledger.fail(last, "The server died.")
    return folder


@pytest.fixture(scope="module")
def tables(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    out = tmp_path_factory.mktemp("parquet")
    counts = write_parquet(root, out)
    assert sorted(path.stem for path in out.iterdir()) == sorted(counts)
    found = {name: pq.read_table(out / f"{name}.parquet") for name in counts}
    assert {name: table.num_rows for name, table in found.items()} == counts
    return found


def test_answers_read_back(root: Path, tables: dict[str, pa.Table]) -> None:
    rows = tables["answers"].to_pylist()
    assert len(rows) == 6 * 80
    for format, columns in SCORES.items():
        for task, scores in columns.items():
            found = [row["score"] for row in rows if (row["format"], row["task"]) == (format, task)]
            assert found == scores
    first = rows[0]
    assert first["logprobs_nats"] == [-1.5, None]
    assert dict(first["measures"]) == {"strict": 0.5}
    assert (first["group"], first["text"], rows[1]["group"]) == ("physics", "so it goes", None)
    assert first["samples"] == [{"text": "def f(): ...", "passed": False, "reason": "timed out"}]


def test_recoveries_and_costs_are_those_of_the_document(root: Path, tables: dict[str, pa.Table]) -> None:
    document = json.loads(json.dumps(result_as_json(assemble(root))))
    for row, said in zip(tables["recoveries"].to_pylist(), document["recoveries"], strict=True):
        low, high = said.pop("recovery_ci95_pct")
        assert row["columns"] == ", ".join(said.pop("columns"))
        assert (row["groups_ci95_low_pct"], row["groups_ci95_high_pct"]) == tuple(
            said.pop("groups_ci95_pct") or (None, None)
        )
        assert row["level"] == "task"
        assert (row["recovery_ci95_low_pct"], row["recovery_ci95_high_pct"]) == (low, high)
        assert {name: row[name] for name in said} == said
    for row, said in zip(tables["costs"].to_pylist(), document["costs"], strict=True):
        same = ("format", "use_case", "load", "hardware", "queries_per_usd", "usd_per_1k_queries", "requests", "source")
        assert {name: row[name] for name in same} == {name: said[name] for name in same}
        assert (row["latency_mean_s"], row["devices"]) == (said["latency_s"], said["count"])
        assert dict(row["versions"] or {}) == (said["facts"] or {}).get("versions", {})
    seconds = {(row["format"], f"{row['quantity']}_{row['statistic']}"): row for row in tables["latencies"].to_pylist()}
    for said in document["costs"]:
        for name, figure in said["seconds"].items():
            assert seconds[said["format"], name]["value_s"] == figure["value"]


def test_provenance_has_a_row_a_cell(root: Path, tables: dict[str, pa.Table]) -> None:
    rows = tables["provenance"].to_pylist()
    plan = Ledger(root).read_plan()
    assert [row["title"] for row in rows] == [cell.title for cell in plan]
    assert [json.loads(row["inputs_json"]) for row in rows] == [json.loads(json.dumps(cell.inputs)) for cell in plan]
    assert [row["state"] for row in rows] == ["done"] * 7 + ["failed"]
    assert rows[-1]["cause"] == "The server died."
    assert rows[0]["took_s"] == 50.0
    assert rows[0]["finished"].tzinfo is not None
    assert (rows[0]["engine"], dict(rows[0]["versions"])) == ("fake", {"torch": "1"})
    metadata = tables["provenance"].schema.metadata
    assert (metadata[b"study"], metadata[b"model"]) == (b"made up", b"model")


def test_columns_are_typed_whatever_the_rows_hold(root: Path, tables: dict[str, pa.Table]) -> None:
    """A column of nothing but nulls has its type all the same, so that exports of several studies stack."""
    for table in tables_of(Ledger(root), assemble(root)):
        schema = tables[table.name].schema
        assert schema.names == list(table.columns)
        assert not any(pa.types.is_null(field.type) for field in schema)
        assert "study" in schema.names
        floats = [field.name for field in schema if pa.types.is_floating(field.type)]
        units = r"(_s|_pct|_nats|_usd|_hour|_second|_queries|perplexity|score|scale|p_value|_holm|_p|_ci95_(low|high))$"
        assert [name for name in floats if not re.search(units, name)] == []


def test_an_export_that_fails_leaves_the_last_one(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(root, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(WorkFailed, match="disk is full"):
        write_parquet(root, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(BitworthError, match="holds no readable"):
        write_parquet(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- MLflow -------------------------------------------------------------------------------------------------------


@pytest.mark.slow(beside=True)
def test_metrics_are_the_figures(root: Path) -> None:
    result = assemble(root)
    runs = {run.format: run for run in runs_of(result, root)}
    assert list(runs) == ["baseline", "w8a8-fp", "w4a16-int-rtn"]
    for row in result.recoveries:
        metrics = runs[row.format].metrics
        assert metrics[f"recovery_pct/{row.task}"] == row.recovery_pct
        assert metrics[f"recovery_ci95_low_pct/{row.task}"] == row.ci95_pct[0]
        assert runs["baseline"].metrics[f"score/{row.task}"] == row.baseline
    for cost in result.costs:
        metrics = runs[cost.format].metrics
        assert metrics.get("queries_per_usd/rag/synchronous/local") == cost.queries_per_usd
    assert runs["w8a8-fp"].parameters["accuracy/engine"] == "fake"
    assert "bitworth.chosen_for" in runs["baseline"].tags.keys() | runs["w8a8-fp"].tags.keys()


@pytest.mark.slow(beside=True)
def test_predicted_figures_are_called_so(root: Path) -> None:
    result = assemble(root)
    told = replace(result, costs=tuple(replace(cost, source="predicted", hardware="H100") for cost in result.costs))
    metrics = runs_of(told, root)[0].metrics
    assert "predicted/queries_per_usd/rag/synchronous/H100" in metrics
    assert not any(name.startswith("queries_per_usd") for name in metrics)


@given(st.text(max_size=40), st.text(max_size=40))
def test_names_are_what_mlflow_takes(first: str, second: str) -> None:
    """Its rule (letters, digits, _ - . space /) and that `/` only parts our own names."""
    assert re.fullmatch(r"[A-Za-z0-9_\-. ]*", _part(first))
    assert re.fullmatch(r"[A-Za-z0-9_\-. /]*", _key(f"{first}/{second}"))
    assert _part("poisson@4") != _part("poisson 4")
    assert _part("16/4") == "16_4"


def test_what_mlflow_needs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    with pytest.raises(BitworthError, match="--tracking-uri, or set MLFLOW_TRACKING_URI"):
        log_study(root)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(BitworthError, match=r"not installed; `pip install 'bitworth\[mlflow\]'`"):
        log_study(root, tracking_uri="http://127.0.0.1:9")


@pytest.fixture(params=["file", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a real MLflow keeps runs; its client alone keeps them in files only."""
    pytest.importorskip("mlflow", reason="needs MLflow (the `mlflow` extra), which is not installed")
    if request.param == "file":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        return f"file://{tmp_path}/runs"
    if importlib.util.find_spec("sqlalchemy") is None:
        pytest.skip("needs the whole of MLflow, of which its client alone is installed")
    monkeypatch.chdir(tmp_path)  # artifacts lie beside the database
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_a_real_mlflow_has_what_was_logged(root: Path, store: str) -> None:
    from mlflow import MlflowClient

    logged = log_study(root, tracking_uri=store)
    assert [row.kept for row in logged] == [False] * 3
    client, result = MlflowClient(tracking_uri=store), assemble(root)
    experiment = client.get_experiment_by_name("made up")
    assert experiment is not None
    for row, said in zip(logged, runs_of(result, root), strict=True):
        run = client.get_run(row.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics == pytest.approx(dict(said.metrics))
        assert run.data.params == dict(said.parameters)
        assert run.data.tags["bitworth.format"] == run.info.run_name == row.format
        assert {file.path for file in client.list_artifacts(row.run_id)} == {"report.html", "recommendation.json"}
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        assert json.loads((folder / "recommendation.json").read_text())["study"] == "made up"
    again = log_study(root, tracking_uri=store)
    assert [(row.run_id, row.kept) for row in again] == [(row.run_id, True) for row in logged]
    assert len(client.search_runs([experiment.experiment_id])) == 3
    log_study(root, tracking_uri=store, experiment="elsewhere")
    assert client.get_experiment_by_name("elsewhere") is not None


def test_a_run_that_cannot_be_finished_is_deleted(root: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def broken(*_: Any, **__: Any) -> None:
        raise MlflowException("The store is full")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifact", broken)
        with pytest.raises(WorkFailed, match="MLflow did not take the study: The store is full"):
            log_study(root, tracking_uri=store)
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("made up")
    assert experiment is not None
    assert client.search_runs([experiment.experiment_id]) == []


# --- the command --------------------------------------------------------------------------------------------------


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitworth", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_the_command(root: Path, tmp_path: Path) -> None:
    done = run(root, "--to", "parquet", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    document: Mapping[str, Any] = json.loads(done.stdout)
    assert {row["table"]: row["rows"] for row in document["tables"]}["answers"] == 480
    assert all(Path(row["file"]).is_file() for row in document["tables"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "parquet"), "needs --out FOLDER"),
        (("--to", "parquet", "--out", "x", "--experiment", "y"), "for --to mlflow"),
        (("--to", "mlflow", "--out", "x"), "for --to parquet"),
        (("--to", "csv", "--out", "x"), "'csv' is not one of"),
    ],
)
def test_options_that_do_not_go_together(call: Run, root: Path, arguments: tuple[str, ...], said: str) -> None:
    code, _, told = call("export", root, *arguments)
    assert code == 2
    assert said in " ".join(told.split())
    assert "Traceback" not in told


@pytest.mark.slow(beside=True)
def test_it_loads_no_torch(root: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom bitworth.export.parquet import write_parquet\n"
        "write_parquet(Path(sys.argv[1]), Path(sys.argv[2]))\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(root), str(tmp_path)], check=True)


@pytest.mark.slow(beside=True)
def test_equal_results_give_equal_runs(root: Path) -> None:
    result: StudyResult = assemble(root)
    assert runs_of(result, root) == runs_of(assemble(root), root)


def test_half_a_pair_in_an_answer_is_written_out(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "from")
    ledger = Ledger(tmp_path / "from")
    first, *_ = ledger.read_plan()
    found = ledger.get(first)
    assert found is not None
    found["answers"][0] |= {"text": "a\ud800b", "samples": [{"text": "\udc00", "passed": True, "reason": ""}]}
    ledger.put(first, found)
    write_parquet(tmp_path / "from", tmp_path / "to")
    row = pq.read_table(tmp_path / "to" / "answers.parquet").to_pylist()[0]
    assert (row["text"], row["samples"][0]["text"]) == ("a\\ud800b", "\\udc00")


@pytest.mark.parametrize("error", [OSError(), OSError("no.\nmore")])
def test_a_refusal_that_says_nothing_is_named(error: OSError) -> None:
    assert _first_line(error) == ("OSError" if not error.args else "no")
