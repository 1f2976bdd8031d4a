"""A transformers model for timing: filled one layer at a time, alike for every number format but for its linear layers.

The projections that multiply the same input are merged, as serving engines do, in quantized and plain models alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.checkpoint import Reader
from bitworth.engines.kernels import Make
from bitworth.errors import BitworthError, Unsupported
from bitworth.model import MERGED
from bitworth.skeleton import skeleton


@torch.inference_mode()
def load(folder: Path, reader: Reader, dtype: torch.dtype, device: torch.device, make: Make | None) -> Any:
    """The model in `dtype` on `device`, its quantized layers made by `make`.

    Raises:
        BitworthError: transformers lacks the architecture, or a tensor is missing or of another shape.
        Unsupported: a quantized layer is not a plain linear layer of the model, or the kernel cannot take it.
    """
    model: Any = skeleton(folder, dtype=dtype, attention=_attention)
    filling = _Filling(model, reader, dtype, device, make)
    for names in filling.products():
        filling.replace(names)
    filling.fill()
    simplify_norms(model)
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return model.to(device)


def _contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The last positions of a batch lie apart; given so, torch would copy the head's weight once a sequence."""
    return (inputs[0].contiguous(), *inputs[1:])


def _attention(text: Any) -> str:
    """transformers' capped attention scores (Gemma 2) exist in its eager attention only."""
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    return "eager" if capped else _register_attention()


class _Filling:
    """A model without storage and the tensors that go into it."""

    def __init__(self, model: Any, reader: Reader, dtype: torch.dtype, device: torch.device, make: Make | None) -> None:
        self._model, self._reader, self._weights = model, reader, reader.weights()
        self._dtype, self._device, self._make = dtype, device, make
        self._modules: dict[str, nn.Module] = dict(model.named_modules())

    def products(self) -> list[tuple[str, ...]]:
        """Linear layers to replace, by name: merged ones together, other quantized ones alone.

        Raises:
            Unsupported: a quantized layer is none of the model's linear layers (experts fused into one tensor).
        """
        odd = [name for name in sorted(self._weights.quantized) if type(self._modules.get(name)) is not nn.Linear]
        if odd:
            raise Unsupported(
                f"{type(self._model).__name__} runs {odd[0]} as something else than a plain linear layer, for which "
                "torch has no low-bit kernel; benchmark this checkpoint with --engine vllm."
            )
        together = [
            names
            for parent in self._modules
            for children in MERGED
            if self._mergeable(names := tuple(f"{parent}.{child}" for child in children))
        ]
        taken = {name for names in together for name in names}
        return together + [(name,) for name in sorted(self._weights.quantized - taken)]

    def _mergeable(self, names: tuple[str, ...]) -> bool:
        layers = [self._modules.get(name) for name in names]
        if not all(type(layer) is nn.Linear for layer in layers):
            return False
        orders = [self._order(name) for name in names]
        alike = {
            (layer.in_features, layer.bias is None, name in self._weights.quantized, order is None)  # type: ignore[union-attr]
            for layer, name, order in zip(layers, names, orders, strict=True)
        }
        return len(alike) == 1 and all(order is None or torch.equal(order, orders[0]) for order in orders)  # type: ignore[arg-type]

    def _order(self, name: str) -> Tensor | None:
        """The group of each input column, where groups are not runs of columns."""
        full = f"{name}.weight_g_idx"
        return self._reader.get(full).long() if full in self._reader.names else None

    def replace(self, names: tuple[str, ...]) -> None:
        """Put one product where these layers are."""
        layers = [self._modules[name] for name in names]
        sizes = [int(layer.out_features) for layer in layers]  # type: ignore[arg-type]
        product = self._kernel(names) if names[0] in self._weights.quantized else self._plain(names)
        shared = Shared(product, sizes)
        for index, name in enumerate(names):
            parent, _, child = name.rpartition(".")
            setattr(self._modules[parent], child, product if len(names) == 1 else Part(shared, index))

    def _kernel(self, names: tuple[str, ...]) -> nn.Module:
        assert self._make is not None
        pairs = [self._weights.codes(name) for name in names]
        for name, (codes, _) in zip(names, pairs, strict=True):
            self._check(f"{name}.weight", codes)
        codes_OI, scale_OG = (torch.cat(tensors).to(self._device) for tensors in zip(*pairs, strict=True))
        order = self._order(names[0])
        if order is None:
            return self._make(codes_OI, scale_OG, self._bias(names))
        columns = torch.argsort(order, stable=True).to(self._device)
        return Reordered(self._make(codes_OI[:, columns], scale_OG, self._bias(names)), columns)

    def _plain(self, names: tuple[str, ...]) -> nn.Linear:
        weight_OI, bias = torch.cat([self._tensor(f"{name}.weight") for name in names]), self._bias(names)
        linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight_OI, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear

    def _bias(self, names: tuple[str, ...]) -> Tensor | None:
        if self._modules[names[0]].bias is None:
            return None
        return torch.cat([self._tensor(f"{name}.bias") for name in names])

    def fill(self) -> None:
        """Read the parameters and buffers that no product replaced, and tie what is tied."""
        for name, old in [*self._model.named_parameters(), *self._model.named_buffers()]:
            if name not in self._weights.names:
                continue
            owner, _, leaf = name.rpartition(".")
            module = self._model.get_submodule(owner)
            value = self._tensor(name, old)
            if leaf in module._parameters:
                module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
            else:
                module._buffers[leaf] = value
        self._model.tie_weights()
        empty = [name for name, parameter in self._model.named_parameters() if parameter.is_meta]
        if empty:
            raise BitworthError(
                f"{self._reader.folder} has no tensor '{empty[0]}'; its weights do not match its config.json."
            )

    def _tensor(self, name: str, old: Tensor | None = None) -> Tensor:
        tensor = self._weights.get(name)
        self._check(name, tensor, old)
        floating = tensor.is_floating_point()
        return tensor.to(self._device, self._dtype if floating else tensor.dtype)

    def _check(self, name: str, tensor: Tensor, old: Tensor | None = None) -> None:
        owner, _, leaf = name.rpartition(".")
        expected = old if old is not None else getattr(self._modules[owner], leaf)
        if tensor.shape != expected.shape:
            raise BitworthError(
                f"{self._reader.folder}: tensor '{name}' has shape {tuple(tensor.shape)}, its config asks for "
                f"{tuple(expected.shape)}; fetch the model again."
            )


