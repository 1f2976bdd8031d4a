from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bitworth.errors import BitworthError
from bitworth.recipes import recipe as recipe_named
from bitworth.schemes import FP8_CACHE
from bitworth.study import load_study, parse_study
from bitworth.types import Awq, Calibration, CalibrationSource, Clip, Gptq, GptqScale, Limits, Load

EIGHT = {"kind": "throughput", "streams": 8}
MINIMAL: dict[str, Any] = {"model": "demo:smollm2", "formats": ["baseline", "w8a8-fp"]}


def test_names_become_objects() -> None:
    study = parse_study(
        {
            **MINIMAL,
            "formats": [
                "baseline",
                "w8a8-fp",
                {"name": "mine", "base": "w4a16-int-gptq", "clip": "mse", "damping": 0.1},
                {"name": "small-cache", "base": "nvfp4-gptq+kv-fp8", "clip": "none"},
                "w8a8-fp+kv-fp8",
            ],
            "group_size": 64,
            "tasks": ["arc_challenge", {"name": "mmlu", "limit": 10}],
            "use_cases": [{"name": "rag", "scale": 0.1}, "512/64"],
            "loads": ["synchronous", {"kind": "throughput", "streams": 4}],
            "hardware": [{"name": "local", "usd_per_hour": 0.2}, {"name": "H100", "count": 2}],
            "constraints": {"min_recovery_pct": 98},
        }
    )
    recipes = study.recipes()
    assert recipes["baseline"] is None
    mine = recipes["mine"]
    assert mine is not None
    assert isinstance(mine.rounding, Gptq)
    assert (mine.rounding.damping, mine.rounding.clip) == (0.1, Clip())
    assert mine.scheme.weight is not None
    assert mine.scheme.weight.group_size == 64
    small = recipes["small-cache"]
    assert small is not None
    assert (small.scheme.name, small.scheme.kv_cache) == ("nvfp4", FP8_CACHE)
    assert isinstance(small.rounding, Gptq)
    assert small.rounding.clip is None
    assert recipes["w8a8-fp+kv-fp8"] == recipe_named("w8a8-fp+kv-fp8")
    assert [task.limit for task in study.task_specs()] == [None, 10]
    rag, other = (workload.use_case for workload in study.workload_values())
    assert (rag.prompt_tokens, rag.output_tokens, rag.scale) == (103, 13, 0.1)
    assert (other.prompt_tokens, other.output_tokens) == (512, 64)
    assert [load.name for load, _ in study.timed_loads()] == ["synchronous", "throughput (4 streams)"]
    local, h100 = study.hardware_values()
    assert (local.usd_per_hour, local.price_source) == (0.2, "the study file")
    assert (h100.count, h100.usd_per_hour) == (2, 6.38)
    assert study.constraint().min_recovery_pct == 98


def test_a_recipes_steps_are_changed_by_name() -> None:
    changes = {"damping": 0.2, "ordering": "none", "sweeps": 0}
    formats = [
        "baseline",
        {"name": "mine", "base": "w4a16-int-gptq-scaled", **changes},
        {"name": "quick", "base": "w4a16-int-awq", "awq_steps": 3},
        {"name": "long", "base": "w4a16-int-gptq-tuned", "tuning_steps": 200},
    ]
    made = parse_study({**MINIMAL, "formats": formats}).recipes()
    preset, awq = recipe_named("w4a16-int-gptq-scaled"), recipe_named("w4a16-int-awq")
    assert isinstance(preset.rounding, Gptq)
    rounding = replace(preset.rounding, damping=0.2, ordering="none", sweeps=0)
    assert made["mine"] == replace(preset, name="mine", rounding=rounding, transforms=(GptqScale(damping=0.2),))
    assert made["quick"] == replace(awq, name="quick", transforms=(Awq(steps=3),))
    tuned = recipe_named("w4a16-int-gptq-tuned")
    assert tuned.tuning is not None
    assert made["long"] == replace(tuned, name="long", tuning=replace(tuned.tuning, steps=200))


