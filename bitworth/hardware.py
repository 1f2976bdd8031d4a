"""Devices by name, a row a device: memory, bandwidth, dense arithmetic rates, price an hour. To add one, add a row.

Each price has its source and the day it was read; those of the paper's devices are the paper's (table 9, Lambda Labs on
demand, 2024-10-28), and a study file overrides them or adds a device of its own. `local` is the machine at hand: its
price is the user's to say, and the default only makes formats comparable with each other.

>>> hardware("A100", 2).usd_per_hour
3.58
"""

from __future__ import annotations

import difflib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, takewhile

import psutil

from bitworth.errors import BitworthError
from bitworth.types import Hardware

LOCAL = "local"
HOURS_A_MONTH = 730.0
"""A twelfth of 365 days."""
_PAPER = "paper, table 9: Lambda Labs on demand, 2024-10-28"


#: Other price lists, by the day they were read; each row's price is one device's, on demand.
_RUNPOD = "RunPod's list, 2026-10-07"
_COMMUNITY = "RunPod's community cloud, as reported 2026-03-10"
_LAMBDA = "Lambda on demand, 2026-09-20"
_UNPRICED = "no dated price at hand; give your own"


def _gpu(
    name: str,
    price: tuple[float, str],
    memory: float,
    bandwidth: float,
    chip: tuple[int, float],
    link: float,
    capability: str,
    **tera_ops: float,
) -> Hardware:
    """A row: price and its source, GiB as the driver counts them, GB/s, (multiprocessors, GHz), GB/s a direction.

    Then the compute capability and tera-operations a second.
    """
    return Hardware(
        name=name,
        usd_per_hour=price[0],
        price_source=price[1],
        memory_gib=memory,
        bandwidth_gb_s=bandwidth,
        processors=chip[0],
        clock_ghz=chip[1],
        link_gb_s=link,
        capability=capability,
        tera_ops=tera_ops,
    )


#: Rates are the makers' dense figures, without sparsity, with float32 sums; clocks are the most that a driver allows,
#: or the boost clock of consumer cards; links are NVLink, Infinity Fabric or PCI Express.
_ROWS = {
    row.name: row
    for row in (
        _gpu("A6000", (0.80, _PAPER), 48, 768, (84, 2.10), 31.5, "8.6", bf16=154.8, int8=309.7),
        _gpu("A100", (1.79, _PAPER), 80, 2039, (108, 1.41), 300, "8.0", bf16=312, int8=624),
        _gpu("H100", (3.29, _PAPER), 80, 3350, (132, 1.98), 450, "9.0", bf16=989, int8=1979, fp8=1979),
        _gpu("H200", (4.59, _RUNPOD), 140, 4800, (132, 1.98), 450, "9.0", bf16=989, int8=1979, fp8=1979),
        _gpu("B200", (6.79, _RUNPOD), 179, 8000, (148, 1.965), 900, "10.0", bf16=2250, int8=4500, fp8=4500),
        _gpu("L4", (0.44, _COMMUNITY), 22.5, 300, (58, 2.04), 31.5, "8.9", bf16=121, int8=242, fp8=242),
        _gpu("L40S", (0.79, _COMMUNITY), 45, 864, (142, 2.52), 31.5, "8.9", bf16=362, int8=733, fp8=733),
        _gpu("A10", (1.29, _LAMBDA), 22.5, 600, (72, 1.695), 31.5, "8.6", bf16=125, int8=250),
        _gpu("RTX4090", (0.34, _COMMUNITY), 24, 1008, (128, 2.52), 31.5, "8.9", bf16=165.2, int8=660.6, fp8=330.3),
        _gpu("RTX5090", (0.69, _COMMUNITY), 31.8, 1792, (170, 2.41), 63, "12.0", bf16=209.5, int8=838, fp8=419),
        _gpu("MI300X", (0.0, _UNPRICED), 192, 5300, (304, 2.10), 448, "gfx942", bf16=1307, int8=2615, fp8=2615),
    )
}
#: Several H100 cost a little less than one times their number (table 9); 16 are two machines of eight.
_BUNDLES = {("H100", 2): 6.38, ("H100", 4): 12.36, ("H100", 8): 23.92, ("H100", 16): 47.84}
NAMES = (LOCAL, *_ROWS)
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def hardware(name: str, count: int = 1) -> Hardware:
    """The row of that name, `count` devices of it; `usd_per_hour` is for all of them.

    Raises:
        BitworthError: no such device.
    """
    if name == LOCAL:
        return _local(count)
    if name not in _ROWS:
        close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise BitworthError(f"unknown hardware '{name}'; {hint}known: {', '.join(NAMES)}")
    row = _ROWS[name]
    price = _BUNDLES.get((name, count), round(row.usd_per_hour * count, 4))
    return replace(row, count=count, usd_per_hour=price)


