from __future__ import annotations

import errno
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bitworth import sources
from bitworth.errors import BitworthError, WorkFailed
from bitworth.sources import hub


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_snapshot(folder: Path, *, cut: int = 0, index: Mapping[str, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    (folder / "model-1.safetensors").write_bytes(content[: len(content) - cut])
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def hub_gives(monkeypatch: pytest.MonkeyPatch, found: Path | Exception) -> list[dict[str, Any]]:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **settings: Any) -> str:
        asked.append({"repo_id": repo_id, **settings})
        if isinstance(found, Exception):
            raise found
        return str(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_model_is_fetched_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    snapshot = write_snapshot(tmp_path / "snapshot", index={"w": "model-1.safetensors"})
    asked = hub_gives(monkeypatch, snapshot)
    assert sources.resolve_model("org/name") == snapshot
    files = ["config.json", "model-1.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"]
    refused = ["pytorch_model.bin", "modeling.py", "onnx/model.safetensors", "consolidated.00.safetensors", "x.gguf"]
    patterns = {name: asked[0][name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*files, *refused], **patterns)) == files


def test_a_model_is_elsewhere_unless_the_hubs_cache_holds_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = hub_gives(monkeypatch, write_snapshot(tmp_path / "whole"))
    assert not sources.is_elsewhere("org/name")
    assert asked[0]["local_files_only"]
    for found in (write_snapshot(tmp_path / "part", cut=3), LocalEntryNotFoundError("not there")):
        hub_gives(monkeypatch, found)
        assert sources.is_elsewhere("org/name")
    assert not sources.is_elsewhere(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cut": 3}, r"only partly .*model-1\.safetensors is missing or cut short"),
        ({"cut": 100}, r"model-1\.safetensors is missing or cut short"),
        ({"index": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}, r"model-2\.safetensors is missing"),
        ({"index": {}}, "its index is missing or cut short"),
    ],
)
def test_a_half_fetched_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    hub_gives(monkeypatch, write_snapshot(tmp_path / "snapshot", **settings))
    with pytest.raises(WorkFailed, match=said):
        sources.resolve_model("org/name")


def test_a_model_of_pickles_or_without_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = write_snapshot(tmp_path / "snapshot")
    hub_gives(monkeypatch, snapshot)
    (snapshot / "config.json").unlink()
    with pytest.raises(WorkFailed, match=r"config\.json is missing"):
        sources.resolve_model("org/name")
    (snapshot / "model-1.safetensors").unlink()
    with pytest.raises(BitworthError, match=r"has no \*\.safetensors"):
        sources.resolve_model("org/name")


HUB_ERRORS = [
    ("GatedRepoError", "is gated: accept its terms .* HF_TOKEN"),
    ("RepositoryNotFoundError", "no folder org/name here and no model of that name"),
    ("HFValidationError", "no folder org/name here"),
    ("LocalEntryNotFoundError", "the hub did not answer"),
    ("IncompleteSnapshotError", "the hub did not answer"),
    ("OfflineModeIsEnabled", "HF_HUB_OFFLINE forbids asking"),
    ("HfHubHTTPError", r"\(HfHubHTTPError: said\)"),
    ("RevisionNotFoundError", r"\(RevisionNotFoundError: said\)"),
]


def hub_error(name: str) -> Exception:
    """The hub client's own exception of that name."""
    from huggingface_hub import errors

    kind = getattr(errors, name)
    if issubclass(kind, errors.HfHubHTTPError):
        http = sys.modules[errors.Response.__module__.split(".")[0]]  # the client's HTTP library, whichever it is
        response = http.Response(403, request=http.Request("GET", "http://127.0.0.1/"))
        return kind("said", response=response)  # type: ignore[no-any-return]
    if name == "IncompleteSnapshotError":
        return kind("said", snapshot_path="/x")  # type: ignore[no-any-return]
    return kind("said")  # type: ignore[no-any-return]


