"""Constants of a device from loads timed there: found again where they are known, refused where nothing fixes them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bitworth.cli.predict import predict as verb
from bitworth.errors import BitworthError
from bitworth.hardware import hardware
from bitworth.prediction import predict
from bitworth.prediction.calibrating import Observation, calibrated, foretold, nominal, observed, read_observation
from bitworth.prediction.constants import FITTED, Constants
from bitworth.prediction.evidence import MODELS
from bitworth.prediction.formats import kernel
from bitworth.prediction.roofline import Deployment
from bitworth.types import Load, Timing, UseCase

ALONE = Load(kind="synchronous")
SHAPE = UseCase(name="256/64", prompt_tokens=256, output_tokens=64)
LOADS = (ALONE, Load(kind="throughput", streams=2), Load(kind="throughput", streams=8))


def deployment(format: str = "bf16") -> Deployment:
    kind = kernel(format)
    return Deployment(architecture=MODELS["8B"], kernel=kind, hardware=nominal(hardware("A6000", 1), kind.arithmetic))


def constants_of(bandwidth: float, cycles: float, host: float, share: float) -> Constants:
    shares = {field.name: share for field in fields(Constants) if "compute" in field.name or "serving" in field.name}
    return replace(FITTED, bandwidth_share=bandwidth, block_kilocycles=cycles, host_s=host, **shares)


def timed_on(true: Deployment) -> list[Observation]:
    rows = []
    for load in LOADS:
        latency, first = foretold(true, SHAPE, load)
        rows.append(Observation(case=SHAPE, load=load, latency_s=latency, first_token_s=first))
    return rows


@pytest.mark.parametrize(
    ("bandwidth", "cycles", "host", "share"),
    [(0.5, 400, 2e-3, 0.2), (0.9, 150, 2e-4, 0.5), (0.3, 3000, 1e-2, 0.05), (0.2, 200, 1e-3, 0.8)],
)
def test_a_device_that_obeys_the_model_is_foretold_under_loads_it_was_not_timed_on(
    bandwidth: float, cycles: float, host: float, share: float
) -> None:
    true = deployment().with_constants(constants_of(bandwidth, cycles, host, share))
    found = deployment().with_constants(calibrated(deployment(), timed_on(true)))
    for load in (Load(kind="throughput", streams=4), Load(kind="throughput", streams=16)):
        assert foretold(found, SHAPE, load) == pytest.approx(foretold(true, SHAPE, load), rel=0.02)


def test_an_arithmetic_without_a_rate_takes_the_16_bit_one() -> None:
    row = nominal(hardware("local", 1), "int8") if hardware("local", 1).tera_ops else None
    a6000 = hardware("A6000", 1)
    assert nominal(a6000, "fp8").tera_ops["fp8"] == a6000.tera_ops["bf16"]
    assert nominal(a6000, "int8") == a6000
    assert row is None or "int8" in row.tera_ops


def test_too_little_is_refused() -> None:
    few = [Observation(case=SHAPE, load=load, latency_s=1.0) for load in LOADS]
    with pytest.raises(BitworthError, match="3 timed figures do not fix 4 constants"):
        calibrated(deployment(), few)
    rate = Observation(case=SHAPE, load=Load(kind="poisson", rate=1.0), latency_s=1.0, first_token_s=0.5)
    with pytest.raises(BitworthError, match="not on poisson@1"):
        calibrated(deployment(), [rate, rate])


def test_failed_requests_do_not_count() -> None:
    good = Timing(start_s=1.0, first_token_s=1.5, end_s=3.0, prompt_tokens=1, output_tokens=2)
    bad = replace(good, end_s=99.0, error="HTTP 500")
    assert observed([good, bad], SHAPE, ALONE) == Observation(case=SHAPE, load=ALONE, latency_s=2.0, first_token_s=0.5)
    silent = replace(good, first_token_s=None)
    assert observed([good, silent], SHAPE, ALONE).first_token_s is None


def written(folder: Path, row: Observation, **changes: Any) -> Path:
    folder.mkdir()
    document = {
        "use_case": row.case.name,
        "prompt_tokens": row.case.prompt_tokens,
        "output_tokens": row.case.output_tokens,
        "load": row.load.kind,
        "streams": row.load.streams or 1,
        "latency_s": row.latency_s,
        "first_token_s": row.first_token_s,
    }
    (folder / "benchmark.json").write_text(json.dumps(document | changes))
    return folder


def test_the_verb_foretells_from_what_benchmark_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true = deployment().with_constants(constants_of(0.5, 400, 2e-3, 0.2))
    folders = [written(tmp_path / str(index), row) for index, row in enumerate(timed_on(true))]
    named = written(tmp_path / "named", timed_on(true)[2], load=LOADS[2].name)
    assert [read_observation(folder).load for folder in (folders[2], named)] == [LOADS[2], LOADS[2]]
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 14336,
                "vocab_size": 128256,
            }
        )
    )
    verb(tmp_path, "256/64", gpu="A6000", target_rate=2.0, timed=folders, json=True)
    document = json.loads(capsys.readouterr().out)
    expected = predict(MODELS["8B"], "bf16", true.hardware, SHAPE, ALONE, constants=true.constants).latency_s.value
    assert document["latency_s"] == pytest.approx(expected, rel=0.02)
    assert "fitted on loads that were timed there" in document["notes"][0]
    assert [row["format"] for row in document["scale"]] == ["bf16"]


@pytest.mark.parametrize("changes", [{"latency_s": None}, {"load": "sweep", "streams": None}, None])
def test_a_folder_without_such_figures_is_one_sentence(tmp_path: Path, changes: dict[str, Any] | None) -> None:
    folder = tmp_path / "timed"
    if changes is None:
        folder.mkdir()
    else:
        written(folder, timed_on(deployment())[0], **changes)
    with pytest.raises(BitworthError, match=r"to fit constants on|are fitted on"):
        read_observation(folder)
