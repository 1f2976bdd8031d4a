"""Cells one after another in a worker process, so that a crash (out of memory, a signal) costs a cell, not the study.

One worker serves many cells, because importing torch and lm-eval costs more than many cells do. It dies with its
driver: a watchdog leaves as soon as the parent changes, so that a killed study leaves nothing running.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from bitworth.execute import Watcher, Work
from bitworth.execute.attempt import attempt
from bitworth.execute.processes import cause_of_death, settle_in, stop
from bitworth.types import Cell


class LocalExecutor:
    """Runs cells in one worker process at a time."""

    def __init__(self, ready: Callable[[], object] | None = None) -> None:
        """Prepare; given a function, a worker starts at once and calls it while its driver is still busy.

        What it raises is left to the cell that needs what failed. Such an executor is closed by whoever made it, in
        case it never comes to run anything.
        """
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        if ready is not None:
            self._worker(ready)

    def run(self, cells: Iterable[Cell | None], work: Work, root: str, watcher: Watcher) -> None:
        """Run each cell and report it; the worker is gone when this returns or raises."""
        try:
            for cell in filter(None, cells):
                watcher.started(cell)
                began = time.monotonic()
                result, cause = self._one(cell, work, root, watcher)
                watcher.ended(cell, result, cause, time.monotonic() - began)
        finally:
            self.close()

    def _one(self, cell: Cell, work: Work, root: str, watcher: Watcher) -> tuple[dict[str, Any] | None, str | None]:
        pipe = self._worker()
        try:
            pipe.send((cell, work, root))
            while True:
                kind, *message = pipe.recv()
                if kind == "ended":
                    return message[0], message[1]
                watcher.told(cell, *message)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return None, self._death()

    def _worker(self, ready: Callable[[], object] | None = None) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, os.getpid(), ready), name="bitworth-worker")
            self._process.start()
            theirs.close()
        return self._pipe

    def _death(self) -> str:
        """Why the worker went, as a sentence; the next cell gets a new one."""
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        assert self._pipe is not None
        self._pipe.close()
        self._pipe, self._process = None, None
        return cause_of_death(code, "The worker")

    def close(self) -> None:
        """Leave no worker behind."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join(2)  # an idle worker sees the closed pipe and leaves in good order
            stop(self._process)
        self._pipe, self._process = None, None


def _serve(pipe: Connection, parent: int, ready: Callable[[], object] | None) -> None:
    """The worker's loop: take a cell, run it, send back its result or the sentence that says why not."""
    settle_in(parent)
    if ready is not None:
        with suppress(Exception):  # the cell that needs what failed says so
            ready()
    while True:
        try:
            cell, work, root = pipe.recv()
        except EOFError:
            return
        pipe.send(("ended", *attempt(cell, work, root, lambda *message: pipe.send(("told", *message)))))
