"""Folders and files on storage that the driver and all nodes reach: a local path, NFS, s3://bucket/prefix, gs://, ...

    NAME/...         the files
    NAME.json        {"files": {path: bytes}}, written last: what has none is not there yet

A copy on a node is made once, under a lock, and renamed into place when it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError, WorkFailed
from bitworth.guard.documents import config_of
from bitworth.guard.folders import is_within
from bitworth.guard.text import visible


class Storage:
    """A place for folders, by URL."""

    def __init__(self, url: str) -> None:
        """Open it.

        Raises:
            BitworthError: fsspec, or what it needs for that kind of URL, is not installed, or the URL makes no sense.
        """
        self._sent: dict[str, dict[str, int]] = {}
        self.url = url.rstrip("/") if "://" in url else str(Path(url).absolute())
        try:
            import fsspec

            self._files, self._base = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise BitworthError(
                f"The storage {url} cannot be used: {error}; `pip install 'bitworth[ray]'` brings S3, other kinds of "
                "storage need fsspec's package for them."
            ) from error
        except (ValueError, OSError) as error:
            raise BitworthError(f"The storage {url} cannot be used: {error}.") from error

    def has(self, name: str) -> bool:
        """Whether the whole of it is there."""
        return self._listing(name) is not None

    def mark(self, name: str) -> None:
        """Put an empty folder there.

        Raises:
            WorkFailed: it cannot be written.
        """
        with self._told(f"{name} could not be written to {self.url}"):
            self._files.makedirs(f"{self._base}/{name}".rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(f"{self._base}/{name}.json", json.dumps({"files": {}}).encode())

    def unmark(self, name: str) -> None:
        """Remove what `mark` put there, if it is."""
        with suppress(Exception):  # it is a few bytes; what matters has been said by now
            self._files.rm_file(f"{self._base}/{name}.json")

    def send(self, source: Path, name: str) -> None:
        """Put a file or a folder there, unless it is there already.

        Raises:
            WorkFailed: it cannot be written.
        """
        files = sizes(source)
        if self._sent.get(name) == files or self._listing(name) == files:
            self._sent[name] = files
            return
        with self._told(f"{source} could not be written to {self.url}"):
            for path in files:
                there = f"{self._base}/{name}/{path}"
                self._files.makedirs(there.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(source / path if source.is_dir() else source), there)
            self._files.pipe_file(f"{self._base}/{name}.json", json.dumps({"files": files}).encode())

    def fetch(self, name: str, target: Path) -> None:
        """Make `target` the folder, or the file's folder, unless it is there already.

        Raises:
            BitworthError: it is not there, or what lists its files would write elsewhere or does not read.
            WorkFailed: it cannot be read, or not written here.
        """
        with self._told(f"{name} could not be read from {self.url}"):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(f".{target.name}.lock")):
            files = self._listing(name)
            if files is None:
                raise BitworthError(f"The storage {self.url} holds no {name}; run the same command again.")
            if not target.exists() or sizes(target) != files:
                self._copy(name, files, target)

    def _copy(self, name: str, files: dict[str, int], target: Path) -> None:
        half = target.with_name(f".{target.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        with self._told(f"{name} could not be read from {self.url}"):
            for path in files:
                (half / path).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._base}/{name}/{path}", str(half / path))
            if sizes(half) != files:
                raise OSError("files have other sizes than when they were written")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(half, target)

    def _listing(self, name: str) -> dict[str, int] | None:
        try:
            self._files.invalidate_cache()
            text = self._files.cat_file(f"{self._base}/{name}.json")
        except FileNotFoundError:
            return None
        except Exception as error:  # each kind of storage has faults of its own
            raise WorkFailed(f"The storage {self.url} does not answer: {_reason(error)}.") from error
        return _listed(text, f"{self.url}/{name}.json")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each kind of storage has faults of its own
            raise WorkFailed(f"{what}: {_reason(error)}.") from error


def _listed(text: bytes, place: str) -> dict[str, int]:
    """The files of a listing, which whoever may write to the storage may have written."""
    try:
        files = config_of(text).get("files")
    except ValueError:
        files = None
    if not isinstance(files, dict) or not all(type(size) is int for size in files.values()):
        raise BitworthError(f"{place} is no list of files; remove it and run the same command again.")
    astray = next((name for name in files if not is_within(name)), None)
    if astray is not None:
        raise BitworthError(f"{place} lists '{visible(astray)}', which would be written outside it; do not use it.")
    return files


def sizes(source: Path) -> dict[str, int]:
    """Bytes of every file below a folder by relative path, hidden ones left out; of a file, its own by its name."""
    if source.is_file():
        return {source.name: source.stat().st_size}
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    found = {path.relative_to(source).as_posix(): path.stat().st_size for path in paths}
    return {name: size for name, size in found.items() if not name.startswith(".")}


def name_of(source: Path) -> str:
    """A name for a file or folder that changes when it does: by its place, its files, their sizes and times."""
    resolved = source.resolve()
    times = [(name, size, _time(resolved, name)) for name, size in sizes(resolved).items()]
    digest = hashlib.sha256(json.dumps([str(resolved), times]).encode()).hexdigest()[:16]
    return f"inputs/{digest}"


def _time(source: Path, name: str) -> int:
    return (source if source.is_file() else source / name).stat().st_mtime_ns


def _reason(error: Any) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).rstrip(".")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
