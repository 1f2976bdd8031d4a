"""Quantizing on a device that is not the CPU, as far as that can be tested without one; see `stand_in`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_devices import APART, codes_of

from bitworth import recipes
from bitworth.model import Decoder
from bitworth.quantization import quantize
from bitworth.types import Calibration

NAMES = ("w4a16-int-rtn", "w4a16-int-gptq", "w4a16-int-gptq-published", "w4a16-int-gptq-tuned", "w4a16-int-awq",
         "w8a8-int-static-gptq", "nvfp4-gptq+kv-fp8", "mxfp4-gptq")  # fmt: skip


def add_product(sum_IJ: torch.Tensor, left_IT: torch.Tensor, right_TJ: torch.Tensor) -> None:
    """As the stand-in adds up products of bfloat16."""
    sum_IJ += left_IT.float() @ right_TJ.float()


@pytest.mark.slow
def test_every_step_keeps_to_one_device(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And makes what the CPU makes of bfloat16 activations, with its loops and its order of sums."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"The {number}th brown fox jumps over {number * 7} lazy dogs." for number in range(200)))
    script = Path(__file__).with_name("stand_in.py")
    command = [sys.executable, str(script), str(tiny_llama), str(text), str(tmp_path / "there"), *NAMES]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    chosen = [recipes.recipe(name, group_size=32) for name in NAMES]
    monkeypatch.setattr(
        "bitworth.quantization.open_decoder", lambda model, _device: Decoder(model, compute=torch.bfloat16)
    )
    monkeypatch.setattr("bitworth.compiled.compiles", lambda _grid, _device: False)
    monkeypatch.setattr("bitworth.quantizers.stats._add_product", add_product)
    monkeypatch.setattr("bitworth.quantizers.stats._ROUNDED", 1)  # panels as on a GPU
    quantize(tiny_llama, chosen, tmp_path / "here", calibration=Calibration(source=str(text), samples=6, length=48))
    for recipe in chosen:
        here, there = (codes_of(tmp_path / place / recipe.name, recipe) for place in ("here", "there"))
        assert here.keys() == there.keys()
        for name, codes in here.items():
            if ".layers.0." in name:  # a derivative that is almost 0 may have either sign
                most = 0.01 if recipe.tuning is None else 0.1
                assert (codes != there[name]).float().mean() < most, (recipe.name, name)
            else:  # a scale that fell the other way, of two as good as each other, spreads in a small random model
                assert (codes.float() - there[name].float()).abs().mean() < APART, (recipe.name, name)
