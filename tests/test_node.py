"""A cell on a node: what it reads is brought, what it made is sent, its words are few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitworth.execute import Tell
from bitworth.execute.node import run_cell, seldom, send_inputs
from bitworth.execute.storage import Storage
from bitworth.types import Cell


def cell(kind: Any, **where: str) -> Cell:
    return Cell(kind=kind, title="t", format="f", inputs={}, where=where)


def reads(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """What the cell's files hold; a quantize cell leaves one behind."""
    found = {
        name: (Path(root) / place / "held" if (Path(root) / place).is_dir() else Path(root) / place).read_text()
        for name, place in cell.where.items()
        if not name.endswith((".from", ".name")) and name not in ("alone", "out")
    }
    if cell.kind == "quantize":
        (Path(root) / cell.where["out"]).mkdir(parents=True)
        (Path(root) / cell.where["out"] / "held").write_text("made")
    return {"found": found, "root": root, "task": {"source": cell.where.get("data")}}


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's files, and a node's cache apart from them."""
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "node"))
    for name in ("model", "data"):
        (tmp_path / "driver" / name).mkdir(parents=True)
        (tmp_path / "driver" / name / "held").write_text(name)
    (tmp_path / "driver" / "text.txt").write_text("text")
    return tmp_path / "driver"


def test_inputs_and_checkpoints_travel(driver: Path, tmp_path: Path) -> None:
    shelf = Storage(str(tmp_path / "shelf"))
    out = driver / "out"
    asked = cell("quantize", **{
        "model": str(driver / "model"), "calibration.0": str(driver / "text.txt"), "calibration.0.name": "text.txt",
        "out": "checkpoints/x",
    })  # fmt: skip
    sent = send_inputs(asked, out, shelf)
    (driver / "model" / "held").unlink()  # the node has nothing of the driver's
    result, cause, seconds = run_cell(sent, reads, str(out), shelf.url, 1, lambda *_: None)
    assert cause is None
    assert result is not None
    assert seconds >= 0
    assert result["found"] == {"model": "model", "calibration.0": "text"}
    assert result["root"].startswith(str(tmp_path / "node"))
    assert shelf.has("checkpoints/x")

    evaluate = cell("evaluate", checkpoint="checkpoints/x", data=str(driver / "data"))
    other = tmp_path / "other"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITWORTH_CACHE", str(other))
        result, cause, _ = run_cell(send_inputs(evaluate, out, shelf), reads, str(out), shelf.url, 1, lambda *_: None)
    assert cause is None
    assert result is not None
    assert result["found"] == {"checkpoint": "made", "data": "data"}
    assert result["task"]["source"] == str(driver / "data"), "as the driver calls it"


def test_a_checkpoint_that_only_the_driver_has_is_sent(driver: Path, tmp_path: Path) -> None:
    shelf = Storage(str(tmp_path / "shelf"))
    (driver / "out" / "checkpoints" / "x").mkdir(parents=True)
    (driver / "out" / "checkpoints" / "x" / "held").write_text("from before")
    sent = send_inputs(cell("evaluate", checkpoint="checkpoints/x"), driver / "out", shelf)
    result, _, _ = run_cell(sent, reads, str(driver / "out"), shelf.url, 1, lambda *_: None)
    assert result is not None
    assert result["found"] == {"checkpoint": "from before"}


def test_in_a_shared_folder_nothing_travels(driver: Path) -> None:
    asked = cell("evaluate", checkpoint="model", data=str(driver / "data"))
    sent = send_inputs(asked, driver, None)
    assert dict(sent.where) == {**asked.where, "alone": "yes"}
    result, _, _ = run_cell(sent, reads, str(driver), None, 1, lambda *_: None)
    assert result is not None
    assert result["found"] == {"checkpoint": "model", "data": "data"}


def test_what_a_node_does_not_see_is_one_sentence(tmp_path: Path) -> None:
    asked = cell("evaluate", checkpoint="/nowhere/model")
    result, cause, _ = run_cell(asked, reads, str(tmp_path), None, 1, lambda *_: None)
    assert result is None
    assert cause is not None
    assert cause.startswith("/nowhere/model does not exist on this node; ")


def test_words_are_few_and_the_last_is_said() -> None:
    said: list[int] = []
    times = iter([0.0, 0.0, 0.4, 0.8, 1.2, 1.2, 1.3, 1.4, 1.4])
    tell = seldom(lambda what, done, total: said.append(done), clock=lambda: next(times))
    for done in range(1, 7):
        tell("steps", done, 6)
    assert said == [1, 4, 6]
