"""Folders made once and kept: built beside their final name, renamed when whole, checked whenever they are asked for.

CACHE/
  NAME/             what `build` made, and manifest.json: {"version", "files": {path: bytes}}
  .NAME.partial/    being made, or left by a killed process; swept by whoever builds next
  .NAME.lock        held by the one process that builds NAME
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bitworth.errors import BitworthError, WorkFailed, disk_reason

MANIFEST = "manifest.json"

Note = Callable[[str], None]
"""Told, in a few words, of what takes a while."""


def silent(_: str) -> None:
    """A `Note` that says nothing."""


def cache_folder() -> Path:
    """$BITWORTH_CACHE, else $XDG_CACHE_HOME/bitworth, else ~/.cache/bitworth; it may not exist yet.

    Raises:
        BitworthError: none of them is set and the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    default = Path(base) / "bitworth" if Path(base).is_absolute() else Path("~/.cache/bitworth")
    try:
        return Path(os.environ.get("BITWORTH_CACHE") or default).expanduser().absolute()
    except RuntimeError as error:
        raise BitworthError("There is no home folder to keep downloads in; set BITWORTH_CACHE to a folder.") from error


def cached(name: str, version: str, build: Callable[[Path], None], note: Note = silent) -> Path:
    """The cache's folder `name`, built by `build(empty folder)` unless it is there, whole, and of this version.

    A build that fails or is killed leaves nothing that is taken for finished; of two processes one builds and the
    other waits. Only sizes are checked when it is asked for again, so that asking costs milliseconds.

    Raises:
        BitworthError: what `build` raises, or there is nowhere to keep it.
        WorkFailed: the disk is full or cannot be written.
    """
    folder = cache_folder() / name
    if _whole(folder, version):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f".{name}.lock"), name, note):
            if not _whole(folder, version):
                if folder.exists():
                    note(f"{name} in the cache is damaged or of an older version; making it again")
                _replace(folder, version, build)
    except OSError as error:
        raise WorkFailed(
            f"{name} could not be kept in {folder.parent} (set BITWORTH_CACHE to use another folder): "
            f"{disk_reason(error)}."
        ) from error
    return folder


def _replace(folder: Path, version: str, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    _remove(partial)
    partial.mkdir()
    try:
        build(partial)
        _seal(partial, version)
        _remove(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _seal(folder: Path, version: str) -> None:
    """Flush every file to disk, then list them in the manifest: a power cut must not leave listed files of zeros."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = path.stat().st_size
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"version": version, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _whole(folder: Path, version: str) -> bool:
    """True when the manifest is of this version and every file in it has the size it had."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != version:
            return False
        return all((folder / path).stat().st_size == size for path, size in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _lock(path: Path, name: str, note: Note) -> Iterator[None]:
    """Hold `path` for one process; the kernel frees it when the process ends, however it ends."""
    with path.open("a") as handle:
        _take(handle, name, note)
        yield


def _take(handle: IO[str], name: str, note: Note) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(f"another process is making {name}; waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)
