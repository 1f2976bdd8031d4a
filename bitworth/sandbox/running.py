"""Programs run in rooms: one that prints, or one whose functions a benchmark's tests call."""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import psutil

from bitworth.sandbox.rooms import Isolation, Room, numpy_folder

Status = Literal["finished", "time", "memory", "output", "processes"]
"""How a program ended: by itself (well or not), or by the limit that it hit."""
_KEPT = 1 << 16
_PAUSE_S = 0.25
"""Longest stretch between two looks that counts: a machine that was suspended took no time."""
_CHECKER_MIB = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use. CPU time and memory are a process's; memory is the whole room's too (resident)."""

    cpu_s: int = 10
    wall_s: float = 40.0
    memory_mib: int = 1024
    processes: int = 16
    files: int = 64
    output_mib: int = 4
    scratch_mib: int = 64

    def inside(self, isolation: Isolation) -> dict[str, int]:
        """What the process itself gives up. Without a user namespace a limit on processes would count the user's."""
        names = ("cpu_s", "memory_mib", "files", "scratch_mib")
        fields = {name: getattr(self, name) for name in names}
        return {**fields, "processes": 0 if isolation == "none" else self.processes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A program that was run: how it ended, its exit code (None where a limit ended it), what it printed at first."""

    status: Status
    exit_code: int | None
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A benchmark's tests of a program.

    Attributes:
        setup: source that the tests rest on, such as the helpers that a prompt gives.
        asked: names that the program must define, whether `setup` does or not.
        test: source that raises unless the program is right; names that it does not define are the program's.
    """

    test: str
    setup: str = ""
    asked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a program passes, and why not."""

    passed: bool
    reason: str = ""


def run_program(program: str, *, isolation: Isolation, limits: Limits | None = None) -> Ran:
    """Run a Python program as `__main__`; nothing of it is left afterwards."""
    limits = limits or Limits()
    settings = {"limits": limits.inside(isolation), "numpy": numpy_folder(isolation), "calls": None}
    with _room(isolation, "candidate", settings, program, limits) as room:
        status, output, _ = _watch([room], room, limits)
        code = room.process.returncode if status == "finished" else None
    return Ran(status=status, exit_code=code, output=output.decode(errors="replace"))


def judge(program: str, check: Check, *, isolation: Isolation, limits: Limits | None = None) -> Verdict:
    """Whether a program passes a check: each runs in a room of its own, and they exchange calls and plain values."""
    limits = limits or Limits()
    asks, calls = os.pipe()
    replies, answers = os.pipe()
    verdict, writes = os.pipe()
    theirs = {"calls": asks, "replies": answers}
    ours = {"calls": calls, "replies": replies, "verdict": writes}
    roomy = Limits(**{**asdict(limits), "memory_mib": max(_CHECKER_MIB, limits.memory_mib), "cpu_s": 4 * limits.cpu_s})
    common = {"numpy": numpy_folder(isolation)}
    try:
        with (
            _room(
                isolation, "candidate", common | theirs | {"limits": limits.inside(isolation)}, program, limits
            ) as one,
            _room(
                isolation, "checker", common | ours | {"limits": roomy.inside(isolation)}, _job(check), roomy
            ) as other,
        ):
            for descriptor in (asks, answers, calls, replies, writes):
                os.close(descriptor)
            asks = -1
            status, _, said = _watch([one, other], other, limits, verdict)
    finally:
        for descriptor in (asks, answers, calls, replies, writes) if asks >= 0 else ():
            os.close(descriptor)
        os.close(verdict)
    return _verdict(status, said)


def _job(check: Check) -> str:
    return json.dumps(asdict(check))


def _verdict(status: Status, said: bytes) -> Verdict:
    if status != "finished":
        return Verdict(passed=False, reason=f"it went over its limit of {status}")
    try:
        found = json.loads(said)
        return Verdict(passed=found["passed"] is True, reason=str(found["reason"]))
    except (ValueError, KeyError, TypeError):
        return Verdict(passed=False, reason="its tests ended without a verdict")


@contextmanager
def _room(way: Isolation, role: str, settings: dict[str, Any], job: str, limits: Limits) -> Iterator[Room]:
    fds = tuple(settings[name] for name in ("calls", "replies", "verdict") if settings.get(name) is not None)
    # a lone surrogate, which a model may write, is no source of Python's: it becomes a question mark
    room = Room(way, role, settings, job=job.encode(errors="replace"), scratch_mib=limits.scratch_mib, fds=fds)
    try:
        yield room
    finally:
        room.end()


def _watch(
    rooms: Sequence[Room], main: Room, limits: Limits, verdict: int | None = None
) -> tuple[Status, bytes, bytes]:
    """Until the main room's process ends or hits a limit: how it ended, what it printed, what its verdict is."""
    pump = Pump(rooms, verdict)
    clock, pause, last = 0.0, 0.002, time.monotonic()
    while True:
        ended = main.process.poll() is not None
        pump.turn(0.0 if ended else pause)
        now = time.monotonic()
        clock, last, pause = clock + min(now - last, _PAUSE_S), now, min(2 * pause, 0.05)
        if pump.printed > limits.output_mib << 20:
            return "output", pump.output, b""
        if ended:
            return "finished", pump.output, pump.said
        if clock > limits.wall_s:
            return "time", pump.output, b""
        over = _over(rooms[0], limits) if pause >= 0.05 else None
        if over is not None:
            return over, pump.output, b""


def _over(room: Room, limits: Limits) -> Status | None:
    """What all processes of a room together have too much of."""
    processes = room.processes()
    if len(processes) > limits.processes + 2:  # bubblewrap has two of its own
        return "processes"
    resident = 0
    for process in processes:
        with suppress(psutil.Error):
            resident += process.memory_info().rss
    return "memory" if resident > limits.memory_mib << 20 else None


class Pump:
    """Moves bytes in and out of rooms without ever waiting for one of them."""

    def __init__(self, rooms: Sequence[Room], verdict: int | None) -> None:
        self.output, self.said, self.printed = b"", b"", 0
        self._selector = selectors.DefaultSelector()
        self._verdict = verdict
        for room in rooms:
            self._reads(room.output)
            if room.wants is not None:
                self._selector.register(room.wants, selectors.EVENT_WRITE, room)
        if verdict is not None:
            self._reads(verdict)

    def _reads(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._selector.register(descriptor, selectors.EVENT_READ)

    def turn(self, wait_s: float) -> None:
        """Wait so long for anything, then move all that can be moved now."""
        if not self._selector.get_map():
            time.sleep(wait_s)
            return
        for key, _ in self._selector.select(wait_s):
            if isinstance(key.data, Room):
                key.data.feed()
                if key.data.wants is None:
                    self._selector.unregister(key.fd)
            else:
                self._read(key.fd)

    def _read(self, descriptor: int) -> None:
        for _ in range(64):
            try:
                data = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                self._selector.unregister(descriptor)
                return
            if descriptor == self._verdict:
                self.said = (self.said + data)[:_KEPT]
            else:
                self.printed += len(data)
                self.output = (self.output + data)[:_KEPT]
