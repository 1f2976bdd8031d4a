from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, left_in, save_tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitworth import recipes
from bitworth.devices import deal, quantize_on, walks_of
from bitworth.errors import BitworthError, Interrupted, WorkFailed
from bitworth.quantization import quantize
from bitworth.ranks import ALONE, Ranks, device_named, numbered_device
from bitworth.schemes import layout_of
from bitworth.types import Calibration, Gptq, Recipe

NAMES = ("w4a16-int-gptq", "w8a8-int-smoothquant-gptq", "w8a8-int-gptq+kv-fp8", "w4a16-int-awq", "w8a8-fp")
#: Largest part of a layer's codes that sums in another order may tip; coordinate descent carries a tie through its row.
TIPPED, TIPPED_AND_SWEPT = 1e-3, 0.1
#: Largest mean distance of codes in blocks that see another's tipped code: in a small random model it spreads.
APART = 0.5


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("three") / "llama"
    save_tiny_llama(folder, num_hidden_layers=3)
    return folder


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Seven sequences, which two devices cannot halve."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"The {number}th brown fox jumps over {number * 7} lazy dogs." for number in range(200)))
    return Calibration(source=str(text), samples=7, length=64)


def of(*names: str) -> list[Recipe]:
    return [recipes.recipe(name, group_size=32) for name in names]


def codes_of(folder: Path, recipe: Recipe) -> dict[str, Tensor]:
    """Codes by layer, decoded by the format's own layout."""
    made = load_file(folder / "model.safetensors")
    layers = [name.removesuffix("_scale") for name in made if name.endswith(".weight_scale")]
    layout = layout_of(recipe.scheme)
    found = {}
    for name in layers:
        parts = {leaf: made[f"{name}{leaf}"] for leaf in ("", "_packed") if f"{name}{leaf}" in made}
        [stored] = parts.values()
        columns = stored.shape[1] * {"pack-quantized": 8, "nvfp4-pack-quantized": 2}.get(layout.name, 1)
        found[name] = nibbles(stored)[:, :columns] if "_packed" in parts else stored.view(torch.uint8)
    return found


def nibbles(packed: Tensor) -> Tensor:
    parts = packed.view(torch.uint8)
    return torch.stack((parts & 15, parts >> 4), dim=-1).flatten(1)


def assert_alike(one: Path, other: Path, recipe: Recipe, *, tipped: float = TIPPED) -> None:
    first, second = codes_of(one, recipe), codes_of(other, recipe)
    assert first.keys() == second.keys()
    swept = isinstance(recipe.rounding, Gptq) and recipe.rounding.sweeps > 0
    for name, codes in first.items():
        if ".layers.0." in name or not isinstance(recipe.rounding, Gptq):
            differ = (codes != second[name]).float()
            rest = differ.sum() - differ.sum(1).max()  # GPTQ carries a tie on through its row, to no other row
            assert rest < (TIPPED_AND_SWEPT if swept else tipped) * differ.numel(), name
        else:
            steps = (codes.float() - second[name].float()).abs()
            assert torch.minimum(steps, 256 - steps).mean() < APART, name  # bytes of -1 and 0 lie side by side
    kept, there = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert kept.keys() == there.keys()
    for name, tensor in kept.items():
        if not swept and not name.endswith(("_packed", "proj.weight", "w1.weight", "w2.weight", "w3.weight")):
            rtol = (
                1e-2 if ".layers.0." in name else 5e-2
            )  # the last bit of bfloat16, and what a tipped code makes of it
            torch.testing.assert_close(tensor.float(), there[name].float(), rtol=rtol, atol=0)


def assert_same(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in first)


# --- who does what ----------------------------------------------------------------------------------------------------


def test_recipes_are_dealt_by_walk_and_weight() -> None:
    chosen = of("w8a8-fp", "w4a16-int-gptq", "w4a16-int-awq", "w8a8-int-gptq", "w4a16-int-rtn")
    walks = [[recipe.name for recipe in walk] for walk in walks_of(chosen, shared=False)]
    assert walks == [["w4a16-int-gptq"], ["w8a8-int-gptq"], ["w4a16-int-awq"], ["w8a8-fp", "w4a16-int-rtn"]]
    piles = [[recipe.name for recipe in pile] for pile in deal(walks_of(chosen, shared=False), 2)]
    assert piles == [["w4a16-int-gptq", "w4a16-int-awq"], ["w8a8-int-gptq", "w8a8-fp", "w4a16-int-rtn"]]
    shared = [[recipe.name for recipe in walk] for walk in walks_of(chosen, shared=True)]
    assert shared == [["w4a16-int-gptq", "w4a16-int-awq", "w8a8-int-gptq"], ["w8a8-fp", "w4a16-int-rtn"]]


