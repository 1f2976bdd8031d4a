"""What a quantized checkpoint computes, by transformers' own modules and formulas written out, not bitworth's engine.

Only the decoding of stored weights is bitworth's, which `test_schemes` checks against compressed-tensors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitworth.checkpoint import Reader


def on_grid(inputs: Tensor, kind: str) -> Tensor:
    """Inputs on the 8-bit grids of their tokens: max|x| is 127, or 448 of E4M3."""
    largest = inputs.abs().amax(-1, keepdim=True)
    if kind == "int":
        return (inputs / (largest / 127)).round().clamp(-128, 127) * (largest / 127)
    return (inputs / (largest / 448)).to(torch.float8_e4m3fn).float() * (largest / 448)


def reference(made: Path) -> Any:
    """transformers' own model with the checkpoint's decoded weights, its fused experts stacked by transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    weights = Reader(made).weights()
    state = {name: weights.get(name).float() for name in weights.names}
    config = AutoConfig.from_pretrained(made)
    del config.quantization_config
    config._experts_implementation = "eager"
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    model, info = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    stack_what_transformers_does_not(model, state, info["missing_keys"])
    if weights.scheme is not None and weights.scheme.activation is not None:
        _quantize_inputs(model.eval(), weights.quantized, weights.scheme.activation.kind)
    return model.eval()


def stack_what_transformers_does_not(model: nn.Module, state: dict[str, Tensor], missing: set[str]) -> None:
    """Fused experts whose architecture has no names for single ones (GPT-OSS, Granite), by their layouts."""
    for name in missing:
        path, _, leaf = name.rpartition(".")
        module: Any = model.get_submodule(path)
        kind = "bias" if leaf.endswith("_bias") else "weight"
        stem = leaf.removesuffix("_bias")
        for number in range(module.num_experts):
            one = [state[f"{path}.{number}.{part}.{kind}"] for part in parts_of(stem)]
            if len(one) == 2 and not getattr(module, "is_concatenated", True):
                joined = torch.stack(one, dim=1).flatten(0, 1)
            else:
                joined = torch.cat(one)
            turned = getattr(module, "is_transposed", False) and kind == "weight"
            module._parameters[leaf].data[number] = joined.T if turned else joined


def parts_of(stem: str) -> list[str]:
    """Names of the projections in a fused parameter."""
    return ["gate_proj", "up_proj"] if stem == "gate_up_proj" else [stem]


def _quantize_inputs(model: nn.Module, quantized: frozenset[str], kind: str) -> None:
    for name, module in model.named_modules():
        if name in quantized:
            module.register_forward_pre_hook(lambda _m, args: (on_grid(args[0], kind), *args[1:]))
        elif "down_proj" in module._parameters:
            module.forward = lambda *args, m=module: experts_by_hand(m, *args, kind=kind)  # type: ignore[method-assign]
    # renamed layers would be left out in silence
    plain = {name for name in quantized if not re.search(r"experts\.\d", name)}
    assert plain <= {name for name, _ in model.named_modules()}


def experts_by_hand(module: Any, hidden: Tensor, chosen: Tensor, weight: Tensor, *, kind: str) -> Tensor:
    """One token after the other, each projection's input on its grid."""
    out = torch.zeros_like(hidden)
    first = "gate_up_proj" if "gate_up_proj" in module._parameters else "up_proj"
    turned = getattr(module, "is_transposed", False)

    def product(row: Tensor, name: str, number: int) -> Tensor:
        matrix = getattr(module, name)[number]
        bias = module._parameters.get(f"{name}_bias")
        return on_grid(row, kind) @ (matrix if turned else matrix.T) + (0 if bias is None else bias[number])

    between = module._apply_gate if first == "gate_up_proj" else module.act_fn
    for token in range(hidden.shape[0]):
        for place, number in enumerate(chosen[token].tolist()):
            middle = between(product(hidden[token : token + 1], first, number))
            out[token] += weight[token, place] * product(middle, "down_proj", number)[0]
    return out
