"""Model folders and named tensors, read lazily."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitworth import schemes
from bitworth.errors import BitworthError
from bitworth.guard.documents import config_of
from bitworth.guard.folders import own_file
from bitworth.guard.headers import read_header
from bitworth.guard.models import no_safetensors, refuse_code
from bitworth.numerics import from_codes
from bitworth.schemes.config import scheme_from_config

INDEX = "model.safetensors.index.json"
PROVENANCE = "bitworth.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        BitworthError: no such folder, no config in it, one that cannot be read or is not JSON, a model that needs code
            of its own, or not a decoder that generates text.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise BitworthError(f"There is no model folder {folder}; name a folder that holds config.json and safetensors.")
    try:
        config = config_of(path.read_bytes())
    except FileNotFoundError as error:
        raise BitworthError(f"{folder} is no model folder: it holds no config.json.") from error
    except OSError as error:
        raise BitworthError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise BitworthError(f"{path} cannot be read as JSON; fetch the model again.") from error
    refuse_code(folder, config)
    listed = config.get("architectures")
    architectures = [str(name) for name in listed] if isinstance(listed, list) else []
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
            BitworthError: none there, one listed in the index is missing or elsewhere, or one is truncated or damaged.
        """
        self.folder = folder
        paths = [own_file(folder, name) for name in self._file_names()]
        _check_headers(paths)
        self._files = {path.name: self._open(path) for path in paths}
        self._where = {name: file for file, handle in self._files.items() for name in handle.keys()}  # noqa: SIM118

    def release(self) -> None:
        """Unmap the files, whose pages count as this process's memory once they are read; they are mapped again."""
        self._files = {}

    def _file_names(self) -> list[str]:
        index = self.folder / INDEX
        if not index.is_file():
            names = sorted(path.name for path in self.folder.glob("*.safetensors"))
            if not names:
                raise BitworthError(no_safetensors(self.folder))
            return names
        names = _indexed(index)
        for name in names:
            if not own_file(self.folder, name).is_file():
                raise BitworthError(f"{self.folder / name} is listed in {INDEX} but is not there; fetch it again.")
        return names

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

    def get(self, name: str, *, part: int | None = None) -> Tensor:
        """One tensor as stored, or the part of it that its first axis has at `part`.

        Raises:
            BitworthError: the folder has no tensor of that name.
        """
        if name not in self._where:
            raise BitworthError(f"{self.folder} has no tensor '{name}'; its weights do not match its config.json.")
        file = self._file_of(name)
        tensor: Tensor = file.get_tensor(name) if part is None else file.get_slice(name)[part]
        return tensor

    def _file_of(self, name: str) -> Any:
        file = self._where[name]
        if file not in self._files:
            self._files[file] = self._open(self.folder / file)
        return self._files[file]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._file_of(name).get_slice(name).get_shape())

    def bytes_of(self, name: str) -> float:
        """The bytes of a tensor, without reading it."""
        stored = self._file_of(name).get_slice(name).get_dtype()  # F32, F8_E4M3, BOOL
        bits = re.match(r"[A-Z]+(\d+)", stored)
        return math.prod(self.shape(name)) * (int(bits[1]) if bits else 8) / 8

    def weights(self) -> WeightReader:
        """The tensors with quantized layers decoded."""
        return WeightReader(self)


def _indexed(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        names = sorted(set(config_of(index.read_bytes())["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("no names")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BitworthError(f"{index} is not a safetensors index; fetch the model again.") from error
    return names


def _check_headers(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            read_header(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BitworthError(f"{path} is truncated or damaged ({reason}); fetch it again.") from error


class WeightReader:
    """Like `Reader`, but a quantized layer's `weight` is what its codes and scales stand for, in float32."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        quantization = read_config(reader.folder).get("quantization_config")
        self.scheme = scheme_from_config(quantization) if quantization else None
        self._layout = schemes.layout_of(self.scheme) if self.scheme else None
        scaled = [name.removesuffix("_scale") for name in reader.names if name.endswith(".weight_scale")]
        self.quantized = frozenset(name.removesuffix(".weight") for name in scaled)
        parts = {f"{layer}.{part}" for layer in self.quantized for part in (*_PARTS, *_INPUT_SCALES)}
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

    def input_scale(self, layer: str) -> Tensor | None:
        """The stored scale of a layer's inputs, shape (1,), where the format has one: static, or FP4's global one."""
        names = (f"{layer}.{part}" for part in _INPUT_SCALES)
        return next((self._reader.get(name) for name in names if name in self._reader.names), None)

    def codes(self, layer: str) -> tuple[Tensor, Tensor]:
        """A quantized layer's codes (out, in) and scales (out, groups), float32."""
        assert self._layout is not None
        names = [part for part in _PARTS if f"{layer}.{part}" in self._reader.names]
        return self._layout.decode({part: self._reader.get(f"{layer}.{part}") for part in names})


_PARTS = ("weight", "weight_packed", "weight_scale", "weight_global_scale", "weight_shape", "weight_g_idx")
_INPUT_SCALES = ("input_global_scale", "input_scale")
