"""Valid documents of every kind that bitworth reads; `mutations` makes them wrong."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mutations import written

from bitworth.load.chunks import pack
from bitworth.schemes import NAMES as FORMATS
from bitworth.schemes import get
from bitworth.schemes.config import quantization_config
from bitworth.types import Answer, Cell, EngineFacts, Load, Timing, UseCase

CASE = UseCase(name="8/4", prompt_tokens=8, output_tokens=4)
STUDY: dict[str, Any] = {
    "name": "s",
    "model": "demo:smollm2",
    "formats": ["baseline", "w8a8-fp", {"name": "mine", "base": "w4a16-int-gptq", "group_size": 64, "damping": 0.02}],
    "group_size": 64,
    "calibration": {"sources": ["demo:calibration", {"source": "random", "weight": 2}], "samples": 4, "length": 64},
    "tasks": [{"name": "arc_challenge", "limit": 10, "shots": 0}, "mmlu"],
    "divergence": {"window": 64, "windows": 2},
    "use_cases": ["rag", {"name": "docstring", "scale": 0.1}, {"name": "office", "mix": {"rag": 2, "512/64": 1}}],
    "loads": [
        *("synchronous", {"kind": "throughput", "streams": 4}, {"kind": "poisson", "rate": 2.5}),
        {"kind": "sweep", "max_first_token_s": 0.5, "percentile": 95},
    ],
    "hardware": [
        *({"name": "local", "usd_per_hour": 0.1}, {"name": "A100", "count": 2}),
        {"name": "mine", "usd_per_hour": 1, "memory_gib": 16, "bandwidth_gb_s": 100, "tera_ops": {"bf16": 10}},
    ],
    "engine": "fake",
    "requests": 4,
    "constraints": {
        "min_recovery_pct": 99,
        "limits": [{"of": "first_token", "at": "p95", "most_s": 0.5}],
        "available": {"A100": 2},
    },
    "traffic": {"rag": 1.5, "docstring": 2},
}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "head_dim": 16,
    "eos_token_id": [2, 3],
    "bos_token_id": 1,
    "tie_word_embeddings": True,
}
MIXTURE: dict[str, Any] = {
    **CONFIG,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [0],
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "sliding_window": 64,
    "use_sliding_window": True,
    "layer_types": ["sliding_attention"] * 2,
}


def quantizations() -> tuple[bytes, ...]:
    """The `quantization_config` of every format."""
    return tuple(written(quantization_config(get(name), ["lm_head"], None)) for name in FORMATS)


def tensors() -> dict[str, Any]:
    """A few tensors, of which one is a quantized layer."""
    import torch

    quantized = {"weight": torch.ones(4, 8, dtype=torch.int8), "weight_scale": torch.ones(4, 1)}
    layers = {f"model.layers.0.mlp.up_proj.{part}": value for part, value in quantized.items()}
    return {**layers, "lm_head.weight": torch.zeros(4, 8, dtype=torch.bfloat16), "empty": torch.zeros(0)}


PROVENANCE: dict[str, Any] = {
    "base": {"path": "model", "sha256": "0"},
    "recipe": {"name": "w8a8-int", "scheme": {"name": "w8a8-int"}, "rounding": {}},
    "calibration": {"sources": [{"source": "x", "weight": 1.0}], "samples": 1, "length": 2},
    "audit": None,
    "versions": {"torch": "2"},
}
OBSERVED = {
    "use_case": "rag", "prompt_tokens": 8, "output_tokens": 4, "load": "throughput", "streams": 2,
    "latency_s": 0.5, "first_token_s": 0.1,
}  # fmt: skip
TRACES = (
    b'{"time_s": 0.5, "prompt_tokens": 8, "output_tokens": 4}\n{"time_s": 1, "prompt_tokens": 9, "output_tokens": 1}\n',
    b'{"timestamp": 27000, "input_length": 64, "output_length": 4, "hash_ids": [1]}\n\n',
)
CALIBRATION = (
    b'{"text": "one"}\n{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}\n'
    b'{"instruction": "do", "output": "done"}\n{"prompt": "a", "response": "b"}\n',
)
QUESTIONS = (b'{"uid": "a", "prompt": "why?"}\n{"question_id": 7, "turns": [{"content": "how?"}]}\n',)
ANSWERS = (
    b'{"uid": "a", "answer": "so"}\n{"id": 7, "messages": [{"content": {"answer": "so"}}]}\n'
    b'{"question_id": "c", "choices": [{"turns": [{"content": "so"}]}]}\n',
)
_TIMES = {
    "targeted_start": 1000.0, "request_start": 1000.1, "first_token_iteration": 1000.2, "last_token_iteration": 1000.9,
    "request_end": 1001.0, "resolve_end": 1001.0,
}  # fmt: skip
GUIDELLM: dict[str, Any] = {
    "metadata": {"guidellm_version": "0.8.1"},
    "benchmarks": [
        {
            "config": {"strategy": {"type_": "constant", "rate": 2.0, "streams": 2}},
            "requests": {
                "successful": [{"info": {"timings": _TIMES, "error": None}, "prompt_tokens": 8, "output_tokens": 4}]
                * 2,
                "errored": [{"info": {"timings": _TIMES, "error": "no"}, "prompt_tokens": 8, "output_tokens": None}],
                "incomplete": [],
            },
        }
    ],
}


def _event(**fields: Any) -> bytes:
    return b"data: " + written({"id": "c", "object": "text_completion", **fields}) + b"\n\n"


def _streams() -> tuple[bytes, ...]:
    token = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
    counted = [_event(**token, usage={"prompt_tokens": 8, "completion_tokens": at + 1}) for at in range(4)]
    plain = [_event(**token, usage=None)] * 4 + [_event(choices=[], usage={"prompt_tokens": 8, "completion_tokens": 4})]
    failed = [*counted[:2], _event(error={"message": "out of memory", "code": 500})]
    return tuple(b"".join(events) + b"data: [DONE]\n\n" for events in (counted, plain, failed))


STREAMS = _streams()
COMPLETION = {"choices": [{"text": "a b", "finish_reason": "stop"}, {"text": "c", "finish_reason": "length"}]}
CONVERSATION = {
    "choices": [{"message": {"role": "assistant", "content": "so [[A>B]]"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 4},
}
LISTING = {"object": "list", "data": [{"id": "m", "object": "model"}], "version": "0.11"}
REFUSAL = {"error": {"message": "no such model", "code": 404}, "detail": "x"}


def cells_of_a_study() -> list[tuple[Cell, dict[str, Any]]]:
    """The cells of a study of two formats, one task, one use case, as far as they are read."""
    facts = asdict(EngineFacts(engine="fake", kernel="none", device="none", versions={"torch": "1"}))
    load, case = asdict(Load(kind="synchronous")), asdict(CASE)
    found: list[tuple[Cell, dict[str, Any]]] = []
    for format in ("baseline", "w8a8-fp"):
        answers = [
            asdict(Answer(task="mmlu", item=str(at), prediction="A", score=float(at % 3 > 0), text=f"{format} {at}"))
            for at in range(6)
        ]
        inputs = {"checkpoint": format, "task": {"name": "mmlu", "shots": None}, "data": "d", "versions": {"a": 1}}
        cell = Cell(kind="evaluate", title=f"mmlu on {format}", format=format, inputs=inputs)
        found.append((cell, {"answers": answers, "facts": facts, "task": {}, "machine": {"processor": "p"}}))
        timings = [
            asdict(Timing(start_s=at, first_token_s=at + 0.2, end_s=at + 0.9, prompt_tokens=8, output_tokens=4,
                          chunks=pack([0.2, 0.5, 0.9], [1, 2, 4])))
            for at in range(3)
        ]  # fmt: skip
        timed = Cell(kind="benchmark", title=f"8/4, {format}", format=format,
                     inputs={"checkpoint": format, "use_case": case, "load": load, "machine": {}})  # fmt: skip
        row = {"unsupported": None, "timings": timings, "facts": facts, "rates": [], "machine": {"processor": "p"}}
        found.append((timed, row))
    return found
