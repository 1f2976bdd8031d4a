"""A recipe in words: what the numbers are, how they were rounded, what they were calibrated with, what is in doubt."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from bitworth.report.figures import limit, number, percent
from bitworth.types import Audit, Awq, Calibration, Gptq, Grid, Recipe, Rtn, SmoothQuant, Transform, Tuning


def recipe_rows(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(what, how) of everything that decides the quantized tensors."""
    scheme = recipe.scheme
    yield "weights", grid_words(scheme.weight)
    yield "activations", grid_words(scheme.activation)
    yield "key-value cache", grid_words(scheme.kv_cache)
    yield "left as they are", ", ".join(scheme.ignore) or "no modules"
    if recipe.transforms:
        yield "prepared by", ", ".join(_transform(step) for step in recipe.transforms)
    yield "rounding", _rounding(recipe.rounding)
    if recipe.tuning is not None:
        yield "then learnt, block by block", _tuning(recipe.tuning)


def grid_words(grid: Grid | None) -> str:
    """`4-bit integers, a scale a group of 128, symmetric`."""
    if grid is None:
        return "not quantized"
    kind = "integers" if grid.kind == "int" else "floating-point numbers"
    share = f"group of {grid.group_size}" if grid.granularity == "group" else grid.granularity
    scales = {"float": "", "e4m3": " (E4M3)", "e8m0": " (a power of two)"}[grid.scales]
    found = [f"{grid.bits}-bit {kind}", f"a scale{scales} a {share}"]
    found.append("symmetric" if grid.symmetric else "asymmetric")
    return ", ".join([*found, "dynamic"] if grid.dynamic else found)


def calibration_words(calibration: Calibration) -> str:
    """`256 sequences of 512 tokens of chat (2), random (1), seed 0`; folders are left out of paths."""
    parts = [part.name or part.source.rstrip("/").rpartition("/")[2] for part in calibration.mix]
    if len(parts) > 1:
        parts = [f"{name} ({part.weight:g})" for name, part in zip(parts, calibration.mix, strict=True)]
    return (
        f"{calibration.samples} sequences of {calibration.length} tokens of {', '.join(parts)}, seed {calibration.seed}"
    )


def audit_rows(audit: Audit) -> Iterator[tuple[str, str]]:
    """(what, figure) of the calibration text and of what it did in the model."""
    text = audit.text
    yield "tokens", f"{text.tokens:,} in {text.samples:,} sequences of {text.length:,}"
    yield "sources", ", ".join(f"{row.source} ({row.samples:,} sequences)" for row in text.sources)
    yield "scripts of its letters", ", ".join(f"{name} {percent(100 * share)}" for name, share in text.scripts.items())
    chat = "the tokenizer has no chat template" if text.chat_share is None else percent(100 * text.chat_share)
    yield "with chat markers", chat
    yield "start with BOS", percent(100 * text.bos_share)
    yield "vocabulary seen", percent(100 * text.vocabulary_share)
    yield "repeated sequences", f"{text.duplicates:,}"
    ratios = [stage.outlier_ratio for stage in audit.stages if stage.outlier_ratio is not None]
    if ratios:
        yield "outlier ratio of layers' inputs", f"median {number(median(ratios))}, greatest {number(max(ratios))}"
    if audit.experts:
        experts = sum(len(mixture.tokens) for mixture in audit.experts)
        unreached = sum(len(mixture.unreached) for mixture in audit.experts)
        yield "experts without a token", f"{unreached:,} of {experts:,}"


def _rounding(rounding: Rtn | Gptq) -> str:
    clip = "" if rounding.clip is None else f", scales clipped for the least |error|^{limit(rounding.clip.norm)}"
    if rounding.clip is not None and rounding.clip.hessian_weighted:
        clip += " weighted by the Hessian's diagonal"
    if isinstance(rounding, Rtn):
        return f"to nearest{clip}"
    order = "" if rounding.ordering == "none" else f", columns ordered by {rounding.ordering}"
    sweeps = f", {rounding.sweeps} sweeps of refinement" if rounding.sweeps else ""
    return f"GPTQ, damping {limit(rounding.damping)}{order}{clip}{sweeps}"


def _tuning(tuning: Tuning) -> str:
    learnt = "codes, scales and norms" if tuning.norm_rate else "codes and scales"
    part = f", of each the first {limit(100 * tuning.share)} % or {tuning.least} tokens"
    read = part if tuning.share < 1 else ""
    return f"{learnt}, {tuning.steps} steps of {tuning.batch} {'sequence' if tuning.batch == 1 else 'sequences'}{read}"


def _transform(step: Transform) -> str:
    if isinstance(step, SmoothQuant):
        return f"SmoothQuant, strength {limit(step.strength)}"
    return f"AWQ, {step.steps} steps" if isinstance(step, Awq) else "a scale under which GPTQ loses least"
