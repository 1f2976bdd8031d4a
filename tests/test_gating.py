"""The gate: every condition by its whole interval, and the exit code that pipelines read."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import write_results
from hypothesis import given
from hypothesis import strategies as st

from bitworth import cli
from bitworth.assembly import assemble
from bitworth.cli.gate import parse_available, parse_limits
from bitworth.errors import BitworthError
from bitworth.gating import judge_release
from bitworth.types import Constraint, LatencyLimit, StudyResult

Call = Callable[..., tuple[int, str, str]]


def scores(n: int, wrong: int) -> list[float]:
    """`n` questions of which the baseline answers all but a quarter, and `wrong` more are lost."""
    right = [1.0] * n
    for at in range(n // 4):
        right[at] = 0.0
    for at in range(n // 4, n // 4 + wrong):
        right[at] = 0.0
    return right


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A format that keeps 99.6 %, on 1,000 questions, and takes 0.5 s a request."""
    root: Path = tmp_path_factory.mktemp("gate") / "results"
    random = np.random.default_rng(0)
    seconds = {name: random.normal(mean, 0.02, 80).tolist() for name, mean in (("baseline", 1.0), ("w8a8-fp", 0.5))}
    write_results(root, {"baseline": {"arc_easy": scores(1000, 0)}, "w8a8-fp": {"arc_easy": scores(1000, 3)}}, seconds)
    return root


@pytest.fixture(scope="module")
def result(folder: Path) -> StudyResult:
    return assemble(folder)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bitworth", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        captured = capfd.readouterr()
        return int(leave.value.code or 0), captured.out, captured.err

    return run


@given(
    st.floats(95, 103),
    st.one_of(st.none(), st.floats(0.3, 0.8)),
    st.one_of(st.none(), st.floats(0.3, 0.8)),
    st.one_of(st.none(), st.floats(0.05, 0.2)),
)
def test_each_condition_is_judged_by_its_whole_interval(
    result: StudyResult, least: float, usd: float | None, mean: float | None, p95: float | None
) -> None:
    limits = () if p95 is None else (LatencyLimit(of="first_token", at="p95", most_s=p95),)
    constraint = Constraint(min_recovery_pct=least, max_usd_per_1k_queries=usd, max_latency_s=mean, limits=limits)
    found = judge_release(result, constraint)
    (cost,) = [row for row in result.costs if row.format == "w8a8-fp"]
    (row,) = [row for row in result.recoveries if row.task == "average"]
    assert cost.ci95_queries_per_usd is not None
    expected = ["passes" if row.ci95_pct[0] >= least else "fails" if row.ci95_pct[1] < least else "undecided"]
    bounds = [
        (mean, (cost.figures["latency_mean"].low, cost.figures["latency_mean"].high)),
        (p95, (cost.figures["first_token_p95"].low, cost.figures["first_token_p95"].high)),
        (usd, (1000 / cost.ci95_queries_per_usd[1], 1000 / cost.ci95_queries_per_usd[0])),
    ]
    for most, (low, high) in bounds:
        if most is not None:
            expected.append("passes" if high <= most else "fails" if low > most else "undecided")
    assert [condition.outcome for condition in found.conditions] == expected
    worst = "fails" if "fails" in expected else "undecided" if "undecided" in expected else "passes"
    assert (found.outcome, found.exit_code) == (worst, {"passes": 0, "fails": 1, "undecided": 2}[worst])


@given(st.floats(0.1, 40), st.floats(0.1, 2.0), st.floats(500, 60_000))
def test_dollars_are_those_of_the_deployments_that_the_traffic_takes(
    result: StudyResult, demand: float, usd: float, month: float
) -> None:
    """From both ends of the interval of the rate, by hand."""
    constraint = Constraint(
        min_recovery_pct=97, max_usd_per_1k_queries=usd, max_usd_per_month=month, queries_per_second=demand
    )
    recovery, *money = judge_release(result, constraint).conditions
    (cost,) = [row for row in result.costs if row.format == "w8a8-fp"]
    assert cost.ci95_queries_per_usd is not None
    assert recovery.outcome == "passes"
    slow, fast = (bound * cost.usd_per_hour / 3600 for bound in cost.ci95_queries_per_usd)
    hourly = [math.ceil(demand / rate) * cost.usd_per_hour for rate in (fast, slow)]
    bounds = [[1000 * each / (3600 * demand) for each in hourly], [730 * each for each in hourly]]
    for condition, (low, high), most in zip(money, bounds, (usd, month), strict=True):
        assert (condition.low, condition.high) == (pytest.approx(low), pytest.approx(high))
        assert condition.outcome == ("passes" if high <= most else "fails" if low > most else "undecided")