@pytest.mark.parametrize(("name", "said"), HUB_ERRORS)
def test_what_the_hub_raises_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_gives(monkeypatch, hub_error(name))
    with pytest.raises(BitworthError, match=said) as caught:
        sources.resolve_model("org/name")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (ConnectionResetError("reset"), "the hub did not answer"),
        (TimeoutError("slow"), "the hub did not answer"),
        (RuntimeError("first\nsecond"), r"\(RuntimeError: first\); run the same command"),
    ],
)
def test_what_the_transport_raises_becomes_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_gives(monkeypatch, error)
    with pytest.raises(WorkFailed, match=said):
        sources.resolve_model("org/name")


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client's own words, not a stand-in's: an empty cache while HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WorkFailed, match="HF_HUB_OFFLINE forbids asking the hub"):
        sources.resolve_model("org/name")


# --- text of the hub ----------------------------------------------------------------------------------------------


def dataset_gives(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]] | Exception) -> list[tuple[Any, ...]]:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        asked.append((name, config, split, streaming))
        if isinstance(rows, Exception):
            raise rows
        return iter(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_text_is_kept_as_json_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"text": "", "id": 0},
        {"instruction": "Add.", "input": "", "output": "Done.", "id": 1},
        {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"},
        {"number": 3},
    ]
    asked = dataset_gives(monkeypatch, rows)
    path = sources.resolve_file("hub:org/name:english:test", "calibration text")
    assert asked == [("org/name", "english", "test", True)]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"instruction": "Add.", "output": "Done."},
        {"messages": [{"role": "user", "content": "hi"}]},
    ]
    assert sources.resolve_file("hub:org/name:english:test", "calibration text") == path
    assert len(asked) == 1
    sources.resolve_file("hub:org/name", "calibration text")
    assert asked[1] == ("org/name", None, "train", True)


def test_hub_text_of_a_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[dict[str, Any]] = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Iterator[dict[str, Any]]:
        asked.append({"name": name, "config": config, **options})
        return iter([{"text": f"as of {options['revision']}"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    one, other = (sources.resolve_file(f"hub:org/name@{at}:english", "calibration text") for at in ("v1", "v2"))
    assert asked[0] == {"name": "org/name", "config": "english", "split": "train", "streaming": True, "revision": "v1"}
    assert [json.loads(path.read_text()) for path in (one, other)] == [{"text": "as of v1"}, {"text": "as of v2"}]
    with pytest.raises(BitworthError, match="@revision"):
        sources.resolve_file("hub:org/name@", "calibration text")


def test_hub_text_through_the_datasets_library(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub is reached: the library reads a folder of that name as it reads a dataset of the hub."""
    from huggingface_hub import constants

    (tmp_path / "here" / "org" / "name").mkdir(parents=True)
    rows = [{"text": "one", "id": 1}, {"text": "two", "id": 2}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "here" / "org" / "name" / "train.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path / "here")
    path = sources.resolve_file("hub:org/name", "calibration text")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"text": "one"}, {"text": "two"}]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(BitworthError, match=r"org/name on the hub cannot be used.*test"):
        sources.resolve_file("hub:org/name::test", "calibration text")


def test_hub_text_stops_when_there_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TEXT_CHARACTERS", 1000)
    dataset_gives(monkeypatch, [{"text": "x" * 100}] * 50)
    lines = sources.resolve_file("hub:org/name", "calibration text").read_text().splitlines()
    assert len(lines) == 9


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"number": 3}], "has no `text`, `messages` or"),
        ([], "has no `text`, `messages` or"),
        (ValueError('Unknown split "x". Should be one of ["train"].\nmore'), 'cannot be used: Unknown split "x"'),
        (ConnectionError("no"), "the hub did not answer"),
    ],
)
def test_hub_text_that_cannot_be_had(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]] | Exception, said: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    dataset_gives(monkeypatch, rows)
    with pytest.raises(BitworthError, match=said):
        sources.resolve_file("hub:org/name", "calibration text")
    assert not (folder / "hub-org--name----train").exists()
