"""Mixtures whose experts transformers fuses into 3-D parameters, taken apart into one linear layer a projection.

transformers 5 holds all experts of a block in two parameters, `gate_up_proj` (E, 2I, D) and `down_proj` (E, D, I); what
distinguishes the architectures (transposed, interleaved, biased or ungated experts, the gate's formula) are attributes
and a method of the fused module itself. `Experts` is that module again, made of `nn.Linear` layers under the names of
the hub's checkpoints (`experts.3.gate_proj`, Mixtral's `experts.3.w1`), so that each projection is measured, rounded
and stored like any other layer. Nothing is listed by architecture: a module is taken apart when the result gives its
outputs on random weights and inputs, and refused when it does not.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitworth.errors import BitworthError

Role = Literal["gate", "up", "down"]

#: Projections that a fused parameter holds, in their order; with `_bias` behind the name, those of their biases.
_FUSED: dict[str, tuple[Role, ...]] = {"gate_up_proj": ("gate", "up"), "up_proj": ("up",), "down_proj": ("down",)}
_DEFAULT: dict[Role, str] = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
#: Conversions under which an expert's matrix is a slice of the fused parameter.
_STACKING = {"MergeModulelist", "Concatenate"}
_TRIED_EXPERTS, _TRIED_WIDTH, _TRIED_TOKENS = 4, 16, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """How a module lays `count` experts out in its parameters, and what the hub calls their projections."""

    count: int
    names: Mapping[Role, str]
    gated: bool
    transposed: bool
    """Matrices are (in, out)."""
    concatenated: bool
    """Gate's rows lie before up's, not between them."""
    post_norm: bool

    def pieces(self, leaf: str) -> dict[str, Role]:
        """What a fused parameter holds of each expert: projections by their parameter's name inside the expert."""
        stem = leaf.removesuffix("_bias")
        kind = "weight" if stem == leaf else "bias"
        return {f"{self.names[role]}.{kind}": role for role in _FUSED[stem]}

    def piece(self, role: Role, fused: Tensor) -> Tensor:
        """A projection's (out, in) weight or (out) bias, from one expert's part of a fused parameter."""
        rows = fused.T if self.transposed and fused.ndim == 2 else fused
        if role == "down" or not self.gated:
            return rows
        half = rows.shape[0] // 2
        if self.concatenated:
            return rows[:half] if role == "gate" else rows[half:]
        return rows[0 if role == "gate" else 1 :: 2]

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """The two projections' outputs (..., I) as the fused product gives them (..., 2I)."""
        if self.concatenated:
            return torch.cat([gate, up], dim=-1)
        return torch.stack([gate, up], dim=-1).flatten(-2)


class Expert(nn.Module):
    """One expert: linear layers under the hub's names, and its mixture's own gate."""

    def __init__(self, fusion: Fusion, parameters: Mapping[str, Tensor], gate: Callable[[Tensor], Tensor]) -> None:
        """Layers of the shapes that one expert has in `parameters` (fused, by name), without storage.

        Args:
            fusion: the layout.
            parameters: the fused module's own.
            gate: what lies between the projections: of up's output, or of gate's and up's as the fused product gives
                them.
        """
        super().__init__()
        self._fusion, self._gate = fusion, gate
        for leaf in ("gate_up_proj", "up_proj", "down_proj"):
            if leaf in parameters:
                for role in _FUSED[leaf]:
                    rows, columns = fusion.piece(role, parameters[leaf][0]).shape
                    biased = f"{leaf}_bias" in parameters
                    layer = nn.Linear(columns, rows, bias=biased, device="meta")
                    self.add_module(fusion.names[role], layer.requires_grad_(False))

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """What the expert makes of its tokens."""
        names = self._fusion.names
        if not self._fusion.gated:
            middle = self._gate(self._modules[names["up"]](hidden_TD))  # type: ignore[misc]
        else:
            gate, up = (self._modules[names[role]](hidden_TD) for role in ("gate", "up"))  # type: ignore[misc]
            middle = self._gate(self._fusion.join(gate, up))
        result: Tensor = self._modules[names["down"]](middle)  # type: ignore[misc]
        return result


