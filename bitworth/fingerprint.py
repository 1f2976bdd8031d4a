"""What a file or a model folder holds, as a hash for the keys of cells.

Hashing 100 GB takes a minute, so a file's hash is remembered under its path, size and modification time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from bitworth.errors import BitworthError, WorkFailed
from bitworth.guard.documents import config_of
from bitworth.ledger import write_atomic

#: What a model's text goes through on its way to tokens.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def of_file(path: Path, memory: Path | None = None) -> str:
    """sha256 (hex) of a file's bytes; `memory` is the folder where it is remembered.

    Raises:
        BitworthError: the file cannot be read.
    """
    try:
        facts = path.stat()
        note = None
        if memory is not None:
            name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
            note = memory / "fingerprints" / f"{name}.json"
        stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
        if note is not None and (known := _recall(note, stamp)):
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BitworthError(f"{path} cannot be read: {error.strerror}.") from error
    if note is not None:
        _remember(note, stamp, digest)
    return digest


def of_model(folder: Path, memory: Path | None = None) -> str:
    """sha256 (hex) over a model's weights, config and tokenizer.

    Raises:
        BitworthError: the folder holds no weights, or one cannot be read.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BitworthError(f"{folder} holds no *.safetensors; name a model folder or a hub id.")
    present = [folder / name for name in ("config.json", *TOKENIZER_FILES) if (folder / name).is_file()]
    digest = hashlib.sha256()
    for path in [*present, *weights]:
        digest.update(f"{path.name}\0{of_file(path, memory)}\n".encode())
    return digest.hexdigest()


def _recall(note: Path, stamp: list[int]) -> str | None:
    try:
        known = config_of(note.read_bytes())
        return str(known["sha256"]) if known["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(note: Path, stamp: list[int], digest: str) -> None:
    try:
        write_atomic(note, json.dumps({"stamp": stamp, "sha256": digest}))
    except WorkFailed:
        return  # a cache that cannot be written costs time, not correctness
