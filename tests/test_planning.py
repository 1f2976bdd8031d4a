from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bitworth.cells import calibration_of, workload_of
from bitworth.errors import BitworthError
from bitworth.estimate import Rates, estimates, probe, size_of
from bitworth.ledger import key_of
from bitworth.planning import plan_cells
from bitworth.study import parse_study
from bitworth.types import Calibration, CalibrationSource, Cell
from bitworth.work import work


def keys(study: dict[str, Any], **changes: Any) -> dict[str, str]:
    return {cell.title: key_of(cell) for cell in plan_cells(parse_study({**study, **changes}))}


def test_each_formats_cells_lie_together_and_timings_come_last(tiny_study: dict[str, Any]) -> None:
    cells = plan_cells(parse_study(tiny_study))
    order = [(cell.format, cell.kind) for cell in cells if cell.kind != "benchmark"]
    assert order[:2] == [("baseline", "evaluate"), ("baseline", "diverge")]
    assert order[2:5] == [("w8a8-fp", kind) for kind in ("quantize", "evaluate", "diverge")]
    assert {cell.kind for cell in cells[-8:]} == {"benchmark"}


def test_moving_model_and_data_changes_no_key(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    for name in ("model", "data"):
        shutil.copytree(str(tiny_study[name]), tmp_path / name)
    assert keys(tiny_study, model=str(tmp_path / "model"), data=str(tmp_path / "data")) == keys(tiny_study)


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"constraints": {"min_recovery_pct": 10}}, ()),
        ({"hardware": [{"name": "local", "usd_per_hour": 3}]}, ()),
        ({"tasks": [{"name": "arc_challenge", "limit": 20, "seed": 1}]}, ("arc_challenge",)),
        ({"requests": 5}, ("16/4",)),
        ({"divergence": None}, ()),
        ({"group_size": 64}, ("w4a16-int-gptq",)),
        ({"devices": 2}, ()),
        ({"device": "cpu"}, ("arc_challenge", "divergence", "perplexity", "w8a8", "w4a16")),
    ],
)
def test_a_change_touches_what_rests_on_it(
    tiny_study: dict[str, Any], change: dict[str, Any], touched: tuple[str, ...]
) -> None:
    before, after = keys(tiny_study), keys(tiny_study, **change)
    changed = {title for title in after if after[title] != before[title]}
    assert changed == {title for title in after if any(part in title for part in touched)}


def test_new_calibration_text_makes_new_checkpoints(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text("quite another text " * 200)
    before = keys(tiny_study)
    after = keys(tiny_study, calibration={**tiny_study["calibration"], "source": str(text)})
    assert {title for title in after if after[title] == before[title]} == {
        title for title in before if "gptq" not in title
    }


def with_calibration(study: dict[str, Any], **changes: Any) -> dict[str, str]:
    wanted = {name: value for name, value in study["calibration"].items() if name != "source"}
    found = keys(study, calibration={**wanted, **changes})
    return {title: key for title, key in found.items() if title.startswith("quantize")}


def test_all_that_changes_calibration_tokens_changes_the_key(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    text = Path(tiny_study["calibration"]["source"])
    renamed, lines = tmp_path / "renamed.txt", tmp_path / "text.jsonl"
    shutil.copy(text, renamed)
    shutil.copy(text, lines)
    mix = [{"source": str(text), "weight": 2}, {"source": "random"}]
    first = with_calibration(tiny_study, sources=mix)
    assert with_calibration(tiny_study, sources=[{"source": str(renamed), "weight": 2}, "random"]) == first
    others = [
        with_calibration(tiny_study, sources=mix[::-1]),
        with_calibration(tiny_study, sources=[{**mix[0], "weight": 3}, mix[1]]),
        with_calibration(tiny_study, sources=[mix[0], "self"]),
        with_calibration(tiny_study, sources=[{"source": str(lines), "weight": 2}, "random"]),
        with_calibration(tiny_study, sources=mix, bos="always"),
        with_calibration(tiny_study, sources=mix, chat_template="always"),
        with_calibration(tiny_study, sources=mix, seed=1),
        with_calibration(tiny_study, source=str(text)),
    ]
    for title in ("quantize w8a8-int-gptq", "quantize w4a16-int-gptq"):
        assert len({first[title], *(other[title] for other in others)}) == 1 + len(others)
    assert {other["quantize w8a8-fp"] for other in others} == {first["quantize w8a8-fp"]}


def test_a_hub_datasets_revision_and_rows_are_in_the_key(
    tiny_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "one"))
    rows = [{"text": "some rows"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(rows))
    title = "quantize w8a8-int-gptq"
    first = with_calibration(tiny_study, source="hub:org/name@v1")[title]
    assert with_calibration(tiny_study, source="hub:org/name@v2")[title] != first
    rows = [{"text": "other rows"}]
    assert with_calibration(tiny_study, source="hub:org/name@v1")[title] == first  # it is in the cache
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "other"))
    assert with_calibration(tiny_study, source="hub:org/name@v1")[title] != first