@pytest.mark.parametrize(("rows", "count"), [(7, 2), (8, 3), (5, 5), (2, 4)])
def test_shares_cover_everything_once(rows: int, count: int) -> None:
    dealt = [row for number in range(count) for row in range(rows)[Ranks(number, count).share(rows)]]
    assert dealt == list(range(rows))


def test_alone_everything_is_as_it_was() -> None:
    tensor = torch.tensor([1.0, torch.nan])
    ALONE.add_up(tensor)
    ALONE.take_largest(tensor)
    assert tensor.isnan().tolist() == [False, True]
    assert ALONE.take_first(tensor) is tensor
    assert ALONE.gather_rows(tensor, 2) is tensor
    assert ALONE.from_first(lambda: 3) == 3
    assert not ALONE.agree(False)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta"])
def test_a_device_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(BitworthError, match=f"'{name}' is no device; name cpu, cuda or cuda:1"):
        device_named(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_here_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match=r"Device cuda is not here: torch sees 0 GPUs"):
        quantize(llama, of("w8a8-fp"), tmp_path / "out", device="cuda")
    with pytest.raises(BitworthError, match="2 GPUs were asked for and 0 can be seen here"):
        quantize_on(2, llama, of("w8a8-fp"), tmp_path / "out", device="cuda")
    with pytest.raises(BitworthError, match=r"2 processes cannot share cuda:1; name the kind of device, cuda"):
        numbered_device("cuda:1", 0, 2)
    assert left_in(tmp_path) == []


# --- together ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_devices_make_what_one_makes(
    llama: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dealt by data up to the order of sums, by recipe to the last bit.

    Beside two that share the data, one takes four sequences, then three: bfloat16 products round with the batch.
    """
    chosen = of(*NAMES)
    for spread in ("recipes", "data"):
        if spread == "data":
            monkeypatch.setattr("bitworth.quantization.CHUNK_TOKENS", 4 * calibration.length)
        alone = tmp_path / f"alone, {spread}"
        one = quantize(llama, chosen, alone, calibration=calibration)
        steps: list[int] = []
        made = quantize_on(
            2, llama, chosen, tmp_path / spread, calibration=calibration, device="cpu", spread=spread,  # type: ignore[arg-type]
            progress=lambda _what, done, _total, steps=steps: steps.append(done),
        )  # fmt: skip
        assert [result.format for result in made] == [result.format for result in one]
        assert [result.audit and result.audit.text for result in made] == [
            result.audit and result.audit.text for result in one
        ]
        assert steps[-3:] == [1, 2, 3]
        assert left_in(tmp_path / spread) == sorted(NAMES)
        for recipe in chosen:
            if spread == "recipes":
                assert_same(alone / recipe.name, tmp_path / spread / recipe.name)
            else:
                assert_alike(alone / recipe.name, tmp_path / spread / recipe.name, recipe)


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["own", "shared"])
def test_experts_see_the_tokens_of_all_devices(
    stream: Any, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device takes half of the sequences at a time, as each of two does: bfloat16 products round with the batch."""
    from transformers import AutoModelForCausalLM, MixtralConfig

    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=259, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    spec = Calibration(source=calibration.source, samples=24, length=64, stream=stream)
    monkeypatch.setattr("bitworth.quantization.LARGE_CHUNK_TOKENS", 12 * 64)
    chosen = of("w4a16-int-gptq-published", "w8a8-int-gptq")
    one = quantize(tmp_path / "model", chosen, tmp_path / "one", calibration=spec)
    two = quantize_on(2, tmp_path / "model", chosen, tmp_path / "two", calibration=spec, device="cpu", spread="data")
    for recipe, first, second in zip(chosen, one, two, strict=True):
        # An expert's tokens are few. On its own stream a code that tips upstream sends some of them elsewhere, too.
        assert_alike(first.path, second.path, recipe, tipped=0.01 if stream == "shared" else 0.05)
        assert first.audit is not None
        assert second.audit is not None
        if stream == "shared":
            assert first.audit.experts == second.audit.experts
        for ours, theirs in zip(first.audit.experts, second.audit.experts, strict=True):
            assert sum(ours.tokens.values()) == sum(theirs.tokens.values())
            assert dict(ours.tokens) == pytest.approx(dict(theirs.tokens), rel=0.05)  # a device alone saw half of them


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "states_mib"), [(0, None), (1, 0.0)], ids=["first", "other, states in files"])
def test_a_rank_that_dies_ends_the_run_and_another_goes_on(
    victim: int, states_mib: float | None, llama: Path, calibration: Calibration, tmp_path: Path
) -> None:
    walked: list[int] = []

    def make(out: Path, meanwhile: Callable[[int], None]) -> None:
        def progress(_what: str, done: int, _total: int) -> None:
            walked.append(done)
            meanwhile(done)

        quantize_on(
            2, llama, of("w8a8-int-gptq"), out, calibration=calibration, device="cpu", states_mib=states_mib,
            progress=progress,
        )  # fmt: skip

    def kill(done: int) -> None:
        if done == 3:
            [process] = [one for one in multiprocessing.active_children() if one.name == f"bitworth-{victim}"]
            os.kill(process.pid or 0, signal.SIGKILL)

    with pytest.raises(Interrupted) as raised:
        make(tmp_path / "out", kill)
    assert str(raised.value) == (
        "The process on cpu was killed (signal 9), as happens when the machine runs out of memory; finished blocks are "
        "kept, run the same command again."
    )
    assert multiprocessing.active_children() == []
    assert left_in(tmp_path) == [".out.partial"]
    walked.clear()
    make(tmp_path / "out", lambda _: None)
    assert walked == [3]
    make(tmp_path / "undisturbed", lambda _: None)
    assert_same(tmp_path / "out", tmp_path / "undisturbed")


