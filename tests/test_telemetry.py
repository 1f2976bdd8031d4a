"""The GPU meter through a stand-in for NVML; a machine without one has nothing to say."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bitworth.load.telemetry import SAMPLE_S, GpuMeter


class Nvml:
    """Two devices: memory grows by a MiB a query, and each draws 100 W."""

    class NVMLError(Exception):
        pass

    class _Memory:
        def __init__(self, used: int) -> None:
            self.used = used

    def __init__(self, *, counter: bool = True, driver: bool = True) -> None:
        self.counter, self.driver, self.began = counter, driver, time.monotonic()
        self.asked = self.shut = 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError

    def nvmlShutdown(self) -> None:
        self.shut += 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self.asked += 1
        return self._Memory(self.asked * 2**20)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 100_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> float:
        if not self.counter:
            raise self.NVMLError
        return (time.monotonic() - self.began) * 100_000


@pytest.mark.parametrize("counter", [True, False])
def test_energy_is_power_times_time_and_memory_the_most(counter: bool) -> None:
    nvml = Nvml(counter=counter)
    began = time.monotonic()
    with GpuMeter(nvml) as meter:
        time.sleep(2.5 * SAMPLE_S)
    seconds = time.monotonic() - began
    assert meter.use is not None
    assert meter.use.energy_j is not None
    assert 200 * 2.5 * SAMPLE_S * 0.9 <= meter.use.energy_j <= 200 * seconds * 1.01
    assert meter.use.memory_mib == nvml.asked + nvml.asked - 1
    assert (meter.use.devices, nvml.shut) == (2, 1)


def test_without_a_driver_or_when_off_there_is_nothing() -> None:
    for meter in (GpuMeter(Nvml(driver=False)), GpuMeter(Nvml(), on=False)):
        with meter:
            pass
        assert meter.use is None


def test_the_meter_stops_when_the_run_fails() -> None:
    nvml = Nvml()
    with pytest.raises(RuntimeError, match="run"), GpuMeter(nvml):
        raise RuntimeError("run")
    assert nvml.shut == 1
