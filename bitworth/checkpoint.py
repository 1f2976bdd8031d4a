"""Model folders and named tensors: safetensors read lazily, checkpoints written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitworth import schemes
from bitworth.errors import BitworthError, WorkFailed, disk_reason
from bitworth.numerics import from_codes
from bitworth.schemes.config import scheme_from_config

INDEX = "model.safetensors.index.json"
PROVENANCE = "bitworth.json"
SHARD_BYTES = 1_000_000_000  # held in memory until it is written
_PARTIAL, _REPLACED = "partial", "replaced"
#: Files that make a folder a usable model besides its weights.
COMPANIONS = (
    "generation_config.json",
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


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        BitworthError: no such folder, no config in it, not JSON, or not a decoder that generates text.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise BitworthError(f"There is no model folder {folder}; name a folder that holds config.json and safetensors.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except FileNotFoundError as error:
        raise BitworthError(f"{folder} is no model folder: it holds no config.json.") from error
    except (OSError, ValueError) as error:
        raise BitworthError(f"{path} cannot be read as JSON; fetch the model again.") from error
    if "auto_map" in config:
        raise BitworthError(
            f"{folder} needs code of its own (auto_map in config.json), which is not run; convert it to an "
            "architecture that transformers has."
        )
    architectures = [str(name) for name in config.get("architectures") or []]
    if not any(name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in architectures):
        named = ", ".join(architectures) or "none named"
        raise BitworthError(
            f"{folder} is not a decoder that generates text (architectures: {named}); bitworth needs a model of the "
            "...ForCausalLM kind."
        )
    return config


class Reader:
    """Named tensors of a model folder, each read when asked for."""

    def __init__(self, folder: Path) -> None:
        """Open the folder's safetensors.

        Raises:
            BitworthError: none there, one listed in the index is missing, or one is truncated or damaged.
        """
        self.folder = folder
        self._files = {path.name: self._open(path) for path in self._paths()}
        self._where = {name: file for file, handle in self._files.items() for name in handle.keys()}  # noqa: SIM118

    def _paths(self) -> list[Path]:
        index = self.folder / INDEX
        if not index.is_file():
            paths = sorted(self.folder.glob("*.safetensors"))
            if not paths:
                raise BitworthError(
                    f"{self.folder} holds no *.safetensors; pickled weights are not read, convert them first."
                )
            return paths
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            elsewhere = [name for name in names if Path(name).name != name]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BitworthError(f"{index} is not a safetensors index; fetch the model again.") from error
        for name in names:
            if name in elsewhere or not (self.folder / name).is_file():
                raise BitworthError(f"{self.folder / name} is listed in {INDEX} but is not there; fetch it again.")
        return [self.folder / name for name in names]

    @staticmethod
    def _open(path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise BitworthError(f"{path} is truncated or damaged ({error}); fetch it again.") from error

    @property
    def names(self) -> frozenset[str]:
        """Every tensor's name."""
        return frozenset(self._where)

    def get(self, name: str) -> Tensor:
        """One tensor as stored.

        Raises:
            BitworthError: the folder has no tensor of that name.
        """
        if name not in self._where:
            raise BitworthError(f"{self.folder} has no tensor '{name}'; its weights do not match its config.json.")
        tensor: Tensor = self._files[self._where[name]].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[self._where[name]].get_slice(name).get_shape())

    def weights(self) -> WeightReader:
        """The tensors with quantized layers decoded."""
        return WeightReader(self)


class WeightReader:
    """Like `Reader`, but a quantized layer's `weight` is what its codes and scales stand for, in float32."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        quantization = read_config(reader.folder).get("quantization_config")
        self.scheme = scheme_from_config(quantization) if quantization else None
        self._layout = schemes.layout_of(self.scheme) if self.scheme else None
        scaled = [name.removesuffix("_scale") for name in reader.names if name.endswith(".weight_scale")]
        self.quantized = frozenset(name.removesuffix(".weight") for name in scaled)
        parts = {f"{layer}.{part}" for layer in self.quantized for part in (*_PARTS, _INPUT_SCALE)}
        cached = self.scheme is not None and self.scheme.kv_cache is not None
        scales = {name for name in reader.names if cached and name.endswith((".k_scale", ".v_scale"))}
        self.cache_scales = {name: reader.get(name) for name in sorted(scales)}
        self.names = (reader.names - parts - scales) | {f"{layer}.weight" for layer in self.quantized}

    def get(self, name: str) -> Tensor:
        """A tensor; quantized ones in float32."""
        layer = name.removesuffix(".weight")
        if self._layout is None or layer not in self.quantized or not name.endswith(".weight"):
            return self._reader.get(name)
        codes, scale = self.codes(layer)
        if f"{layer}.weight_g_idx" in self._reader.names:
            return codes * scale[:, self._reader.get(f"{layer}.weight_g_idx").long()]
        return from_codes(codes, scale)

    def input_divisor(self, layer: str) -> Tensor | None:
        """The global scale of a layer's inputs, shape (1,), where the format has one."""
        name = f"{layer}.{_INPUT_SCALE}"
        return self._reader.get(name) if name in self._reader.names else None

    def codes(self, layer: str) -> tuple[Tensor, Tensor]:
        """A quantized layer's codes (out, in) and scales (out, groups), float32."""
        assert self._layout is not None
        names = [part for part in _PARTS if f"{layer}.{part}" in self._reader.names]
        return self._layout.decode({part: self._reader.get(f"{layer}.{part}") for part in names})


