"""Many small files in one: an uncompressed tar, of which each member can be read without the rest.

`tar xf` opens it. It is written so that equal members give equal bytes. Reading is our own, because a damaged header
must not hide the members after it, and a stranger's archive must not be given the benefit of any doubt.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bitworth.errors import BitworthError

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file inside a tar: its name, and where its bytes lie in which file."""

    name: str
    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes; fewer where the tar is cut short."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def write_members(file: IO[bytes], members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar; owner, mode and time are always the same.

    Raises:
        OSError: it cannot be written.
    """
    for name, content in members:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.write(content)
        file.write(bytes(-len(content) % BLOCK))
    file.write(bytes(2 * BLOCK))


def find_members(path: Path) -> list[Member]:
    """The plain files in a tar; a header that does not read is skipped up to the next that does.

    Raises:
        OSError: it cannot be read.
    """
    found, size = [], path.stat().st_size
    with path.open("rb", buffering=1 << 16) as file:
        at = 0
        while at + BLOCK <= size:
            file.seek(at)
            header = _header(file.read(BLOCK))
            at += BLOCK
            if header is not None and header.isreg() and at + header.size <= size:
                found.append(Member(name=header.name, path=path, offset=at, size=header.size))
                at += _padded(header.size)
    return found


def check_members(path: Path) -> Iterator[Member]:
    """The members of a tar that holds nothing but plain files, end to end.

    Raises:
        BitworthError: it is not a tar, is cut short, or holds a link, a device, a folder or an extension header.
    """
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=1 << 16) as file:
            yield from _strictly(file, path, size)
    except OSError as error:
        raise BitworthError(f"{path} cannot be read: {error.strerror}.") from error


def _strictly(file: IO[bytes], path: Path, size: int) -> Iterator[Member]:
    at = 0
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        at += BLOCK
        if block == bytes(BLOCK):
            _check_end(file, path, at)
            return
        header = _header(block)
        if header is None:
            raise BitworthError(f"{path} is not a whole archive (at byte {at - BLOCK}); copy it again.")
        if not header.isreg() or header.linkname:
            raise BitworthError(
                f"{path} holds '{header.name}', which is not a plain file; it was not made by bitworth."
            )
        if at + header.size > size:
            raise BitworthError(f"{path} is cut short in '{header.name}'; copy it again.")
        yield Member(name=header.name, path=path, offset=at, size=header.size)
        at += _padded(header.size)


def _check_end(file: IO[bytes], path: Path, at: int) -> None:
    file.seek(at)
    while rest := file.read(1 << 20):
        if rest.strip(b"\0"):
            raise BitworthError(f"{path} goes on after its end; it was not made by bitworth.")


def _header(block: bytes) -> tarfile.TarInfo | None:
    """A header whose checksum is right and that makes sense."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError, ValueError):
        return None
    return header if header.size >= 0 else None


def _padded(size: int) -> int:
    return size + -size % BLOCK
