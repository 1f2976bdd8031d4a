"""How a number format computes: what its weights weigh, which arithmetic it uses, and what its kernels do besides.

>>> kernel("w4a16-int").weight_bytes
0.515625
"""

from __future__ import annotations

from dataclasses import dataclass

from bitworth import schemes
from bitworth.errors import BitworthError
from bitworth.types import BASELINE

BF16 = "bf16"
#: Formats whose kernels the constants were fitted on; others are not predicted.
NAMES = (BF16, "w8a8-fp", "w8a8-int", "w4a16-int")
_SCALE_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A format's linear layers: bytes a weight, the arithmetic (a key of `Hardware.tera_ops`), and extra work.

    `quantizes`: activations are rounded before each product. `unpacks`: weights are turned into 16 bits on the way.
    """

    name: str
    weight_bytes: float
    arithmetic: str
    quantizes: bool = False
    unpacks: bool = False


def kernel(name: str, *, group_size: int | None = None) -> Kernel:
    """The kernel of a format, `bf16` or `baseline` for the unquantized one.

    Raises:
        BitworthError: no constants were fitted for that format.
    """
    if name in (BF16, BASELINE):
        return Kernel(name=BF16, weight_bytes=2.0, arithmetic=BF16)
    if name not in NAMES:
        raise BitworthError(f"Format '{name}' cannot be predicted; those that can are {', '.join(NAMES)}.")
    scheme = schemes.get(name, group_size=group_size)
    grid, activation = scheme.weight, scheme.activation
    assert grid is not None
    scales = _SCALE_BYTES / grid.group_size if grid.group_size else 0.0
    return Kernel(
        name=name,
        weight_bytes=grid.bits / 8 + scales,
        arithmetic=BF16 if activation is None else "fp8" if activation.kind == "float" else "int8",
        quantizes=activation is not None,
        unpacks=activation is None,
    )
