"""The machine at hand as a row of the catalogue: its memory bandwidth and float32 rate, measured in seconds.

What is measured is reached, not a maker's peak, so the row's figures are divided by the constants' shares: the roofline
multiplies by them again. Only unquantized arithmetic is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil

from bitworth.hardware import machine
from bitworth.prediction.constants import FITTED
from bitworth.types import Hardware

_ROWS, _SIDE = 1 << 26, 1536


def probed(row: Hardware, seconds: float = 5.0) -> Hardware:
    """The `local` row with what this machine reaches; numpy's threads are as its environment sets them."""
    cores = int(machine()["cores"])
    clock = psutil.cpu_freq()
    return replace(
        row,
        bandwidth_gb_s=_bandwidth(cores, seconds / 2) / 1e9 / FITTED.bandwidth_share,
        tera_ops={"bf16": _operations(seconds / 2) / 1e12 / FITTED.compute16_share},
        processors=cores,
        clock_ghz=(clock.max or clock.current) / 1e3 if clock and (clock.max or clock.current) else 2.5,
        link_gb_s=None,
    )


def _bandwidth(cores: int, seconds: float) -> float:
    """Bytes a second that all cores together read, each its part of an array far larger than the caches."""
    parts = np.array_split(np.ones(_ROWS, dtype=np.float32), cores)
    with ThreadPoolExecutor(cores) as pool:
        rate = _repeated(lambda: list(pool.map(np.max, parts)), seconds)
    return 4 * _ROWS * rate


def _operations(seconds: float) -> float:
    """Operations a second of a float32 product."""
    square = np.ones((_SIDE, _SIDE), dtype=np.float32)
    return 2 * _SIDE**3 * _repeated(lambda: square @ square, seconds)


def _repeated(work: Callable[[], object], seconds: float) -> float:
    """How often a second, at best of single calls, `work` is done within so many seconds, after one call to warm up."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return 1 / best
