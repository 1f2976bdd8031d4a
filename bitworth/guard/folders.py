"""Paths that somebody else wrote: they stay in the folder that they are read against."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from bitworth.errors import BitworthError

_LONGEST_NAME = 255
"""Bytes; Linux's own limit."""


def is_within(name: str) -> bool:
    """Whether a relative path, as it is written, leads nowhere but down.

    >>> is_within("checkpoints/w8a8-fp"), is_within("../x"), is_within("/etc/passwd"), is_within("C:\\\\x")
    (True, False, False, False)
    """
    parts = PurePosixPath(name)
    there = bool(parts.parts) and not parts.is_absolute() and all(map(_can_be, parts.parts))
    return there and ".." not in parts.parts and not PureWindowsPath(name).drive and "\\" not in name


def _can_be(part: str) -> bool:
    """Whether a file system takes a name."""
    try:
        return "\0" not in part and len(os.fsencode(part)) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def own_file(folder: Path, name: str) -> Path:
    """A file of a model folder by its bare name; no link in it may lead out.

    The hub's cache is the exception that it is made of: its snapshots link to the `blobs` beside them.

    Raises:
        BitworthError: a name that is a path, or a link to another place.
    """
    path = folder / name
    if not is_within(name) or len(PurePosixPath(name).parts) != 1:
        raise BitworthError(f"{folder} names the file '{name}', which leads out of its folder; fetch the model again.")
    if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in _places(folder)):
        raise BitworthError(
            f"{path} is a link to {path.resolve()}, which lies outside its folder; copy the file, or name the folder "
            "that holds it."
        )
    return path


def _places(folder: Path) -> list[Path]:
    """Where links of a model folder may lead."""
    own = folder.resolve()
    return [own, own.parent.parent / "blobs"] if own.parent.name == "snapshots" else [own]