def test_a_cell_gives_its_calibration_back(tiny_study: dict[str, Any]) -> None:
    text = tiny_study["calibration"]["source"]
    asked = {"sources": [{"source": text, "weight": 2}, "self"], "samples": 9, "length": 32, "bos": "never"}
    cells = plan_cells(parse_study({**tiny_study, "calibration": asked}))
    [cell] = [cell for cell in cells if cell.title == "quantize w8a8-int-gptq"]
    assert calibration_of(cell) == Calibration(
        sources=(
            CalibrationSource(source=text, weight=2.0, name="calibration.txt"),
            CalibrationSource(source="self", name="self"),
        ),
        samples=9,
        length=32,
        bos="never",
    )
    [free] = [cell for cell in cells if cell.title == "quantize w8a8-fp"]
    assert calibration_of(free) is None


def test_sources_that_are_missing_are_named(tiny_study: dict[str, Any]) -> None:
    with pytest.raises(BitworthError, match="calibration text"):
        keys(tiny_study, calibration={"source": "/no/such/text"})
    with pytest.raises(BitworthError, match="divergence text"):
        keys(tiny_study, divergence={"text": "/no/such/text"})
    with pytest.raises(BitworthError, match="data folder"):
        keys(tiny_study, data="/no/such/data")


# --- estimates ----------------------------------------------------------------------------------------------------


def test_sizes_from_shapes(tiny_llama: Path) -> None:
    """Two layers of 64: q and o 64×64, k and v 32×64, gate and up 128×64, down 64×128; vocabulary 259."""
    size = size_of(tiny_llama)
    assert size.linear == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 2 * 128 * 64 + 64 * 128)
    assert size.head == 259 * 64
    assert size.used_squares == 2 * (6 * 64**2 + 128**2)


@pytest.mark.slow(beside=True)
def test_more_work_is_estimated_longer(tiny_study: dict[str, Any]) -> None:
    def total(kind: str, **changes: Any) -> float:
        cells = plan_cells(parse_study({**tiny_study, **changes}))
        found = estimates(cells)
        return sum(found[key_of(cell)].seconds for cell in cells if cell.kind == kind)

    assert total("evaluate", tasks=["arc_challenge"]) > total("evaluate")
    assert total("benchmark", use_cases=["400/400"]) > total("benchmark")
    assert total("diverge", divergence={**tiny_study["divergence"], "windows": None}) > total("diverge")


@pytest.mark.slow(beside=True)
def test_disk_is_estimated_to_a_tenth(tiny_study: dict[str, Any], tmp_path: Path) -> None:

    for cell in [cell for cell in plan_cells(parse_study(tiny_study)) if cell.kind == "quantize"]:
        made: dict[str, int] = work(cell, str(tmp_path), lambda *_: None)["files"]
        left = [_estimate(cell), sum(made.values())]
        assert left[0] == pytest.approx(left[1], rel=0.1)


def _estimate(cell: Cell) -> int:
    return estimates([cell])[key_of(cell)].bytes


def test_the_probe_measures_something() -> None:
    rates = probe(0.02)
    assert isinstance(rates, Rates)
    assert rates.operations > 1e8
    assert rates.bytes > 1e8


def test_writing_its_own_calibration_text_takes_longer(tiny_study: dict[str, Any]) -> None:
    def cell(*names: str) -> Cell:
        asked = {"sources": list(names), "samples": 256, "length": 512}
        cells = plan_cells(parse_study({**tiny_study, "calibration": asked}))
        return next(cell for cell in cells if cell.title == "quantize w8a8-int-gptq")

    cells = [cell("random"), cell("random", "self"), cell("self")]
    found = estimates(cells)  # at once: each call measures the machine anew
    none, half, whole = (found[key_of(cell)].seconds for cell in cells)
    assert none < half < whole
    assert whole - half == pytest.approx(half - none, rel=1e-6)


def written(path: Path, *requests: tuple[float, int, int]) -> Path:
    rows = ({"time_s": at, "prompt_tokens": prompt, "output_tokens": output} for at, prompt, output in requests)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def timed_cells(study: dict[str, Any], **changes: Any) -> list[Cell]:
    asked = {**study, "formats": ["baseline"], "tasks": [], "divergence": None, **changes}
    return list(plan_cells(parse_study(asked)))


