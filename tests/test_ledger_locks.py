"""One driver a folder, on one machine or on several, whether the file system's locks reach across them or not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bitworth.errors import BitworthError
from bitworth.ledger import Ledger, locks


@pytest.fixture
def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that keeps locks to each machine: every machine gets one."""
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: None)


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount without locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)


def held_by(root: Path, host: str, process: int, silent_s: float = 0.0) -> None:
    path = root / "lock"
    path.write_text(json.dumps({"host": host, "pid": process}))
    os.utime(path, (time.time() - silent_s,) * 2)


def test_the_message_names_the_process_that_holds_the_folder(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom bitworth.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BitworthError, match=rf"process {holder.pid} on {locks.host()}"), Ledger(tmp_path).lock():
            pass
        assert Ledger(tmp_path).held()
        holder.kill()
    with Ledger(tmp_path).lock():  # its name is still in the file, the kernel's lock is not
        pass
    assert (tmp_path / "lock").read_text() == ""


@pytest.mark.parametrize("mount", ["unshared", "lockless"])
def test_a_driver_on_another_machine_is_seen_by_its_touches(
    tmp_path: Path, mount: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(mount)
    ledger = Ledger(tmp_path)
    held_by(tmp_path, "elsewhere", 17, silent_s=locks.SILENCE_S / 2)
    with pytest.raises(BitworthError, match=r"process 17 on elsewhere\).*frees the folder 60 s after"), ledger.lock():
        pass
    assert ledger.held()
    held_by(tmp_path, "elsewhere", 17, silent_s=locks.SILENCE_S + 1)
    assert not ledger.held()
    with ledger.lock():
        assert json.loads((tmp_path / "lock").read_text()) == {"host": locks.host(), "pid": os.getpid()}


def test_without_locks_a_live_process_of_this_machine_still_holds(tmp_path: Path, lockless: None) -> None:
    held_by(tmp_path, locks.host(), os.getppid(), silent_s=3600)
    with pytest.raises(BitworthError, match=f"process {os.getppid()}"), Ledger(tmp_path).lock():
        pass
    child = subprocess.Popen(["true"])
    child.wait()
    held_by(tmp_path, locks.host(), child.pid)
    with Ledger(tmp_path).lock():
        pass


def test_a_wrong_clock_here_frees_nothing(tmp_path: Path, unshared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    held_by(tmp_path, "elsewhere", 17)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(BitworthError, match="elsewhere"), Ledger(tmp_path).lock():
        pass


def test_the_holder_touches_the_lock_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    with Ledger(tmp_path).lock():
        held_by(tmp_path, locks.host(), os.getpid(), silent_s=1000)
        deadline = time.monotonic() + 10
        while time.time() - (tmp_path / "lock").stat().st_mtime > 500:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', '{"host": "x", "pid": "y"}', "\0" * 40])
def test_what_stands_in_the_lock_cannot_lock_anyone_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    assert not Ledger(tmp_path).held()
    with Ledger(tmp_path).lock():
        pass


def test_asking_whether_it_is_held_writes_nothing(tmp_path: Path) -> None:
    assert not Ledger(tmp_path / "nowhere").held()
    assert not (tmp_path / "nowhere").exists()


def test_asking_does_not_keep_a_driver_out(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    asked = threading.Event()

    def ask() -> None:
        while not asked.is_set():
            Ledger(tmp_path).held()

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(50):
            with Ledger(tmp_path).lock():
                pass
    finally:
        asked.set()
        asker.join()
