"""A stand-in for a GPU: tensors that say they lie on another device, refuse to meet others, and use the CPU.

What it shows is that no code path mixes devices or asks a GPU's tensor for what only a CPU's has (numpy, numba). What
it cannot show is what CUDA's own kernels give or take. Run in a process of its own, since torch is told of the device
for good: `python stand_in.py MODEL TEXT OUT RECIPE...` quantizes by the recipes as `--device cuda` would.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("elsewhere")
DEVICE = torch.device("elsewhere", 0)
CPU = torch.device("cpu")


class Held(Tensor):
    """A CPU tensor that says it is on the GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Held:
        made: Held = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:
        return f"Held({self.inner!r})"

    def tolist(self) -> Any:
        """Numbers may be read; torch itself does not let subclasses."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class Machine(TorchDispatchMode):
    """While entered, tensors made on the device are `Held`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what was asked of the GPU, once it is certain that a GPU could."""
    flat, shape = tree_flatten((args, kwargs))
    held = {id(value.inner): value for value in flat if isinstance(value, Held)}
    asked = [torch.device(value) for value in [*flat, kwargs.get("device")] if isinstance(value, torch.device)]
    plain = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, Held) and value.ndim]
    if held and [value for value in plain if value.device.type != "meta"] and not _carries(func):
        raise AssertionError(f"{func} was given tensors of both devices: {[tuple(value.shape) for value in plain]}")
    stays = asked[-1].type == "cpu" if asked else not held
    if func is torch.ops.aten.copy_.default:
        stays = not isinstance(args[0], Held)
    args, kwargs = tree_unflatten([_bare(value) for value in flat], shape)
    wide = func is torch.ops.aten.mm.dtype  # 16-bit factors added up in float32, which CPUs do not have
    found = args[0].to(args[2]) @ args[1].to(args[2]) if wide else func(*args, **kwargs)

    def hold(value: Any) -> Any:
        """What an in-place call returns is what it was given."""
        if not isinstance(value, Tensor):
            return value
        return held[id(value)] if id(value) in held else Held(value)

    return found if stays else tree_map(hold, found)


def _carries(func: Any) -> bool:
    """Whether a call may bring a tensor from one device to the other."""
    return func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.to)


def _bare(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU if value.type == DEVICE.type else value
    return value.inner if isinstance(value, Held) else value


def main(model: str, text: str, out: str, *names: str) -> None:
    """Quantize on the stand-in."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `float()` cannot change a Held in place
    from bitworth import recipes
    from bitworth.quantization import quantize
    from bitworth.types import Calibration

    chosen = [recipes.recipe(name, group_size=32) for name in names]
    spec = Calibration(source=text, samples=6, length=48)
    with Machine():
        quantize(Path(model), chosen, Path(out), calibration=spec, device=DEVICE)


if __name__ == "__main__":
    main(*sys.argv[1:])
