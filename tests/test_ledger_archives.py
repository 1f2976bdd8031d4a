"""Archives: out and in again is the same; equal results are equal bytes; a hostile archive changes nothing."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import write_results

from bitworth.errors import BitworthError
from bitworth.ledger import Ledger, key_of
from bitworth.ledger.archives import export, import_archive
from bitworth.ledger.compaction import compact
from bitworth.ledger.folder import name_of
from bitworth.ledger.records import encode
from bitworth.types import Cell

pytestmark = pytest.mark.usefixtures("unsynced")
SCORES = {"baseline": {"arc_challenge": [1, 0, 1, 1]}, "w8a8-fp": {"arc_challenge": [1, 0, 0, 1]}}
CELL = Cell(kind="evaluate", title="arc on w8", format="w8", inputs={"task": "arc"})
NAME = name_of(CELL)


@pytest.fixture
def folder(tmp_path: Path) -> Ledger:
    write_results(tmp_path / "from", SCORES, {"baseline": [1.0, 2.0], "w8a8-fp": [0.5, 1.0]})
    return Ledger(tmp_path / "from")


def results(ledger: Ledger) -> dict[str, object]:
    return {key_of(cell): result for cell, result in ledger.all()}


def record(result: object, seconds: float = 1.0, cell: Cell = CELL) -> bytes:
    return encode(cell, {"value": result}, seconds=seconds, finished="2026-01-01T00:00:00+00:00")


def archive(path: Path, members: dict[str, bytes], **listed: str) -> Path:
    """An archive with a manifest that is right for these members; `listed` overrides its checksums."""
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in members.items()} | listed
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for name, raw in {**members, "manifest.json": json.dumps({"schema": 1, "sha256": sums}).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            file.addfile(entry, io.BytesIO(raw))
    return path


def test_out_and_in_again_is_the_same_study(folder: Ledger, tmp_path: Path) -> None:
    from bitworth.assembly import assemble

    done = export(folder, tmp_path / "x.tar")
    assert (done.results, done.damaged) == (4, ())
    assert done.sha256 == hashlib.sha256((tmp_path / "x.tar").read_bytes()).hexdigest()
    other = Ledger(tmp_path / "to")
    found = import_archive(other, tmp_path / "x.tar")
    assert (found.added, found.kept, found.damaged, found.documents) == (4, 0, (), ("study.json", "plan.json"))
    assert results(other) == results(folder)
    assert assemble(other.root).recoveries == assemble(folder.root).recoveries
    again = import_archive(other, tmp_path / "x.tar")
    assert (again.added, again.kept, again.different, again.documents) == (0, 4, 0, ())


def test_equal_results_give_equal_bytes_packed_or_not(folder: Ledger, tmp_path: Path) -> None:
    first = export(folder, tmp_path / "1.tar").sha256
    compact(folder)
    assert export(folder, tmp_path / "2.tar").sha256 == first
    other = Ledger(tmp_path / "to")
    import_archive(other, tmp_path / "1.tar")
    assert export(other, tmp_path / "3.tar").sha256 == first


def test_a_damaged_result_is_left_out_and_named(folder: Ledger, tmp_path: Path) -> None:
    path = next(folder.root.glob("cells/evaluate/*.json"))
    path.write_bytes(path.read_bytes()[:-9])
    done = export(folder, tmp_path / "x.tar")
    assert done.damaged == (path.relative_to(folder.root).as_posix(),)
    assert done.results == 3


def test_a_whole_result_is_never_replaced_and_a_damaged_one_is_mended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "to")
    ledger.put(CELL, {"value": "ours"})
    path = archive(tmp_path / "x.tar", {NAME: record("theirs")})
    found = import_archive(ledger, path)
    assert (found.added, found.kept, found.different) == (0, 1, 1)
    assert ledger.get(CELL) == {"value": "ours"}
    ledger.path(CELL).write_bytes(b"{}")
    assert import_archive(ledger, path).added == 1
    assert ledger.get(CELL) == {"value": "theirs"}
    assert ledger.damaged() == []


OTHER = Cell(kind="evaluate", title="x", format="x", inputs={"task": "another"})
FORGED = record("theirs").replace(b'"inputs":{"task":"arc"}', b'"inputs":{"task":"xyz"}')
FORGED = b'{"sha256":"' + hashlib.sha256(FORGED[78:]).hexdigest().encode() + FORGED[75:]


@pytest.mark.parametrize(
    ("members", "listed"),
    [
        ({NAME: record("x")[:-1]}, {}),  # not whole, though the manifest says so
        ({NAME: record("x")}, {NAME: "0" * 64}),  # whole, though not what the manifest lists
        ({NAME: record("x", cell=OTHER)}, {}),  # of another cell
        ({NAME: FORGED}, {}),  # says it is of this cell, and its inputs are another's
        ({NAME: b""}, {}),
        ({NAME: b"[" * 100_000}, {}),
        ({}, {NAME: "0" * 64}),  # listed and absent
    ],
)
def test_a_bad_result_does_not_come_in(tmp_path: Path, members: dict[str, bytes], listed: dict[str, str]) -> None:
    ledger = Ledger(tmp_path / "to")
    found = import_archive(ledger, archive(tmp_path / "x.tar", members, **listed))
    assert (found.added, found.damaged) == (0, (NAME,))
    assert ledger.names() == []


@pytest.mark.parametrize(
    "plan", [b"{}", b'[{"kind":"judge","title":"t","format":"f","inputs":' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}]"]
)
def test_a_plan_that_the_folder_would_not_read_is_left_out(tmp_path: Path, plan: bytes) -> None:
    found = import_archive(Ledger(tmp_path / "to"), archive(tmp_path / "x.tar", {"plan.json": plan}))
    assert (found.documents, found.damaged) == ((), ("plan.json",))


def test_documents_that_do_not_read_are_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "to")
    members = {"study.json": b"[]", "plan.json": b'[{"kind": "rob"}]', "model.json": b"{"}
    found = import_archive(ledger, archive(tmp_path / "x.tar", members))
    assert sorted(found.damaged) == sorted(members)
    assert not ledger.root.exists()


BAD_NAMES = [
    "../evil.json",
    "/tmp/evil.json",
    "cells/../../evil.json",
    "cells/evaluate/../../../0123456789abcdef0123.json",
    "cells/evaluate/0123456789ABCDEF0123.json",
    "cells/evaluate/0123456789abcdef0123.json/x",
    "cells/evaluate/0123456789abcdef0123.json\n",
    "./study.json",
    "lock",
    "checkpoints/x/config.json",
    ".bashrc",
    "cells\\evaluate\\0123456789abcdef0123.json",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_no_folder_has_refuses_the_whole_archive(tmp_path: Path, name: str) -> None:
    ledger = Ledger(tmp_path / "to")
    path = archive(tmp_path / "x.tar", {NAME: record("fine"), name: b"evil"})
    with pytest.raises(BitworthError, match=r"nothing was imported|not a plain file|not a whole archive"):
        import_archive(ledger, path)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["x.tar"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE]
)
def test_anything_but_a_plain_file_refuses_the_whole_archive(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo(NAME)
    entry.type, entry.linkname = kind, "/etc/passwd"
    (tmp_path / "x.tar").write_bytes(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(BitworthError, match="not a plain file"):
        import_archive(Ledger(tmp_path / "to"), tmp_path / "x.tar")
    assert not (tmp_path / "to").exists()


def _twice(whole: bytes) -> bytes:
    return whole[: 512 + 1024] + whole


def _huge(_: bytes) -> bytes:
    entry = tarfile.TarInfo(NAME)
    entry.size = 8**11 - 1
    return entry.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)


HARM: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "no tar": lambda _: b"PK\3\4" * 400,
    "cut in a header": lambda whole: whole[:300],
    "cut in a member": lambda whole: whole[:700],
    "cut between members": lambda whole: whole[: 512 + 1024],
    "goes on after its end": lambda whole: whole + b"more",
    "a header flipped": lambda whole: b"C" + whole[1:],
    "larger than itself": _huge,
    "a member twice": _twice,
    "no manifest": lambda whole: whole[: 512 + 1024] + bytes(1024),
}


@pytest.mark.parametrize("harm", HARM)
def test_an_archive_that_is_not_whole_changes_nothing(tmp_path: Path, harm: str) -> None:
    path = archive(tmp_path / "x.tar", {NAME: record("x" * 500)})
    whole = path.read_bytes()
    assert 512 < len(record("x" * 500)) <= 1024
    path.write_bytes(HARM[harm](whole))
    with pytest.raises(BitworthError) as caught:
        import_archive(Ledger(tmp_path / "to"), path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "to").exists()


def test_what_cannot_be_exported_or_read_is_one_sentence(folder: Ledger, tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="holds no results to export"):
        export(Ledger(tmp_path / "nowhere"), tmp_path / "x.tar")
    with pytest.raises(BitworthError, match="is a folder"):
        export(folder, tmp_path)
    with pytest.raises(BitworthError, match="cannot be read"):
        import_archive(Ledger(tmp_path / "to"), tmp_path / "nowhere.tar")


def test_a_result_of_a_later_schema_stops_the_import_before_it_writes(folder: Ledger, tmp_path: Path) -> None:
    rest = record(1).split(b"\n", 1)[1].replace(b'"schema":2', b'"schema":3', 1)
    later = b'{"sha256":"' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest
    members = {name: (folder.root / name).read_bytes() for name in ("study.json", *folder.names())}
    path = archive(tmp_path / "x.tar", {**members, NAME: later})
    other = Ledger(tmp_path / "to")
    with pytest.raises(BitworthError, match=r"schema 3.*update bitworth"):
        import_archive(other, path)
    assert not other.root.exists() or not any(other.root.iterdir())
