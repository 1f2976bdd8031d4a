"""A hub of our own that is slow, says 429, or gives half a file: the real client against a real server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from test_http import served

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [5000], "data_offsets": [0, 20000]}}).encode()
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(20000),
}
COMMIT = "a" * 40


class Hub:
    """The hub's routes for one model, `org/name`; `faults` is what happens to the first downloads of the weights."""

    def __init__(self, *faults: str) -> None:
        self._faults = iter(faults)
        self.asked: Counter[str] = Counter()

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/org/name{rest:.*}", self._model)
        app.router.add_get("/org/name/resolve/{revision}/{file}", self._file)
        return app

    async def _model(self, request: web.Request) -> web.Response:
        if "/tree/" in request.path:
            rows = [{"type": "file", "path": name, "size": len(raw), "oid": oid(raw)} for name, raw in FILES.items()]
            return web.json_response(rows)
        siblings = [{"rfilename": name} for name in FILES]
        return web.json_response({"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        raw = FILES[request.match_info["file"]]
        fault = "none"
        if request.method == "GET" and request.match_info["file"] == "model.safetensors":
            self.asked["weights"] += 1
            fault = next(self._faults, "none")
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{oid(raw)}"', "Accept-Ranges": "bytes"}
        if fault == "429":
            return web.Response(status=429, headers={"Retry-After": "0"})
        start = int(request.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        part = raw[start:]
        headers |= {"Content-Range": f"bytes {start}-{len(raw) - 1}/{len(raw)}"} if start else {}
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(part)
        await response.prepare(request)
        if request.method == "GET":
            await self._give(request, response, part, fault)
        return response

    async def _give(self, request: web.Request, response: web.StreamResponse, part: bytes, fault: str) -> None:
        if fault == "slow":
            for at in range(0, len(part), 5000):
                await response.write(part[at : at + 5000])
                await asyncio.sleep(0.2)
            return
        await response.write(part[: len(part) // 2] if fault == "half" else part)
        if fault == "half":
            assert request.transport is not None
            request.transport.close()


def oid(raw: bytes) -> str:
    return hashlib.sha1(raw).hexdigest()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    settings = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "no_proxy": "*"}
    settings |= {"HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5", "BITWORTH_CACHE": str(tmp_path / "cache")}
    return {**os.environ, **settings}


def fetch(hub: Hub, environment: dict[str, str]) -> dict[str, Any]:
    """`fetch_model` in a process of its own, since the client reads its settings once."""
    script = (
        "import json\nfrom bitworth.errors import BitworthError\nfrom bitworth.sources.hub import fetch_model\n"
        "try:\n    found = {'folder': str(fetch_model('org/name'))}\n"
        "except BitworthError as error:\n    found = {'error': str(error)}\nprint(json.dumps(found))\n"
    )
    with served(hub) as url:  # type: ignore[arg-type]
        command = [sys.executable, "-c", script]
        settings = {**environment, "HF_ENDPOINT": url}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def whole(found: dict[str, Any]) -> bool:
    folder = Path(found["folder"])
    return {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


@pytest.mark.slow
@pytest.mark.parametrize("faults", [(), ("slow",), ("429",), ("half",), ("429", "half", "slow")])
def test_a_hub_that_recovers_gives_the_whole_model(environment: dict[str, str], faults: tuple[str, ...]) -> None:
    hub = Hub(*faults)
    found = fetch(hub, environment)
    if "error" in found:  # what the client does not try again by itself, the same command does
        assert "run the same command again" in found["error"]
        found = fetch(Hub(), environment)
    assert whole(found)
    assert hub.asked["weights"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429", "half"])
def test_a_hub_that_does_not_recover_is_one_sentence_and_leaves_no_half_model(
    environment: dict[str, str], fault: str
) -> None:
    found = fetch(Hub(*[fault] * 1000), environment)
    assert "org/name" in found["error"]
    assert "\n" not in found["error"]
    assert whole(fetch(Hub(), environment))
