"""The index says what the results say, whatever happened to either; queries reach nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from folders import write_results

from bitworth.assembly import assemble
from bitworth.errors import BitworthError
from bitworth.ledger import Ledger, key_of
from bitworth.ledger import index as module
from bitworth.ledger.compaction import compact
from bitworth.ledger.index import Index
from bitworth.ledger.query import CELLS, RECOVERIES, query
from bitworth.ledger.records import encode
from bitworth.types import Cell

pytest.importorskip("duckdb")
pytestmark = pytest.mark.usefixtures("unsynced")
SCORES = {
    "baseline": {"arc_challenge": [1, 0, 1, 1], "hellaswag": [1, 1, 0]},
    "w8a8-fp": {"arc_challenge": [1, 0, 0, 1], "hellaswag": [1, 1, 1]},
}
EXTRA = Cell(kind="evaluate", title="old", format="w8a8-fp", inputs={"task": {"name": "arc_challenge"}, "data": "old"})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    write_results(tmp_path, SCORES, {"baseline": [1.0, 2.0], "w8a8-fp": [0.5, 1.0]})
    return Ledger(tmp_path)


def rows(ledger: Ledger, sql: str) -> list[dict[str, Any]]:
    found = query(ledger, sql)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def answers_told(ledger: Ledger) -> list[tuple[Any, ...]]:
    found = query(ledger, "select key, task, item, prediction, score from answers", most=10_000)
    return sorted(found.rows)


def answers_kept(ledger: Ledger) -> list[tuple[Any, ...]]:
    """The same from the records, without the index."""
    return sorted(
        (key_of(cell), row["task"], row["item"], row["prediction"], row["score"])
        for cell, result in ledger.all()
        for row in (result["answers"] if cell.kind == "evaluate" else [])
    )


def test_recoveries_are_those_of_the_recommendation(ledger: Ledger) -> None:
    told = {(row["task"], row["format"]): row for row in rows(ledger, RECOVERIES)}
    expected = [row for row in assemble(ledger.root).recoveries if row.task != "average"]
    assert len(told) == len(expected) == 2
    for row in expected:
        found = told[row.task, row.format]
        assert found["recovery_pct"] == pytest.approx(row.recovery_pct)
        assert (found["baseline"], found["quantized"]) == pytest.approx((row.baseline, row.quantized))
        assert found["questions"] == row.questions


def test_every_result_is_a_row_and_every_answer_too(ledger: Ledger) -> None:
    found = rows(ledger, CELLS)
    assert {row["key"] for row in found} == {name[-25:-5] for name in ledger.names()}
    assert {row["title"]: row["answers"] for row in found}["hellaswag on baseline"] == 3
    assert answers_told(ledger) == answers_kept(ledger)
    assert rows(ledger, "select distinct engine, device from cells") == [{"engine": "fake", "device": "none"}]


def test_results_that_are_not_planned_are_told_apart(ledger: Ledger) -> None:
    before = rows(ledger, RECOVERIES)
    ledger.put(EXTRA, {"answers": [{"task": "arc_challenge", "item": "0", "prediction": "B", "score": 0.0}]})
    assert rows(ledger, RECOVERIES) == before
    assert [row["title"] for row in rows(ledger, "select title from cells where not planned")] == ["old"]
    (ledger.root / "plan.json").unlink()
    assert rows(ledger, "select count(*) as n from cells where not planned") == [{"n": 0}]


def change(ledger: Ledger, how: str) -> None:
    """Do something to the results behind the index's back."""
    path = sorted(ledger.root.glob("cells/evaluate/*.json"))[0]
    match how:
        case "added":
            ledger.put(EXTRA, {"answers": [{"task": "t", "item": "0", "prediction": "B", "score": 0.25}]})
        case "written again":
            cell = next(one for one, _ in ledger.all() if ledger.path(one) == path)
            ledger.put(cell, {"answers": [{"task": "t", "item": "9", "prediction": "C", "score": 0.5}]})
        case "removed":
            path.unlink()
        case "damaged":
            path.write_bytes(path.read_bytes()[:-5])
        case "packed":
            compact(ledger)


@pytest.mark.parametrize("how", ["added", "written again", "removed", "damaged", "packed"])
def test_the_index_follows_the_results(ledger: Ledger, how: str) -> None:
    before = answers_told(ledger)
    assert Index(ledger).behind() == 0
    change(ledger, how)
    assert Index(ledger).behind() > 0
    assert answers_told(ledger) == answers_kept(ledger)
    assert (answers_kept(ledger) == before) == (how == "packed")
    assert Index(ledger).behind() == 0
    names = {path.stem.split("-")[0] for path in ledger.root.glob("index/*.parquet")}
    assert len(names) <= 2


@pytest.mark.parametrize("harm", ["manifest cut", "manifest gone", "segment flipped", "segment gone", "segment cut"])
def test_a_damaged_index_is_made_again(ledger: Ledger, harm: str) -> None:
    before = answers_told(ledger)
    manifest, segment = ledger.root / "index" / "manifest.json", next(ledger.root.glob("index/*-answers.parquet"))
    raw = segment.read_bytes()
    match harm:
        case "manifest cut":
            manifest.write_bytes(manifest.read_bytes()[:50])
        case "manifest gone":
            manifest.unlink()
        case "segment flipped":
            segment.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
        case "segment gone":
            segment.unlink()
        case "segment cut":
            segment.write_bytes(raw[:-30])
    assert answers_told(ledger) == before


