"""Models and calibration text from the Hugging Face hub, with a sentence for each way that can fail."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError, WorkFailed, disk_reason
from bitworth.guard.documents import config_of
from bitworth.guard.folders import is_within
from bitworth.guard.headers import read_header
from bitworth.sources.cache import Note, cached, silent

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""What a decoder needs to be loaded; pickled weights, which can run code, are never fetched."""
UNWANTED = ("*/*", "consolidated*.safetensors")
"""Subfolders hold other formats, `consolidated` the same weights under other names."""

TEXT_CHARACTERS = 8_000_000
"""Text taken from a hub dataset: about two million tokens, 512 samples of 4096."""
TEXT_ROWS = 100_000
"""Most rows that are looked at for it."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COLUMNS = {"messages": list, "text": str, "content": str, "passage": str}
_PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))


def is_id(reference: str) -> bool:
    """True for `organization/name`.

    >>> is_id("meta-llama/Llama-3.1-8B-Instruct"), is_id("./model"), is_id("gpt2")
    (True, False, False)
    """
    return _ID.fullmatch(reference) is not None


def fetch_model(identifier: str, note: Note = silent) -> Path:
    """The hub's model in huggingface_hub's own cache, fetched as far as it is not there yet.

    Raises:
        BitworthError: it does not exist, may not be read, holds no safetensors.
        WorkFailed: the hub does not answer, files are missing while it cannot be asked, the disk is full.
    """
    from huggingface_hub import snapshot_download

    note(f"looking up {identifier} on the model hub; what is not in its cache is fetched")
    try:
        folder = Path(snapshot_download(identifier, allow_patterns=list(MODEL_FILES), ignore_patterns=list(UNWANTED)))
    except Exception as error:  # the hub's transport raises classes that differ between releases of its client
        raise _failure(error, identifier, "model") from error
    _check_whole(folder, identifier)
    return folder


def cached_model(identifier: str) -> Path | None:
    """The hub's model where its cache holds all of it; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(identifier, allow_patterns=list(MODEL_FILES), local_files_only=True))
        _check_whole(folder, identifier)
    except (LocalEntryNotFoundError, HFValidationError, BitworthError):
        return None
    return folder


def fetch_text(reference: str, note: Note = silent) -> Path:
    """Calibration text from `hub:organization/name[@revision][:config[:split]]`, kept in the cache as JSON Lines.

    The rows come in the dataset's order, until there are eight million characters; only the columns that calibration
    reads are kept. Without a split it is `train`; without a revision what the hub has on the day it is first fetched.

    Raises:
        BitworthError: a reference of another shape, no such dataset, config or split, or no column of text.
        WorkFailed: the hub does not answer, or the disk is full.
    """
    identifier, _, rest = reference.removeprefix("hub:").partition(":")
    identifier, at, revision = identifier.partition("@")
    config, _, split = rest.partition(":")
    if not is_id(identifier) or ":" in split or bool(at) != bool(revision):
        raise BitworthError(
            f"'{reference}' is not a dataset of the hub; write hub:organization/name, and @revision, :config and "
            ":split after it where they are needed."
        )
    split = split or "train"

    def build(folder: Path) -> None:
        note(f"fetching calibration text from {identifier} on the hub ({split} split)")
        lines = list(_lines(_rows(identifier, config or None, split, revision), reference))
        (folder / "text.jsonl").write_text("".join(lines), encoding="utf-8")

    name = re.sub(r"[^\w.-]", "--", f"hub-{identifier}{at}{revision}:{config}:{split}")
    return cached(name, f"{TEXT_CHARACTERS} 1", build, note) / "text.jsonl"


def _rows(identifier: str, config: str | None, split: str, revision: str) -> Iterator[dict[str, Any]]:
    """The dataset's rows, streamed: a corpus can be far larger than what is wanted of it."""
    import datasets

    try:
        pinned = {"revision": revision} if revision else {}
        yield from datasets.load_dataset(identifier, config, split=split, streaming=True, **pinned)
    except Exception as error:  # see fetch_model; `datasets` adds classes of its own and of every file format
        raise _failure(error, identifier, "dataset") from error


