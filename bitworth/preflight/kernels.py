"""Which of vLLM's kernels multiplies a format on a device: a row a kernel, in vLLM's order; to add one, add a row.

vLLM asks its kernels in turn for each layer and takes the first that can. The rows hold what each asks for, as read in
vLLM 0.32.0 (`docs/preflight.md` says where); no GPU was at hand to try them. `sure` is False where the answer hangs on
a package that an installation may lack, or was not followed to its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bitworth.preflight.shapes import Matrix
from bitworth.types import Grid, Scheme

VLLM = "0.32"
"""The version that the rows describe."""

Runs = Literal["native", "fallback", "no", "unknown"]
Place = Literal["cuda", "rocm", "cpu"]
_RANK: dict[Runs, int] = {"native": 0, "fallback": 1, "unknown": 2, "no": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a kernel asks for: a device, sizes of groups, multiples of inputs and outputs on each device.

    `lowest` and `highest` are compute capabilities without their point, or steps of `_STEPS` on processors; `targets`
    are how the names of AMD's devices begin (`gfx12` for `gfx1201`), which is how vLLM tells them apart, and none means
    all, those to come too. A kernel is `native` when it computes in the format's own arithmetic; `note` says what
    another one does instead. On the capabilities in `overflows` it runs, and its products are wrong.
    """

    kernel: str
    formats: tuple[str, ...]
    place: Place = "cuda"
    lowest: int = 0
    highest: int = 999
    targets: tuple[str, ...] = ()
    native: bool = True
    groups: tuple[int, ...] | None = None
    inputs: int = 1
    outputs: int = 1
    sure: bool = True
    overflows: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a format runs, with which kernels, and why not or not as meant."""

    runs: Runs
    kernels: tuple[str, ...] = ()
    why: str = ""
    sure: bool = True


_WEIGHTS_ONLY = "weights are turned back into 16 bits on the way, so only memory is saved, not arithmetic"
_SLOW = "its product is emulated, which is correct but slow"
_FP8, _INT8 = ("w8a8-fp", "w8a8-fp-static"), ("w8a8-int", "w8a8-int-static")
_AMD_FP8 = ("gfx942", "gfx950", "gfx12")
_HUMMING = "only where the package humming-kernels is installed"
#: Instruction sets of processors (`Hardware.capability`) by their width.
_STEPS = {"cpu": 0, "avx2": 1, "avx2_vnni": 1, "avx512f": 2, "avx512_vnni": 2, "avx512_bf16": 3}

RULES: tuple[Rule, ...] = (
    Rule(kernel="cuBLAS", formats=("bf16",), lowest=80),
    Rule(kernel="cuBLAS", formats=("bf16",), lowest=70, native=False, sure=False, note="float16 only"),
    Rule(kernel="CutlassFP8ScaledMM", formats=_FP8, lowest=89),
    Rule(kernel="MarlinFP8 or Humming", formats=_FP8, lowest=75, highest=88, native=False, note=_WEIGHTS_ONLY),
    Rule(kernel="CutlassInt8ScaledMM", formats=_INT8, lowest=75, highest=99, inputs=16, outputs=16),
    Rule(kernel="Machete", formats=("w4a16-int",), lowest=90, highest=90, groups=(64, 128), inputs=64, outputs=128),
    Rule(kernel="Marlin", formats=("w4a16-int",), lowest=75, groups=(32, 64, 128)),
    Rule(
        kernel="TritonW4A16",
        formats=("w4a16-int",),
        lowest=75,
        native=False,
        groups=(32, 64, 128, 256),
        outputs=8,
        note="vLLM tries it last on NVIDIA devices",
    ),
    Rule(kernel="Humming", formats=("w4a16-int",), lowest=75, native=False, sure=False, note=_HUMMING),
    Rule(kernel="CutlassW4A8", formats=("w4a8-fp",), lowest=90, highest=90, groups=(128,), inputs=128, outputs=128),
    Rule(
        kernel="Humming",
        formats=("w4a8-fp",),
        lowest=90,
        highest=90,
        groups=(128,),
        native=False,
        sure=False,
        note=_HUMMING,
    ),
    Rule(
        kernel="Humming",
        formats=("w4a8-int",),
        lowest=75,
        native=False,
        sure=False,
        note=f"{_HUMMING}; activations stay in 16 bits",
    ),
    Rule(kernel="CutlassNvFp4 or FlashInfer", formats=("nvfp4",), lowest=100),
    Rule(kernel="FlashInferMxFp4", formats=("mxfp4",), lowest=100),
    Rule(kernel="MarlinNvFp4", formats=("nvfp4",), lowest=75, highest=99, native=False, note=_WEIGHTS_ONLY),
    Rule(kernel="MarlinMxFp4", formats=("mxfp4",), lowest=80, highest=99, native=False, note=_WEIGHTS_ONLY),
    Rule(kernel="FlashInferNvFp4W4A16", formats=("nvfp4a16",), lowest=100, highest=103),
    Rule(kernel="MarlinNvFp4", formats=("nvfp4a16",), lowest=75),
    Rule(kernel="MarlinMxFp4", formats=("mxfp4a16",), lowest=80, highest=99),
    Rule(
        kernel="FlashInferMxFp4",
        formats=("mxfp4a16",),
        lowest=100,
        native=False,
        sure=False,
        note="vLLM does not tell it from MXFP4 and quantizes activations too, so accuracy is MXFP4's",
    ),
    Rule(kernel="hipBLASLt", formats=("bf16",), place="rocm"),
    Rule(kernel="RowWiseTorchFP8ScaledMM", formats=("w8a8-fp",), place="rocm", targets=_AMD_FP8),
    Rule(
        kernel="ChannelWiseTorchFP8ScaledMM",
        formats=("w8a8-fp-static",),
        place="rocm",
        targets=_AMD_FP8,
        native=False,
        note="scales are applied after the product, in a pass of their own",
    ),
    Rule(kernel="TritonInt8ScaledMM", formats=_INT8, place="rocm"),
    Rule(kernel="RDNA3W4A16", formats=("w4a16-int",), place="rocm", targets=("gfx1100",), outputs=8),
    Rule(
        kernel="RDNAHybridW4A16",
        formats=("w4a16-int",),
        place="rocm",
        targets=("gfx11", "gfx120"),
        groups=(32, 64, 128),
        inputs=16,
    ),
    Rule(kernel="TritonW4A16", formats=("w4a16-int",), place="rocm", groups=(32, 64, 128, 256), outputs=8),
    Rule(kernel="EmulationNvFp4", formats=("nvfp4",), place="rocm", native=False, note=_SLOW),
    Rule(
        kernel="EmulationMxfp4",
        formats=("mxfp4", "mxfp4a16"),
        place="rocm",
        native=False,
        sure=False,
        note=f"{_SLOW}, and only where the package amd-quark is installed",
    ),
    Rule(kernel="oneDNN", formats=("bf16",), place="cpu"),
    Rule(kernel="CPUInt8ScaledMM", formats=_INT8, place="cpu", overflows=("avx2", "avx512f")),
    Rule(kernel="ChannelWiseTorchFP8ScaledMM", formats=("w8a8-fp",), place="cpu", native=False, note=_SLOW),
    Rule(kernel="CPUWNA16", formats=("w4a16-int",), place="cpu", lowest=2, inputs=32, outputs=32),
    Rule(kernel="Dynamic4bit", formats=("w4a8-int",), place="cpu"),
)


def judge(name: str, scheme: Scheme | None, layers: Sequence[Matrix], capability: str | None) -> Verdict:
    """Whether vLLM multiplies every layer of a format on a device.

    Args:
        name: the format, `bf16` for the unquantized one.
        scheme: its grids, None for `bf16`.
        layers: one device's matrices (`shapes.matrices`).
        capability: the device's (`Hardware.capability`).
    """
    if capability is None:
        return Verdict(runs="unknown", why="the device's compute capability is not known", sure=False)
    place, generation = _place(capability)
    rows = [row for row in RULES if name in row.formats and row.place == place]
    usable = [row for row in rows if row.lowest <= generation <= row.highest and _is_target(row, capability)]
    if not usable:
        return Verdict(runs="no", why=_nowhere(name, capability, rows))
    if overflows(name, capability):
        why = f"{usable[0].kernel}'s products overflow on a processor without VNNI instructions"
        return Verdict(runs="no", why=why)
    found = _worst(_layer(usable, scheme, matrix) for matrix in layers if not matrix.expert)
    experts = [matrix for matrix in layers if matrix.expert]
    if experts and scheme is not None and _is_stored(scheme.activation):
        return Verdict(runs="no", why=_experts_refuse(name))
    uneven = next(filter(None, (_ungrouped(scheme, matrix) for matrix in experts)), None)
    if uneven is not None:
        return Verdict(runs="no", why=uneven)
    return replace(found, sure=False) if experts and scheme is not None else found  # theirs are kernels of their own


def overflows(name: str, capability: str | None) -> bool:
    """Whether vLLM multiplies a format on a device of that capability and gets it wrong, in silence."""
    return any(name in row.formats and capability in row.overflows for row in RULES)


def doubts(scheme: Scheme, *, mixture: bool) -> list[str]:
    """What vLLM will not load of a checkpoint on most devices, whatever its layers' shapes: a sentence each.

    >>> from bitworth import schemes
    >>> doubts(schemes.get("w4a8-fp", group_size=64), mixture=False)
    ['vLLM 0.32 has no kernel for w4a8-fp in groups of 64; groups of 128 would load']
    """
    found = [_unloadable_groups(scheme)]
    if mixture and _is_stored(scheme.activation):
        found.append(f"vLLM {VLLM} will refuse the checkpoint: {_experts_refuse(scheme.name)}")
    return [sentence for sentence in found if sentence is not None]


def _unloadable_groups(scheme: Scheme) -> str | None:
    """That no kernel of NVIDIA's devices which is certainly there takes groups of that size, or None where one does."""
    group = _group(scheme)
    rows = [row for row in RULES if scheme.name in row.formats]
    refusing = [row for row in rows if group is not None and row.groups is not None and group not in row.groups]
    taking = [row for row in rows if row not in refusing]
    if not refusing or any(row.place == "cuda" and row.sure for row in taking):
        return None
    sizes = _either(sorted({size for row in refusing for size in row.groups or ()}))
    devices = " on NVIDIA's devices" if taking else ""
    others = f" ({_either(dict.fromkeys(map(_named, taking)))} may take them)" if taking else ""
    none = f"vLLM {VLLM} has no kernel for {scheme.name} in groups of {group}{devices}{others}"
    return f"{none}; groups of {sizes} would load"