class Shared(nn.Module):
    """A product whose output several layers divide among themselves; computed when the first of them sees its input."""

    def __init__(self, product: nn.Module, sizes: list[int]) -> None:
        super().__init__()
        self.product, self._sizes = product, sizes
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()

    def part(self, x: Tensor, index: int) -> Tensor:
        """Output `index` for x; the last one lets go of x and the outputs."""
        if x is not self._input:
            self._input, self._outputs = x, self.product(x).split(self._sizes, dim=-1)
        output = self._outputs[index]
        if index == len(self._sizes) - 1:
            self._input, self._outputs = None, ()
        return output


class Part(nn.Module):
    """One layer of a merged product."""

    def __init__(self, shared: Shared, index: int) -> None:
        super().__init__()
        self.shared, self._index = shared, index

    def forward(self, x: Tensor) -> Tensor:
        """Its share of the product."""
        return self.shared.part(x, self._index)


class Reordered(nn.Module):
    """A kernel whose input columns were sorted by group (GPTQ with activation ordering)."""

    columns: Tensor

    def __init__(self, kernel: nn.Module, columns_I: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.register_buffer("columns", columns_I, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The kernel's output for x in the order of its columns."""
        return self.kernel(x.index_select(-1, self.columns))  # type: ignore[no-any-return]


class FusedNorm(nn.Module):
    """Root-mean-square norm in one call, in place of a model's own seven."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self._epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x / rms(x) * weight."""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self._epsilon)


def simplify_norms(model: nn.Module) -> None:
    """Replace the model's RMS norms, where torch's own gives the same on a random input."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            weight, epsilon = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
            if not type(norm).__name__.endswith("RMSNorm") or weight is None or epsilon is None:
                continue
            fused = FusedNorm(weight, epsilon)
            probe = torch.randn(2, 3, *weight.shape, device=weight.device).to(weight.dtype)
            if torch.allclose(norm(probe).float(), fused(probe).float(), rtol=2e-2, atol=1e-5):
                setattr(parent, name, fused)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers: queries [B, heads, T, features] to outputs [B, T, heads, features].

    While decoding, the query heads that share a key head are its rows: given grouped heads, torch's CPU kernel takes 4
    to 7 times as long in bfloat16. All else is transformers' own use of `scaled_dot_product_attention`.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, tokens, features = query.shape
    special = any(settings.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    if tokens > 1 or attention_mask is not None or special or heads == key.shape[1]:
        answer: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **settings
        )
        return answer
    rows = query.reshape(batch, key.shape[1], -1, features)
    found = nn.functional.scaled_dot_product_attention(rows, key, value, scale=scaling)
    return found.reshape(batch, 1, heads, -1), None


def _register_attention() -> str:
    """The name under which transformers now knows `grouped_attention`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("bitworth", grouped_attention)
    AttentionMaskInterface.register("bitworth", sdpa_mask)
    return "bitworth"


def key_value_cache(config: Any, length: int) -> Any:
    """transformers' cache for the model, its growing layers replaced by ones with room for `length` tokens."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Room(DynamicLayer):  # type: ignore[misc]
        """Keys and values written in place: transformers' own layer copies them all at every token."""

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """What is cached, [B, heads, tokens, features], with these tokens added."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.room = [
                    states.new_empty(*states.shape[:2], length, states.shape[3])
                    for states in (key_states, value_states)
                ]
            start = self.get_seq_length()
            end = start + key_states.shape[2]
            for room, states in zip(self.room, (key_states, value_states), strict=True):
                room[:, :, start:end] = states
            self.keys, self.values = (room[:, :, :end] for room in self.room)
            return self.keys, self.values

    past = DynamicCache(config=config)
    past.layers = [Room() if type(layer) is DynamicLayer else layer for layer in past.layers]
    return past