def test_exit_codes_and_documents(call: Call, folder: Path) -> None:
    easy = ("--min-recovery", "97", "--max-usd-per-1k", "0.6", "--limit", "p95:first_token=1")
    code, out, _ = call("gate", folder, *easy, "--json")
    document = json.loads(out)
    assert (code, document["verdict"], document["exit_code"]) == (0, "passes", 0)
    assert [row["name"].split(" (")[0] for row in document["conditions"]] == [
        "recovery",
        "p95 time to the first token",
        "USD per 1,000 queries",
    ]
    assert call("gate", folder, *easy[:2], "--max-usd-per-1k", "0.4")[0] == 1
    assert call("gate", folder, *easy[:4], "--queries-per-second", "0.1")[0] == 1, "idle for most of the time"
    code, out, _ = call("gate", folder, "--min-recovery", "99.5")
    assert code == 2
    assert "recovery: undecided, 99.6 % (" in out
    assert "more questions would settle it" in out
    assert out.count("\n") == 2
    assert call("gate", folder, "--min-recovery", "101")[0] == 1
    code, out, _ = call("gate", folder, "--min-recovery", "97", "--limit", "p99:latency=2")
    assert code == 2
    assert "80 requests do not bound it" in out


def test_what_cannot_be_judged_exits_with_three(call: Call, folder: Path, tmp_path: Path) -> None:
    wrong: Sequence[tuple[tuple[str | Path, ...], str]] = (
        ((tmp_path,), "holds no readable"),
        ((folder, "--format", "w4"), "no format 'w4'"),
        ((folder, "--limit", "p97:latency=1"), "STATISTIC:QUANTITY=SECONDS"),
        ((folder, "--task", "mmlu"), "No recovery on a task 'mmlu'"),
        ((folder, "--use-case", "chat", "--max-latency-s", "1"), "no use case 'chat'; it has"),
        ((folder, "--load", "thrughput"), "no load 'thrughput'; it has synchronous"),
        ((folder, "--hardware", "h100"), "no device 'h100'"),
        ((folder, "--min-recovery", "0.99"), "greater than or equal to 1"),
    )
    for arguments, said in wrong:
        code, out, err = call("gate", *arguments, "--json")
        assert said in json.loads(out)["error"], err
        assert code == (2 if "equal" in said else 3), "what is no number at all is the command line's to refuse"


def test_what_breaks_is_not_judged_either(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "results")

    monkeypatch.setattr("bitworth.assembly.assemble", breaks)
    assert call("gate", folder)[0] == 3


def test_a_study_file_stands_for_its_results(call: Call, folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    raw = json.loads((folder / "study.json").read_text())
    study.write_text(json.dumps(raw))
    assert call("gate", study, "--out", folder, "--min-recovery", "97")[0] == 0
    code, _, err = call("gate", study)
    assert (code, "--out" in err) == (3, True)
    study.write_text(json.dumps({**raw, "model": "another"}))
    code, _, err = call("gate", study, "--out", folder)
    assert (code, "another study" in err) == (3, True)


def test_predictions_pass_no_gate_unless_they_may(result: StudyResult) -> None:
    foretold = replace(
        result,
        costs=tuple(replace(row, source="predicted") for row in result.costs),
        recoveries=tuple(replace(row, source="predicted") for row in result.recoveries),
    )
    constraint = Constraint(min_recovery_pct=97, max_usd_per_1k_queries=0.6)
    found = judge_release(foretold, constraint)
    assert [row.outcome for row in found.conditions] == ["undecided"] * 2
    assert "is predicted, not measured" in found.conditions[0].says
    assert judge_release(foretold, constraint, accept_predicted=True).outcome == "passes"


def test_figures_that_are_missing_leave_it_undecided(result: StudyResult) -> None:
    constraint = Constraint(min_recovery_pct=97, max_usd_per_1k_queries=0.6, max_latency_s=2)
    bare = replace(
        result,
        costs=tuple(replace(row, unsupported="no kernel.", figures={}, queries_per_usd=None) for row in result.costs),
    )
    found = judge_release(bare, constraint)
    assert found.outcome == "undecided"
    assert all("no kernel" in row.says for row in found.conditions[1:])
    single = replace(result, costs=tuple(replace(row, ci95_queries_per_usd=None) for row in result.costs))
    assert "has no interval" in judge_release(single, constraint).conditions[-1].says
    assert judge_release(result, constraint, format="baseline").conditions[0].outcome == "passes"
    many: Any = replace(result, formats=("baseline", "a", "b"))
    with pytest.raises(BitworthError, match="2 quantized formats; name one with --format: a, b"):
        judge_release(many, constraint)


def test_limits_and_devices_are_read() -> None:
    assert parse_limits(["p50:per_output_token=0.02"]) == (LatencyLimit(of="per_output_token", at="p50", most_s=0.02),)
    assert parse_available(["H100=4", "A100=0"]) == {"H100": 4, "A100": 0}
    for text in ("p95:first_token", "first_token=1", "p95:first_token=-1", "p95:first_token=fast", "p95:tokens=1"):
        with pytest.raises(BitworthError, match="--limit"):
            parse_limits([text])
    with pytest.raises(BitworthError, match="--available"):
        parse_available(["H100"])
