from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth import recipes
from bitworth.assembly import assemble
from bitworth.errors import BitworthError, WorkFailed
from bitworth.ledger import SCHEMA, Ledger, canonical, key_of, records, revive, write_atomic
from bitworth.ledger.compaction import compact
from bitworth.progress import seconds_taken
from bitworth.types import Cell, Load, Recipe, Timing

CELL = Cell(kind="evaluate", title="arc on w8", format="w8", inputs={"task": "arc", "seed": 0})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

pytestmark = pytest.mark.usefixtures("unsynced")
EXAMPLE = Path(__file__).parent / "ledgers" / "schema-1"
"""A folder that the last version with schema 1 wrote: two evaluations, two timings, a quantization, a failure."""


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_results_read_back_as_they_were_put(
    tmp_path_factory: pytest.TempPathFactory, result: dict[str, object]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    ledger.put(CELL, result)
    assert ledger.get(CELL) == result
    assert ledger.damaged() == []


def test_the_key_follows_what_could_change_the_result_and_nothing_else() -> None:
    assert key_of(replace(CELL, title="another", format="x", where={"data": "/elsewhere"})) == key_of(CELL)
    assert key_of(replace(CELL, inputs={"seed": 0, "task": "arc"})) == key_of(CELL)
    assert key_of(replace(CELL, inputs={"seed": 1, "task": "arc"})) != key_of(CELL)
    assert key_of(replace(CELL, kind="diverge")) != key_of(CELL)


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "other json", "no checksum"])
def test_a_damaged_result_counts_as_absent_and_is_reported(tmp_path: Path, harm: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.put(CELL, {"score": 0.75})
    path = ledger.path(CELL)
    text = path.read_text()
    path.write_text(
        {
            "truncate": text[: len(text) // 2],
            "flip": text.replace("0.75", "0.85"),
            "empty": "",
            "other json": "[1, 2]",
            "no checksum": json.dumps({"result": {"score": 0.75}}),
        }[harm]
    )
    assert ledger.get(CELL) is None
    assert ledger.damaged() == [path]
    ledger.put(CELL, {"score": 0.75})
    assert ledger.get(CELL) == {"score": 0.75}


def test_a_failure_is_kept_until_the_cell_succeeds(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.fail(CELL, "The server died.")
    assert ledger.failure(CELL) == "The server died."
    assert ledger.get(CELL) is None
    ledger.put(CELL, {})
    assert ledger.failure(CELL) is None


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    write_atomic(path, "before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkFailed, match="the disk is full"):
        write_atomic(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_no_half_file(tmp_path: Path) -> None:
    """A process killed at the moment before the rename: the old content stands, the next write succeeds."""
    path = tmp_path / "result.json"
    write_atomic(path, "old")
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom bitworth.ledger import files\n"
        "files.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "files.write_atomic(Path(sys.argv[1]), 'new' * 100000)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"
    write_atomic(path, "new")
    assert path.read_text() == "new"


def test_one_driver_at_a_time_and_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom bitworth.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert ledger.held()
    with pytest.raises(BitworthError, match="already running"), ledger.lock():
        pass
    holder.kill()
    holder.wait()
    assert not ledger.held()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BitworthError, match="cannot be used for results"), Ledger(tmp_path / "file" / "x").lock():
        pass


def test_study_and_plan_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    cell = replace(CELL, where={"data": "/d"}, needs=("abc",))
    ledger.write_study({"name": "s"}, [cell])
    assert ledger.read_study() == {"name": "s"}
    assert ledger.read_plan() == (cell,)
    with pytest.raises(BitworthError, match="holds no readable"):
        Ledger(tmp_path / "nowhere").read_plan()


def test_a_record_says_when_and_how_long(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.record(CELL) is None
    ledger.put(CELL, {}, seconds=1.5)
    record = ledger.record(CELL)
    assert record is not None
    assert (record["result"], record["seconds"]) == ({}, 1.5)
    assert record["finished"].startswith("20")


@pytest.mark.parametrize("name", recipes.NAMES)
def test_recipes_survive_json(name: str) -> None:
    from dataclasses import asdict

    recipe = recipes.recipe(name, group_size=64)
    assert revive(Recipe, json.loads(json.dumps(asdict(recipe)))) == recipe


def test_a_row_of_another_shape_is_one_sentence() -> None:
    assert revive(Load, {"kind": "constant", "rate": 2, "streams": None}) == Load(kind="constant", rate=2.0)
    with pytest.raises(BitworthError, match="stored Timing does not read back"):
        revive(Timing, {"start_s": "soon"})


def test_writing_needs_no_home(tmp_path: Path) -> None:
    assert os.access(tmp_path, os.W_OK)
    write_atomic(tmp_path / "a" / "b" / "c.json", "{}")
    assert (tmp_path / "a" / "b" / "c.json").read_text() == "{}"


def test_numbered_keys_and_half_characters_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.put(CELL, {"tokens": {2: 5, 10: 7}, "text": "half \ud83d"})
    assert ledger.get(CELL) == {"tokens": {"2": 5, "10": 7}, "text": "half \ud83d"}
    assert ledger.damaged() == []


def test_a_reason_that_does_not_read_is_said(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.fail(CELL, "It broke.")
    next((tmp_path / "failures").iterdir()).write_text("{")
    assert ledger.failure(CELL) == "why it failed does not read back"


def test_done_is_whether_there_is_a_result_and_reads_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    assert not ledger.done(CELL)
    ledger.put(CELL, {"score": 1})
    assert ledger.done(CELL)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "read", lambda *_: pytest.fail("it was read again"))
        assert ledger.done(CELL)
    ledger.path(CELL).write_bytes(b"{}")
    assert not ledger.done(CELL)
    ledger.path(CELL).unlink()
    assert not ledger.done(CELL)


# --- schema 1 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def older(tmp_path: Path) -> Ledger:
    return Ledger(Path(shutil.copytree(EXAMPLE, tmp_path / "older")))


def test_a_folder_of_schema_1_says_what_it_said(older: Ledger) -> None:
    assert older.damaged() == []
    for cell in older.read_plan():
        told = json.loads(older.path(cell).read_text())
        assert older.record(cell) == told
        assert told["schema"] == 1
        assert older.done(cell)
    (row, _) = assemble(older.root).recoveries
    assert (row.baseline, row.quantized) == (6 / 8, 5 / 8)


def test_a_result_that_schema_1_took_for_damaged_is_whole(older: Ledger) -> None:
    """It hashed the experts' numbers as numbers, and read them back as text in another order."""
    (made,) = [result for cell, result in older.all() if cell.kind == "quantize"]
    assert made["audit"]["experts"][0]["tokens"] == {"2": 5, "10": 7, "0": 1}


def test_schema_1_is_written_anew_with_its_own_dates(older: Ledger) -> None:
    before = {key_of(cell): older.record(cell) for cell, _ in older.all()}
    report = assemble(older.root)
    assert compact(older).migrated == 5
    for cell, _ in Ledger(older.root).all():
        now, then = older.record(cell), before[key_of(cell)]
        assert now is not None
        assert then is not None
        assert {name: now[name] for name in then if name not in ("schema", "sha256")} == {
            name: value for name, value in then.items() if name not in ("schema", "sha256")
        }
        assert now["schema"] == SCHEMA == 2
    assert assemble(older.root) == report
    assert not older.damaged()


@pytest.mark.parametrize("at", [3, 200, -90, -20])
def test_damage_in_schema_1_is_noticed(older: Ledger, at: int) -> None:
    path = sorted(older.root.glob("cells/evaluate/*.json"))[0]
    path.write_bytes(path.read_bytes()[:at])
    assert older.damaged() == [path]


@pytest.mark.parametrize("change", [{"result": {"a": {"1" * 5000: 1}}}, {"seconds": "soon"}, {"seconds": 10**400}])
def test_schema_1_of_others_is_whole_or_not_but_never_a_fault(tmp_path: Path, change: dict[str, Any]) -> None:
    cell = Cell(kind="judge", title="t", format="f", inputs={"a": 1})
    record = {"cell": asdict(cell), "finished": "2026-01-01", "seconds": 1, "result": {"a": 1}}
    sha256 = hashlib.sha256(canonical(record["result"]).encode()).hexdigest()
    ledger = Ledger(tmp_path)
    write_atomic(ledger.path(cell), json.dumps({**record, "sha256": sha256, **change}))
    whole = "result" not in change
    assert ledger.done(cell) is whole
    compact(ledger)
    assert Ledger(tmp_path).get(cell) == ({"a": 1} if whole else None)


def test_what_cells_took_is_known_without_parsing_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell(kind="judge", title="t", format="f", inputs={"number": number}) for number in range(6)]
    ledger = Ledger(tmp_path)
    for number, cell in enumerate(cells[:4]):
        ledger.put(cell, {"number": number}, seconds=number * 1234.5)
        if number == 1:
            compact(ledger)
    whole = ledger.path(cells[3]).read_bytes()
    ledger.path(cells[3]).write_bytes(whole[:-1])
    monkeypatch.setattr(records, "json_of", lambda *_: pytest.fail("it is parsed"))
    assert seconds_taken(ledger, cells) == {key_of(cells[number]): number * 1234.5 for number in range(3)}
