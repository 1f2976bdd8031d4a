"""The doctor: each check says what it found and how to mend it; the machine is faked where it matters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bitworth import diagnosis
from bitworth.diagnosis import Check, diagnose


def check(name: str, *, online: bool = False) -> Check:
    return next(found for found in diagnose(online=online) if found.name == name)


def fake_smi(folder: Path, listing: str, code: int = 0) -> str:
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\nexit {code}\n")
    program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_every_check_is_whole(tmp_path: Path) -> None:
    found = diagnose(folder=tmp_path / "not" / "yet")
    assert [row.name for row in found] == [
        "processor", "memory", "disk", "gpu", "torch", "transformers", "lm-eval", "gguf", "vllm", "sandbox", "hub",
    ]  # fmt: skip
    assert all(row.found and row.means for row in found)
    assert all(row.fix for row in found if row.state == "missing" and row.name != "sandbox")
    assert str(tmp_path) in next(row for row in found if row.name == "disk").found
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        disk = next(row for row in diagnose(folder=folder) if row.name == "disk")
        assert (disk.state, disk.found) == ("missing", f"{tmp_path / 'file'} is a file")


@pytest.mark.parametrize(
    ("listing", "state", "said"),
    [
        ("NVIDIA H100 80GB HBM3, 81559, 9.0, 550.54", "ok", "80 GiB, compute 9.0, driver 550.54"),
        ("NVIDIA A100-SXM4-40GB, 40960, 8.0, 550.54", "limited", "40 GiB"),
        ("", "missing", "lists no GPU"),
    ],
)
def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, state: str, said: str) -> None:
    monkeypatch.setenv("PATH", fake_smi(tmp_path / "bin", listing))
    found = check("gpu")
    assert (found.state, said in found.found) == (state, True)


def test_a_gpu_that_torch_cannot_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_smi(tmp_path / "bin", "", code=9))
    assert "does not answer" in check("gpu").found
    monkeypatch.setattr(diagnosis, "_torch_cuda", lambda: None)
    assert check("torch").state == "limited"
    monkeypatch.setattr(diagnosis, "_torch_cuda", lambda: "12.8")
    assert check("torch").found.endswith("built for CUDA 12.8")


def test_what_is_not_installed_has_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_version", lambda _: None)
    assert check("torch").fix == f"{sys.executable} -m pip install torch"
    assert check("lm-eval").fix == f"{sys.executable} -m pip install lm-eval"


@contextmanager
def server(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_the_hub_is_asked_only_when_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(diagnosis, "urlopen", pytest.fail)
    assert check("hub").found == "not asked"
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for status in (200, 403):
        with server(status) as address:
            monkeypatch.setenv("HF_ENDPOINT", address)
            assert check("hub", online=True).state == "ok"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert check("hub", online=True).state == "missing"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert check("hub", online=True).found == "HF_HUB_OFFLINE is set"


def test_the_verb_prints_one_document_and_loads_no_torch() -> None:
    script = (
        "import sys\nfrom bitworth.cli import app\napp(['doctor', '--json'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert sum(document["counts"].values()) == len(document["checks"]) == 11