class Experts(nn.Module):
    """A mixture's experts, `0`, `1` and so on, behind the fused module's interface."""

    def __init__(self, fused: nn.Module, fusion: Fusion) -> None:
        """Take a fused module apart; its own parameters are dropped, its other parts (activation, norm) are kept."""
        super().__init__()
        parameters = {name: value for name, value in fused._parameters.items() if value is not None}
        for name, part in fused.named_children():
            self.add_module(name, part)
        gate = fused._apply_gate if fusion.gated else fused.act_fn
        for number in range(fusion.count):
            self.add_module(str(number), Expert(fusion, parameters, gate))  # type: ignore[arg-type]
        fused._parameters.clear()
        self.fusion = fusion

    def forward(self, hidden_TD: Tensor, chosen_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """The weighted sum of what the K experts chosen for each token make of it."""
        result_TD = torch.zeros_like(hidden_TD)
        for number in torch.unique(chosen_TK).tolist():
            if number >= self.fusion.count:  # how a router says that a place is left empty
                continue
            token_S, place_S = torch.where(chosen_TK == number)
            output_SD = self._modules[str(number)](hidden_TD[token_S])  # type: ignore[misc]
            if self.fusion.post_norm:
                output_SD = self._modules["post_expert_norm"](output_SD)  # type: ignore[misc]
            weighted_SD = output_SD * weight_TK[token_S, place_S, None]
            result_TD.index_add_(0, token_S, weighted_SD.to(result_TD.dtype))
        return result_TD


def unfuse(model: nn.Module, conversions: Sequence[Any] = (), *, within: str = "") -> dict[str, Fusion]:
    """Take every mixture of a model without storage apart, in place.

    Args:
        model: still without weights.
        conversions: transformers' from the hub's tensors to the model's, which know the hub's names.
        within: the path of the part to look at: towers for images keep what they hold as it is.

    Returns:
        The layouts by the mixtures' paths; empty for a dense model.

    Raises:
        BitworthError: a mixture's experts lie in another way, or the parts do not give the whole's outputs.
    """
    found: dict[str, Fusion] = {}
    alike: set[tuple[type, Any]] = set()
    for path, module in list(model.get_submodule(within).named_modules(prefix=within)):
        if not _is_fused(module):
            continue
        fusion = _fusion_of(module, path, conversions)
        kind = (type(module), str(fusion))
        if fusion is None or (kind not in alike and not _parts_give_the_whole(module, fusion)):
            raise BitworthError(
                f"{type(model).__name__} keeps the experts of its mixture in one tensor in a way that bitworth cannot "
                f"take apart ({type(module).__name__} at {path}); choose another model."
            )
        alike.add(kind)
        owner, _, leaf = path.rpartition(".")
        model.get_submodule(owner).add_module(leaf, Experts(module, fusion))
        found[path] = fusion
    return found


def _is_fused(module: nn.Module) -> bool:
    """Whether a module holds 3-D parameters of its own that are not a convolution's."""
    convolves = isinstance(module, nn.modules.conv._ConvNd)
    return not convolves and any(value is not None and value.ndim == 3 for value in module._parameters.values())


def _fusion_of(module: Any, path: str, conversions: Sequence[Any]) -> Fusion | None:
    """The layout that a module's attributes tell of; None where its parameters are others than such a module's."""
    own = {name: value for name, value in module._parameters.items() if value is not None}
    gated = "gate_up_proj" in own
    first = "gate_up_proj" if gated else "up_proj"
    expected = {first, "down_proj", f"{first}_bias", "down_proj_bias"}
    if not {first, "down_proj"} <= own.keys() <= expected or module._buffers or not hasattr(module, "num_experts"):
        return None
    if not hasattr(module, "_apply_gate" if gated else "act_fn"):
        return None
    return Fusion(
        count=own["down_proj"].shape[0],
        names=_names_on_the_hub(path, conversions),
        gated=gated,
        transposed=getattr(module, "is_transposed", False),
        concatenated=getattr(module, "is_concatenated", True),
        post_norm=getattr(module, "has_post_expert_norm", False),
    )


def _names_on_the_hub(path: str, conversions: Sequence[Any]) -> dict[Role, str]:
    """What the hub's checkpoints call the projections: the sources of the conversion that stacks them.

    Architectures whose experts are fused on the hub too have none; theirs get the names that most others use.
    """
    names = dict(_DEFAULT)
    for conversion in conversions:
        operations = {type(operation).__name__ for operation in getattr(conversion, "operations", ())}
        if not operations or not operations <= _STACKING:
            continue
        leaves = [re.search(r"\*\W*(\w+)\W*weight", source) for source in conversion.source_patterns]
        for fused, roles in _FUSED.items():
            targets = any(re.search(f"{target}$", f"{path}.{fused}") for target in conversion.target_patterns)
            if targets and len(leaves) == len(roles):
                names |= {role: leaf[1] for role, leaf in zip(roles, leaves, strict=True) if leaf}
    return names


@torch.inference_mode()
def _parts_give_the_whole(module: nn.Module, fusion: Fusion) -> bool:
    """Whether a few narrow experts with random weights, taken apart, give the module's own outputs."""
    source = torch.Generator().manual_seed(0)
    small = _narrow(module, fusion, source)
    whole = dict(small._parameters)
    count = small.num_experts
    width = fusion.piece("down", whole["down_proj"][0]).shape[0]
    hidden_TD = torch.randn(_TRIED_TOKENS, width, generator=source)
    scores_TE = torch.rand(_TRIED_TOKENS, count, generator=source)
    weight_TK, chosen_TK = scores_TE.topk(min(2, count))
    try:
        expected = inspect.unwrap(type(module).forward)(small, hidden_TD, chosen_TK, weight_TK)
        parts = Experts(small, Fusion(**{**_fields(fusion), "count": count}))
        fill(parts, whole)
        got = parts(hidden_TD, chosen_TK, weight_TK)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return False  # its forward takes something else, or reads more than the attributes tell
    return bool(torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())))