def _local(count: int) -> Hardware:
    return Hardware(
        name=LOCAL,
        count=count,
        usd_per_hour=0.10 * count,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        price_source="a placeholder; give usd_per_hour in the study file",
        capability=_capability(cpu_flags()),
    )


def _capability(flags: frozenset[str]) -> str:
    """A processor's widest instruction set, and whether it adds up 8-bit products in 32 bits."""
    widest = next((name for name in ("avx512_bf16", "avx512f", "avx2") if name in flags), "cpu")
    return {"avx2": "avx2_vnni", "avx512f": "avx512_vnni"}.get(widest, widest) if _VNNI & flags else widest


def machine() -> dict[str, str]:
    """This machine in words: processor, cores, memory, system; it travels with every measured figure."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def is_this_machine(row: Hardware) -> bool:
    """Whether figures measured here are that row's: `local` always, GPUs when they are all that is visible here."""
    if row.name == LOCAL:
        return True
    found = gpus()
    return len(found) == row.count and is_of(row, found)


def is_of(row: Hardware, names: Sequence[str]) -> bool:
    """Whether GPUs, by their full names, are all that row's; False where there are none."""
    return bool(names) and all(_is_model(row.name, name) for name in names)


def visible_gpus() -> tuple[str, ...] | None:
    """The GPUs, by number or UUID, that programs started here may use, in CUDA's order; None where all may be used.

    CUDA reads its list up to the first entry that names none, such as -1.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    return tuple(takewhile(lambda one: one and not one.startswith("-"), (one.strip() for one in visible.split(","))))


def gpus(only: Sequence[str] | None = None) -> tuple[str, ...]:
    """Full names of the NVIDIA GPUs that programs started here may use; none where the driver does not answer.

    With `only`, those of these, by number or UUID.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        query = [program, "--query-gpu=index,uuid,name", "--format=csv,noheader"]
        listing = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()  # a driver that does not work gives programs no GPU either
    rows = [[field.strip() for field in line.split(",", 2)] for line in listing.splitlines() if line.count(",") >= 2]
    wanted = visible_gpus() if only is None else only
    if wanted is None:
        return tuple(name for _, _, name in rows)
    return tuple(name for one in wanted for index, uuid, name in rows if one == index or uuid.startswith(one))


def installed_gpu() -> Hardware | None:
    """One of the NVIDIA GPUs that programs started here may use, by what the driver says of it; None where they differ.

    It has no price and no rates, and its `count` is how many there are.
    """
    names, program = gpus(), shutil.which("nvidia-smi")
    if not names or len(set(names)) > 1 or program is None:
        return None
    try:
        query = [program, "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
        listing = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        rows = {tuple(field.strip() for field in line.rsplit(",", 2)) for line in listing.splitlines()}
        ((name, capability, mib),) = (row for row in rows if row[0] == names[0])
        memory = float(mib) / 2**10
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if not re.fullmatch(r"\d+\.\d", capability):
        return None
    return Hardware(name=name, count=len(names), usd_per_hour=0.0, memory_gib=memory, capability=capability)


def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux lists them (`avx2`, `avx512_bf16`); none elsewhere."""
    return frozenset(_cpuinfo("flags").split())


def overflows_int8() -> bool:
    """Whether this processor adds pairs of 8-bit products in 16 bits, where two of full range do not fit.

    So does x86 without VNNI; a library that does not mind that computes wrong products, in silence.
    """
    flags = cpu_flags()
    return "avx2" in flags and not _VNNI & flags


def _is_model(model: str, name: str) -> bool:
    """Whether `A100` is meant by `NVIDIA A100-SXM4-80GB`; `RTX A6000` is not an `RTX 6000 Ada`."""
    words = re.split(r"[\s-]+", name.upper())
    return model.upper() in (*words, *(one + other for one, other in pairwise(words)))


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown processor"


def _cpuinfo(field: str) -> str:
    """A field of the first processor that Linux lists, or nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
    except OSError:
        return ""  # not Linux
