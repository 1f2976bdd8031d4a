"""Results folders of others: archives that are imported, and what a browser may ask the page of results for."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mutations import other_bytes, other_json, other_value, written

from bitworth.ledger import Ledger, canonical
from bitworth.ledger.archives import MANIFEST, export, import_archive
from bitworth.ledger.checking import check
from bitworth.ledger.compaction import compact
from bitworth.ledger.index import Index
from bitworth.ledger.tar import find_members

_HOST = b"Host: 127.0.0.1:8765\r\nAccept: text/html"
REQUESTS = tuple(
    b"GET " + target + b" HTTP/1.1\r\n" + _HOST
    for target in (
        *(b"/", b"/?study=0&format=w8a8-fp", b"/figures?task=mmlu&source=measured&hardware=local", b"/state.json"),
        *(b"/study/0/answers?task=mmlu&format=w8a8-fp&which=all&page=2", b"/study/0/answers?task=%E2%80%AE&page=x"),
        *(b"/study/0/report.html", b"/study/0/recommendation.json", b"/view.css", b"/view.js"),
    )
)
_ANSWER_S = 5.0


def archive_of(ledger: Ledger) -> bytes:
    """An archive of these results."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.tar"
        export(ledger, path)
        return path.read_bytes()


def other_archive(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """An archive with other bytes; or one with other documents, names or results, of which every checksum fits."""
    if rng.random() < 0.3:
        return other_bytes(rng, seeds)
    members = _members(rng.choice(seeds))
    name = rng.choice(sorted(members))
    if rng.random() < 0.1:
        members[other_bytes(rng, [name.encode()])[:90].decode(errors="ignore")] = members.pop(name)
    elif name.startswith("cells/"):
        members[name] = _other_record(rng, members[name])
    else:
        members[name] = other_json(rng, [members[name]])
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in members.items() if name != MANIFEST}
    if MANIFEST in members and name != MANIFEST:
        members[MANIFEST] = written({"schema": 1, "sha256": sums})
    return _tar(members)


def import_reader(folder: Path) -> Callable[[bytes], object]:
    """Imports an archive into a folder of its own, and asks all of it; nothing may appear beside the folder."""
    home = Path(tempfile.mkdtemp(dir=folder))
    archive = home / "x.tar"

    def load(data: bytes) -> object:
        archive.write_bytes(data)
        ledger = Ledger(home / "results")
        try:
            return import_archive(ledger, archive), _asked(ledger)
        finally:
            beside = {path.name for path in home.iterdir()} - {"x.tar", "results"}
            shutil.rmtree(ledger.root, ignore_errors=True)
            assert not beside, f"written beside the folder: {beside}"

    return load


def _asked(ledger: Ledger) -> object:
    with Index(ledger).opened() as segments:
        columns = segments.files()
    return columns, check(ledger), compact(ledger), list(ledger.all()), ledger.damaged()


def page_reader(ledger: Ledger) -> Callable[[bytes], object]:
    """Sends the head of a request to the page of these results; any answer will do but one of a fault (500)."""
    logging.getLogger("aiohttp.server").disabled = True  # it says of each request that is none where it goes wrong
    loop = asyncio.new_event_loop()
    place = str(ledger.root / "page.sock")
    runner: Any = None

    async def start() -> Any:
        from aiohttp import web

        from bitworth.view.server import application

        found = web.AppRunner(application([ledger.root]), access_log=None)
        await found.setup()
        await web.UnixSite(found, place).start()
        return found

    async def ask(head: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(place)
        try:
            writer.write(head + b"\r\nConnection: close\r\n\r\n")
            return await asyncio.wait_for(reader.readline(), _ANSWER_S)
        except (TimeoutError, ConnectionError):  # it waits for a body, or wants no more of this
            return b""
        finally:
            writer.close()

    def load(data: bytes) -> object:
        nonlocal runner
        runner = runner or loop.run_until_complete(start())
        status = loop.run_until_complete(ask(data))
        assert b" 500 " not in status, status.decode(errors="replace")
        return status

    return load


def _members(archive: bytes) -> dict[str, bytes]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(archive)
        file.flush()
        return {member.name: member.read() for member in find_members(Path(file.name))}


def _other_record(rng: random.Random, raw: bytes) -> bytes:
    """A record of the present schema, or of the first, with another value somewhere and a checksum that fits."""
    record = other_value(rng, json.loads(b"{" + raw.partition(b"\n")[2]))
    if not isinstance(record, dict):
        return written(record)
    if rng.random() < 0.2:
        fits = hashlib.sha256(canonical(record.get("result")).encode(errors="backslashreplace")).hexdigest()
        return written({**record, "sha256": fits})
    rest = b",\n".join(
        json.dumps(name).encode() + b":" + json.dumps(value, separators=(",", ":")).encode()
        for name, value in record.items()
    )
    for name in (b"key", b"finished", b"seconds"):  # they share a line
        rest = rest.replace(b',\n"' + name + b'":', b',"' + name + b'":', 1)
    rest += b"}\n"
    return b'{"sha256":"' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest


def _tar(members: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, raw in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            file.addfile(entry, io.BytesIO(raw))
    return whole.getvalue()