def test_only_new_results_are_read_until_there_are_too_many_pieces(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_told(ledger)
    read: list[str] = []
    real = Ledger.read

    def counting(self: Ledger, name: str) -> bytes | None:
        read.append(name)
        return real(self, name)

    monkeypatch.setattr(Ledger, "read", counting)
    answers_told(ledger)
    assert read == []
    change(ledger, "added")
    answers_told(ledger)
    assert len(read) == 1
    monkeypatch.setattr(module, "MOST_SEGMENTS", 1)
    ledger.put(Cell(kind="judge", title="j", format="f", inputs={}), {})
    answers_told(ledger)
    assert answers_told(ledger) == answers_kept(ledger)


def test_segments_are_cut_and_odd_answers_do_not_stop_them(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_ANSWERS", 3)
    odd = [
        {"task": "t", "item": "1", "prediction": "é\n'", "score": 1, "logprobs": [float("nan"), -1.0]},
        {"task": "t", "item": "2", "prediction": "", "score": 0.5, "measures": {"exact": 1.0}, "group": "law"},
        "not an answer",
    ]
    ledger.put(EXTRA, {"answers": odd})
    assert len(answers_told(ledger)) == 14 + 2
    assert len(list(ledger.root.glob("index/*-answers.parquet"))) > 3
    (found,) = rows(ledger, "select measures, subject from answers where subject is not null")
    assert found == {"measures": {"exact": 1.0}, "subject": "law"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("score", "x"), ("score", 10**400), ("score", None), ("text", 5), ("item", []), ("measures", [1]),
     ("measures", {"a": "b"}), ("logprobs", "no"), ("logprobs", ["a"]), ("logprobs", {})],
)  # fmt: skip
def test_what_is_no_answer_is_no_row(ledger: Ledger, field: str, value: Any) -> None:
    good = {"task": "t", "item": "1", "prediction": "", "score": 0.5}
    ledger.put(EXTRA, {"answers": [{**good, field: value}, good]})
    assert len(answers_told(ledger)) == 7 * 2 + 1
    assert rows(ledger, "select answers, score from cells where title = 'old'") == [{"answers": 1, "score": 0.5}]


@pytest.mark.parametrize("field", ["text", "prediction", "item", "group"])
def test_half_a_pair_is_written_out(ledger: Ledger, field: str) -> None:
    ledger.put(EXTRA, {"answers": [{"task": "t", "item": "1", "prediction": "", "score": 1.0, field: "a\ud800b"}]})
    name = {"group": "subject"}.get(field, field)
    assert rows(ledger, f"select {name} from answers where task = 't'") == [{name: "a\\ud800b"}]


@pytest.mark.parametrize("change", [{"seconds": "soon"}, {"finished": 5}, {"finished": None}, {"title": "\ud800"}])
def test_what_lies_beside_a_result_may_be_anything(ledger: Ledger, change: dict[str, Any]) -> None:
    """A checksum that fits says nothing of who wrote it."""
    cell = replace(EXTRA, title=change.get("title", EXTRA.title))
    raw = encode(cell, {"answers": []}, seconds=1.0, finished="now").partition(b"\n")[2]
    record = {**json.loads(b"{" + raw), **{name: value for name, value in change.items() if name != "title"}}
    head = {name: record[name] for name in ("schema", "key", "finished", "seconds")}
    rest = b",\n".join(part.encode() for part in (
        json.dumps(head, separators=(",", ":"))[1:-1],
        f'"cell":{json.dumps(record["cell"])}', f'"result":{json.dumps(record["result"])}}}\n',
    ))  # fmt: skip
    path = ledger.path(cell)
    path.write_bytes(b'{"sha256":"' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest)
    assert ledger.done(cell)
    assert len(rows(ledger, CELLS)) == len(ledger.names())


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_csv('{outside}')",
        "select * from '{outside}'",
        "select content from read_text('{outside}')",
        "copy answers to '{outside}.copy'",
        "attach '{outside}.db'",
        "copy (select 1) to '{index}/manifest.json'",
        "set enable_external_access = true",
        "set memory_limit = '9GB'",
        "select * from glob('/*')",
        "select nothing from nowhere",
        "selekt",
        "",
    ],
)
def test_a_query_reaches_nothing_else(ledger: Ledger, tmp_path: Path, sql: str) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text("secret\n1\n")
    before = answers_told(ledger)
    filled = sql.format(outside=outside, index=tmp_path / "index")
    try:
        assert query(ledger, filled).rows == ()
    except BitworthError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert not list(tmp_path.glob("outside.csv.*"))
    assert answers_told(ledger) == before


def test_more_rows_than_asked_for_are_said(ledger: Ledger) -> None:
    found = query(ledger, "select * from answers", most=5)
    assert (len(found.rows), found.more) == (5, True)
    assert not query(ledger, "select * from answers", most=14).more


def test_a_folder_without_results_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="holds no results"):
        query(Ledger(tmp_path), CELLS)
    assert list(tmp_path.iterdir()) == []


def test_results_that_may_only_be_read_can_be_asked_all_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, real = answers_kept(ledger), Path.open

    def guarded(path: Path, *arguments: Any, **named: Any) -> Any:
        if path == ledger.root / "index" / "lock":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", guarded)
    assert answers_told(ledger) == expected
    assert not list((ledger.root / "index").iterdir())