def test_calibration_sources() -> None:
    assert parse_study(MINIMAL).calibration_spec().mix == (CalibrationSource(source="demo:calibration"),)
    single = parse_study({**MINIMAL, "calibration": {"source": "chat.jsonl", "samples": 256}}).calibration_spec()
    assert (single.mix, single.samples) == ((CalibrationSource(source="chat.jsonl"),), 256)
    asked = {"sources": [{"source": "chat.jsonl", "weight": 2}, "random"], "samples": 9, "seed": 3, "bos": "never"}
    study = parse_study({**MINIMAL, "calibration": asked})
    assert study.calibration_spec() == Calibration(
        sources=(CalibrationSource(source="chat.jsonl", weight=2.0), CalibrationSource(source="random")),
        samples=9,
        length=512,
        seed=3,
        bos="never",
    )
    assert study.calibration.words() == "chat.jsonl (2), random (1)"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"source": "a", "sources": ["b"]}, "calibration: give `source` or `sources`, not both"),
        ({"sources": ["b", {"source": "b", "weight": 2}]}, "source `b` is listed twice"),
        ({"sources": [{"source": "b", "wieght": 2}]}, "unknown key 'wieght'; did you mean 'weight'?"),
        ({"sources": [{"source": "b", "weight": 0}]}, r"calibration\.sources\.0\.weight: .*greater than 0"),
        ({"sources": [{"source": "b", "weight": float("inf")}]}, "finite"),
        ({"source": "a", "chat_template": "perhaps"}, r"calibration\.chat_template: .*'auto', 'always' or 'never'"),
    ],
)
def test_calibration_that_makes_no_sense(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(BitworthError, match=said):
        parse_study({**MINIMAL, "calibration": asked})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modle": "x"}, "unknown key 'modle'; did you mean 'model'?"),
        (
            {"formats": ["baseline", "w4a16-int-gtpq"]},
            "unknown format 'w4a16-int-gtpq'; did you mean 'w4a16-int-gptq'?",
        ),
        ({"formats": ["baseline", "w8a8-fp+kv-int8"]}, "unknown format 'w8a8-fp+kv-int8'; did you mean 'w8a8-fp'?"),
        ({"formats": ["w8a8-fp"]}, "formats must include `baseline`"),
        ({"formats": []}, "formats: "),
        ({"formats": ["baseline", "w8a8-fp", "w8a8-fp"]}, "listed twice"),
        ({"tasks": ["arc_chalenge"]}, "did you mean 'arc_challenge'?"),
        ({"tasks": [{"name": "mmlu", "limt": 3}]}, "unknown key 'limt'; did you mean 'limit'?"),
        ({"tasks": [{"name": "mmlu", "limit": 0}]}, "tasks.0.limit: input should be greater than 0, got 0"),
        ({"tasks": [{"name": "mmlu", "samples": 5}]}, "Task mmlu scores given answers"),
        ({"tasks": [{"limit": 4}]}, "tasks.0.name: this key is required"),
        ({"use_cases": ["ragg"]}, "did you mean 'rag'?"),
        ({"use_cases": [{"name": "rag", "scale": "big"}]}, "use_cases.0.scale"),
        ({"loads": ["poisson"]}, "needs a rate"),
        ({"loads": [{"kind": "synchronous", "rate": 2}]}, "takes no rate"),
        ({"loads": ["busy"]}, "loads.0.kind"),
        ({"loads": ["throughput", "throughput"]}, "load `throughput` is listed twice"),
        ({"loads": [EIGHT, {**EIGHT, "requests": 80}]}, "load `throughput (8 streams)` is listed twice"),
        (
            {"loads": [{"kind": "synchronous", "streams": 8}]},
            "load `synchronous` takes no streams; requests at once are those of `throughput`",
        ),
        ({"constraints": {"min_recovery_pct": 0.99}}, "constraints.min_recovery_pct: input should be greater than"),
        ({"constraints": {"confidence_pct": 0.95}}, "constraints.confidence_pct: input should be greater than"),
        ({"hardware": ["H100"], "constraints": {"available": {"h100": 4}}}, "did you mean 'H100'?"),
        ({"hardware": ["h100"]}, "did you mean 'H100'?"),
        ({"constraints": {"min_recovery": 99}}, "did you mean 'min_recovery_pct'?"),
        ({"group_size": -1}, "group_size: input should be greater than 0, got -1"),
        (
            {"formats": ["baseline", {"name": "mine", "base": "w8a8-fp", "damping": 0.1}]},
            "`damping` is a setting of GPTQ, and w8a8-fp rounds without it",
        ),
        (
            {"formats": ["baseline", {"name": "mine", "base": "w4a16-int-gptq", "tuning_steps": 5}]},
            "`tuning_steps` is a setting of recipes that learn on, and w4a16-int-gptq stays as it is rounded",
        ),
        (
            {"formats": ["baseline", {"name": "mine", "base": "w8a8-int-paper-8b", "awq_steps": 5}]},
            "`awq_steps` is a setting of AWQ, and w8a8-int-paper-8b scales nothing by it",
        ),
        (
            {"formats": ["baseline", {"name": "mine", "base": "w4a16-int-rtn", "clip": "mse-hessian"}]},
            "clip `mse-hessian` weighs errors by calibration data, and w4a16-int-rtn sees none; take `mse`",
        ),
        ({"formats": [{"name": "baseline", "base": "w8a8-fp"}]}, "`baseline` is the model as it came"),
        ({"formats": ["baseline", {"name": "x", "base": "baseline"}]}, "`baseline` is the model as it came"),
        ({"model": 5}, "model: input should be a valid string, got 5"),
        ({"device": "gpu"}, "device: string should match pattern"),
        ({"device": "cuda:1", "devices": 2}, "devices: 2 and device: cuda:1 exclude each other; name the kind alone"),
    ],
)
def test_each_mistake_is_one_sentence_that_says_what_would_be_right(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BitworthError) as caught:
        parse_study({**MINIMAL, **change})
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert "http" not in message