_PARTS = ("weight", "weight_packed", "weight_scale", "weight_global_scale", "weight_shape", "weight_g_idx")
_INPUT_SCALE = "input_global_scale"


class Writer:
    """Writes a checkpoint beside its final name and moves it there when it is whole.

    Use as a context: leaving it by an exception removes what was written.
    """

    def __init__(self, folder: Path, source: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self._source, self._limit = folder, source, shard_bytes
        self._temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{_PARTIAL}")
        self._shard: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._sizes: list[int] = []

    def __enter__(self) -> Writer:
        """Make the temporary folder.

        Raises:
            BitworthError: the final name is taken by something that is not a checkpoint of bitworth's.
            WorkFailed: the disk is full or cannot be written.
        """
        check_replaceable(self.folder, self._source)
        try:
            self._tidy()
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise WorkFailed(f"{self.folder} cannot be written: {disk_reason(error)}.") from error
        return self

    def _tidy(self) -> None:
        """Clear away what killed runs left; a checkpoint that one had moved aside comes back."""
        for left in sorted(self.folder.parent.glob(f".{self.folder.name}.*")):
            pid, _, kind = left.name.removeprefix(f".{self.folder.name}.").partition(".")
            if kind not in (_PARTIAL, _REPLACED) or _alive(pid):
                continue
            if kind == _REPLACED and not self.folder.exists():
                left.rename(self.folder)
            else:
                shutil.rmtree(left, ignore_errors=True)

    def __exit__(self, kind: object, *_: object) -> None:
        """Clean up when the checkpoint was not finished."""
        if kind is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors in; a full shard goes to disk."""
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._shard and self._held() + size > self._limit:
            self._flush()
        self._shard.update({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})

    def finish(self, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> int:
        """Write the rest and rename into place, replacing what was there; returns the bytes of the weights.

        Raises:
            WorkFailed: the disk is full or cannot be written; nothing is left behind.
        """
        try:
            self._flush()
            self._name_shards()
            for name in COMPANIONS:
                if (self._source / name).is_file():
                    shutil.copyfile(self._source / name, self._temporary / name)
            _write_json(self._temporary / "config.json", config)
            _write_json(self._temporary / PROVENANCE, provenance)
            self._swap()
        except OSError as error:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise WorkFailed(f"{self.folder} could not be written: {disk_reason(error)}.") from error
        return sum(self._sizes)

    def _swap(self) -> None:
        """Move the new folder into place; the old one is moved aside first, so that no fault costs it."""
        aside = self._temporary.with_suffix(f".{_REPLACED}")
        if self.folder.exists():
            self.folder.rename(aside)
        try:
            self._temporary.rename(self.folder)
        except OSError:
            if aside.exists():
                aside.rename(self.folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def _held(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._shard.values())

    def _flush(self) -> None:
        if not self._shard:
            return
        path = self._temporary / f"shard-{len(self._shards)}"
        try:
            save_file(self._shard, path, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            shutil.rmtree(self._temporary, ignore_errors=True)
            reason = disk_reason(error) if isinstance(error, OSError) else _safetensors_reason(error)
            raise WorkFailed(f"{self.folder} could not be written: {reason}.") from error
        self._shards.append(list(self._shard))
        self._sizes.append(self._held())
        self._shard = {}

    def _name_shards(self) -> None:
        count = len(self._shards)
        if count == 1:
            (self._temporary / "shard-0").rename(self._temporary / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self._temporary / f"shard-{number}").rename(self._temporary / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": sum(self._sizes)}, "weight_map": weight_map}
        _write_json(self._temporary / INDEX, index)


def check_replaceable(folder: Path, source: Path) -> None:
    """Refuse to write a checkpoint over anything but an earlier checkpoint of bitworth's.

    Raises:
        BitworthError: `folder` is the model itself or holds it, is a file, or holds files of another kind.
    """
    final, base = folder.resolve(), source.resolve()
    if final == base or final in base.parents:
        raise BitworthError(f"{folder} holds the model being quantized; name another output folder.")
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / PROVENANCE).is_file()):
        raise BitworthError(
            f"{folder} exists and is not a checkpoint that bitworth wrote; name a new or an empty folder."
        )


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _safetensors_reason(error: Exception) -> str:
    full = "No space left" in str(error)
    return "the disk is full; free some space and run the same command again" if full else str(error)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