@pytest.mark.slow
def test_what_fails_on_all_is_said_once_and_leaves_nothing(calibration: Calibration, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkFailed, match=r"^model\.layers\.1\.mlp\.up_proj: its weights hold NaN or infinity"):
        quantize_on(2, tmp_path / "model", of("w8a8-int-gptq"), tmp_path / "out", calibration=calibration, device="cpu")
    assert left_in(tmp_path) == ["model"]
    spec = Calibration(source=calibration.source, samples=1, length=32)
    with pytest.raises(BitworthError, match="1 calibration sequences cannot be dealt to 2 devices"):
        quantize_on(2, tmp_path / "model", of("w8a8-int-gptq"), tmp_path / "out", calibration=spec, device="cpu")
    lost = Calibration(source=str(tmp_path / "nowhere.txt"), samples=4, length=32)
    with pytest.raises(BitworthError, match=r"nowhere\.txt"):
        quantize_on(2, tmp_path / "model", of("w8a8-int-gptq"), tmp_path / "out", calibration=lost, device="cpu")


@pytest.mark.slow
def test_torchrun_starts_them_too(llama: Path, calibration: Calibration, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "bitworth", "quantize", str(llama), "--recipe", "w8a8-int-gptq", "--out", str(tmp_path / "out")]
    command += ["--calibration", str(calibration.source), "--samples", "7", "--length", "64", "--device", "cpu"]
    ended = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    [made] = json.loads(ended.stdout)["checkpoints"]
    assert made["format"] == "w8a8-int-gptq"
    [recipe] = of("w8a8-int-gptq")
    quantize(llama, [recipe], tmp_path / "one", calibration=calibration)
    assert_alike(tmp_path / "one", tmp_path / "out", recipe)


@pytest.mark.slow(beside=True)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_of_a_group_outlives_it(tmp_path: Path) -> None:
    """A thread of gloo that is left when the interpreter ends aborts the process now and then."""
    script = f"""
import pathlib
import torch
from bitworth.ranks import joined

with joined(torch.device("cpu"), meeting="file://{tmp_path}/meeting", number=0, count=1):
    import torch.distributed.nn  # as the code of some models does
print([name.read_text().strip() for name in pathlib.Path("/proc/self/task").glob("*/comm")])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "gloo" not in ended.stdout
