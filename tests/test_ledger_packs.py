"""Packs: nothing is lost or doubled whatever moment compaction is killed at, and a flipped byte costs one result."""

from __future__ import annotations

import errno
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import killed_at

from bitworth.errors import BitworthError, WorkFailed
from bitworth.ledger import Ledger, compaction, key_of, packs
from bitworth.ledger.archives import export, import_archive
from bitworth.ledger.compaction import compact
from bitworth.ledger.folder import name_of
from bitworth.ledger.tar import Member, check_members, find_members, write_members
from bitworth.types import Cell

pytestmark = pytest.mark.usefixtures("unsynced")


def cell(number: int) -> Cell:
    return Cell(kind="judge", title=f"verdict {number}", format="w8", inputs={"number": number})


def filled(root: Path, count: int = 6) -> Ledger:
    ledger = Ledger(root)
    for number in range(count):
        ledger.put(cell(number), {"number": number, "text": "x" * 40 * number})
    return ledger


def contents(root: Path) -> dict[str, Any]:
    """Every result by its key, as a process that comes later finds it; each once."""
    found = [(key_of(one), result) for one, result in Ledger(root).all()]
    assert len(found) == len(dict(found))
    return dict(found)


def test_packed_results_read_as_before_and_tar_opens_the_pack(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    before = contents(tmp_path)
    done = compact(ledger)
    assert (done.results, done.packs, done.removed_files) == (6, 1, 6)
    assert list(tmp_path.glob("cells/*/*")) == []
    assert contents(tmp_path) == before
    assert ledger.get(cell(3)) == {"number": 3, "text": "x" * 120}
    assert ledger.done(cell(3))
    assert not ledger.done(cell(9))
    assert ledger.damaged() == []
    (pack,) = (tmp_path / "packs").iterdir()
    with tarfile.open(pack) as opened:
        assert sorted(opened.getnames()) == sorted(name_of(cell(number)) for number in range(6))


def test_a_pack_that_goes_while_it_is_read_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compaction in another process joins packs while a page or a query reads them."""
    ledger = filled(tmp_path)
    compact(ledger)
    reader = Ledger(tmp_path)
    before = contents(tmp_path)
    stale = dict(reader.packs.newest())
    ledger.put(cell(0), before[key_of(cell(0))])
    compact(ledger)
    compact(ledger)  # of two packs with a superseded result, one with none
    assert all(not member.path.exists() for member in stale.values())
    find, asked = reader.packs.find, iter([lambda name: stale[name]] * 1)
    monkeypatch.setattr(reader.packs, "find", lambda name: next(asked, find)(name))
    assert reader.get(cell(1)) == before[key_of(cell(1))]

    listed, gone = packs.find_members, [FileNotFoundError()]

    def vanishing(path: Path) -> list[Member]:
        if gone:
            raise gone.pop()
        return listed(path)

    monkeypatch.setattr(packs, "find_members", vanishing)
    assert contents(tmp_path) == before


def test_a_pack_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files, say: joining the packs would have removed what it had not read."""
    ledger = filled(tmp_path)
    compact(ledger)
    ledger.put(cell(0), {"number": 0, "text": "new"})
    compact(ledger)
    before = sorted(path.name for path in (tmp_path / "packs").iterdir())

    def refused(_: Member) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Member, "read", refused)
        with pytest.raises(BitworthError, match=r"\.tar cannot be read: Too many open files\.$"):
            compact(ledger)
        patched.setattr(packs, "find_members", lambda _: refused(next(iter(ledger.packs.newest().values()))))
        with pytest.raises(BitworthError, match=r"\.tar cannot be read: Too many open files\.$"):
            Ledger(tmp_path).names()
    assert sorted(path.name for path in (tmp_path / "packs").iterdir()) == before


def test_a_file_under_another_name_is_no_result(tmp_path: Path) -> None:
    """A copy that somebody made beside a result made an export that no import took, and compaction swallowed it."""
    ledger = filled(tmp_path / "from")
    path = ledger.path(cell(2))
    copy = path.with_name(f"{path.stem} (copy).json")
    shutil.copy(path, copy)
    assert len(ledger.names()) == 6
    export(ledger, tmp_path / "x.tar")
    assert import_archive(Ledger(tmp_path / "to"), tmp_path / "x.tar").added == 6
    compact(ledger)
    assert copy.exists()


