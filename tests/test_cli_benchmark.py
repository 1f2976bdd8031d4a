"""`bitworth benchmark` against servers at a URL, and `bitworth import`: documents, files, bad input in a sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import test_cli
from test_cli import Run, refused
from test_guidellm import report, row, stand_in, written
from test_http import served

from bitworth.cli.benchmark import parse_workload
from bitworth.cli.loads import parse_load
from bitworth.engines.fake import FakeServer
from bitworth.errors import BitworthError
from bitworth.types import Limits, Load

call = test_cli.call  # a fixture
FAST = ("--quiet", "--json", "--usd-per-hour", "2")


def test_a_url_gives_a_document_and_every_request(call: Run, tmp_path: Path) -> None:
    arguments = ("--use-case", "8/4", "--load", "poisson:100", "--requests", "40", "--repeat", "2", "--warmup", "2")
    server = FakeServer(first_s=0.02, token_s=0.005)
    with served(server) as url:
        code, out, _ = call("benchmark", url, *arguments, "--out", tmp_path / "run", *FAST)
    document = json.loads(out)
    assert code == 0
    assert json.loads((tmp_path / "run" / "benchmark.json").read_text()) == document
    assert len(server.requests) == 2 + 2 * 44
    assert (document["load"], document["use_case"], document["client"]) == ("poisson@100", "8/4", "bitworth")
    rows = [json.loads(line) for line in (tmp_path / "run" / "timings.jsonl").read_text().splitlines()]
    assert [row["repeat"] for row in rows] == [0] * 40 + [1] * 40
    found = [
        np.percentile([row["end_s"] - row["start_s"] for row in rows if row["repeat"] == repeat], 99)
        for repeat in (0, 1)
    ]
    assert document["metrics"]["latency_s"]["p99"] == pytest.approx(np.mean(found))
    assert document["metrics"]["latency_s"]["mean"] > 0.034
    assert document["metrics"]["inter_token_s"]["p50"] == pytest.approx(0.005, abs=0.004)
    assert document["metrics"]["queries_per_usd"] == pytest.approx(1800 * document["metrics"]["queries_per_second"])


def test_mixes_and_traces_ask_for_their_lengths(call: Run, tmp_path: Path) -> None:
    server = FakeServer()
    with served(server) as url:
        mix = ("--use-case", "8/2=1", "--use-case", "16/3=3", "--load", "throughput", "--streams", "4")
        code, out, _ = call("benchmark", url, *mix, "--requests", "200", "--warmup", "0", *FAST)
        assert code == 0
        assert json.loads(out)["use_case"] == "8/2=1 + 16/3=3"
        asked = [(len(row["prompt"]), row["max_tokens"]) for row in server.requests]
        assert set(asked) == {(8, 2), (16, 3)}
        assert asked.count((16, 3)) / len(asked) == pytest.approx(0.75, abs=0.1)
        server.requests.clear()
        trace = tmp_path / "day.jsonl"
        rows = [{"time_s": 5 + n / 50, "prompt_tokens": 3 + n, "output_tokens": 2} for n in range(20)]
        trace.write_text("\n".join(map(json.dumps, rows)))
        code, out, _ = call("benchmark", url, "--trace", trace, "--warmup", "0", *FAST)
        document = json.loads(out)
        assert (code, document["load"], document["metrics"]["requests"]) == (0, "trace", 20)
        assert [len(row["prompt"]) for row in server.requests] == list(range(3, 23))
        assert document["metrics"]["duration_s"] > 0.37


@pytest.mark.slow
def test_a_sweep_of_a_server_that_serves_in_turn(call: Run) -> None:
    """20 ms a request, one at a time: its capacity is 50 a second."""
    with served(FakeServer(first_s=0.02, in_turn=True)) as url:
        code, out, _ = call(
            "benchmark", url, "--use-case", "8/1", "--load", "sweep", "--max-ttft-s", "0.2", "--percentile", "80",
            "--requests", "40", *FAST,
        )  # fmt: skip
    document = json.loads(out)
    assert code == 0
    best = document["sweep"]["best_rate_per_second"]
    # A short run lets a queue live a little above the capacity; twice of it never passes.
    assert 15 < best < 100
    assert any(not row["passes"] for row in document["sweep"]["rates"])


def test_a_server_of_text_gets_exact_prompts(call: Run, tiny_llama: Path) -> None:
    server = FakeServer(faults=["no_ids"] * 4, tokenize=lambda text: text.encode())  # a byte a token
    with served(server) as url:
        arguments = ("--use-case", "24/2", "--requests", "4", "--warmup", "0", "--tokenizer", tiny_llama)
        code, out, _ = call("benchmark", url, *arguments, *FAST)
    assert code == 0
    assert json.loads(out)["notes"] == []
    texts = [asked["prompt"] for asked in server.requests[-4:]]
    assert [len(text.encode()) for text in texts] == [24] * 4
    assert len({text[0] for text in texts}) == 4


def test_people_get_tables(call: Run) -> None:
    with served(FakeServer()) as url:
        code, out, _ = call("benchmark", url, "--use-case", "8/4", "--requests", "4", "--usd-per-hour", "1")
    assert code == 0
    for words in ("time to first token", "p99", "queries_per_second"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Say what to ask"),
        (("--use-case", "8/2", "--trace", "x"), "Say what to ask"),
        (("--trace", "no-such-file"), "The trace no-such-file cannot be read"),
        (("--use-case", "8/2=0x1"), "a positive number as its weight"),
        (("--use-case", "8/2=0", "--use-case", "8/4"), "weights above 0"),
        (("--use-case", "8/2", "--load", "poisson"), "load 'poisson' is none of"),
        (("--use-case", "8/2", "--load", "sweep"), "A sweep needs a limit"),
        (("--use-case", "8/2", "--tokenizer", "no-such-folder"), "is not a model folder"),
        (("--use-case", "8/2", "--client", "guidellm", "--guidellm", "no-such-program"), "--tokenizer"),
    ],
)
def test_bad_input_is_one_sentence(call: Run, arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with served(FakeServer()) as url:
        refused(call("benchmark", url, *arguments, "--usd-per-hour", "1", "--out", tmp_path / "run"), said)
    assert not (tmp_path / "run").exists()


def test_a_failed_benchmark_leaves_no_files(call: Run, tmp_path: Path) -> None:
    with served(FakeServer(faults=["none", *["refuse"] * 9])) as url:  # type: ignore[list-item]
        outcome = call("benchmark", url, "--use-case", "8/2", "--out", tmp_path / "run", *FAST)
    refused(outcome, "HTTP 500 (out of order")
    assert list(json.loads(outcome[1])) == ["error"]
    assert not (tmp_path / "run").exists()


def test_guidellm_as_the_client(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    document = report(*(row(n, n + 0.1, n + 0.4) for n in range(10)))
    program = stand_in(tmp_path, f"json.dump({document!r}, open(path, 'w'))")
    settings = ("--client", "guidellm", "--guidellm", program, "--tokenizer", tiny_llama, "--requests", "10")
    with served(FakeServer()) as url:
        code, out, _ = call("benchmark", url, "--use-case", "8/4", *settings, *FAST)
    found = json.loads(out)
    assert (code, found["client"]) == (0, "guidellm")
    assert found["metrics"]["first_token_s"]["mean"] == pytest.approx(0.1)
    assert found["metrics"]["per_output_token_s"]["p99"] == pytest.approx(0.1)


def test_guidellm_needs_a_server(call: Run, tiny_llama: Path) -> None:
    arguments = ("--use-case", "8/4", "--engine", "fake", "--client", "guidellm", "--guidellm", sys.executable)
    refused(call("benchmark", tiny_llama, *arguments, *FAST), "GuideLLM drives servers only")


def test_import_gives_the_metrics_of_a_report(call: Run, tmp_path: Path) -> None:
    path = written(tmp_path, report(*(row(n, n + 0.1, n + 0.5) for n in range(10))))
    code, out, _ = call("import", "guidellm", path, "--usd-per-hour", "3", "--json")
    (found,) = json.loads(out)["benchmarks"]
    assert code == 0
    assert (found["load"], found["guidellm"], found["unusable"]) == ("synchronous", "0.8.1", None)
    assert found["metrics"]["latency_s"]["p50"] == pytest.approx(0.5)
    assert found["metrics"]["queries_per_usd"] == pytest.approx(3600 * 10 / 9.5 / 3)
    code, out, _ = call("import", "guidellm", path)
    assert "GuideLLM 0.8.1" in out


def test_import_says_what_is_of_no_use(call: Run, tmp_path: Path) -> None:
    broken = row(1, None, None, error="ConnectError('gone')")
    path = written(tmp_path, report(row(0, 0.1, 0.5), errored=[broken]))
    code, out, _ = call("import", "guidellm", path, "--json")
    (found,) = json.loads(out)["benchmarks"]
    assert (code, found["metrics"]) == (0, None)
    assert found["unusable"] == "1 of 2 requests failed: ConnectError('gone')."
    refused(call("import", "guidellm", tmp_path / "none.json"), "cannot be read")


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("synchronous", Load(kind="synchronous")),
        ("throughput", Load(kind="throughput", streams=3)),
        ("constant:4", Load(kind="constant", rate=4.0)),
        ("poisson@0.5", Load(kind="poisson", rate=0.5)),
    ],
)
def test_loads_by_name(text: str, load: Load) -> None:
    assert parse_load(text, 3) == load


@pytest.mark.parametrize("text", ["", "constant", "constant:0", "constant:x", "constant:inf", "constant:nan", "trace"])
def test_loads_that_are_none(text: str) -> None:
    with pytest.raises(BitworthError, match="is none of"):
        parse_load(text)


def test_a_sweep_keeps_its_limits() -> None:
    limits = Limits(max_first_token_s=0.5, percentile=99)
    assert parse_load("sweep", 4, limits) == Load(kind="sweep", limits=limits)
    assert parse_load("sweep", None, limits).name == "sweep (p99 of first token <= 0.5 s)"


def test_one_use_case_keeps_its_name() -> None:
    assert parse_workload(["rag"], 0.5, None).use_case.prompt_tokens == 512
    assert parse_workload(["rag=2", "docstring"], 1.0, None).parts[0][1] == 2.0