def test_mixes_and_traces_are_read_back_from_their_cells(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    day = {"name": "day", "trace": str(written(tmp_path / "day.jsonl", (0, 16, 4), (1, 8, 2)))}
    use_cases = ["16/4", {"name": "office", "mix": {"16/4": 2, "8/2": 1}}, day]
    study = {**tiny_study, "use_cases": use_cases}
    plain, _, office, _, trace = timed_cells(study)
    workloads = parse_study(study).workload_values()
    assert [workload_of(cell) for cell in (plain, office, trace)] == workloads
    # A trace has its own times: the study's loads do not apply to it.
    assert trace.inputs["load"]["kind"] == "trace"
    assert [cell.title for cell in (office, trace)] == ["office, synchronous, baseline", "day, trace, baseline"]
    # Neither changes the key of what was measured before there were mixes and traces.
    assert set(plain.inputs) == {"checkpoint", "use_case", "load", "engine", "requests", "machine", "versions"}
    assert set(plain.inputs["load"]) == {"kind", "rate", "streams"}


def test_a_timing_without_its_ramp_is_made_again(tiny_study: dict[str, Any]) -> None:
    """Single use cases were once timed without the tenth that comes first, loops without whole rounds of it."""
    loads = ["synchronous", "throughput", {"kind": "poisson", "rate": 5}, {"kind": "sweep", "max_latency_s": 1}]
    study = {**tiny_study, "use_cases": ["16/4", {"name": "office", "mix": {"16/4": 2, "8/2": 1}}], "loads": loads}
    loops = {("16/4", "throughput"), ("office", "throughput")}
    for engine, with_ramp in (("vllm", {*loops, ("16/4", "poisson")}), ("torch", set())):
        cells = timed_cells({**study, "engine": engine})
        found = {(cell.inputs["use_case"]["name"], cell.inputs["load"]["kind"]): cell.inputs for cell in cells}
        assert {name for name, inputs in found.items() if "ramp" in inputs} == with_ramp


def test_loads_have_requests_of_their_own_and_few_batches_are_told(tiny_study: dict[str, Any]) -> None:
    many = {"kind": "throughput", "streams": 16, "requests": 80}
    study = {**tiny_study, "use_cases": ["16/4"], "loads": ["synchronous", many], "requests": 5}
    assert [cell.inputs["requests"] for cell in timed_cells(study)] == [5, 80]
    told: list[str] = []
    plan_cells(parse_study(study), note=told.append)
    assert told == []
    plan_cells(parse_study({**study, "loads": ["synchronous", {**many, "requests": 40}]}), note=told.append)
    assert told == [
        "throughput (16 streams): 40 requests in 16 streams are 2 batches, so costs have wide intervals; 80 requests "
        "would do"
    ]


def test_a_trace_counts_by_what_it_holds(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    def cell(path: Path) -> Cell:
        (found,) = timed_cells(tiny_study, use_cases=[{"name": "day", "trace": str(path)}])
        return found

    first = cell(written(tmp_path / "a.jsonl", (0, 16, 4)))
    assert key_of(cell(written(tmp_path / "b.jsonl", (0, 16, 4)))) == key_of(first)
    assert key_of(cell(written(tmp_path / "c.jsonl", (0, 16, 5)))) != key_of(first)
    written(tmp_path / "a.jsonl", (0, 16, 5))
    with pytest.raises(BitworthError, match="has changed since the study was planned"):
        workload_of(first)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(BitworthError, match="cannot be read"):
        workload_of(first)


def test_a_mix_counts_by_its_weights(tiny_study: dict[str, Any]) -> None:
    def key(**mix: float) -> str:
        return key_of(timed_cells(tiny_study, use_cases=[{"name": "x", "mix": mix}])[0])

    assert key(rag=1, docstring=1) != key(rag=1, docstring=1.001)


@pytest.mark.parametrize(
    ("use_case", "load"),
    [
        ({"name": "office", "mix": {"16/4": 2, "8/2": 1}}, {"kind": "poisson", "rate": 5}),
        ("16/4", {"kind": "sweep", "max_latency_s": 0.1, "percentile": 50}),
        ({"name": "day", "trace": "day.jsonl"}, "synchronous"),
    ],
)
def test_such_cells_run_and_are_priced(tiny_study: dict[str, Any], tmp_path: Path, use_case: Any, load: Any) -> None:
    from bitworth.assembly import costs_of

    trace = written(tmp_path / "day.jsonl", *((n / 10, 16, 4) for n in range(12)))
    if isinstance(use_case, dict) and "trace" in use_case:
        use_case = {**use_case, "trace": str(trace)}
    study = {**tiny_study, "use_cases": [use_case], "loads": [load], "requests": 12}
    (cell,) = timed_cells(study)
    result = json.loads(json.dumps(work(cell, str(tmp_path), lambda *_: None)))
    (cost,) = costs_of([(cell, result)], parse_study(study).hardware_values())
    assert cost.unsupported is None
    assert cost.requests >= 12
    assert cost.queries_per_usd is not None
    assert cost.load.startswith(("poisson@5", "sweep (p50 of latency <= 0.1 s)", "trace"))


def test_timings_are_planned_for_each_machine(tiny_study: dict[str, Any]) -> None:
    study = parse_study(tiny_study)
    places = [{"processor": "x", "hardware": "1 x A100"}, {"processor": "x", "hardware": "2 x A100"}]
    cells = plan_cells(study, machines=places)
    timings = [cell for cell in cells if cell.kind == "benchmark"]
    assert len(timings) == 2 * 8
    assert len({key_of(cell) for cell in timings}) == 2 * 8
    assert {cell.title.rpartition(" on ")[2] for cell in timings} == {"1 x A100", "2 x A100"}
    here = [key_of(cell) for cell in plan_cells(study) if cell.kind != "benchmark"]
    assert [key_of(cell) for cell in cells if cell.kind != "benchmark"] == here