def _named(row: Rule) -> str:
    """A kernel, and where there is one."""
    where = {"cuda": "", "rocm": "on AMD's " + " or ".join(row.targets or ("devices",)), "cpu": "on processors"}
    return " ".join(filter(None, (row.kernel, row.note if not row.sure else where[row.place])))


def _either(items: Iterable[object]) -> str:
    """The items in a sentence: `32, 64 or 128`."""
    *before, last = map(str, items)
    return f"{', '.join(before)} or {last}" if before else last


def _is_stored(grid: Grid | None) -> bool:
    """Whether one scale of a layer's inputs is stored, found on calibration data."""
    return grid is not None and grid.granularity == "tensor" and not grid.dynamic


def _experts_refuse(name: str) -> str:
    """vLLM's fused experts, in whose weights each channel has a scale."""
    return (
        f"its experts take inputs with a scale a token only, and {name} stores one a layer; "
        f"{name.removesuffix('-static')} stores none"
    )


def _place(capability: str) -> tuple[Place, int]:
    """`8.6` is 86 of CUDA, `avx2` a step of processors; ROCm's devices have names instead (`targets`)."""
    if capability in _STEPS:
        return "cpu", _STEPS[capability]
    if capability.startswith("gfx"):
        return "rocm", 0
    major, _, minor = capability.partition(".")
    return "cuda", 10 * int(major) + int(minor or 0)


