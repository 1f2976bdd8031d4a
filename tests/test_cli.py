"""The command line: forms that are kept, one JSON document, one sentence for bad input and never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitworth import cli
from bitworth.cli.loads import parse_load
from bitworth.cli.quantize import recipe_of
from bitworth.errors import BitworthError
from bitworth.recipes import recipe as recipe_named
from bitworth.study import parse_study
from bitworth.types import Load

VERBS = {
    "run": {"--out", "--on", "--storage", "--part-questions", "--json", "--quiet"},
    "plan": {"--out", "--json", "--quiet"},
    "status": {"--json"},
    "quantize": {
        "--recipe",
        "--set",
        "--out",
        "--group-size",
        "--allow-group-fallback",
        "--calibration",
        "--samples",
        "--length",
        "--seed",
        "--chat-template",
        "--bos",
        "--stream",
        "--states-mib",
        "--device",
        "--devices",
        "--spread",
        "--dry-run",
        "--json",
        "--quiet",
    },
    "evaluate": {
        "--about",
        "--against",
        "--batch",
        "--chat",
        "--data",
        "--engine",
        "--json",
        "--limit",
        "--min-recovery",
        "--out",
        "--quiet",
        "--repeats",
        "--samples",
        "--seed",
        "--shots",
        "--show",
        "--similarity",
        "--task",
        "--temperature",
        "--text",
        "--unsafe-code-execution",
        "--until-settled",
        "--window",
        "--windows",
    },
    "tasks": {"--data", "--json", "--quiet"},
    "predict": {
        "--use-case",
        "--format",
        "--gpu",
        "--count",
        "--load",
        "--streams",
        "--group-size",
        "--usd-per-hour",
        "--study",
        "--curve",
        "--target-rate",
        "--timed",
        "--headroom",
        "--json",
        "--quiet",
    },
    "benchmark": {
        "--use-case",
        "--scale",
        "--trace",
        "--load",
        "--streams",
        "--max-ttft-s",
        "--max-itl-s",
        "--max-latency-s",
        "--percentile",
        "--engine",
        "--requests",
        "--warmup",
        "--repeat",
        "--seed",
        "--client",
        "--guidellm",
        "--tokenizer",
        "--model",
        "--silent-s",
        "--wait-s",
        "--hardware",
        "--count",
        "--usd-per-hour",
        "--out",
        "--json",
        "--quiet",
    },
    "import": {"--usd-per-hour", "--json"},
    "recommend": {
        "--recovery-of",
        "--min-recovery",
        "--confidence",
        "--max-latency",
        "--max-first-token",
        "--limit",
        "--max-usd-per-1k",
        "--max-usd-per-month",
        "--queries-per-second",
        "--available",
        "--json",
    },
    "ledger": set(),
    "gate": {
        "--out",
        "--format",
        "--min-recovery",
        "--confidence",
        "--task",
        "--max-usd-per-1k",
        "--max-usd-per-month",
        "--queries-per-second",
        "--max-latency-s",
        "--max-first-token-s",
        "--limit",
        "--use-case",
        "--load",
        "--hardware",
        "--accept-predicted",
        "--json",
    },
    "judge": {
        "--judge",
        "--questions",
        "--out",
        "--judge-model",
        "--limit",
        "--seed",
        "--engine",
        "--max-tokens",
        "--judge-max-tokens",
        "--usd-per-million-in",
        "--usd-per-million-out",
        "--reply-tokens",
        "--judge-tokenizer",
        "--yes",
        "--max-usd",
        "--strong-weight",
        "--streams",
        "--json",
        "--quiet",
    },
    "diff": {"--json"},
    "check": {
        "--gpu",
        "--count",
        "--tensor-parallel",
        "--use-case",
        "--streams",
        "--format",
        "--group-size",
        "--study",
        "--json",
        "--quiet",
    },
    "doctor": {"--online", "--out", "--json"},
    "report": {"--card", "--base-model", "--json", "--plots"},
    "paper": {"--out", "--min-recovery", "--json", "--quiet"},
    "view": {"--port", "--host", "--expose", "--json", "--quiet"},
    "export": {"--to", "--out", "--tracking-uri", "--experiment", "--json"},
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bitworth", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        captured = capfd.readouterr()
        return int(leave.value.code or 0), captured.out, captured.err

    return run


def refused(outcome: tuple[int, str, str], *said: str) -> None:
    """One sentence that says this, an exit code that is not 0, no traceback."""
    code, out, err = outcome
    assert code != 0
    assert "Traceback" not in err + out
    (line,) = [line for line in err.splitlines() if line.startswith("bitworth: ")]
    for part in said:
        assert part in line


@pytest.fixture
def study_file(tiny_study: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tiny_study))
    return path


# --- forms that are kept ------------------------------------------------------------------------------------------


def test_verbs_and_their_options() -> None:
    import typer

    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    found = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        - {"--help"}
        for name, command in commands.items()
    }
    assert found == VERBS


def test_public_names() -> None:
    import bitworth
    import bitworth.benchmarking
    import bitworth.evaluation
    import bitworth.quantization
    import bitworth.running

    script = "import bitworth, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
    assert all(callable(getattr(bitworth, name)) for name in bitworth.__all__ if name != "__version__")
    with pytest.raises(AttributeError):
        bitworth.nonsense  # noqa: B018


def test_help_and_version_are_quick_and_load_no_torch() -> None:
    script = (
        "import sys\nfrom bitworth.cli import app\napp(['--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "recommend" in done.stdout
    done = subprocess.run([sys.executable, "-m", "bitworth", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("bitworth 0.")


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("synchronous", Load(kind="synchronous")),
        ("throughput", Load(kind="throughput", streams=8)),
        ("constant@4", Load(kind="constant", rate=4)),
        ("poisson@0.5", Load(kind="poisson", rate=0.5)),
    ],
)
def test_loads(text: str, load: Load) -> None:
    assert parse_load(text, 8 if load.streams else None) == load


@pytest.mark.parametrize("text", ["busy", "constant", "poisson@", "poisson@-1", "constant@fast", "synchronous@2", ""])
def test_loads_that_are_none(text: str) -> None:
    with pytest.raises(BitworthError, match="is none of"):
        parse_load(text)


# --- the path a user takes ----------------------------------------------------------------------------------------


@pytest.mark.slow(beside=True)
def test_quantize_evaluate_benchmark(call: Run, tiny_llama: Path, tiny_study: dict[str, Any], tmp_path: Path) -> None:
    source, out = str(tiny_study["calibration"]["source"]), tmp_path / "made"
    names = ("w8a8-fp", "w4a16-int-gptq", "nvfp4-rtn", "mxfp4-rtn+kv-fp8")
    recipes = [*(part for name in names for part in ("--recipe", name)), "--group-size", "32"]
    sizes = ("--calibration", source, "--samples", "8", "--length", "64")
    code, stdout, _ = call("quantize", tiny_llama, *recipes, *sizes, "--out", out, "--json")
    assert code == 0
    made = {row["format"]: row for row in json.loads(stdout)["checkpoints"]}
    assert set(made) == set(names)
    assert {"seconds", "peak_rss_mib", "size_mib", "bits_per_weight", "path"} <= set(made["w8a8-fp"])
    checkpoint = out / "w4a16-int-gptq"

    asked = ("--task", "arc_challenge", "--limit", "20", "--seed", "0", "--data", str(tiny_study["data"]))
    texts = ("--text", tiny_study["divergence"]["text"], "--window", "64")
    kept = ("--out", tmp_path / "answers")
    code, stdout, _ = call("evaluate", checkpoint, *asked, *texts, "--against", tiny_llama, *kept, "--json")
    assert code == 0
    document = json.loads(stdout)
    assert {"perplexity", "baseline_perplexity", "kl_nats", "top1_flip_pct", "seconds", "peak_rss_mib"} <= set(document)
    assert document["kl_nats"] > 0
    assert [row["checkpoint"] for row in document["tasks"]] == ["baseline", "model"]
    assert {row["task"] for row in document["recoveries"]} == {"arc_challenge", "average"}
    assert {"recovery_pct", "ci95_pct", "verdict", "questions"} <= set(document["recoveries"][0])
    again = call("evaluate", checkpoint, *asked, *texts, "--against", tiny_llama, *kept, "--json")
    assert json.loads(again[1])["recoveries"] == document["recoveries"]
    assert json.loads(again[1])["seconds"] < document["seconds"] / 2

    shape = ("--use-case", "rag", "--scale", "0.01", "--load", "synchronous", "--engine", "torch", "--requests", "2")
    code, stdout, _ = call("benchmark", tiny_llama, *shape, "--out", tmp_path / "speed", "--json")
    assert code == 0
    cost = json.loads(stdout)
    assert cost["latency_s"] > 0
    assert cost["queries_per_usd"] == pytest.approx(3600 / (cost["latency_s"] * cost["usd_per_hour"]), rel=1e-6)
    assert json.loads((tmp_path / "speed" / "benchmark.json").read_text()) == cost


@pytest.mark.slow(beside=True)
def test_evaluate_until_settled(call: Run, tiny_llama: Path, tiny_study: dict[str, Any], tmp_path: Path) -> None:
    """A model against itself: every question is answered alike, so the task is settled, exactly at the latest."""
    asked = ("--task", "arc_challenge", "--data", str(tiny_study["data"]), "--batch", "12", "--min-recovery", "99")
    wanted = ("evaluate", tiny_llama, *asked, "--until-settled", "--out", tmp_path / "answers")
    code, stdout, stderr = call(*wanted, "--against", tiny_llama, "--json")
    assert code == 0
    document = json.loads(stdout)
    task, questions = document["settlements"]
    assert (task["verdict"], task["recovery_pct"], task["pool_questions"]) == ("holds", 100.0, 30)
    assert (questions["about"], questions["verdict"]) == ("questions", "undecided")
    assert document["answers"] == document["confidence_sequence"][-1]["questions"]
    code, again, stderr = call(*wanted, "--against", tiny_llama, "--json")
    assert json.loads(again)["settlements"] == document["settlements"]
    assert "arc_challenge from question" not in stderr  # nothing was asked again
    code, stdout, _ = call(*wanted, "--against", tiny_llama)
    assert "arc_challenge: holds 99 % of the baseline" in stdout
    refused(call(*wanted), "--against BASELINE")
    refused(call(*wanted, "--against", tiny_llama, "--about", "life"), "neither of: task, questions")
    refused(call(*wanted, "--against", tiny_llama, "--text", tiny_study["divergence"]["text"]), "run of its own")


@pytest.mark.usefixtures("here")
def test_run_plan_status_recommend_report(call: Run, study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, stdout, _ = call("plan", study_file, "--out", out, "--json")
    assert code == 0
    planned = json.loads(stdout)
    assert planned["to_do"]["cells"] == len(planned["cells"]) == 19
    assert planned["to_do"]["seconds"] > 0
    assert planned["to_do"]["bytes"] > 0

    code, stdout, stderr = call("run", study_file, "--out", out, "--json")
    assert code == 0
    document = json.loads(stdout)
    assert Path(document["report"]).is_file()
    assert len(document["recommendations"]) == 2
    assert "[19/19]" in stderr

    code, stdout, _ = call("status", out, "--json")
    assert json.loads(stdout)["counts"] == {"done": 19, "failed": 0, "to do": 0}
    code, stdout, _ = call("recommend", out, "--min-recovery", "99.9", "--json")
    assert (code, json.loads(stdout)["constraint"]["min_recovery_pct"]) == (0, 99.9)
    asked = ("--queries-per-second", "2", "--available", "local=400", "--limit", "p95:latency=9", "--confidence", "90")
    code, stdout, _ = call("recommend", out, *asked, "--json")
    constraint = json.loads(stdout)["constraint"]
    assert (code, constraint["queries_per_second"], constraint["available"]) == (0, 2.0, {"local": 400})
    assert constraint["limits"] == [{"of": "latency", "at": "p95", "most_s": 9.0}]
    refused(call("recommend", out, "--limit", "latency=9"), "STATISTIC:QUANTITY=SECONDS")
    (out / "report.html").unlink()
    code, stdout, _ = call("report", out)
    assert code == 0
    assert (out / "report.html").is_file()
    for verb in ("status", "recommend"):
        code, stdout, _ = call(verb, out)
        assert code == 0
        assert stdout.strip()
    assert call("plan", study_file, "--out", out)[0] == 0


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_study_with_a_typo(call: Run, study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(study_file.read_text().replace("group_size", "grup_size"))
    refused(call("run", study_file, "--out", tmp_path / "out"), "grup_size", "did you mean 'group_size'?")
    assert not (tmp_path / "out").exists()


def test_errors_are_json_too(call: Run, tmp_path: Path) -> None:
    code, stdout, _ = call("recommend", tmp_path, "--json")
    assert code == 2
    assert "holds no readable" in json.loads(stdout)["error"]


def test_unknown_names(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    refused(
        call("quantize", tiny_llama, "--recipe", "w4a16", "--out", tmp_path / "o"), "Unknown recipe", "w4a16-int-gptq"
    )
    refused(call("evaluate", tiny_llama, "--task", "arc_chalenge"), "Unknown task", "did you mean 'arc_challenge'?")
    refused(call("evaluate", tiny_llama), "nothing to evaluate")
    refused(call("benchmark", tiny_llama, "--use-case", "ragg"), "did you mean 'rag'?")
    refused(call("benchmark", tiny_llama, "--use-case", "rag", "--engine", "tensorflow"), "tensorflow")
    file = tmp_path / "a-file"
    file.touch()
    refused(call("benchmark", tiny_llama, "--use-case", "8/2", "--out", file), "cannot be a folder")
    refused(call("benchmark", tiny_llama, "--use-case", "8/2", "--streams", "4"), "--load throughput")
    refused(call("benchmark", tiny_llama, "--use-case", "8/2", "--max-ttft-s", "1"), "--load sweep")
    refused(call("benchmark", tiny_llama, "--use-case", "rag", "--hardware", "H10"), "H100")
    refused(call("quantize", tiny_llama, "--recpie", "x", "--out", tmp_path), "--recpie")
    refused(call("nonsense"), "nonsense")


@pytest.mark.slow(beside=True)
def test_models_that_will_not_do(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    wanted = ("--recipe", "w8a8-fp", "--out", tmp_path / "out")
    refused(call("quantize", tmp_path / "absent", *wanted), "absent")
    cut = tmp_path / "cut"
    shutil.copytree(tiny_llama, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(call("quantize", cut, *wanted), "truncated or damaged")
    refused(call("evaluate", cut, "--text", cut / "config.json", "--window", "8"), "truncated or damaged")
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_llama, encoder)
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"], "model_type": "bert"}))
    refused(call("quantize", encoder, *wanted), "not a decoder", "BertModel")
    assert not (tmp_path / "out").exists()


def test_group_sizes_that_do_not_divide(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    wanted = ("--recipe", "w4a16-int-rtn", "--out", tmp_path / "out")
    refused(call("quantize", tiny_llama, *wanted), "groups of 128 do not divide", "--group-size 64")
    code, stdout, _ = call("quantize", tiny_llama, *wanted, "--allow-group-fallback", "--json")
    assert code == 0
    assert "groups of 64 were used" in json.loads(stdout)["checkpoints"][0]["notes"][0]


def test_calibration_that_is_missing(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    wanted = ("--recipe", "w8a8-int-gptq", "--out", tmp_path / "out")
    refused(call("quantize", tiny_llama, *wanted), "needs calibration text", "--calibration")
    refused(call("quantize", tiny_llama, *wanted, "--calibration", tmp_path / "no.txt"), "no.txt")


def test_steps_are_set_as_a_studys_format_sets_them() -> None:
    settings = {"damping": 0.1, "ordering": "group", "clip": "mse", "sweeps": 1}
    written = [f"{key}={value}" for key, value in settings.items()]
    asked = {"model": "m", "formats": ["baseline", {"name": "mine", "base": "w4a16-int-gptq", **settings}]}
    assert recipe_of("w4a16-int-gptq", [*written, "name=mine"]) == parse_study(asked).recipes()["mine"]
    assert recipe_of("w4a16-int-gptq", written).name == ("w4a16-int-gptq-damping-0.1-ordering-group-clip-mse-sweeps-1")
    assert recipe_of("w8a8-fp+kv-fp8", group_size=64) == recipe_named("w8a8-fp+kv-fp8", group_size=64)


def test_a_changed_recipe_is_made_under_its_own_name(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    asked = ("--recipe", "w8a8-int-gptq", "--calibration", source, "--samples", "4", "--length", "16")
    changed = ("--set", "damping=0.25", "--set", "sweeps=1")
    code, stdout, _ = call("quantize", tiny_llama, *asked, *changed, "--out", tmp_path / "out", "--json")
    assert code == 0
    [made] = json.loads(stdout)["checkpoints"]
    kept = json.loads((tmp_path / "out" / "bitworth.json").read_text())
    assert made["format"] == kept["format"] == kept["recipe"]["name"] == "w8a8-int-gptq-damping-0.25-sweeps-1"
    assert (kept["recipe"]["rounding"]["damping"], kept["recipe"]["rounding"]["sweeps"]) == (0.25, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["damping=2"], "--set: damping: input should be less than 1, got 2."),
        (["ordering=by weight"], "--set: ordering: input should be"),
        (["dampin=0.1"], "--set: dampin: unknown key 'dampin'; did you mean 'damping'?"),
        (["awq_steps=4"], "`awq_steps` is a setting of AWQ, and w8a8-int-gptq scales nothing by it"),
        (["damping"], "--set damping: write KEY=VALUE, such as --set damping=0.1."),
        (["damping="], "--set damping=: write KEY=VALUE"),
        (["=0.1"], "--set =0.1: write KEY=VALUE"),
        (["damping={"], "--set damping={: write KEY=VALUE"),
        (["damping=[0.1]"], "--set: damping: input should be a valid number"),
        (["damping=0.1", "damping=0.2"], "--set damping=0.2: it is set twice."),
        (["base=w8a8-fp"], "--set base=w8a8-fp: --recipe names the base."),
        (["name=no/folder", "sweeps=1"], "--set: name: string should match pattern"),
    ],
)
def test_changes_that_are_none(call: Run, tiny_llama: Path, tmp_path: Path, changes: list[str], said: str) -> None:
    options = [part for text in changes for part in ("--set", text)]
    refused(call("quantize", tiny_llama, "--recipe", "w8a8-int-gptq", *options, "--out", tmp_path / "out"), said)
    assert not (tmp_path / "out").exists()


def test_one_name_serves_one_recipe(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    both = ("--recipe", "w8a8-int-gptq", "--recipe", "w4a16-int-gptq", "--set", "name=mine", "--set", "sweeps=1")
    refused(call("quantize", tiny_llama, *both, "--out", tmp_path / "out"), "named twice")


def test_calibration_is_mixed_and_audited(
    call: Run, tiny_llama: Path, tiny_study: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny_study["calibration"]["source"]
    wanted = ("quantize", tiny_llama, "--recipe", "w8a8-int-gptq", "--samples", "8", "--length", "32")
    mixed = ("--calibration", f"{source}=3", "--calibration", "random", "--bos", "always", "--out", tmp_path / "out")
    code, stdout, _ = call(*wanted, *mixed, "--json")
    assert code == 0
    [made] = json.loads(stdout)["checkpoints"]
    text = made["audit"]["text"]
    assert [(row["source"], row["weight"], row["samples"]) for row in text["sources"]] == [
        ("calibration.txt", 3.0, 6),
        ("random", 1.0, 2),
    ]
    assert text["bos_share"] == 1.0
    assert len(made["audit"]["stages"]) == 8
    assert json.loads((tmp_path / "out" / "bitworth.json").read_text())["audit"] == made["audit"]
    code, stdout, _ = call(*wanted, *mixed)
    assert code == 0
    for said in ("256 in 8 sequences of 32", "75 % calibration.txt (6)", "25 % random (2)", "outlier ratio"):
        assert said in stdout, stdout


def test_calibration_that_makes_no_sense(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    wanted = ("quantize", tiny_llama, "--recipe", "w8a8-int-gptq", "--out", tmp_path / "out")
    refused(call(*wanted, "--calibration", "random=0"), "write a positive number")
    refused(call(*wanted, "--calibration", "random", "--calibration", "random=2"), "named twice")
    refused(call(*wanted, "--calibration", "hub:alpaca"), "write hub:organization/name")
    code, _, stderr = call(*wanted, "--calibration", "random", "--bos", "sometimes")
    assert code == 2
    assert "'sometimes' is not one of" in stderr


def test_a_port_that_answers_nothing_useful(call: Run, tiny_llama: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        refused(call("benchmark", tiny_llama, "--use-case", "8/2", "--engine", url), url)


def test_an_output_folder_that_is_not_ours(call: Run, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    refused(
        call("quantize", tiny_llama, "--recipe", "w8a8-fp", "--out", tmp_path), "not a checkpoint that bitworth wrote"
    )
    refused(call("quantize", tiny_llama, "--recipe", "w8a8-fp", "--out", tiny_llama), "holds the model")
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_two_runs_on_one_folder(call: Run, study_file: Path, tmp_path: Path) -> None:
    from bitworth.ledger import Ledger

    with Ledger(tmp_path / "out").lock():
        refused(call("run", study_file, "--out", tmp_path / "out"), "already running")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 KiB; needs the right to mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(call: Run, tiny_llama: Path, study_file: Path, small_disk: Path) -> None:
    refused(call("quantize", tiny_llama, "--recipe", "w8a8-fp", "--out", small_disk / "out"), "disk is full")
    assert {path.name for path in small_disk.iterdir()} <= {".out.partial"}  # finished blocks, to go on from
    refused(call("run", study_file, "--out", small_disk / "study"), "full")


def test_an_unexpected_fault_is_one_sentence(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitworth import assembly

    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(assembly, "assemble", broken)
    refused(call("recommend", tmp_path), "RuntimeError: boom", "BITWORTH_DEBUG=1")


@pytest.mark.usefixtures("here")
def test_a_study_with_missing_pieces_prints_one_document(call: Run, tiny_study: dict[str, Any], tmp_path: Path) -> None:
    """No group of 48 divides the model's layers, so that one format is never made."""
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({**tiny_study, "formats": ["baseline", "w4a16-int-rtn"], "group_size": 48}))
    code, out, err = call("run", study, "--out", tmp_path / "out", "--json", "--quiet")
    assert code == 1
    assert json.loads(out)["missing"]
    assert "have no result" in err
