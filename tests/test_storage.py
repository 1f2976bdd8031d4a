"""Folders through storage: whole or not there, copied once; on a local folder and on a server that speaks S3."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from bitworth.errors import BitworthError, WorkFailed
from bitworth.execute.storage import Storage, name_of, sizes


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    url = str(tmp_path / "shelf") if request.param == "folder" else request.getfixturevalue("s3")
    return Storage(url)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "weights").write_bytes(os.urandom(100_000))
    (folder / "empty").touch()
    return folder


def test_what_is_fetched_is_what_was_sent(storage: Storage, source: Path, tmp_path: Path) -> None:
    name = f"checkpoints/{tmp_path.name}"
    assert not storage.has(name)
    storage.send(source, name)
    assert storage.has(name)
    storage.fetch(name, tmp_path / "here" / "copy")
    for path in sizes(source):
        assert (tmp_path / "here" / "copy" / path).read_bytes() == (source / path).read_bytes()


def test_a_file_lies_in_a_folder_of_its_name(storage: Storage, source: Path, tmp_path: Path) -> None:
    storage.send(source / "config.json", f"inputs/{tmp_path.name}")
    storage.fetch(f"inputs/{tmp_path.name}", tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").read_text() == "{}"


def test_what_is_there_is_not_copied_again(storage: Storage, source: Path, tmp_path: Path) -> None:
    name = f"twice/{tmp_path.name}"
    storage.send(source, name)
    storage.fetch(name, tmp_path / "copy")
    before = (tmp_path / "copy" / "config.json").stat().st_ino
    storage.fetch(name, tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").stat().st_ino == before


def test_half_a_copy_is_replaced(storage: Storage, source: Path, tmp_path: Path) -> None:
    name = f"half/{tmp_path.name}"
    storage.send(source, name)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.json").write_text("half")
    storage.fetch(name, tmp_path / "copy")
    assert sizes(tmp_path / "copy") == sizes(source)


def test_what_was_never_whole_is_not_there(storage: Storage, source: Path, tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match=r"holds no nothing; run the same command again\.$"):
        storage.fetch("nothing", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_marks_come_and_go(storage: Storage, tmp_path: Path) -> None:
    name = f"probes/{tmp_path.name}"
    storage.mark(name)
    assert storage.has(name)
    storage.unmark(name)
    assert not storage.has(name)


@pytest.mark.parametrize("name", ["../beside", "/etc/absolute", "deep/../../beside", ""])
def test_a_listing_that_leads_out_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    storage = Storage(str(tmp_path / "shelf"))
    storage.send(source, "inputs/x")
    (tmp_path / "shelf" / "inputs" / "beside").write_text("x")
    (tmp_path / "shelf" / "inputs" / "x.json").write_text(json.dumps({"files": {name: 1}}))
    with pytest.raises(BitworthError, match=r"lists .* outside it; do not use it\.$"):
        storage.fetch("inputs/x", tmp_path / "here" / "x")
    assert {path.name for path in (tmp_path / "here").iterdir()} <= {".x.lock"}


@pytest.mark.parametrize("listing", ["[]", '{"files": []}', '{"files": {"a": "1"}}', "{", '"x"'])
def test_a_listing_that_is_none_is_a_sentence(tmp_path: Path, listing: str) -> None:
    storage = Storage(str(tmp_path / "shelf"))
    storage.mark("x")
    (tmp_path / "shelf" / "x.json").write_text(listing)
    with pytest.raises(BitworthError, match=r"x\.json .* no list of files"):
        storage.fetch("x", tmp_path / "here")


def test_a_folder_that_cannot_be_made_is_a_sentence(source: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "shelf"))
    storage.send(source, "x")
    (tmp_path / "file").touch()
    with pytest.raises(WorkFailed, match="could not be read from"):
        storage.fetch("x", tmp_path / "file" / "x")


def test_workers_of_one_node_copy_once(source: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "shelf"))
    storage.send(source, "model")
    faults: list[Exception] = []

    def fetch() -> None:
        try:
            Storage(storage.url).fetch("model", tmp_path / "copy")
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert sizes(tmp_path / "copy") == sizes(source)


def test_a_url_of_no_kind_is_one_sentence() -> None:
    with pytest.raises(BitworthError, match=r"^The storage nonsense://x cannot be used: "):
        Storage("nonsense://x")


def test_storage_that_does_not_answer_is_one_sentence(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkFailed, match=r"^The storage .* does not answer|could not be written"):
        Storage(str(tmp_path / "file" / "below")).send(source, "model")


def test_a_changed_input_has_another_name(source: Path) -> None:
    before = name_of(source)
    assert name_of(source) == before
    (source / "config.json").write_text("{ }")
    assert name_of(source) != before
    assert name_of(source / "empty") != name_of(source / "config.json")