def _is_target(row: Rule, capability: str) -> bool:
    return not row.targets or capability.startswith(row.targets)


def _nowhere(name: str, capability: str, rows: Sequence[Rule]) -> str:
    """Why no kernel of that maker's devices takes this one."""
    if not rows:
        return f"vLLM has no kernel for {name} on such devices ({capability})"
    if rows[0].place == "cpu":
        return f"vLLM has no kernel for {name} on processors without AVX-512"
    if rows[0].place == "rocm":
        targets = " or ".join(dict.fromkeys(target for row in rows for target in row.targets))
        return f"vLLM's kernels for {name} need an AMD device of {targets}, and this one is {capability}"
    low, high = min(row.lowest for row in rows), max(row.highest for row in rows)
    least = f"from {low / 10:.1f}" + ("" if high == 999 else f" and below {(high + 1) / 10:.1f}")
    least = f"of {low / 10:.1f} only" if low == high else least
    return f"vLLM's kernels for {name} need a compute capability {least}, and this device has {capability}"


def _layer(rows: Sequence[Rule], scheme: Scheme | None, matrix: Matrix) -> Verdict:
    """The first row that takes a matrix; where none does, why the last that is sure of itself refuses it."""
    uneven = _ungrouped(scheme, matrix)
    if uneven is not None:
        return Verdict(runs="no", why=uneven)
    refused = ""
    for row in rows:
        why = _refusal(row, _group(scheme), matrix)
        if why is None:
            return Verdict(
                runs="native" if row.native else "fallback", kernels=(row.kernel,), why=row.note, sure=row.sure
            )
        refused = f"{row.kernel} {why}"
    return Verdict(runs="no", why=refused)


def _group(scheme: Scheme | None) -> int | None:
    return None if scheme is None or scheme.weight is None else scheme.weight.group_size


def _ungrouped(scheme: Scheme | None, matrix: Matrix) -> str | None:
    """Why a device's part of a matrix cannot have groups, whatever the kernel, or None."""
    group = _group(scheme)
    if not group or matrix.inputs % group == 0:
        return None
    return f"{matrix.inputs} inputs of {matrix.name} on each device are no whole number of groups of {group}"


def _refusal(row: Rule, group: int | None, matrix: Matrix) -> str | None:
    if row.groups is not None and group is not None and group not in row.groups:
        return f"takes groups of {' or '.join(map(str, row.groups))}, not of {group}"
    if matrix.inputs % row.inputs:
        return f"takes inputs in multiples of {row.inputs}, and {matrix.name} has {matrix.inputs} on each device"
    if matrix.outputs % row.outputs:
        return f"takes outputs in multiples of {row.outputs}, and {matrix.name} has {matrix.outputs} on each device"
    return None


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    """All layers' kernels, under the verdict of the layer that fares worst."""
    found = list(verdicts)
    worst = max(found, key=lambda one: (_RANK[one.runs], not one.sure))
    kernels = () if worst.runs == "no" else tuple(dict.fromkeys(name for one in found for name in one.kernels))
    return Verdict(runs=worst.runs, kernels=kernels, why=worst.why, sure=worst.sure)
