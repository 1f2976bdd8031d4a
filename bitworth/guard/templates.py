"""Chat templates are programs that come with a model. transformers runs them in Jinja's sandbox; here they get bounds.

A sandboxed template can still loop for hours or write more than memory holds, so it has a time and an amount of memory.
Both need the main thread of a POSIX process, which is where models are worked on; elsewhere a template runs without.
"""

from __future__ import annotations

import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError

SECONDS = 10.0
"""Processor time that a template may take for one conversation; honest ones take milliseconds."""
MIB = 2048
"""Memory that it may take beyond what the process has."""


class _TooLong(Exception):
    """The time is up."""


def apply_template(tokenizer: Any, turns: list[Any], **how: Any) -> str:
    """`tokenizer.apply_chat_template` of a conversation to text, within `SECONDS` and `MIB`.

    Raises:
        BitworthError: the template goes beyond a bound; what else it raises (`jinja2.TemplateError`, `ValueError`,
            `TypeError` and others) is the caller's to explain.
    """
    try:
        with bounded(SECONDS, MIB):
            return str(tokenizer.apply_chat_template(turns, tokenize=False, **how))
    except _TooLong as error:
        raise BitworthError(
            f"The model's chat template did not end within {SECONDS:g} s of processor time; it is broken or hostile, "
            "so use another model."
        ) from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise BitworthError(
            f"The model's chat template wants more than {MIB} MiB of memory; it is broken or hostile, so use another "
            "model."
        ) from error


@contextmanager
def bounded(seconds: float, mib: int) -> Iterator[None]:
    """Raise inside the block when its time is up or its memory is used; an alarm that was set goes on afterwards."""
    if threading.current_thread() is not threading.main_thread() or not sys.platform.startswith("linux"):
        yield
        return
    began, spent = time.monotonic(), time.thread_time()

    def stop(*_: object) -> None:
        rest = seconds - (time.thread_time() - spent)
        if rest <= 0:
            raise _TooLong
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, rest))  # others had the processor, or the machine slept

    before = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with _room(mib):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)), interval)


@contextmanager
def _room(mib: int) -> Iterator[None]:
    """Limit the address space to what the process has and `mib` more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    wanted = pages * resource.getpagesize() + (mib << 20)
    ceiling = min(limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
