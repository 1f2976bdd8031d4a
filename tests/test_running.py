"""A whole study over the tiny model: what is finished is never run again, and what fails takes nothing with it."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitworth import running
from bitworth.assembly import assemble
from bitworth.errors import BitworthError, WorkFailed
from bitworth.execute import Watcher, Work
from bitworth.ledger import Ledger, key_of
from bitworth.planning import plan_cells
from bitworth.study import Study, parse_study
from bitworth.types import Cell


class Here:
    """An executor in this process that counts what it is given; `broken` cells fail."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.titles: list[str] = []
        self._broken = broken

    def run(self, cells: Iterable[Cell], work: Work, root: str, watcher: Watcher) -> None:
        for cell in cells:
            self.titles.append(cell.title)
            if cell.title in self._broken:
                watcher.ended(cell, None, "It was broken on purpose.", 0.0)
            else:
                watcher.ended(cell, work(cell, root, lambda *_: None), None, 1.0)


@pytest.fixture
def study(tiny_study: dict[str, Any]) -> Study:
    return parse_study(tiny_study)


@pytest.fixture(scope="module")
def finished(tiny_study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder in which the tiny study has been run."""
    root = tmp_path_factory.mktemp("finished")
    running.run(parse_study(tiny_study), root, executor=Here())
    return root


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to harm."""
    import shutil

    shutil.copytree(finished, tmp_path / "results")
    return tmp_path / "results"


def again(study: Study, root: Path, **arguments: Any) -> list[str]:
    """Run the study; the titles of the cells that ran."""
    executor = Here(**arguments)
    running.run(study, root, executor=executor)
    return executor.titles


def report_bytes(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in ("report.html", "report.md", "recommendation.json")}


def test_everything_the_study_asks_for_has_a_figure(finished: Path, study: Study) -> None:
    result = assemble(finished)
    assert not result.missing
    assert set(result.checkpoints) == {"w8a8-fp", "w8a8-int-gptq", "w4a16-int-gptq"}
    assert {(row.task, row.format) for row in result.recoveries} == {
        (task, format) for task in ("arc_challenge", "average") for format in result.checkpoints
    }
    assert set(result.divergences) == {"baseline", *result.checkpoints}
    kl = {name: found.kl_nats for name, found in result.divergences.items()}
    assert kl["baseline"] is None
    assert 0 < (kl["w8a8-int-gptq"] or 0) < (kl["w4a16-int-gptq"] or 0)
    assert len(result.costs) == 2 * 4
    assert [(r.use_case.name, r.load) for r in result.recommendations] == [
        ("16/4", "synchronous"),
        ("16/4", "throughput (4 streams)"),
    ]
    assert result.machine["cores"]
    assert (finished / "report.html").stat().st_size > 5000


def test_checkpoints_weigh_what_their_bits_say(finished: Path) -> None:
    made = assemble(finished).checkpoints
    assert made["w4a16-int-gptq"].bits_per_weight < made["w8a8-fp"].bits_per_weight < 16
    for checkpoint in made.values():
        folder = finished / checkpoint.path
        assert (folder / "config.json").is_file()
        assert (folder / "tokenizer.json").is_file()


def test_a_second_run_runs_nothing_and_says_the_same(study: Study, results: Path) -> None:
    before = report_bytes(results)
    assert again(study, results) == []
    assert report_bytes(results) == before


def test_a_changed_constraint_or_price_runs_nothing(tiny_study: dict[str, Any], results: Path) -> None:
    changed = {
        **tiny_study,
        "constraints": {"min_recovery_pct": 99},
        "hardware": [{"name": "local", "usd_per_hour": 9}],
    }
    assert again(parse_study(changed), results) == []
    assert assemble(results).costs[0].usd_per_hour == 9


def test_a_study_with_mixed_calibration(
    tiny_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "cache"))
    asked = {"sources": [{"source": tiny_study["calibration"]["source"], "weight": 2}, "random", "self"]}
    mixed = {
        **{name: tiny_study[name] for name in ("model", "group_size", "engine")},
        "formats": ["baseline", "w8a8-fp", "w8a8-int-gptq"],
        "calibration": {**asked, "samples": 8, "length": 32},
    }
    executor = Here()
    result = running.run(parse_study(mixed), tmp_path / "out", executor=executor)
    assert "quantize w8a8-int-gptq" in executor.titles
    assert result.missing == ()
    audit = result.checkpoints["w8a8-int-gptq"].audit
    assert audit is not None
    shares = [(row.source, row.samples) for row in audit.text.sources]
    assert shares == [("calibration.txt", 4), ("random", 2), ("self", 2)]
    assert len(audit.stages) == 8
    assert result.checkpoints["w8a8-fp"].audit is None
    assert result.settings["calibration"].endswith("calibration.txt (2), random (1), self (1), seed 0")


