"""Files that are there whole or not at all, and the traces of those that were not finished."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bitworth.errors import WorkFailed, disk_reason
from bitworth.guard.keys import without_keys
from bitworth.ledger.values import HALVES

_TEMPORARY = re.compile(r"\..+\.(?P<process>\d+)(?:-\d+@(?P<host>[\w-]+))?\.tmp")
_turns = itertools.count()


def host() -> str:
    """This machine's name, in letters, digits, `_` and `-`."""
    return re.sub(r"[^\w-]", "_", socket.gethostname(), flags=re.ASCII) or "unnamed"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename; no key of the environment is in a text.

    Raises:
        WorkFailed: the disk is full or cannot be written; `path` is then as it was.
    """
    with replacing(path) as file:
        file.write(without_keys(content).encode(errors=HALVES) if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a value as indented JSON; what JSON lacks is written as text."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` when the block ends well, and is gone when it does not.

    Raises:
        WorkFailed: the disk is full or cannot be written; `path` is then as it was.
    """
    # Two processes, on two machines even, must never write into one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_turns)}@{host()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the first fault is the one to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WorkFailed(f"{path} could not be written: {disk_reason(error)}.") from error
        raise


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, so that a file renamed into it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(handle)
    finally:
        os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether a name is one that an unfinished write leaves."""
    return _TEMPORARY.fullmatch(path.name) is not None


def may_be_written(path: Path, now: float, patience_s: float = 3600.0) -> bool:
    """Whether a temporary file's writer may still be at it: a live process here, or anywhere within the last hour."""
    found = _TEMPORARY.fullmatch(path.name)
    if found is not None and found["host"] in (None, host()):
        return int(found["process"]) != os.getpid() and _lives(int(found["process"]))
    with suppress(OSError):
        return abs(now - path.stat().st_mtime) < patience_s  # a clock that was set back must not keep it for years
    return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
