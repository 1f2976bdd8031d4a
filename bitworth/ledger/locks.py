"""One driver a results folder.

The kernel's lock on `lock` is the authority: it goes with the process, however that ends, and NFS carries it between
machines. Some mounts keep locks to each machine, or have none. So the holder also writes into the file who it is, and
touches it every few seconds; who gets the kernel's lock still stands back while another machine's name in it is fresh.
Freshness is measured between two times that the file's own server gives, never by this machine's clock.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bitworth.errors import BitworthError, disk_reason
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.ledger.files import host

BEAT_S = 10.0
"""Seconds between two touches."""
SILENCE_S = 60.0
"""A holder on another machine that has not touched its lock for so many seconds is taken for dead."""
_turns = itertools.count()
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Hold the folder for one driver.

    Raises:
        BitworthError: another driver holds it, here or on another machine, or the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / "lock").open("a+")
    except OSError as error:
        raise BitworthError(f"The folder {root} cannot be used for results: {disk_reason(error)}.") from error
    with handle:
        if not _taken(handle, tries=25):
            raise BitworthError(_held_by(root, _holder(handle)))
        holder = _elsewhere(root, handle)
        if holder is not None:
            raise BitworthError(_held_by(root, holder))
        _write(handle, json.dumps({"host": host(), "pid": os.getpid()}))
        ended = threading.Event()
        threading.Thread(target=_beat, args=(root / "lock", ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            _write(handle, "")


def is_held(root: Path) -> bool:
    """Whether a driver holds the folder; nothing is written."""
    try:
        with (root / "lock").open("r+") as handle:
            return not _taken(handle) or _elsewhere(root, handle) is not None
    except OSError:
        return False


def _taken(handle: IO[str], tries: int = 1) -> bool:
    """Take the kernel's lock; False where another has it for longer than `is_held` does."""
    for _ in range(tries):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _NO_LOCKS:  # then the name in the file is all there is
                return True
            time.sleep(0.02 if tries > 1 else 0)
    return False


def _elsewhere(root: Path, handle: IO[str]) -> dict[str, object] | None:
    """Who holds the folder on another machine, though the kernel's lock was to be had."""
    holder = _holder(handle)
    if not holder or (holder["host"], holder["pid"]) == (host(), os.getpid()):
        return None
    if holder["host"] == host():
        return None if _kernel_knows(handle) or not _lives(holder["pid"]) else holder
    return holder if _age_s(root) < SILENCE_S else None


def _kernel_knows(handle: IO[str]) -> bool:
    """Whether this file system has locks at all."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    return True


def _lives(process: object) -> bool:
    return Path(f"/proc/{process}").exists()


def _age_s(root: Path) -> float:
    """Seconds between the lock's last touch and now, both by the clock that stamps files in this folder."""
    probe = root / f".lock.{os.getpid()}-{next(_turns)}@{host()}.tmp"
    try:
        probe.write_text("")
        return probe.stat().st_mtime - (root / "lock").stat().st_mtime
    except OSError:  # a full disk: the kernel's lock has to do
        return SILENCE_S
    finally:
        with suppress(OSError):
            probe.unlink()


def _holder(handle: IO[str]) -> dict[str, object]:
    """What the file says of its holder; empty where it says nothing that reads."""
    try:
        handle.seek(0)
        found = json_of(handle.read(), nested=MOST_NESTED)
        return {"host": str(found["host"]), "pid": int(found["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _held_by(root: Path, holder: dict[str, object]) -> str:
    who = f" (process {holder['pid']} on {holder['host']})" if holder else ""
    gone = ""
    if holder and holder["host"] != host():
        gone = f"; if that one is gone, it frees the folder {SILENCE_S:.0f} s after its last sign of life"
    return f"Another bitworth is already running on {root}{who}; wait for it, or choose another --out{gone}."


def _write(handle: IO[str], text: str) -> None:
    with suppress(OSError):  # a full disk: the kernel's lock holds without a name in the file
        handle.seek(0)
        handle.truncate()
        handle.write(text)
        handle.flush()


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(path)
