from __future__ import annotations

from pathlib import Path

import pytest
from conftest import some_tensors as tensors
from conftest import write_checkpoint as write
from safetensors.torch import save_file

from bitworth import checkpoint as module
from bitworth import schemes
from bitworth.checkpoint import Reader, read_config
from bitworth.errors import BitworthError
from bitworth.schemes.config import quantization_config, scheme_from_config

# --- reading ------------------------------------------------------------------------------------------------------


def test_damage_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", tiny_llama, shard_bytes=260)
    shard = tmp_path / "out" / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    for length in (0, 5, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(BitworthError, match=r"model-00002-of-00002\.safetensors is truncated or damaged"):
            Reader(tmp_path / "out")
    shard.unlink()
    with pytest.raises(BitworthError, match=r"model-00002-of-00002\.safetensors is listed in .* but is not there"):
        Reader(tmp_path / "out")


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / module.INDEX).write_text(index)
    with pytest.raises(BitworthError, match="is not a safetensors index"):
        Reader(tmp_path)


def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file(tensors(), tmp_path / "secret.safetensors")
    (tmp_path / "model" / module.INDEX).write_text('{"weight_map": {"layer.0.weight": "../secret.safetensors"}}')
    with pytest.raises(BitworthError, match="leads out of its folder"):
        Reader(tmp_path / "model")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(BitworthError, match="a pickle, which can run code"):
        Reader(tmp_path)


def test_a_tensor_that_is_not_there_is_named(tiny_llama: Path) -> None:
    with pytest.raises(BitworthError, match="no tensor 'nonsense'"):
        Reader(tiny_llama).get("nonsense")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no model folder"),
        ("{", "cannot be read as JSON"),
        ("{}", r"not a decoder .*none named"),
        ('{"architectures": ["BertModel"]}', "BertModel"),
        ('{"architectures": ["XForCausalLM"], "auto_map": {}}', "code of its own"),
        ('{"architectures": ["XForCausalLM"], "auto_map": {}, "model_type": "x"}', "code of its own"),
        ("[]", "cannot be read as JSON"),
    ],
)
def test_folders_that_are_no_decoder_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BitworthError, match=message):
        read_config(tmp_path)


def test_a_config_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(BitworthError, match=r"config.json cannot be read: Is a directory\."):
        read_config(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="There is no model folder"):
        read_config(tmp_path / "nowhere")


# --- the quantization config --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", schemes.NAMES)
def test_the_config_is_valid_for_compressed_tensors_and_reads_back(name: str) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    scheme = schemes.get(name, group_size=64)
    config = quantization_config(scheme, ["lm_head"], "weight" if name == "w4a16-int" else None)
    parsed = QuantizationConfig.model_validate(config)
    assert parsed.format == schemes.layout_of(scheme).name
    weights = parsed.config_groups["group_0"].weights
    assert scheme.weight is not None
    assert (weights.num_bits, weights.group_size) == (scheme.weight.bits, scheme.weight.group_size)
    assert weights.symmetric
    assert scheme_from_config(config) == scheme


def test_configs_of_others_are_refused() -> None:
    ours = quantization_config(schemes.get("w4a16-int"), [], None)
    for change, message in (
        ({"quant_method": "awq"}, "quantized by 'awq'"),
        ({"config_groups": {}}, "mixes 0 quantization schemes"),
    ):
        with pytest.raises(BitworthError, match=message):
            scheme_from_config({**ours, **change})
    ours["config_groups"]["group_0"]["weights"]["symmetric"] = False
    with pytest.raises(BitworthError, match="w4a16-int here does not cover"):
        scheme_from_config(ours)
