"""GuideLLM's reports against what they say themselves, its command through a stand-in, and the real one where it is."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_http import served

from bitworth.engines.fake import FakeServer
from bitworth.engines.guidellm import GuideLlm, read_report
from bitworth.errors import BitworthError, Unsupported, WorkFailed
from bitworth.load.metrics import metrics_of
from bitworth.types import EngineFacts, Load, UseCase

FACTS = EngineFacts(engine="http://x/v1", kernel="k", device="d")
SHAPE = UseCase(name="8/4", prompt_tokens=8, output_tokens=4)
CONSTANT = Load(kind="constant", rate=20.0)
REAL = Path(__file__).resolve().parents[1] / ".venv-peers" / "guidellm" / "bin" / "guidellm"


def row(at: float, first: float | None, last: float | None, *, error: str | None = None, due: float = 0) -> Any:
    """A request as version 0.8 writes it, as far as it is read."""
    timings = {
        "targeted_start": 1000 + due,
        "request_start": 1000 + at,
        "first_token_iteration": None if first is None else 1000 + first,
        "last_token_iteration": None if last is None else 1000 + last,
        "request_end": None if last is None else 1000 + last + 0.001,
        "resolve_end": 1000 + at + 9,
    }
    counts = {"prompt_tokens": 8, "output_tokens": None if error else 4}
    return {"info": {"timings": timings, "error": error}, **counts}


def report(*successful: Any, errored: Any = (), strategy: Any = None) -> dict[str, Any]:
    requests = {"successful": list(successful), "errored": list(errored), "incomplete": [row(7, None, None)]}
    return {
        "metadata": {"guidellm_version": "0.8.1"},
        "benchmarks": [{"config": {"strategy": strategy or {"type_": "synchronous"}}, "requests": requests}],
    }


def written(folder: Path, document: object) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps(document))
    return path


def test_requests_become_timings_in_order_of_their_start(tmp_path: Path) -> None:
    document = report(
        row(2.0, 2.1, 2.4, due=1.9),
        row(1.0, 1.2, 1.5, due=1.0),
        errored=[row(1.5, None, None, error="ConnectError('gone')")],
        strategy={"type_": "poisson", "rate": 3.0},
    )
    (run,) = read_report(written(tmp_path, document))
    assert (run.load, run.version) == ("poisson@3", "0.8.1")
    first, broken, last = run.timings
    assert [t.start_s for t in run.timings] == pytest.approx([0, 0.5, 1.0])
    assert (first.first_token_s, first.end_s, first.due_s) == pytest.approx((0.2, 0.5, 0.0))
    assert (last.first_token_s, last.end_s, last.due_s) == pytest.approx((1.1, 1.4, 0.9))
    assert (broken.error, broken.output_tokens) == ("ConnectError('gone')", 0)
    found = metrics_of(run.timings)
    assert (found.requests, found.failed) == (2, 1)
    assert found.latency.mean_s == pytest.approx(0.45)
    assert found.inter_token is None
    assert found.per_output_token is not None
    assert found.per_output_token.mean_s == pytest.approx((0.1 + 0.1) / 2)


@pytest.mark.parametrize(
    ("strategy", "name", "timed"),
    [
        ({"type_": "synchronous"}, "synchronous", False),
        ({"type_": "concurrent", "streams": 4}, "throughput (4 streams)", False),
        ({"type_": "constant", "rate": 2.5}, "constant@2.5", True),
        ({"type_": "throughput"}, "throughput", False),
    ],
)
def test_loads_have_our_names(tmp_path: Path, strategy: dict[str, Any], name: str, timed: bool) -> None:
    (run,) = read_report(written(tmp_path, report(row(0, 0.1, 0.2), strategy=strategy)))
    assert run.load == name
    assert (run.timings[0].due_s is not None) == timed


@pytest.mark.parametrize("document", [{}, [], {"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": [{}]}, 3])
def test_other_documents_are_refused(tmp_path: Path, document: object) -> None:
    with pytest.raises(BitworthError, match="is not a JSON report of GuideLLM"):
        read_report(written(tmp_path, document))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="cannot be read: No such file"):
        read_report(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"metadata": ')
    with pytest.raises(BitworthError, match="is not a JSON report"):
        read_report(tmp_path / "cut.json")


def stand_in(folder: Path, body: str) -> str:
    """A program that does `body`, with `arguments` and the report's `path` in its hands."""
    program = folder / "guidellm"
    head = "import json, os, subprocess, sys, time\narguments = sys.argv[1:]\n"
    path = "path = [a.partition('path=')[2] for a in arguments if 'path=' in a][0]\n"
    program.write_text(f"#!{sys.executable}\n{head}{path}{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def guide(command: str) -> GuideLlm:
    return GuideLlm("http://127.0.0.1:9/v1", "m", Path("folder"), FACTS, command, silent_s=5.0)


def test_it_is_asked_for_the_same_load(tmp_path: Path) -> None:
    document = report(row(0, 0.1, 0.2))
    body = f"json.dump({document!r}, open(path, 'w')); json.dump(arguments, open({str(tmp_path / 'asked')!r}, 'w'))"
    driver = guide(stand_in(tmp_path, body))
    (timing,) = driver.drive(SHAPE, CONSTANT, 40, 3)
    assert timing.latency_s == pytest.approx(0.2)
    asked = " ".join(json.loads((tmp_path / "asked").read_text()))
    for part in (
        "target=http://127.0.0.1:9,model=m,timeout=5,",
        "prompt_tokens=8,output_tokens=4",
        "kind=constant,rate=20",
        "kind=max_requests,count=40",
        "kind=max_errors,count=5",
        "kind=static,value=3",
    ):
        assert part in asked
    assert driver.facts is FACTS
    guide(stand_in(tmp_path, body)).drive(SHAPE, Load(kind="throughput", streams=6), 4, 0)
    assert "kind=concurrent,streams=6" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print('first'); print('no such server.'); sys.exit(3)", "stopped with status 3: no such server.$"),
        ("sys.exit(1)", "stopped with status 1: it says nothing.$"),
        (
            "print('successful=0 errored=2'); print('successful=1 errored=3 incomplete=0'); print('no'); sys.exit(1)",
            r"stopped with status 1: no \(1 requests had succeeded, 3 failed\)\.$",
        ),
        ("pass", "finished without a report"),
        ("os.kill(os.getpid(), 9)", "stopped with status -9"),
    ],
)
def test_a_run_that_fails_says_why(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(WorkFailed, match=said):
        guide(stand_in(tmp_path, body)).drive(SHAPE, CONSTANT, 4, 0)


def test_what_it_leaves_behind_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = f"child = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(child.pid)); sys.exit(1)"
    with pytest.raises(WorkFailed):
        guide(stand_in(tmp_path, child)).drive(SHAPE, CONSTANT, 4, 0)
    assert ended(int(note.read_text()))


def ended(pid: int) -> bool:
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_a_key_is_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    body = f"open({str(tmp_path / 'environment')!r}, 'w').write(repr(dict(os.environ))); sys.exit(1)"
    with pytest.raises(WorkFailed):
        guide(stand_in(tmp_path, body)).drive(SHAPE, CONSTANT, 4, 0)
    assert "sk-secret" not in (tmp_path / "environment").read_text()


def test_what_it_is_not_asked_for() -> None:
    with pytest.raises(BitworthError, match="no program 'no-such-guidellm'"):
        guide("no-such-guidellm")
    with pytest.raises(Unsupported, match="not driven through a sweep load"):
        guide(sys.executable).drive(SHAPE, Load(kind="sweep"), 4, 0)


@pytest.mark.slow
@pytest.mark.parametrize("load", [Load(kind="synchronous"), Load(kind="throughput", streams=2), CONSTANT])
def test_the_real_one_agrees_with_itself(tiny_llama: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    command = os.environ.get("BITWORTH_GUIDELLM", str(REAL))
    if not Path(command).is_file():
        pytest.skip(f"needs GuideLLM at {REAL} (make peers)")
    kept: list[Any] = []
    module = sys.modules[GuideLlm.__module__]

    def keep(path: Path) -> Any:
        kept.append(json.loads(path.read_text()))
        return read_report(path)

    monkeypatch.setattr(module, "read_report", keep)
    with served(FakeServer(first_s=0.05, token_s=0.01)) as url:
        timings = GuideLlm(url, "fake", tiny_llama, FACTS, command, 30.0).drive(SHAPE, load, 20, 0)
    assert [timing.error for timing in timings] == [None] * 20
    rows = sorted(kept[0]["benchmarks"][0]["requests"]["successful"], key=lambda found: found["request_start_time"])
    for timing, found in zip(timings, rows, strict=True):
        assert timing.first_token_s is not None
        assert 1000 * (timing.first_token_s - timing.start_s) == pytest.approx(
            found["time_to_first_token_ms"], abs=1e-3
        )
        per_token = 1000 * (timing.end_s - timing.first_token_s) / 3
        assert per_token == pytest.approx(found["inter_token_latency_ms"], abs=1e-3)
        assert timing.latency_s <= found["request_latency"] + 1e-6
        assert timing.output_tokens == found["output_tokens"] == 4
    assert min(timing.latency_s for timing in timings) > 0.079
