"""check tells all that is wrong and changes nothing; gc removes what lies there for nothing and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import write_results

from bitworth import cli
from bitworth.errors import BitworthError
from bitworth.ledger import Ledger, key_of, write_json
from bitworth.ledger.checking import check, gc, removable
from bitworth.ledger.compaction import compact
from bitworth.ledger.files import host
from bitworth.ledger.folder import name_of
from bitworth.types import Cell

pytestmark = pytest.mark.usefixtures("unsynced")
SCORES = {"baseline": {"arc_challenge": [1, 0, 1, 1]}, "w8a8-fp": {"arc_challenge": [1, 0, 0, 1]}}
OLD = Cell(kind="evaluate", title="old", format="w4", inputs={"task": "old"})
GONE = 2**22 + 1
"""No process has this number."""


def quantized(name: str) -> Cell:
    return Cell(kind="quantize", title=name, format=name, inputs={"recipe": name}, where={"out": f"checkpoints/{name}"})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A sound folder: a planned checkpoint that is made, another whose making was broken off."""
    write_results(tmp_path, SCORES)
    found = Ledger(tmp_path)
    cells = [*found.read_plan(), quantized("made"), quantized("begun")]
    found.write_study(found.read_study(), cells)
    found.put(quantized("made"), {"path": "checkpoints/made", "files": {}})
    for name in ("made", ".begun.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "model.safetensors").write_bytes(b"12345678")
    return found


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def found_in(ledger: Ledger) -> set[tuple[str, str]]:
    return {(entry.what, entry.path) for entry in check(ledger)}


def litter(ledger: Ledger) -> dict[str, str]:
    """Things that lie there for nothing, by what `check` calls them."""
    root = ledger.root
    left = root / "cells" / "evaluate" / f".x.json.{GONE}-0@{host()}.tmp"
    left.write_text("half")
    (root / f".study.json.{GONE}.tmp").write_text("an older version's")
    (root / "checkpoints" / "orphan").mkdir()
    (root / "checkpoints" / "orphan" / "w").write_bytes(b"123")
    return {
        str(left.relative_to(root)): "temporary",
        f".study.json.{GONE}.tmp": "temporary",
        "checkpoints/orphan": "orphan checkpoint",
    }


def test_a_sound_folder_has_nothing(ledger: Ledger) -> None:
    before = tree(ledger.root)
    assert check(ledger) == []
    assert removable(ledger) == []
    assert tree(ledger.root) == before


def test_what_lies_there_for_nothing_is_found_and_removed(ledger: Ledger) -> None:
    before = tree(ledger.root)
    litter_of = litter(ledger)
    assert found_in(ledger) == {(what, path) for path, what in litter_of.items()}
    assert not any(entry.fault for entry in check(ledger))
    assert {entry.path: entry.what for entry in removable(ledger)} == litter_of
    assert {entry.path for entry in gc(ledger)} == litter_of.keys()
    assert tree(ledger.root) == before


def test_a_write_that_may_still_go_on_is_left_alone(ledger: Ledger) -> None:
    ours = ledger.root / f".a.json.{os.getppid()}-0@{host()}.tmp"
    theirs = ledger.root / ".b.json.17-0@elsewhere.tmp"
    ours.touch()
    theirs.touch()
    assert check(ledger) == []
    os.utime(theirs, (0, 0))
    assert found_in(ledger) == {("temporary", theirs.name)}
    os.utime(theirs, (4e9, 4e9))  # a clock that was ahead
    assert found_in(ledger) == {("temporary", theirs.name)}


def test_damage_is_a_fault(ledger: Ledger) -> None:
    path = next(ledger.root.glob("cells/evaluate/*.json"))
    path.write_bytes(path.read_bytes()[:-3])
    (ledger.root / "study.json").write_text("{")
    found = [entry for entry in check(ledger) if entry.fault]
    assert {(entry.what, entry.path) for entry in found} == {
        ("damaged", path.relative_to(ledger.root).as_posix()),
        ("unreadable", "study.json"),
    }
    assert removable(ledger) == []  # the damaged result is evidence until its cell is run again


def test_a_damaged_file_whose_result_is_packed_costs_nothing(ledger: Ledger) -> None:
    compact(ledger)
    cell = ledger.read_plan()[0]
    before = ledger.get(cell)
    ledger.path(cell).write_bytes(b"{}")
    assert found_in(ledger) == {("damaged copy", name_of(cell))}
    gc(ledger)
    assert check(ledger) == []
    assert ledger.get(cell) == before


def test_superseded_copies_go(ledger: Ledger) -> None:
    compact(ledger)
    cell = ledger.read_plan()[0]
    ledger.put(cell, {"answers": []})
    (ledger.root / "packs").mkdir(exist_ok=True)
    compact(ledger)
    assert {entry.what for entry in check(ledger)} == {"superseded"}
    gc(ledger)
    assert check(ledger) == []
    assert ledger.get(cell) == {"answers": []}


@pytest.mark.parametrize("packed", [False, True])
def test_unplanned_results_go_only_when_asked_with_their_checkpoints(ledger: Ledger, packed: bool) -> None:
    kept = {key_of(cell) for cell, _ in ledger.all()}
    ledger.put(OLD, {"answers": []})
    ledger.put(quantized("old"), {"path": "checkpoints/old", "files": {}})
    (ledger.root / "checkpoints" / "old").mkdir()
    if packed:
        compact(ledger)
    gc(ledger)
    assert ledger.done(OLD)
    assert (ledger.root / "checkpoints" / "old").is_dir()
    found = gc(ledger, unplanned=True)
    assert {entry.what for entry in found} == {"unplanned", "orphan checkpoint"}
    assert not ledger.done(OLD)
    assert not (ledger.root / "checkpoints" / "old").exists()
    assert {key_of(cell) for cell, _ in Ledger(ledger.root).all()} == kept


def test_parts_of_tasks_that_are_whole_or_unplanned_go(ledger: Ledger) -> None:
    """A task of the plan that is still in parts keeps them: the next run goes on from there."""
    whole = next(cell for cell in ledger.read_plan() if cell.kind == "evaluate")
    waiting = Cell(kind="evaluate", title="big", format="w8", inputs={"task": "big"})
    ledger.write_study(ledger.read_study(), [*ledger.read_plan(), waiting])
    for cell in (whole, waiting, OLD):
        write_json(ledger.root / "parts" / key_of(cell) / "0-of-2.json", {"seconds": 1.0, "result": {}})
    (ledger.root / "parts" / key_of(waiting) / f".x.json.{GONE}-0@{host()}.tmp").write_text("half")
    gone = {("orphan parts", f"parts/{key_of(cell)}") for cell in (whole, OLD)}
    assert {entry for entry in found_in(ledger) if entry[0] != "temporary"} == gone
    assert len(gc(ledger)) == 3
    assert [path.name for path in sorted((ledger.root / "parts").rglob("*"))] == [key_of(waiting), "0-of-2.json"]


@pytest.mark.parametrize("plan", [None, "[{", '[{"kind": "rob"}]'])
def test_without_a_plan_that_reads_nothing_is_an_orphan(ledger: Ledger, plan: str | None) -> None:
    path = ledger.root / "plan.json"
    path.unlink() if plan is None else path.write_text(plan)
    (ledger.root / "checkpoints" / "other").mkdir()
    (ledger.root / "parts" / key_of(OLD)).mkdir(parents=True)
    assert removable(ledger) == []
    with pytest.raises(BitworthError):
        gc(ledger, unplanned=True)
    assert (ledger.root / "checkpoints" / "other").is_dir()


def test_a_linked_checkpoint_goes_and_what_it_links_to_stays(ledger: Ledger, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (ledger.root / "checkpoints" / "link").symlink_to(outside)
    assert [entry.path for entry in gc(ledger)] == ["checkpoints/link"]
    assert (outside / "kept").exists()
    assert not (ledger.root / "checkpoints" / "link").is_symlink()


def test_a_checkpoint_that_is_gone_is_said(ledger: Ledger) -> None:
    for path in (ledger.root / "checkpoints" / "made").iterdir():
        path.unlink()
    (ledger.root / "checkpoints" / "made").rmdir()
    assert found_in(ledger) == {("lost checkpoint", "checkpoints/made")}


# --- the command line ---------------------------------------------------------------------------------------------


Answered = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Answered:
    """Run `bitworth ledger ... --json` in this process: its exit code and document."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["bitworth", "ledger", *arguments, "--json"])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return int(leave.value.code or 0), json.loads(capfd.readouterr().out)

    return run


def test_verbs_from_the_command_line(ledger: Ledger, tmp_path: Path, answered: Answered) -> None:
    root = str(ledger.root)
    code, document = answered("check", root)
    assert (code, document) == (0, {"faults": 0, "findings": []})
    litter(ledger)
    code, document = answered("gc", root)
    assert (code, document["removed"], len(document["findings"])) == (0, False, 3)
    assert (ledger.root / "checkpoints" / "orphan").exists()
    code, document = answered("gc", root, "--apply")
    assert (code, document["removed"]) == (0, True)
    assert not (ledger.root / "checkpoints" / "orphan").exists()
    code, document = answered("compact", root)
    assert (code, document["results"], document["packs"]) == (0, 3, 1)
    archive = tmp_path / "out" / "x.tar"
    code, document = answered("export", root, str(archive))
    assert (code, document["results"], document["damaged"]) == (0, 3, [])
    code, document = answered("import", str(tmp_path / "to"), str(archive))
    assert (code, document["added"], document["kept"]) == (0, 3, 0)


def test_listing_and_asking_from_the_command_line(ledger: Ledger, answered: Answered) -> None:
    pytest.importorskip("duckdb")
    root = str(ledger.root)
    code, document = answered("list", root, "--kind", "evaluate", "--format", "w8a8-fp")
    assert (code, [row["title"] for row in document["rows"]]) == (0, ["arc_challenge on w8a8-fp"])
    code, document = answered("query", root)
    assert (code, document["rows"][0]["recovery_pct"]) == (0, pytest.approx(200 / 3))
    code, document = answered("query", root, "select 1 + ")
    assert (code, document.keys()) == (2, {"error"})


def test_damage_is_exit_code_1(ledger: Ledger, answered: Answered) -> None:
    path = next(ledger.root.glob("cells/evaluate/*.json"))
    path.write_bytes(b"")
    code, document = answered("check", str(ledger.root))
    assert (code, document["faults"]) == (1, 1)


@pytest.mark.parametrize("verb", ["check", "gc", "compact"])
def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path, verb: str, answered: Answered) -> None:
    code, document = answered(verb, str(tmp_path / "nowhere"))
    assert code == 2
    assert "There is no folder" in document["error"]
    assert list(tmp_path.iterdir()) == []


def test_a_held_folder_is_not_tidied(ledger: Ledger, answered: Answered) -> None:
    with ledger.lock():
        code, document = answered("gc", str(ledger.root), "--apply")
    assert code == 2
    assert "already running" in json.dumps(document)
