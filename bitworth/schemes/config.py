"""The `quantization_config` of a checkpoint: what compressed-tensors and vLLM are told, and what schemes it may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bitworth import schemes
from bitworth.errors import BitworthError
from bitworth.types import Grid, Scheme

_SCALE_DTYPES = {"e4m3": "torch.float8_e4m3fn", "e8m0": "torch.uint8"}
#: What tells one grid from another in a checkpoint's arguments, and what a missing argument means.
_TELLING = {"num_bits": None, "type": "int", "strategy": None, "symmetric": True, "group_size": None, "dynamic": False}


def quantization_config(scheme: Scheme, ignore: list[str], ordering: str | None) -> dict[str, Any]:
    """The `quantization_config` that compressed-tensors and vLLM read."""
    layout = schemes.layout_of(scheme).name
    weights = _grid_args(scheme.weight)
    if weights is not None and ordering in ("weight", "group"):
        weights["actorder"] = ordering
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": _grid_args(scheme.activation),
        "output_activations": None,
        "format": layout,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": _grid_args(scheme.kv_cache),
        "global_compression_ratio": None,
    }


def _grid_args(grid: Grid | None) -> dict[str, Any] | None:
    if grid is None:
        return None
    under_global = grid.scales == "e4m3"
    args = {
        "num_bits": grid.bits,
        "type": grid.kind,
        "symmetric": grid.symmetric,
        "strategy": "tensor_group" if under_global else grid.granularity,
        "group_size": grid.group_size,
        "dynamic": "local" if under_global and grid.dynamic else grid.dynamic,
        "observer": None if grid.dynamic else "minmax",
    }
    return args if grid.scales == "float" else {**args, "scale_dtype": _SCALE_DTYPES[grid.scales]}


def scheme_from_config(config: Mapping[str, Any]) -> Scheme:
    """The scheme of a compressed-tensors checkpoint.

    Raises:
        BitworthError: another method's checkpoint, several schemes in one, or a format not known here.
    """
    method = _mapping(config).get("quant_method")
    if method != "compressed-tensors":
        raise BitworthError(
            f"The checkpoint is quantized by '{method}'; bitworth reads compressed-tensors checkpoints."
        )
    groups = list(_mapping(config.get("config_groups") or {}).values())
    if len(groups) != 1:
        raise BitworthError(
            f"The checkpoint mixes {len(groups)} quantization schemes; bitworth reads one a checkpoint."
        )
    weights, inputs = (_mapping(groups[0]).get(name) for name in ("weights", "input_activations"))
    scheme = _scheme_of(_mapping(weights or {}), None if inputs is None else _mapping(inputs))
    cache = None if config.get("kv_cache_scheme") is None else _mapping(config["kv_cache_scheme"])
    if cache is not None and _told(cache) != _told(_grid_args(schemes.FP8_CACHE)):
        raise BitworthError(
            "The checkpoint's key-value cache is quantized otherwise than to FP8 with one scale a tensor, which is all "
            "that bitworth reads; quantize it again."
        )
    return scheme if cache is None else replace(scheme, kv_cache=schemes.FP8_CACHE)


def _scheme_of(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> Scheme:
    """The known scheme with these grids.

    Raises:
        BitworthError: none; names what is near it, if anything is.
    """
    near = None
    for name in schemes.NAMES:
        scheme = schemes.get(name, group_size=weights.get("group_size"))
        expected = (_told(_grid_args(scheme.weight)), _told(_grid_args(scheme.activation)))
        found = (_told(weights), _told(inputs))
        if found == expected:
            return scheme
        if near is None and [_numbers(args) for args in found] == [_numbers(args) for args in expected]:
            near = (name, found)
    if near is None:
        bits = inputs.get("num_bits") if inputs else 16
        named = f"w{weights.get('num_bits')}a{bits}, {weights.get('type', 'int')}"
        raise BitworthError(f"Unknown number format '{named}'; known: {', '.join(schemes.NAMES)}.")
    raise BitworthError(
        f"The checkpoint's weights and input activations are {near[1]}, which {near[0]} here does not cover; "
        "re-quantize it."
    )


def _told(args: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if args is None:
        return None
    told = {key: args.get(key, default) for key, default in _TELLING.items()}
    return {**told, "group_size": None if told["group_size"] == -1 else told["group_size"]}  # -1: the whole channel


def _numbers(args: Mapping[str, Any] | None) -> tuple[Any, Any] | None:
    return None if args is None else (args.get("num_bits"), args.get("type"))


def _mapping(part: Any) -> Mapping[str, Any]:
    if not isinstance(part, Mapping):
        raise BitworthError(
            "The checkpoint's quantization_config is not one of compressed-tensors: it holds a value where arguments "
            "should be; fetch or quantize the checkpoint again."
        )
    return part
