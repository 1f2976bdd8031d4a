"""Packs: results of many cells in one file, so that a folder of a hundred thousand cells is not as many files.

    packs/000001-<12 hex digits of its SHA-256>.tar      members cells/KIND/KEY.json, each with its own checksum

A pack is never changed. The one with the higher number has the newer result of a cell, and a file under `cells/` is
newer than any pack.
"""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.ledger.tar import Member, find_members

MEMBER = re.compile(r"cells/(?P<kind>[a-z]{1,20})/(?P<key>[0-9a-f]{20})\.json")
"""The one kind of name that a pack or an archive may give a result."""
_TRIES = 5
"""A pack may go while it is read: a compaction in another process has joined it to others."""
_NAME = re.compile(r"(\d{6})-[0-9a-f]{12}\.tar")


class Packs:
    """The packs of a results folder, read once until another is added or removed."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "packs"
        self._stamp: tuple[int, int] | None = None
        self._newest: dict[str, Member] = {}
        self._superseded: list[Member] = []

    def find(self, name: str) -> Member | None:
        """The newest packed copy of `cells/KIND/KEY.json`."""
        self._look()
        return self._newest.get(name)

    def read(self, name: str) -> bytes | None:
        """The bytes of that copy; None where there is none, or the disk lost it.

        Raises:
            BitworthError: it cannot be read.
        """
        for _ in range(_TRIES):
            member = self.find(name)
            if member is None:
                return None
            try:
                return member.read()
            except FileNotFoundError:
                self.forget()
            except OSError as error:
                check_lost(member.path, error)
                return None
        raise self._restless()

    def newest(self) -> dict[str, Member]:
        """Every packed result by its name."""
        self._look()
        return self._newest

    def superseded(self) -> list[Member]:
        """Packed results of which a later pack has another."""
        self._look()
        return self._superseded

    def paths(self) -> list[Path]:
        """The packs, oldest first."""
        try:
            return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def next_number(self) -> int:
        """The number of the next pack."""
        return max((int(path.name[:6]) for path in self.paths()), default=0) + 1

    def forget(self) -> None:
        """Read the folder again when next asked."""
        self._stamp = None

    def _look(self) -> None:
        try:
            facts = self.folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._stamp, self._newest, self._superseded = None, {}, []
            return
        stamp = (facts.st_mtime_ns, facts.st_ino)
        if stamp == self._stamp:
            return
        newest: dict[str, Member] = {}
        superseded = []
        for member in self._listed():
            if member.name in newest:
                superseded.append(newest[member.name])
            newest[member.name] = member
        self._stamp, self._newest, self._superseded = stamp, newest, superseded

    def _listed(self) -> list[Member]:
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):
                return [member for path in self.paths() for member in _members(path)]
        raise self._restless()

    def _restless(self) -> BitworthError:
        return BitworthError(f"{self.folder} has packs that go while they are read; run the same command again.")


def _members(path: Path) -> list[Member]:
    try:
        return [member for member in find_members(path) if MEMBER.fullmatch(member.name)]
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BitworthError(f"{path} cannot be read: {error.strerror}.") from error


def check_lost(path: Path, error: OSError) -> None:
    """Raise where a file could not be read though the disk has not lost it: that is no damage, and may pass.

    Raises:
        BitworthError: it is so.
    """
    if error.errno != errno.EIO:
        raise BitworthError(f"{path} cannot be read: {error.strerror}.") from error