def test_results_from_before_there_was_an_audit_are_read(results: Path) -> None:
    ledger = Ledger(results)
    for cell in ledger.read_plan():
        found = ledger.get(cell)
        if cell.kind == "quantize" and found is not None:
            ledger.put(cell, {name: value for name, value in found.items() if name != "audit"})
    assert {row.audit for row in assemble(results).checkpoints.values()} == {None}


def test_a_changed_calibration_runs_what_rests_on_it(tiny_study: dict[str, Any], results: Path) -> None:
    changed = {**tiny_study, "calibration": {**tiny_study["calibration"], "seed": 1}}
    titles = again(parse_study(changed), results)
    assert "quantize w4a16-int-gptq" in titles
    assert not [title for title in titles if "w8a8-fp" in title or "baseline" in title]


def test_a_lost_or_damaged_result_is_run_again_and_said(study: Study, results: Path) -> None:
    before = report_bytes(results)
    cells = plan_cells(study)
    lost, damaged = cells[1], next(cell for cell in cells if cell.kind == "quantize")
    ledger = Ledger(results)
    ledger.path(lost).unlink()
    path = ledger.path(damaged)
    path.write_bytes(path.read_bytes()[:-40])
    notes: list[str] = []
    executor = Here()
    running.run(study, results, executor=executor, note=notes.append)
    assert executor.titles == [lost.title, damaged.title]
    assert any("do not match their checksum" in note for note in notes)
    figures = [json.loads(content)["recommendations"] for content in (before["recommendation.json"],)]
    assert [json.loads((results / "recommendation.json").read_bytes())["recommendations"]] == figures