def _lines(rows: Iterable[dict[str, Any]], reference: str) -> Iterator[str]:
    total = 0
    for number, row in enumerate(rows):
        kept = _kept(row)
        if kept:
            line = json.dumps(kept) + "\n"
            total += len(line)
            yield line
        if total >= TEXT_CHARACTERS or number + 1 >= TEXT_ROWS:
            break
    if not total:
        raise BitworthError(
            f"{reference} has no `text`, `messages` or `instruction`/`output` to calibrate on; choose another dataset."
        )


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """The first column, or pair of columns, that calibration reads; empty where there is none."""
    for key, kind in _COLUMNS.items():
        if row.get(key) and isinstance(row[key], kind):
            return {key: row[key]}
    for pair in _PAIRS:
        if all(isinstance(row.get(key), str) for key in pair):
            return {key: row[key] for key in pair}
    return {}


def _check_whole(folder: Path, identifier: str) -> None:
    """Without the hub's answer a half-fetched snapshot passes for a model, so its files are counted and measured.

    Raises:
        BitworthError: there are no safetensors.
        WorkFailed: a file is missing or cut short.
    """
    index = folder / "model.safetensors.index.json"
    weights = {path.name for path in folder.glob("*.safetensors")}
    if not weights and not index.is_file():
        raise BitworthError(
            f"{identifier} has no *.safetensors on the hub; name another model, pickled and GGUF weights are not read."
        )
    listed = _listed(index) if index.is_file() else weights
    broken = [name for name in sorted(listed) if not _has_all_bytes(folder / name)]
    if not listed or not (folder / "config.json").is_file():
        broken.append("its index" if not listed else "config.json")
    if broken:
        raise WorkFailed(
            f"{identifier} is only partly in the hub's cache ({broken[0]} is missing or cut short); delete {folder} "
            "and run the same command again where the hub answers."
        )


def _listed(index: Path) -> set[str]:
    """The shards that the index names; none where it cannot be read."""
    try:
        names = set(config_of(index.read_bytes())["weight_map"].values())
        return names if all(isinstance(name, str) and is_within(name) for name in names) else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _has_all_bytes(path: Path) -> bool:
    """True when the file is as long as its own header says."""
    try:
        read_header(path)
    except (OSError, ValueError):
        return False
    return True


def _failure(error: Exception, identifier: str, kind: str) -> BitworthError:
    """The sentence for what the hub's client raised."""
    from huggingface_hub import constants
    from huggingface_hub import errors as known

    causes = list(_chain(error))
    if any(isinstance(cause, known.GatedRepoError) for cause in causes):
        return BitworthError(
            f"{identifier} is gated: accept its terms on its hub page, then run `hf auth login` (or set HF_TOKEN) and "
            "try again."
        )
    if any(isinstance(cause, known.RepositoryNotFoundError | known.HFValidationError) for cause in causes):
        return BitworthError(
            f"There is no folder {identifier} here and no {kind} of that name that you may read on the hub; check the "
            "spelling, or set HF_TOKEN if it is private."
        )
    full = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno), None)
    if full is not None and "disk is full" in disk_reason(full):
        return WorkFailed(f"{identifier} could not be fetched: {disk_reason(full)}.")
    if constants.HF_HUB_OFFLINE or any(isinstance(cause, known.OfflineModeIsEnabled) for cause in causes):
        return WorkFailed(
            f"{identifier} is not in the hub's cache and HF_HUB_OFFLINE forbids asking the hub; unset it, or name a "
            "folder that holds it."
        )
    if any(isinstance(cause, known.LocalEntryNotFoundError | ConnectionError | TimeoutError) for cause in causes):
        return WorkFailed(
            f"{identifier} could not be fetched because the hub did not answer, and it is not in the hub's cache; "
            "connect to a network and run the same command again, or name a folder that holds it."
        )
    first = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
    if isinstance(error, ValueError):  # a config or split that the dataset lacks
        return BitworthError(f"{identifier} on the hub cannot be used: {first}.")
    return WorkFailed(
        f"{identifier} could not be fetched from the hub ({type(error).__name__}: {first}); run the same command "
        "again, what was fetched is kept."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
