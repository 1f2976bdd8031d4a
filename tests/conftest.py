"""Fixtures: a tiny random Llama with a byte-level tokenizer, the real demo model, and the optional data folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile("bitworth", deadline=None)  # how long an example takes says more of the machine
hypothesis_settings.load_profile("bitworth")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(os.environ.get("BITWORTH_SHARED", Path(__file__).resolve().parents[2] / "shared"))

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def unsynced() -> Iterator[None]:
    """Nothing is flushed to disk: a kill, unlike a power cut, undoes no write, and flushing takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def _old_is_left_alone() -> Iterator[None]:
    """Collections of garbage look at what a module makes, not at all that was imported, which takes half a second."""
    import gc
    from types import SimpleNamespace

    from bitworth.engines import http

    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        young = SimpleNamespace(collect=gc.collect, freeze=lambda: None, unfreeze=lambda: None)
        patch.setattr(http, "gc", young)  # which would thaw it
        yield


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cells run in this process: a worker of their own imports for seconds. What it is for, test_local.py shows."""
    from bitworth import work
    from bitworth.execute.attempt import attempt
    from bitworth.execute.local import LocalExecutor

    def one(_: Any, cell: Any, do: Any, root: str, watcher: Any) -> Any:
        return attempt(cell, do, root, lambda *message: watcher.told(cell, *message))

    monkeypatch.setattr(LocalExecutor, "_one", one)
    monkeypatch.setattr(LocalExecutor, "_worker", lambda *_: None)
    yield
    work._models.clear()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' data folder; a clone without it skips."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the benchmark data folder {SHARED}, which this clone does not have")
    return SHARED


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A real Llama of 260,000 parameters."""
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The demo's model (135M parameters), fetched and dequantized once into the cache."""
    from bitworth.sources import demo_model

    return demo_model()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with grouped-query attention and a byte-level tokenizer, in bfloat16."""
    folder: Path = tmp_path_factory.mktemp("tiny") / "llama"
    save_tiny_llama(folder)
    return folder


def save_tiny_llama(folder: Path, **overrides: object) -> None:
    """Write a tiny random Llama; overrides go to its config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, object] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 259,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    settings.update(overrides)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def byte_tokenizer():  # type: ignore[no-untyped-def]
    """One token a byte, then <bos>, <eos>, <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*alphabet, "<bos>", "<eos>", "<pad>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_study(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A study of the tiny model that takes seconds: local rows and texts, the fake engine for timings."""
    import random

    from test_tasks import arc_row, write_jsonl

    folder: Path = tmp_path_factory.mktemp("study")
    write_jsonl(folder / "data" / "arc" / "challenge_test.jsonl", [arc_row(index) for index in range(30)])
    words = ("the", "cat", "sat", "on", "a", "red", "mat", "and", "then", "it", "ran")
    shuffled = random.Random(0)
    for name in ("calibration", "heldout"):
        (folder / f"{name}.txt").write_text(" ".join(shuffled.choice(words) for _ in range(800)))
    return {
        "name": "tiny",
        "model": str(tiny_llama),
        "formats": ["baseline", "w8a8-fp", "w8a8-int-gptq", "w4a16-int-gptq"],
        "group_size": 32,
        "calibration": {"source": str(folder / "calibration.txt"), "samples": 8, "length": 64},
        "data": str(folder / "data"),
        "tasks": [{"name": "arc_challenge", "limit": 20}],
        "divergence": {"text": str(folder / "heldout.txt"), "window": 64, "windows": 4},
        "use_cases": ["16/4"],
        "loads": ["synchronous", {"kind": "throughput", "streams": 4}],
        "requests": 4,
        "engine": "fake",
        "constraints": {"min_recovery_pct": 50},
    }


def some_tensors(count: int = 3) -> dict[str, Any]:
    """Small tensors that tell themselves apart."""
    import torch

    return {f"layer.{index}.weight": torch.full((4, 8), float(index)) for index in range(count)}


def write_checkpoint(folder: Path, source: Path, *, shard_bytes: int = 10**9) -> None:
    """`some_tensors`, a piece each, as a checkpoint of bitworth's."""
    from bitworth.checkpoint import read_config
    from bitworth.writer import Writer

    with Writer(folder, source, shard_bytes=shard_bytes) as writer:
        for name, tensor in some_tensors().items():
            writer.add({name: tensor})
        writer.finish(read_config(source), {"format": "test"})


def left_in(folder: Path) -> list[str]:
    """Names in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a server of the test's own."""
    pytest.importorskip("s3fs", reason="needs s3fs (the `ray` extra)")
    server = pytest.importorskip("moto.server", reason="needs moto (the `test` extra)").ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        import fsspec

        fsspec.config.set_conf_env(fsspec.config.conf)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/some/prefix"
    fsspec.config.conf.pop("s3", None)
    server.stop()
