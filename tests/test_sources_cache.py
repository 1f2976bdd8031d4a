from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitworth import sources
from bitworth.errors import WorkFailed
from bitworth.sources import cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def builder(made: list[str], content: bytes = b"12345") -> Callable[[Path], None]:
    def build(into: Path) -> None:
        made.append(into.name)
        (into / "part").mkdir()
        (into / "part" / "weights").write_bytes(content)

    return build


def test_an_entry_is_built_once(folder: Path) -> None:
    made: list[str] = []
    first = cache.cached("thing", "1", builder(made))
    assert first == folder / "thing"
    assert cache.cached("thing", "1", builder(made)) == first
    assert len(made) == 1
    assert (first / "part" / "weights").read_bytes() == b"12345"


@pytest.mark.parametrize("damage", ["truncated", "grown", "removed", "manifest", "not json", "version"])
def test_a_damaged_or_outdated_entry_is_built_again(folder: Path, damage: str) -> None:
    made: list[str] = []
    told: list[str] = []
    weights = cache.cached("thing", "1", builder(made)) / "part" / "weights"
    if damage == "removed":
        weights.unlink()
    elif damage == "manifest":
        (folder / "thing" / cache.MANIFEST).unlink()
    elif damage == "not json":
        (folder / "thing" / cache.MANIFEST).write_text("[]")
    elif damage != "version":
        weights.write_bytes(b"123" if damage == "truncated" else b"123456")
    cache.cached("thing", "2" if damage == "version" else "1", builder(made), told.append)
    assert len(made) == 2
    assert weights.read_bytes() == b"12345"
    assert any("damaged or of an older version" in sentence for sentence in told)


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(folder: Path) -> None:
    def fails(into: Path) -> None:
        (into / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WorkFailed, match=r"thing could not be kept in .*BITWORTH_CACHE.*the disk is full"):
        cache.cached("thing", "1", fails)
    assert [path.name for path in folder.iterdir()] == [".thing.lock"]
    made: list[str] = []
    assert cache.cached("thing", "1", builder(made)).is_dir()


def test_a_build_that_fails_keeps_the_damaged_entry_out(folder: Path) -> None:
    """What is damaged must not come back as whole because its repair failed."""
    weights = cache.cached("thing", "1", builder([])) / "part" / "weights"
    weights.write_bytes(b"1")

    def fails(_: Path) -> None:
        raise WorkFailed("no network")

    for _ in range(2):
        with pytest.raises(WorkFailed, match="no network"):
            cache.cached("thing", "1", fails)


SCRIPT = """
import sys, time
from pathlib import Path
from bitworth.sources.cache import cached

def build(into):
    (into / "first").write_text("done")
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(float(sys.argv[2]))
    (into / "second").write_text("done")

print(cached("thing", "1", build, lambda sentence: print(sentence, flush=True)))
"""


def start(log: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(log), str(seconds)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def wait_for(log: Path) -> None:
    for _ in range(600):
        if log.exists() and log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the other process did not start building")


@pytest.mark.slow(beside=True)
def test_of_two_processes_one_builds_and_both_get_the_whole(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = start(log, 1.5)
    wait_for(log)
    second = start(log, 1.5)
    said = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert log.read_text() == "built\n"
    assert "waiting for it" in said[1]
    assert all(str(folder / "thing") in text for text in said)
    assert {path.name for path in (folder / "thing").iterdir()} == {"first", "second", cache.MANIFEST}


def test_a_killed_build_is_never_taken_for_finished(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(log, 60)
    wait_for(log)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (folder / "thing").exists()
    assert (folder / ".thing.partial" / "first").exists()
    made: list[str] = []
    cache.cached("thing", "1", builder(made))
    assert {path.name for path in (folder / "thing").iterdir()} == {"part", cache.MANIFEST}
    assert not (folder / ".thing.partial").exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BITWORTH_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert sources.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("BITWORTH_CACHE")
    assert sources.cache_folder() == Path("/xdg/bitworth")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert sources.cache_folder() == tmp_path / ".cache" / "bitworth"


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "file"))
    with pytest.raises(WorkFailed, match=r"BITWORTH_CACHE.*exists"):
        cache.cached("thing", "1", builder([]))