def test_every_mistake_is_counted() -> None:
    with pytest.raises(BitworthError, match=r"\(1 more after this one\)"):
        parse_study({**MINIMAL, "nonsense": 1, "group_size": 0})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [unclosed", "not valid YAML at line"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("model: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_files_that_are_no_study(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(BitworthError, match=said):
        load_study(path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="cannot be read: No such file"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(BitworthError, match="not UTF-8"):
        load_study(tmp_path / "binary.yaml")


def test_a_study_reads_back_from_its_own_dump() -> None:
    formats = ["baseline", {"name": "mine", "base": "w4a16-int-awq", "clip": "none", "awq_steps": 5}]
    study = parse_study({**MINIMAL, "formats": formats, "tasks": ["mmlu"], "divergence": {"window": 64}})
    assert parse_study(study.model_dump(mode="json")) == study


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "studies").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    assert load_study(path).recipes()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(
    ["model", "formats", "tasks", "loads", "hardware", "use_cases", "constraints", "name"]
) | st.text(max_size=6)
TREES = st.recursive(SCALARS, lambda i: st.lists(i, max_size=3) | st.dictionaries(KEYS, i, max_size=4), max_leaves=10)


@given(st.dictionaries(KEYS, TREES, max_size=5))
def test_no_study_whatever_it_holds_ends_in_a_traceback(raw: dict[str, Any]) -> None:
    text = yaml.safe_dump({**MINIMAL, **raw})
    said = ""
    try:
        parse_study(yaml.safe_load(text))
    except BitworthError as error:
        said = str(error)
    assert "\n" not in said


def test_mixes_traces_and_sweeps_become_objects(tmp_path: Path) -> None:
    trace = tmp_path / "day.jsonl"
    trace.write_text('{"time_s": 3, "prompt_tokens": 5, "output_tokens": 2}\n')
    mix = {"name": "office", "mix": {"rag": 2, "512/64": 1}, "scale": 0.5}
    sweep = {"kind": "sweep", "max_first_token_s": 0.5, "percentile": 99}
    study = parse_study({**MINIMAL, "use_cases": [mix, {"name": "day", "trace": str(trace)}], "loads": [sweep]})
    office, day = study.workload_values()
    assert [(case.prompt_tokens, weight) for case, weight in office.parts] == [(512, 2.0), (256, 1.0)]
    assert (office.name, day.name, day.trace[0].prompt_tokens, day.trace[0].at_s) == ("office", "day", 5, 0.0)
    assert [load for load, _ in study.timed_loads()] == [
        Load(kind="sweep", limits=Limits(max_first_token_s=0.5, percentile=99))
    ]
    assert parse_study(study.model_dump(mode="json")) == study


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_cases": [{"name": "x", "mix": {"ragg": 1}}]}, "did you mean 'rag'"),
        ({"use_cases": [{"name": "x", "mix": {"rag": 0}}]}, "greater than 0"),
        ({"use_cases": [{"name": "x", "mix": {}}]}, "at least 1"),
        ({"use_cases": [{"name": "x", "trace": "t", "mix": {"rag": 1}}]}, "neither `mix` nor `scale`"),
        ({"use_cases": [{"name": "x", "trace": "t", "scale": 0.5}]}, "neither `mix` nor `scale`"),
        ({"loads": ["sweep"]}, "`sweep` needs a limit"),
        ({"loads": [{"kind": "synchronous", "max_latency_s": 1}]}, "takes no limits"),
        ({"loads": [{"kind": "sweep", "max_latency_s": 0}]}, "greater than 0"),
        ({"loads": [{"kind": "sweep", "max_latency_s": 1, "rate": 2}]}, "takes no rate"),
    ],
)
def test_workloads_that_make_no_sense(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BitworthError, match=said):
        parse_study({**MINIMAL, **change})


def test_limits_traffic_and_devices_of_a_study() -> None:
    raw = {
        "model": "m",
        "formats": ["baseline"],
        "use_cases": ["rag"],
        "traffic": {"rag": 0.5},
        "constraints": {
            "limits": [{"of": "first_token", "at": "p95", "most_s": 0.5}],
            "available": {"H100": 4},
            "queries_per_second": 3,
            "max_usd_per_month": 1000,
            "confidence_pct": 90,
        },
    }
    found = parse_study(raw).constraint()
    assert [(limit.name, limit.most_s) for limit in found.latency_limits] == [("first_token_p95", 0.5)]
    assert (found.available, found.queries_per_second, found.confidence_pct) == ({"H100": 4}, 3.0, 90.0)
    for changed, said in (
        ({"traffic": {"chat": 1}}, "traffic names use case `chat`"),
        ({"constraints": {"limits": [{"of": "first_token", "at": "p97", "most_s": 1}]}}, "constraints.limits.0.at"),
        (
            {"constraints": {"limits": [{"of": "latency", "at": "p95", "most_s": 1, "most": 1}]}},
            "did you mean 'most_s'?",
        ),
    ):
        with pytest.raises(BitworthError, match=re.escape(said)):
            parse_study({**raw, **changed})
