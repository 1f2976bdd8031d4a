"""The recipes by name. To add one, add a row."""

from __future__ import annotations

from bitworth import schemes
from bitworth.errors import BitworthError
from bitworth.types import Awq, Clip, Gptq, Recipe, Rtn, SmoothQuant

#: Clipping that minimizes the layer's expected squared output error, as far as a diagonal Hessian tells it.
_OURS = Clip(norm=2.0, shrink=0.5, steps=40, hessian_weighted=True)

_ROWS: dict[str, tuple[str, Rtn | Gptq, tuple[SmoothQuant | Awq, ...]]] = {
    "w8a8-fp": ("w8a8-fp", Rtn(), ()),
    "w8a8-int-rtn": ("w8a8-int", Rtn(), ()),
    "w8a8-int-gptq": ("w8a8-int", Gptq(clip=_OURS, ordering="weight"), ()),
    "w8a8-int-smoothquant-gptq": ("w8a8-int", Gptq(), (SmoothQuant(strength=0.5),)),
    "w4a16-int-rtn": ("w4a16-int", Rtn(), ()),
    # AWQ's scaling first and two sweeps of refinement after: each loses less, on the calibration's kind of text and on
    # web text alike (docs/LOG.md)
    "w4a16-int-gptq": ("w4a16-int", Gptq(clip=_OURS, ordering="weight", sweeps=2), (Awq(steps=10),)),
    # the published method: MSE clipping at norm 2.4 on the weights updated so far, columns as they lie
    "w4a16-int-gptq-published": ("w4a16-int", Gptq(clip=Clip()), ()),
    "w4a16-int-awq": ("w4a16-int", Rtn(clip=_OURS), (Awq(),)),
}
NAMES = tuple(_ROWS)


def recipe(name: str, *, group_size: int | None = None) -> Recipe:
    """The recipe of that name; `group_size` counts where weights are grouped (128 unless given).

    Raises:
        BitworthError: no such recipe.
    """
    if name not in _ROWS:
        raise BitworthError(f"Unknown recipe '{name}'; known: {', '.join(NAMES)}.")
    scheme, rounding, transforms = _ROWS[name]
    return Recipe(
        name=name, scheme=schemes.get(scheme, group_size=group_size), rounding=rounding, transforms=transforms
    )
