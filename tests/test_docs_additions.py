"""What docs/guide/extend.md prints, applied to a copy of the package and used: each addition is complete as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT, Block, blocks_of
from test_tasks import write_jsonl

GUIDE = ROOT / "docs" / "guide" / "extend.md"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
Verb = Callable[..., Any]
#: How a comment before a block says where it goes, beside a line that it quotes.
PLACES = ("after", "before", "replace")


def applied(block: Block, root: Path) -> None:
    """Write a block to its file: a new one, or at the place that its comment names, which must be one place."""
    assert block.title is not None
    assert all(len(line) <= 120 for line in block.text.splitlines()), "ruff would refuse it"
    path = root / block.title
    places = [(how, text) for how in PLACES for text in block.noted(how)]
    if not places:
        assert not path.exists(), block.title
        path.write_text(block.text)
        return
    ((how, text),) = places
    lines = path.read_text().splitlines(keepends=True)
    (first,) = [at for at, line in enumerate(lines) if text in line]
    start, end = {"after": (first + 1, first + 1), "before": (first, first), "replace": (first, first + 1)}[how]
    path.write_text("".join([*lines[:start], block.text, *lines[end:]]))


def addition(title: str) -> list[Block]:
    """The blocks of one section of the guide."""
    lines = GUIDE.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines, 1) if line.startswith("## ")] + [len(lines) + 1]
    first = next(at for at, number in enumerate(starts) if lines[number - 1] == f"## {title}")
    return [block for block in blocks_of(GUIDE) if starts[first] < block.line < starts[first + 1]]


@pytest.fixture
def extended(tmp_path: Path) -> Callable[[str], Verb]:
    """A copy of the package with a section's additions; gives a function that runs its command line."""

    def extend(title: str) -> Verb:
        root = tmp_path / "copy"
        shutil.copytree(ROOT / "bitworth", root / "bitworth", ignore=shutil.ignore_patterns("__pycache__"))
        for block in addition(title):
            applied(block, root)
        environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

        def run(*arguments: str | Path, code: int = 0) -> Any:
            command = [sys.executable, "-m", "bitworth", *map(str, arguments), "--json"]
            ran = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
            )
            assert ran.returncode == code, ran.stderr
            return json.loads(ran.stdout) if code == 0 else ran.stderr

        return run

    return extend


def test_each_addition_has_its_one_place() -> None:
    """Where a block goes is a line of the file that its comment quotes: neither missing nor met twice."""
    for block in blocks_of(GUIDE):
        for text in [text for how in PLACES for text in block.noted(how)]:
            assert block.title is not None
            lines = (ROOT / block.title).read_text(encoding="utf-8").splitlines()
            assert sum(text in line for line in lines) == 1, f"{text!r} in {block.title}"


@pytest.mark.slow(beside=True)
def test_a_gpu_is_a_row(extended: Callable[[str], Verb], tmp_path: Path) -> None:
    """It predicts as its figures say: the H100's chip with 4.0 / 3.35 of its bandwidth, at the price given."""
    verb = extended("A GPU")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    asked = ("predict", tmp_path, "--use-case", "rag", "--format", "bf16")
    new, old = verb(*asked, "--gpu", "GH200"), verb(*asked, "--gpu", "H100")
    assert new["usd_per_hour"] == 1.99
    assert 3.35 / 4.0 < new["latency_s"] / old["latency_s"] < 1
    assert new["queries_per_usd"] == pytest.approx(3600 / (new["latency_s"] * 1.99))
    assert verb("check", tmp_path, "--gpu", "GH200")["capability"] == "9.0"


@pytest.mark.slow
def test_a_task_is_a_row(extended: Callable[[str], Verb], tiny_llama: Path, tmp_path: Path) -> None:
    verb = extended("A task")
    texts = ["red", "a much longer blue answer", "green", "no"]
    choices = {"text": texts, "label": ["A", "B", "C", "D"]}
    rows = [
        {"id": f"Q_{index}", "question_stem": f"Colour {index}?", "choices": choices, "answerKey": "C"}
        for index in range(20)
    ]
    write_jsonl(tmp_path / "rows" / "openbookqa" / "test.jsonl", rows)
    listed = {row["name"]: row for row in verb("tasks", "--data", tmp_path / "rows")["tasks"]}
    assert listed["openbookqa"]["data_is_here"]
    found = verb("evaluate", tiny_llama, "--task", "openbookqa", "--data", tmp_path / "rows", "--out", tmp_path / "out")
    (task,) = found["tasks"]
    assert (task["task"], task["questions"]) == ("openbookqa", 20)
    assert 0 <= task["score"] <= 1


@pytest.mark.slow
def test_a_format_is_a_file_and_a_recipe(extended: Callable[[str], Verb], tiny_llama: Path, tmp_path: Path) -> None:
    """Its checkpoint is what compressed-tensors reads: codes of E4M3 times a scale a channel, inputs untouched."""
    from safetensors.torch import load_file

    verb = extended("A number format")
    verb("quantize", tiny_llama, "--recipe", "w8a16-fp", "--out", tmp_path / "fp8")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert (config["format"], group["input_activations"]) == ("float-quantized", None)
    assert (group["weights"]["num_bits"], group["weights"]["type"]) == (8, "float")
    name = "model.layers.0.mlp.up_proj"
    before = load_file(next(tiny_llama.glob("*.safetensors")))[f"{name}.weight"].float()
    stored = {key: value for path in (tmp_path / "fp8").glob("*.safetensors") for key, value in load_file(path).items()}
    after = stored[f"{name}.weight"].float() * stored[f"{name}.weight_scale"].float()
    assert str(stored[f"{name}.weight"].dtype) == "torch.float8_e4m3fn"
    assert ((after - before).abs() <= before.abs() / 8 + before.abs().amax(dim=1, keepdim=True) / 448).all()
    refused = verb("benchmark", tmp_path / "fp8", "--use-case", "16/4", code=1)
    assert "no matrix kernel for w8a16-fp" in refused


@pytest.mark.slow
def test_an_engine_is_a_file_and_its_name(extended: Callable[[str], Verb], tiny_llama: Path, tmp_path: Path) -> None:
    """`benchmark` and a study time its server, and its name travels to the figures."""
    verb = extended("An engine")
    timed = verb("benchmark", tiny_llama, "--engine", "mine", "--use-case", "16/4", "--requests", "4")
    assert timed["facts"]["engine"] == "mine"
    study = {
        "model": str(tiny_llama),
        "formats": ["baseline"],
        "use_cases": ["16/4"],
        "requests": 4,
        "engine": "mine",
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    found = verb("run", tmp_path / "study.yaml", "--out", tmp_path / "runs")
    assert found["costs"][0]["facts"]["engine"] == "mine"
    assert found["costs"][0]["queries_per_usd"] > 0
    study["engine"] = "your"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert "torch or vllm or mine" in verb("run", tmp_path / "study.yaml", "--out", tmp_path / "other", code=2)