def fill(parts: Experts, whole: Mapping[str, Tensor | None]) -> None:
    """Give the experts their part of the fused parameters, by name: (E, 2I, D) and so on, as the layout has them."""
    for leaf, tensor in whole.items():
        if tensor is not None:
            for name, role in parts.fusion.pieces(leaf).items():
                for number in range(parts.fusion.count):
                    owner, _, kind = f"{number}.{name}".rpartition(".")
                    value = parts.fusion.piece(role, tensor[number]).contiguous()
                    parts.get_submodule(owner)._parameters[kind] = nn.Parameter(value, requires_grad=False)


def _narrow(module: nn.Module, fusion: Fusion, source: torch.Generator) -> Any:
    """The module with few experts, a narrow middle and random weights."""
    small: Any = copy.copy(module)
    small._parameters, small._modules = {}, {}
    small.num_experts = min(_TRIED_EXPERTS, fusion.count)
    middle = fusion.piece("down", module._parameters["down_proj"][0]).shape[1]  # type: ignore[index]
    narrow = {middle: min(middle, _TRIED_WIDTH), 2 * middle: 2 * min(middle, _TRIED_WIDTH)}
    for leaf, value in module._parameters.items():
        if value is not None:
            shape = _narrowed(tuple(value.shape), leaf, fusion, narrow)
            small._parameters[leaf] = torch.randn(small.num_experts, *shape, generator=source) / 4
    for name, part in module._modules.items():
        small._modules[name] = _random(part, source)
    return small


def _narrowed(shape: tuple[int, ...], leaf: str, fusion: Fusion, narrow: Mapping[int, int]) -> list[int]:
    """One expert's shape with its middle narrowed: the last axis of (E, ..) is the middle's or the outer one's."""
    sides = list(shape[1:])
    biases = leaf.endswith("_bias")
    if leaf.startswith("down_proj"):
        axis = None if biases else (0 if fusion.transposed else 1)
    else:
        axis = 0 if biases or not fusion.transposed else 1
    if axis is not None:
        sides[axis] = narrow[sides[axis]]
    return sides


def _random(part: nn.Module | None, source: torch.Generator) -> nn.Module | None:
    if part is None or not list(part.parameters()):
        return part
    made = copy.deepcopy(part)
    for inner in made.modules():
        for leaf, value in inner._parameters.items():
            if value is not None:
                inner._parameters[leaf] = nn.Parameter(torch.rand(value.shape, generator=source), requires_grad=False)
    return made


def _fields(fusion: Fusion) -> dict[str, Any]:
    return {name: getattr(fusion, name) for name in fusion.__dataclass_fields__}
