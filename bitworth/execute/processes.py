"""Processes that work for another: how they leave with it, and how to say that one died."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import threading
import time
from multiprocessing.context import SpawnProcess

_GRACE_S = 5.0


def settle_in(parent: int) -> None:
    """Call first in a process that works for `parent`: it leaves Ctrl-C to it, prints to stderr, and leaves with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what libraries print must not end up in the driver's one JSON document
    leave_at_once()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def leave_at_once() -> None:
    """Spare a process that ends the search for cycles among its modules: a second of it where torch is imported."""
    atexit.register(gc.freeze)


def cause_of_death(code: int, who: str) -> str:
    """A sentence for an exit code that came without one."""
    if code == -signal.SIGKILL:
        return f"{who} was killed (signal 9), as happens when the machine runs out of memory."
    if code < 0:
        return f"{who} died of {signal.Signals(-code).name}."
    return f"{who} left with exit code {code}."


def stop(process: SpawnProcess) -> None:
    """End a process, kindly first."""
    process.terminate()
    process.join(_GRACE_S)
    if process.is_alive():
        process.kill()
        process.join()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
