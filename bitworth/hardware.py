"""Devices by name, a row a device: memory, bandwidth, dense arithmetic rates, price an hour. To add one, add a row.

Prices are the paper's (table 9, Lambda Labs on demand, 2024-10-28); a study file overrides them. `local` is the
machine at hand: its price is the user's to say, and the default only makes formats comparable with each other.

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
from dataclasses import replace

import psutil

from bitworth.errors import BitworthError
from bitworth.types import Hardware

LOCAL = "local"
_PAPER = "paper, table 9: Lambda Labs on demand, 2024-10-28"


def _gpu(name: str, usd: float, memory: float, bandwidth: float, source: str = _PAPER, **tera_ops: float) -> Hardware:
    return Hardware(
        name=name,
        usd_per_hour=usd,
        memory_gib=memory,
        bandwidth_gb_s=bandwidth,
        tera_ops=tera_ops,
        price_source=source,
    )


#: Rates are the makers' dense figures, without sparsity.
_ROWS = {
    row.name: row
    for row in (
        _gpu("A6000", 0.80, 48, 768, bf16=154.8, int8=309.7),
        _gpu("A100", 1.79, 80, 2039, bf16=312, int8=624),
        _gpu("H100", 3.29, 80, 3350, bf16=989, int8=1979, fp8=1979),
    )
}
#: Several H100 cost a little less than one times their number (table 9).
_BUNDLES = {("H100", 2): 6.38, ("H100", 4): 12.36, ("H100", 8): 23.92}
NAMES = (LOCAL, *_ROWS)


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
    )


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
    return len(found) == row.count and all(_is_model(row.name, name) for name in found)


def gpus() -> tuple[str, ...]:
    """Full names of the NVIDIA GPUs that programs started here may use; none where the driver does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        query = [program, "--query-gpu=index,uuid,name", "--format=csv,noheader"]
        listing = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()  # a driver that does not work gives programs no GPU either
    rows = [[field.strip() for field in line.split(",", 2)] for line in listing.splitlines() if line.count(",") >= 2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(name for _, _, name in rows)
    wanted = [field.strip() for field in visible.split(",") if field.strip()]
    return tuple(name for one in wanted for index, uuid, name in rows if one == index or uuid.startswith(one))


def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux lists them (`avx2`, `avx512_bf16`); none elsewhere."""
    return frozenset(_cpuinfo("flags").split())


def _is_model(model: str, name: str) -> bool:
    """Whether `A100` is meant by `NVIDIA A100-SXM4-80GB`; `RTX A6000` is not an `RTX 6000 Ada`."""
    return model.upper() in re.split(r"[\s-]+", name.upper())


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown processor"


def _cpuinfo(field: str) -> str:
    """A field of the first processor that Linux lists, or nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
    except OSError:
        return ""  # not Linux