def test_a_newer_result_hides_the_packed_one_and_compaction_drops_it(tmp_path: Path) -> None:
    ledger = filled(tmp_path)
    compact(ledger)
    ledger.put(cell(2), {"number": "anew"})
    assert ledger.get(cell(2)) == {"number": "anew"}
    compact(ledger)
    assert ledger.get(cell(2)) == {"number": "anew"}
    assert len(ledger.packs.superseded()) == 1
    compact(ledger)
    assert ledger.packs.superseded() == []
    assert len(ledger.packs.paths()) == 1
    assert ledger.get(cell(2)) == {"number": "anew"}
    assert len(contents(tmp_path)) == 6


def test_many_packs_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "PACK_BYTES", 1)
    ledger = filled(tmp_path)
    compact(ledger)
    assert len(ledger.packs.paths()) == 6
    monkeypatch.undo()
    monkeypatch.setattr(compaction, "MOST_PACKS", 6)
    compact(ledger)
    assert len(ledger.packs.paths()) == 1
    assert len(contents(tmp_path)) == 6


@pytest.mark.parametrize("start", ["loose", "packed"])
def test_killed_between_any_two_lines_compaction_loses_and_doubles_nothing(tmp_path: Path, start: str) -> None:
    """Every 47th line here, each line in benchmarks/kills.py."""
    origin = tmp_path / "origin"
    ledger = filled(origin, 3)
    if start == "packed":  # joining packs, one of which holds an older result
        compact(ledger)
        ledger.put(cell(1), {"number": "anew"})
        compact(ledger)
    before = contents(origin)
    line, killed = 0, True
    while killed:
        root = tmp_path / f"at-{line}"
        shutil.copytree(origin, root)
        killed = killed_at(line, lambda root=root: compact(Ledger(root)))  # type: ignore[misc]
        assert contents(root) == before, line
        assert Ledger(root).damaged() == []
        compact(Ledger(root))
        assert contents(root) == before
        shutil.rmtree(root)
        line += 47
    assert line > 47 * 5


def test_a_full_disk_stops_compaction_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = filled(tmp_path)
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compaction, "write_members", full)
    with pytest.raises(WorkFailed, match="disk is full"):
        compact(ledger)
    assert contents(tmp_path) == before
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_pack_that_does_not_read_back_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(tmp_path)
    before = contents(tmp_path)

    def garbles(file: Any, members: Any) -> None:
        write_members(file, [(name, raw.replace(b"verdict", b"vErdict")) for name, raw in members])

    monkeypatch.setattr(compaction, "write_members", garbles)
    with pytest.raises(WorkFailed, match="does not read back"):
        compact(ledger)
    assert contents(tmp_path) == before


def test_a_flipped_bit_anywhere_in_a_pack_costs_at_most_the_results_it_touches(tmp_path: Path) -> None:
    compact(filled(tmp_path, 3))
    before = contents(tmp_path)
    (pack,) = (tmp_path / "packs").iterdir()
    whole = pack.read_bytes()
    for at in range(0, len(whole), 97):
        pack.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        found = contents(tmp_path)
        assert len(found) >= 2, at
        assert found.items() <= before.items()
        missing = before.keys() - found.keys()
        assert {path.stem for path in Ledger(tmp_path).damaged()} <= missing


def test_a_pack_cut_short_keeps_the_results_before_the_cut(tmp_path: Path) -> None:
    compact(filled(tmp_path, 3))
    before = contents(tmp_path)
    (pack,) = (tmp_path / "packs").iterdir()
    whole = pack.read_bytes()
    members = find_members(pack)
    for length in range(0, len(whole), 211):
        pack.write_bytes(whole[:length])
        found = contents(tmp_path)
        assert len(found) == sum(member.offset + member.size <= length for member in members)
        assert found.items() <= before.items()


NAMES = st.text("abcdefgh/", min_size=1, max_size=30).filter(lambda name: not name.endswith("/"))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5, unique_by=lambda pair: pair[0]))
def test_tar_files_are_what_pythons_tar_reads(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    with path.open("wb") as file:
        write_members(file, members)
    with tarfile.open(path) as opened:
        theirs = [(entry.name, opened.extractfile(entry).read()) for entry in opened]  # type: ignore[union-attr]
    assert theirs == members
    assert [(member.name, member.read()) for member in check_members(path)] == members
    assert [(member.name, member.read()) for member in find_members(path)] == members
