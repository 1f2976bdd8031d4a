"""The recipes by name. To add one, add a row."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from bitworth import schemes
from bitworth.errors import BitworthError
from bitworth.types import Awq, Clip, Gptq, GptqScale, Recipe, Rtn, SmoothQuant, Transform, Tuning

#: Clipping that minimizes the layer's expected squared output error, as far as a diagonal Hessian tells it.
_OURS = Clip(norm=2.0, shrink=0.5, steps=40, hessian_weighted=True)


class _Row(NamedTuple):
    """A scheme's name and the steps."""

    scheme: str
    rounding: Rtn | Gptq
    transforms: tuple[Transform, ...] = ()
    tuning: Tuning | None = None


_ROWS = {
    "w8a8-fp": _Row("w8a8-fp", Rtn()),
    "w8a8-int-rtn": _Row("w8a8-int", Rtn()),
    "w8a8-int-gptq": _Row("w8a8-int", Gptq(clip=_OURS, ordering="weight")),
    "w8a8-int-smoothquant-gptq": _Row("w8a8-int", Gptq(), (SmoothQuant(strength=0.5),)),
    # one scale a layer's input from calibration; SmoothQuant is for such scales, which outliers coarsen most
    "w8a8-fp-static": _Row("w8a8-fp-static", Rtn()),
    "w8a8-int-static-rtn": _Row("w8a8-int-static", Rtn()),
    "w8a8-int-static-gptq": _Row("w8a8-int-static", Gptq(clip=_OURS, ordering="weight")),
    "w8a8-int-static-smoothquant-gptq": _Row("w8a8-int-static", Gptq(), (SmoothQuant(strength=0.5),)),
    "w4a16-int-rtn": _Row("w4a16-int", Rtn()),
    # AWQ's scaling first and two sweeps of refinement after: each loses less, on the calibration's kind of text and on
    # web text alike (docs/LOG.md)
    "w4a16-int-gptq": _Row("w4a16-int", Gptq(clip=_OURS, ordering="weight", sweeps=2), (Awq(steps=10),)),
    # a scale made for GPTQ instead of AWQ's: less is lost in each layer, little in the model; it hangs on the last bits
    # of the second moments, so that other devices give other codes (docs/LOG.md)
    "w4a16-int-gptq-scaled": _Row("w4a16-int", Gptq(clip=_OURS, ordering="weight", sweeps=2), (GptqScale(),)),
    # and a block's codes, scales and norms learnt on together: a fifth less is lost, in 2.5 times the time
    "w4a16-int-gptq-tuned": _Row(
        "w4a16-int", Gptq(clip=_OURS, ordering="weight", sweeps=2), (Awq(steps=10),), Tuning()
    ),
    # the published method: MSE clipping at norm 2.4 on the weights updated so far, columns as they lie
    "w4a16-int-gptq-published": _Row("w4a16-int", Gptq(clip=Clip())),
    "w4a16-int-awq": _Row("w4a16-int", Rtn(clip=_OURS), (Awq(),)),
    # the paper's recipes by model size, as its text (section 3.2, A.2) and the published checkpoints' cards have them;
    # W8A8-FP is `w8a8-fp` at every size, W4A16-INT at 70B and 405B is `w4a16-int-gptq-published`. The strength of 70B's
    # SmoothQuant is not given anywhere: llm-compressor's default. The card of 8B orders the groups themselves, which
    # newer loaders refuse: here the columns are ordered and the groups stay.
    "w8a8-int-paper-8b": _Row("w8a8-int", Gptq()),
    "w8a8-int-paper-70b": _Row("w8a8-int", Gptq(damping=0.1), (SmoothQuant(strength=0.5),)),
    "w8a8-int-paper-405b": _Row("w8a8-int", Gptq(clip=Clip())),
    "w4a16-int-paper-8b": _Row("w4a16-int", Gptq(clip=Clip(), damping=0.1, ordering="weight")),
    "w4a8-fp-rtn": _Row("w4a8-fp", Rtn()),
    "w4a8-fp-gptq": _Row("w4a8-fp", Gptq(clip=_OURS, ordering="weight", sweeps=2)),
    "w4a8-int-rtn": _Row("w4a8-int", Rtn()),
    "w4a8-int-gptq": _Row("w4a8-int", Gptq(clip=_OURS, ordering="weight", sweeps=2)),
    "nvfp4-rtn": _Row("nvfp4", Rtn()),
    "nvfp4-gptq": _Row("nvfp4", Gptq(clip=_OURS, ordering="weight", sweeps=2)),
    "nvfp4a16-rtn": _Row("nvfp4a16", Rtn()),
    "nvfp4a16-gptq": _Row("nvfp4a16", Gptq(clip=_OURS, ordering="weight", sweeps=2)),
    "mxfp4-rtn": _Row("mxfp4", Rtn()),
    "mxfp4-gptq": _Row("mxfp4", Gptq(clip=_OURS, ordering="weight", sweeps=2)),
    "mxfp4a16-rtn": _Row("mxfp4a16", Rtn()),
    "mxfp4a16-gptq": _Row("mxfp4a16", Gptq(clip=_OURS, ordering="weight", sweeps=2)),
}
NAMES = tuple(_ROWS)
#: What may follow a recipe's name: the key-value cache in FP8, its scales found on the calibration text.
ADDITIONS = {"+kv-fp8": schemes.FP8_CACHE}


def known(name: str) -> bool:
    """Whether there is a recipe of that name, with or without an addition."""
    return _parted(name)[0] in _ROWS


def recipe(name: str, *, group_size: int | None = None) -> Recipe:
    """The recipe of that name; `group_size` counts where the format leaves it open (128 unless given).

    Raises:
        BitworthError: no such recipe.
    """
    base, addition = _parted(name)
    if base not in _ROWS:
        added = ", ".join(ADDITIONS)
        raise BitworthError(f"Unknown recipe '{name}'; known: {', '.join(NAMES)}, each with or without {added}.")
    row = _ROWS[base]
    scheme = schemes.get(row.scheme, group_size=group_size)
    if addition:
        scheme = replace(scheme, kv_cache=ADDITIONS[addition])
    return Recipe(name=name, scheme=scheme, rounding=row.rounding, transforms=row.transforms, tuning=row.tuning)


def _parted(name: str) -> tuple[str, str]:
    """A recipe's row and the addition behind it."""
    addition = next((addition for addition in ADDITIONS if name.endswith(addition)), "")
    return name.removesuffix(addition), addition