def test_a_checkpoint_that_is_gone_is_made_again_only_when_needed(study: Study, results: Path) -> None:
    cells = plan_cells(study)
    quantized = next(cell for cell in cells if cell.kind == "quantize" and cell.format == "w8a8-fp")
    weights = results / quantized.where["out"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert again(study, results) == []
    asked = next(cell for cell in cells if cell.kind == "evaluate" and cell.format == "w8a8-fp")
    Ledger(results).path(asked).unlink()
    assert again(study, results) == [quantized.title, asked.title]


def test_a_failed_cell_is_named_and_the_rest_goes_on(study: Study, tmp_path: Path) -> None:
    executor = Here(broken=("quantize w8a8-fp",))
    result = running.run(study, tmp_path, executor=executor)
    causes = {row.title: row.cause for row in result.missing}
    assert causes["quantize w8a8-fp"] == "It was broken on purpose."
    assert causes["arc_challenge on w8a8-fp"] == "It was not run: quantize w8a8-fp failed."
    assert "arc_challenge on w8a8-fp" not in executor.titles
    assert {row.format for row in result.recoveries} == {"w8a8-int-gptq", "w4a16-int-gptq"}
    assert all("w8a8-fp" in title for title in again(study, tmp_path))
    assert not assemble(tmp_path).missing


def test_a_format_that_lacks_a_task_gets_no_average(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    from test_tasks import write_jsonl

    data = tmp_path / "data"
    shutil.copytree(tiny_study["data"], data)
    rows = [
        {"sentence": f"The _ sat {i}.", "option1": f"cat {i}", "option2": f"mat {i}", "answer": "12"[i % 2]}
        for i in range(10)
    ]
    write_jsonl(data / "winogrande" / "xl_validation.jsonl", rows)
    tasks = [*tiny_study["tasks"], "winogrande"]
    study = parse_study({**tiny_study, "data": str(data), "tasks": tasks, "divergence": None, "use_cases": []})
    result = running.run(study, tmp_path / "out", executor=Here(broken=("winogrande on w8a8-fp",)))
    averaged = {row.format for row in result.recoveries if row.task == "average"}
    assert averaged == {"w8a8-int-gptq", "w4a16-int-gptq"}


def test_deciding_needs_neither_torch_nor_the_model(results: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom bitworth.assembly import assemble\n"
        "print(len(assemble(Path(sys.argv[1])).recommendations))\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(results)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_plan_and_standing(study: Study, results: Path, tmp_path: Path) -> None:
    assert {row.state for row in running.plan(study, results)} == {"done"}
    rows = running.plan(study, tmp_path / "new")
    assert {row.state for row in rows} == {"to do"}
    kinds = [row.cell.kind for row in rows]
    assert kinds.count("quantize") == 3
    assert kinds[-8:] == ["benchmark"] * 8
    keys = [key_of(row.cell) for row in rows]
    assert len(set(keys)) == len(keys)
    position = {key: index for index, key in enumerate(keys)}
    assert all(position[need] < index for index, row in enumerate(rows) for need in row.cell.needs)
    assert not (tmp_path / "new").exists()


def test_a_url_cannot_serve_a_whole_study(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="which load each format in turn"):
        running.run(parse_study({**tiny_study, "engine": "http://127.0.0.1:1"}), tmp_path)


def test_a_disk_that_fills_up_stops_the_run_and_keeps_what_is_done(
    tiny_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitworth.ledger import folder as module

    study = parse_study({**tiny_study, "formats": ["baseline", "w8a8-fp"]})
    real, count = module.write_atomic, 0

    def fills_up(path: Path, text: str | bytes) -> None:
        nonlocal count
        count += "cells" in path.parts
        if count > 3:
            raise WorkFailed(f"{path} could not be written: the disk is full.")
        real(path, text)

    monkeypatch.setattr(module, "write_atomic", fills_up)
    with pytest.raises(WorkFailed, match="disk is full"):
        running.run(study, tmp_path, executor=Here())
    monkeypatch.undo()
    titles = again(study, tmp_path)
    assert len(titles) == len(plan_cells(study)) - 3


@pytest.mark.slow
def test_killed_at_ten_random_moments_nothing_is_lost_or_done_twice(
    tiny_study: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    """kill -9 of the driver: finished results stay as they are, no half file is taken for one, figures are the same."""
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(yaml.safe_dump(tiny_study))
    command = [sys.executable, "-m", "bitworth", "run", str(study), "--out", str(out), "--quiet", "--json"]
    moments = random.Random(5)
    seen: dict[Path, int] = {}
    for _ in range(10):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(2, 12))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        stamps = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/[!.]*.json")}
        assert stamps.items() >= seen.items()
        assert Ledger(out).damaged() == []
        seen = stamps
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, expected = assemble(out), assemble(finished)
    assert found.recoveries == expected.recoveries
    assert found.divergences == expected.divergences
    assert not list(out.glob("checkpoints/.*"))


def test_recipes_of_a_shared_stream_are_made_in_one_walk(
    tiny_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first cell makes both checkpoints; the second finds its own, and a fault of one is not the other's."""
    from bitworth import quantization

    formats = ["w8a8-int-gptq", "w4a16-int-gptq"]
    raw = {
        **tiny_study,
        "formats": ["baseline", *formats],
        "calibration": {**tiny_study["calibration"], "stream": "shared"},
    }
    walked: list[list[str]] = []
    original = quantization.streams_of

    def counting(builds: Any, **settings: Any) -> Any:
        walked.append([build.recipe.name for build in builds])
        return original(builds, **settings)

    monkeypatch.setattr(quantization, "streams_of", counting)
    executor = Here()
    running.run(parse_study(raw), tmp_path / "out", executor=executor)
    assert walked[0] == formats
    assert walked[1:] in ([], [[]])
    made = [title for title in executor.titles if title.startswith("quantize")]
    assert made == [f"quantize {name}" for name in formats]
    result = assemble(tmp_path / "out")
    assert set(result.checkpoints) >= set(formats)
    assert not result.missing


@pytest.mark.parametrize(
    "result", [{}, {"path": 5, "files": {}}, {"path": "checkpoints/f"}, {"path": "../f", "files": {}}]
)
def test_a_stored_checkpoint_of_another_shape_is_made_again(tmp_path: Path, result: dict[str, Any]) -> None:
    made = Cell(kind="quantize", title="q", format="f", inputs={"a": 1}, where={"out": "checkpoints/f"})
    asked = Cell(kind="evaluate", title="e", format="f", inputs={"b": 1}, needs=(key_of(made),))
    ledger = Ledger(tmp_path)
    ledger.put(made, result)
    (tmp_path / "checkpoints" / "f").mkdir(parents=True)
    (tmp_path / "checkpoints" / "f" / "config.json").write_text("{}")
    assert list(running._unfinished(ledger, (made, asked))) == [key_of(made), key_of(asked)]


def test_cells_that_wait_cost_those_that_do_not_nothing(tmp_path: Path) -> None:
    """Half of ten thousand wait for one that runs: each of the others was looked for behind all of them."""
    made = Cell(kind="quantize", title="q", format="f", inputs={"q": 1})
    waiting = [Cell(kind="judge", title="w", format="f", inputs={"w": at}, needs=(key_of(made),)) for at in range(5000)]
    free = [Cell(kind="judge", title="v", format="f", inputs={"v": at}) for at in range(5000)]
    ledger = Ledger(tmp_path)
    recorder = running._Recorder(ledger, running.Unwatched())
    draws = running._pending(ledger, (made, *waiting, *free), recorder)
    began = time.process_time()
    drawn = [cell for cell in itertools.takewhile(lambda cell: cell is not None, draws) if cell is not None]
    assert drawn == [made, *free]
    assert time.process_time() - began < 2
    recorder.running.discard(key_of(made))
    assert [next(draws) for _ in range(5000)] == waiting
