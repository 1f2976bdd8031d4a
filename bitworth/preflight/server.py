"""What a checkpoint's files say of a server that is about to start: refused where certain, else doubted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError, Unsupported
from bitworth.guard.documents import config_of
from bitworth.hardware import LOCAL, hardware
from bitworth.prediction import Architecture, read_architecture
from bitworth.preflight import VLLM, Finding, judged
from bitworth.preflight.kernels import overflows
from bitworth.preflight.shapes import split_of
from bitworth.schemes.config import scheme_from_config
from bitworth.types import Hardware, UseCase

#: Families whose layers are those that `shapes` lists; of others a kernel is not refused.
_PLAIN = {"llama", "mistral", "qwen2", "qwen3"}


def doubt_about(checkpoint: Path, row: Hardware, context_tokens: int, version: str) -> str:
    """What would explain a failure to start, in a sentence, or nothing.

    Args:
        checkpoint: a model folder.
        row: the devices, all of which share each block.
        context_tokens: of the longest request.
        version: the installed vLLM's.

    Raises:
        Unsupported: it cannot start: heads or MLPs that the devices cannot share; weights larger than their whole
            memory, by the files' sizes as by the config; or no kernel for the format, by the rules of the installed
            version.
    """
    try:
        config = config_of((checkpoint / "config.json").read_bytes())
        architecture, told = read_architecture(config), config.get("quantization_config")
        scheme = None if told is None else scheme_from_config(told)
        _refuse_uneven(architecture, row)
        case = UseCase(name="context", prompt_tokens=context_tokens, output_tokens=0)
        found = judged(architecture, scheme, row, case, 1, split_of(architecture, row.count, row.count))
    except Unsupported:
        raise
    except (OSError, ValueError, BitworthError, AttributeError, TypeError):
        return ""  # what cannot be read here is the server's to judge
    _refuse_size(found, row, checkpoint)
    if found.verdict.runs == "no" and found.verdict.sure and _described(config, version):
        raise Unsupported(f"vLLM cannot start: {found.verdict.why}; `bitworth check` says what would run here.")
    if not found.starts:
        return f"It was expected not to fit: {found.sentence}."
    doubtful = found.verdict.runs == "no" or not found.verdict.sure
    return f"About its kernels: {found.verdict.why}." if doubtful else ""


def refuse_overflow(checkpoint: Path) -> None:
    """Refuse a server on this processor whose products would be wrong.

    Raises:
        Unsupported: INT8 weights and activations on a processor without VNNI, where vLLM's products overflow (seen with
            vLLM 0.32: exact up to codes of 64, wrong by a third of the largest output with codes up to 127).
    """
    try:
        told = config_of((checkpoint / "config.json").read_bytes()).get("quantization_config")
        scheme = None if told is None else scheme_from_config(told)
    except (OSError, ValueError, BitworthError):
        return  # what cannot be read here is the server's to judge
    if scheme is not None and overflows(scheme.name, hardware(LOCAL).capability):
        raise Unsupported(
            "vLLM's INT8 products overflow on this processor, which has no VNNI instructions, so its answers would be "
            "wrong; serve another format, or on another processor."
        )


def _refuse_uneven(architecture: Architecture, row: Hardware) -> None:
    uneven = architecture.unsplittable(row.count)
    if uneven is not None:
        raise Unsupported(f"vLLM cannot start: {uneven}; let it see fewer of them with CUDA_VISIBLE_DEVICES.")


def _refuse_size(found: Finding, row: Hardware, checkpoint: Path) -> None:
    """Weights beyond the whole memory cannot be loaded, whatever the estimate of the rest is worth."""
    stored = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 2**30 / row.count
    least = min(stored, found.memory.weights_gib)
    if least > row.memory_gib:
        raise Unsupported(
            f"vLLM cannot start: the weights take {least:.1f} GiB a device, and each has {row.memory_gib:.1f}; "
            "`bitworth check` says what would fit."
        )


def _described(config: Mapping[str, Any], version: str) -> bool:
    """Whether rules and shapes are those of this vLLM and this model, all of whose linear layers are quantized."""
    ignored = set((config.get("quantization_config") or {}).get("ignore") or ())
    plain = config.get("model_type") in _PLAIN and ignored <= {"lm_head"}
    return plain and version.split(".")[:2] == VLLM.split(".")
