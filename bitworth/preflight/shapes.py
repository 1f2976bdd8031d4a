"""The matrices that one device multiplies with, and how many devices can share a model.

Heads and MLP columns are shared out to the tensor-parallel devices of a stage, blocks to the stages. The attention's
output and the MLP's second matrix are cut along their inputs, so their groups of columns must end where a device's part
ends; the others are cut along their outputs.

>>> from bitworth.prediction.evidence import MODELS
>>> [(matrix.name, matrix.inputs, matrix.outputs) for matrix in matrices(MODELS["8B"], 2)]
[('qkv', 4096, 3072), ('attention output', 2048, 4096), ('gate and up', 4096, 14336), ('down', 7168, 4096)]
"""

from __future__ import annotations

from dataclasses import dataclass

from bitworth.errors import BitworthError
from bitworth.prediction import Architecture
from bitworth.prediction.roofline import DEVICES_A_MACHINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A product of inputs x outputs on one device, and how often the whole model has it."""

    name: str
    inputs: int
    outputs: int
    times: int
    expert: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """`tensor` devices share each block, `stages` of them follow each other."""

    tensor: int
    stages: int


def split_of(architecture: Architecture, count: int, tensor: int | None = None) -> Split:
    """All devices as one copy; unless said, as many of a machine share each block as can.

    Raises:
        BitworthError: `tensor` does not divide the devices, or there are more stages than blocks.
    """
    if tensor is None:
        sizes = (size for size in range(min(count, DEVICES_A_MACHINE), 0, -1) if count % size == 0)
        tensor = next(size for size in sizes if size == 1 or architecture.unsplittable(size) is None)
    if tensor < 1 or count < 1 or count % tensor:
        raise BitworthError(
            f"{count} devices cannot be stages of {tensor} each; give a multiple, or share blocks among fewer."
        )
    if count // tensor > architecture.layers:
        raise BitworthError(f"{count // tensor} stages are more than the model's {architecture.layers} blocks.")
    return Split(tensor=tensor, stages=count // tensor)


def matrices(a: Architecture, tensor: int) -> tuple[Matrix, ...]:
    """The linear layers that a format quantizes, as vLLM joins them; `times` counts all blocks."""
    heads = a.heads // tensor * a.head_dim
    both = 2 * a.kv_heads_on(tensor) * a.head_dim
    found = [
        Matrix(name="qkv", inputs=a.hidden, outputs=heads + both, times=a.layers),
        Matrix(name="attention output", inputs=heads, outputs=a.hidden, times=a.layers),
    ]
    mlps = (
        ("", a.width, a.layers - a.mixtures, False),
        ("expert's ", a.expert_width, a.mixtures * a.experts, True),
        ("shared experts' ", a.shared_width, a.mixtures, False),
    )
    for owner, width, times, expert in mlps:
        if width and times:
            part, first = width // tensor, "gate and up" if a.matrices == 3 else "up"
            wide = (a.matrices - 1) * part
            found.append(Matrix(name=owner + first, inputs=a.hidden, outputs=wide, times=times, expert=expert))
            found.append(Matrix(name=owner + "down", inputs=part, outputs=a.hidden, times=times, expert=expert))
    return tuple(found)
