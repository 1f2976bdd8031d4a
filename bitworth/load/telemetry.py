"""What the GPUs of this machine took meanwhile: memory and energy, from NVML (the driver's own library, nvidia-ml-py).

Memory is the most that was in use on the devices together, by whatever program, over samples a tenth of a second
apart. Energy is the difference of the driver's counter (Volta and later), else the sampled power times time.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

SAMPLE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """Most memory in use and the energy taken, over all devices, and the requests that were answered meanwhile."""

    devices: int
    memory_mib: float
    energy_j: float | None
    requests: int

    @property
    def energy_j_per_request(self) -> float | None:
        """Its share of the energy, None where that or any answer is missing."""
        return self.energy_j / self.requests if self.energy_j is not None and self.requests else None


class GpuMeter:
    """Measures while it is entered; `use` is then what was taken, None where there is no NVIDIA GPU or no NVML.

    Who sends requests meanwhile says in `requests` how many were answered, those that count in no other figure too.
    """

    def __init__(self, nvml: Any = None, *, on: bool = True) -> None:
        """Measure through `nvml`, unless off; None takes nvidia-ml-py where it is installed."""
        self._nvml: Any = (nvml if nvml is not None else _installed()) if on else None
        self._handles: list[Any] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._memory = 0.0
        self._joules = 0.0
        self.requests = 0
        self.use: GpuUse | None = None

    def __enter__(self) -> GpuMeter:
        if self._nvml is None:
            return self
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            self._counters = self._counted()
        except self._nvml.NVMLError:
            self._nvml = None  # a driver that does not answer gives programs no GPU either
            return self
        self._thread = threading.Thread(target=self._watch, name="gpu meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._nvml is None or self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        before, after = self._counters, self._counted()
        counted = None if before is None or after is None else (after - before) / 1000
        energy = counted if counted is not None else self._joules or None
        self.use = GpuUse(devices=len(self._handles), memory_mib=self._memory, energy_j=energy, requests=self.requests)
        self._nvml.nvmlShutdown()

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            stopping = self._stop.wait(SAMPLE_S)
            now = time.monotonic()
            self._sample(now - last)
            last = now
            if stopping:
                return

    def _sample(self, seconds: float) -> None:
        try:
            used = sum(self._nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in self._handles)
            watts = sum(self._nvml.nvmlDeviceGetPowerUsage(handle) for handle in self._handles) / 1000
        except self._nvml.NVMLError:
            return  # one sample less
        self._memory = max(self._memory, used / 2**20)
        self._joules += watts * seconds

    def _counted(self) -> float | None:
        """Millijoules since the driver was loaded, over all devices; None where one of them does not count."""
        try:
            return float(sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles))
        except self._nvml.NVMLError:
            return None


def _installed() -> Any:
    return importlib.import_module("pynvml") if importlib.util.find_spec("pynvml") is not None else None
