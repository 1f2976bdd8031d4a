"""Everything that reads a document of somebody else, with valid documents of its kind to start from.

What a reader may do with any document at all: return a value, or raise `BitworthError` with one sentence (or what its
docstring says it raises, where its only caller turns that into a sentence).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from mutations import Mutate, other_bytes, other_json, other_lines, other_tensors, written

from bitworth.assembly import assemble
from bitworth.calibration.documents import documents
from bitworth.checkpoint import Reader, WeightReader, read_config
from bitworth.engines.guidellm import read_report
from bitworth.engines.http import HttpGenerator, body, refusal
from bitworth.engines.http_chat import ChatReply, HttpChat
from bitworth.engines.http_text import HttpCompleter
from bitworth.engines.prompts import end_tokens
from bitworth.engines.stream import Reply
from bitworth.errors import BitworthError
from bitworth.hardware import hardware
from bitworth.judging.files import read_answers, read_questions
from bitworth.judging.wording import read_verdict
from bitworth.ledger import Ledger, canonical
from bitworth.load.chunks import pack
from bitworth.load.metrics import metrics_of
from bitworth.load.prompts import ordinary_tokens
from bitworth.load.traces import Workload, read_trace
from bitworth.prediction import predict, read_architecture
from bitworth.prediction.calibrating import read_observation
from bitworth.preflight import check
from bitworth.preflight.server import doubt_about
from bitworth.report.markdown import render_markdown
from bitworth.report.origin import read_license, read_origin
from bitworth.schemes import NAMES as FORMATS
from bitworth.schemes import get
from bitworth.schemes.config import quantization_config, scheme_from_config
from bitworth.study import load_study, parse_study
from bitworth.types import Answer, Cell, EngineFacts, Load, Rule, Sampling, Timing, UseCase

Read = Callable[[bytes], object]
_CASE = UseCase(name="8/4", prompt_tokens=8, output_tokens=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """A reader; `allowed` are the exceptions that are outcomes."""

    name: str
    seeds: tuple[bytes, ...]
    mutate: Mutate
    read: Read
    allowed: tuple[type[Exception], ...] = (BitworthError,)


def parsers(folder: Path) -> list[Parser]:
    """All of them, with `folder` to write documents to."""
    return [
        _study(folder),
        Parser(name="study, as a mapping", seeds=(written(_STUDY),), mutate=other_json, read=_read_mapping),
        _safetensors(folder),
        _checkpoint(folder),
        Parser(name="quantization_config", seeds=_quantizations(), mutate=other_json, read=_read_quantization),
        _config(folder),
        _file(folder, "GuideLLM report", "report.json", (written(_GUIDELLM),), other_json, _read_guidellm),
        _file(folder, "trace", "trace.jsonl", _TRACES, other_lines, _read_trace),
        *_calibrations(folder),
        _file(folder, "judge's questions", "q.jsonl", _QUESTIONS, other_lines, read_questions),
        _file(folder, "judge's answers", "a.jsonl", _ANSWERS, other_lines, read_answers),
        _file(folder, "constants' observation", "benchmark.json", (written(_OBSERVED),), other_json,
              lambda path: read_observation(path.parent)),
        _file(folder, "provenance", "bitworth.json", (written(_PROVENANCE),), other_json,
              lambda path: read_origin(path.parent)),
        _file(folder, "model card", "README.md", (b"---\nlicense: mit\ntags: [a, &b b, *b]\n---\n# text\n",), other_bytes,
              lambda path: read_license(path.parent)),
        Parser(name="stream", seeds=_STREAMS, mutate=other_lines, read=_read_stream, allowed=(ValueError,)),
        Parser(name="completion", seeds=(written(_COMPLETION),), mutate=other_json, read=_read_completion),
        Parser(name="conversation", seeds=(written(_CONVERSATION),), mutate=other_json, read=_read_conversation),
        Parser(name="model listing", seeds=(written(_LISTING),), mutate=other_json, read=_read_listing),
        Parser(name="refusal", seeds=(written(_REFUSAL), b'"not found"'), mutate=other_json, read=_read_refusal),
        _stored(folder),
        _plan(folder),
    ]  # fmt: skip


def read(parser: Parser, data: bytes) -> BitworthError | Exception | None:
    """Read a document: what was wrong with it, or None.

    Raises:
        Exception: whatever else came out, which is a fault of the reader.
    """
    try:
        parser.read(data)
    except parser.allowed as error:
        sentence = str(error)
        if isinstance(error, BitworthError) and (not sentence.strip() or len(sentence.splitlines()) != 1):
            raise AssertionError(f"not one sentence: {sentence[:300]!r}") from error
        return error
    return None


def _file(folder: Path, name: str, file: str, seeds: tuple[bytes, ...], mutate: Mutate, reads: Callable[[Path], object],
          allowed: tuple[type[Exception], ...] = (BitworthError,)) -> Parser:  # fmt: skip
    """A reader of a file, which gets a folder of its own."""
    path = Path(tempfile.mkdtemp(dir=folder)) / file

    def load(data: bytes) -> object:
        path.write_bytes(data)
        return reads(path)

    return Parser(name=name, seeds=seeds, mutate=mutate, read=load, allowed=allowed)


# ------------------------------------------------------------------------------------------------------------- studies

_STUDY: dict[str, Any] = {
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


def _study(folder: Path) -> Parser:
    import yaml

    text = yaml.safe_dump(_STUDY).encode()
    anchors = b"model: &m x\nformats: [baseline, {name: a, base: w8a8-fp}]\ntasks: [{name: mmlu, limit: 3}]\nname: *m\n"
    return _file(folder, "study, as YAML", "study.yaml", (text, anchors), other_bytes, lambda path: _use(load_study(path)))


def _read_mapping(data: bytes) -> object:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None  # what YAML made is a value
    return _use(parse_study(value))


def _use(study: Any) -> object:
    """Everything that is made of a study before anything runs."""
    values = (study.recipes(), study.calibration_spec(), study.task_specs(), study.load_values(), study.constraint())
    study.calibration.words()
    workloads = study.workload_values()
    shapes = [(one.use_case, one.context_tokens, one.shapes(4, seed=0)) for one in workloads]
    return values, study.hardware_values(), shapes, study.model_dump(mode="json")


# ------------------------------------------------------------------------------------------------------------- models

_CONFIG: dict[str, Any] = {
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
_MIXTURE: dict[str, Any] = {
    **_CONFIG,
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


def _config(folder: Path) -> Parser:
    nested = {"architectures": ["XForConditionalGeneration"], "text_config": _CONFIG, "vision_config": {}}
    told = {**_CONFIG, "quantization_config": json.loads(_quantizations()[1])}
    seeds = tuple(map(written, (_CONFIG, _MIXTURE, nested, told)))
    return _file(folder, "config.json", "config.json", seeds, other_json, _read_config)


class _Tokenizer:
    """Stands for a tokenizer; conversations become text by ChatML, as transformers runs it."""

    eos_token_id = 2
    _chatml = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"

    def apply_chat_template(self, turns: Any, **_: Any) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _spans = render_jinja_template(conversations=[turns], chat_template=self._chatml)
        return str(rendered[0])


def _read_config(path: Path) -> object:
    """What a config decides, in every verb that reads one; one verb's complaint does not spare the others."""
    steps: Sequence[Callable[[], object]] = (
        partial(read_config, path.parent),
        partial(end_tokens, path.parent, _Tokenizer()),
        partial(ordinary_tokens, path.parent),
        partial(doubt_about, path.parent, hardware("A100", 1), 64, "0.11"),
        partial(_sizes, path),
    )
    errors = [error for step in steps if (error := _complaint(step)) is not None]
    if errors:
        raise errors[-1]
    return None


def _complaint(step: Callable[[], object]) -> BitworthError | None:
    try:
        step()
    except BitworthError as error:
        return error
    return None


def _sizes(path: Path) -> object:
    architecture = read_architecture(path)
    device = hardware("A100", 2)
    found = check(architecture, "w8a8-int", device, _CASE, streams=2)
    return found.sentence, predict(architecture, "w4a16-int", device, _CASE, Load(kind="synchronous"))


def _quantizations() -> tuple[bytes, ...]:
    return tuple(written(quantization_config(get(name), ["lm_head"], None)) for name in FORMATS)


def _read_quantization(data: bytes) -> object:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None  # config.json as a whole is another reader's
    return scheme_from_config(value) if value else None


def _tensors() -> dict[str, Any]:
    import torch

    quantized = {"weight": torch.ones(4, 8, dtype=torch.int8), "weight_scale": torch.ones(4, 1)}
    layers = {f"model.layers.0.mlp.up_proj.{part}": value for part, value in quantized.items()}
    return {**layers, "lm_head.weight": torch.zeros(4, 8, dtype=torch.bfloat16), "empty": torch.zeros(0)}


def _safetensors(folder: Path) -> Parser:
    from safetensors.torch import save

    return _file(folder, "safetensors", "model.safetensors", (save(_tensors(), {"format": "pt"}),), other_tensors,
                 lambda path: _read_tensors(path.parent))  # fmt: skip


def _read_tensors(folder: Path) -> object:
    reader = Reader(folder)
    try:
        return [(reader.get(name), reader.shape(name)) for name in sorted(reader.names)]
    finally:
        reader.release()


def _checkpoint(folder: Path) -> Parser:
    """A quantized checkpoint whose tensors are not what its config says, and an index that says other things."""
    from safetensors.torch import save

    home = Path(tempfile.mkdtemp(dir=folder))
    config = {**_CONFIG, "quantization_config": json.loads(_quantizations()[0])}
    (home / "config.json").write_bytes(written(config))
    (home / "model-1.safetensors").write_bytes(save(_tensors()))
    seed = written({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(_tensors(), "model-1.safetensors")})

    def load(data: bytes) -> object:
        (home / "model.safetensors.index.json").write_bytes(data)
        reader = Reader(home)
        return sorted(WeightReader(reader).names)

    return Parser(name="safetensors index", seeds=(seed,), mutate=other_json, read=load)


_PROVENANCE: dict[str, Any] = {
    "base": {"path": "model", "sha256": "0"},
    "recipe": {"name": "w8a8-int", "scheme": {"name": "w8a8-int"}, "rounding": {}},
    "calibration": {"sources": [{"source": "x", "weight": 1.0}], "samples": 1, "length": 2},
    "audit": None,
    "versions": {"torch": "2"},
}
_OBSERVED = {
    "use_case": "rag", "prompt_tokens": 8, "output_tokens": 4, "load": "throughput", "streams": 2,
    "latency_s": 0.5, "first_token_s": 0.1,
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------- text and traces

_TRACES = (
    b'{"time_s": 0.5, "prompt_tokens": 8, "output_tokens": 4}\n{"time_s": 1, "prompt_tokens": 9, "output_tokens": 1}\n',
    b'{"timestamp": 27000, "input_length": 64, "output_length": 4, "hash_ids": [1]}\n\n',
)
_CALIBRATION = (
    b'{"text": "one"}\n{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}\n'
    b'{"instruction": "do", "output": "done"}\n{"prompt": "a", "response": "b"}\n',
)
_QUESTIONS = (b'{"uid": "a", "prompt": "why?"}\n{"question_id": 7, "turns": [{"content": "how?"}]}\n',)
_ANSWERS = (
    b'{"uid": "a", "answer": "so"}\n{"id": 7, "messages": [{"content": {"answer": "so"}}]}\n'
    b'{"question_id": "c", "choices": [{"turns": [{"content": "so"}]}]}\n',
)


def _read_trace(path: Path) -> object:
    work = Workload(name="t", trace=read_trace(path))
    return work.use_case, work.context_tokens, work.shapes(2, seed=0)


def _calibrations(folder: Path) -> list[Parser]:
    rules: tuple[Rule, ...] = ("auto", "always", "never")

    def load(rule: Rule, path: Path) -> object:
        return list(documents(path, _Tokenizer(), rule))

    return [
        _file(folder, f"calibration, template {rule}", "c.jsonl", _CALIBRATION, other_lines, partial(load, rule))
        for rule in rules
    ]


# ------------------------------------------------------------------------------------------------------------- servers

_TIMES = {
    "targeted_start": 1000.0, "request_start": 1000.1, "first_token_iteration": 1000.2, "last_token_iteration": 1000.9,
    "request_end": 1001.0, "resolve_end": 1001.0,
}  # fmt: skip
_GUIDELLM: dict[str, Any] = {
    "metadata": {"guidellm_version": "0.8.1"},
    "benchmarks": [
        {
            "config": {"strategy": {"type_": "constant", "rate": 2.0, "streams": 2}},
            "requests": {
                "successful": [{"info": {"timings": _TIMES, "error": None}, "prompt_tokens": 8, "output_tokens": 4}] * 2,
                "errored": [{"info": {"timings": _TIMES, "error": "no"}, "prompt_tokens": 8, "output_tokens": None}],
                "incomplete": [],
            },
        }
    ],
}


def _read_guidellm(path: Path) -> object:
    return [metrics_of(run.timings) for run in read_report(path)]


def _event(**fields: Any) -> bytes:
    return b"data: " + written({"id": "c", "object": "text_completion", **fields}) + b"\n\n"


def _streams() -> tuple[bytes, ...]:
    token = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
    counted = [_event(**token, usage={"prompt_tokens": 8, "completion_tokens": at + 1}) for at in range(4)]
    plain = [_event(**token, usage=None)] * 4 + [_event(choices=[], usage={"prompt_tokens": 8, "completion_tokens": 4})]
    failed = [*counted[:2], _event(error={"message": "out of memory", "code": 500})]
    return tuple(b"".join(events) + b"data: [DONE]\n\n" for events in (counted, plain, failed))


_STREAMS = _streams()


def _read_stream(data: bytes) -> object:
    """In reads of other sizes than the events'."""
    reply, size = Reply(), 1 + len(data) % 97
    for at in range(0, len(data), size):
        reply.feed(data[at : at + size], 0.001 * at)
    return reply.fault(4), reply.tokens, reply.packed(0.0)


class _Content:
    """The body of an answer that is already there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def iter_any(self) -> Any:
        """All of it, in two parts."""
        for part in (self._data[:7], self._data[7:]):
            yield part

    async def read(self, count: int) -> bytes:
        """The first bytes."""
        return self._data[:count]


class _Answer:
    """An answer of a server, of whatever bytes."""

    def __init__(self, data: bytes, status: int = 200) -> None:
        self.content, self.status, self.headers = _Content(data), status, {"Retry-After": "1"}

    async def __aenter__(self) -> _Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


class _Session:
    """Answers everything with the same bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def post(self, *_: object, **__: object) -> _Answer:
        """Answer."""
        return _Answer(self._data)

    get = post


class _Completer(HttpCompleter):
    """A completer that has found its server."""

    def __init__(self) -> None:
        self._url, self._model, self._as_text, self._send_key = "http://x/v1", "m", False, False
        self._timeout = aiohttp.ClientTimeout(total=1)
        self._facts = EngineFacts(engine="x", kernel="none", device="none", versions={"vllm": "1"})


_COMPLETER, _CHAT = _Completer(), HttpChat("http://x/v1", "m", pause_s=0.0)
_COMPLETION = {"choices": [{"text": "a b", "finish_reason": "stop"}, {"text": "c", "finish_reason": "length"}]}
_CONVERSATION = {
    "choices": [{"message": {"role": "assistant", "content": "so [[A>B]]"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 8, "completion_tokens": 4},
}
_LISTING = {"object": "list", "data": [{"id": "m", "object": "model"}], "version": "0.11"}
_REFUSAL = {"error": {"message": "no such model", "code": 404}, "detail": "x"}


def _at_once(work: Any) -> Any:
    """The result of a coroutine that waits for nothing but its turn."""
    try:
        while True:
            work.send(None)
    except StopIteration as ended:
        return ended.value
    finally:
        work.close()


def _read_completion(data: bytes) -> object:
    asked = Sampling(n=2, max_tokens=4, stop=("b",))
    return _at_once(_COMPLETER._complete(_Session(data), [1, 2], asked))  # type: ignore[arg-type]


def _read_conversation(data: bytes) -> object:
    turns = [{"role": "user", "content": "x"}]
    reply: ChatReply = _at_once(_CHAT.ask(_Session(data), turns))  # type: ignore[arg-type]
    return read_verdict(reply.text), written(asdict(reply))


def _read_listing(data: bytes) -> object:
    try:
        found = _at_once(body(_Answer(data)))  # type: ignore[arg-type]
    except ValueError:
        found = None  # as `_get` has it
    version = _at_once(_COMPLETER._versions(_Session(data)))  # type: ignore[arg-type]
    return _COMPLETER._choose(found, None), version


def _read_refusal(data: bytes) -> object:
    said = _at_once(refusal(_Answer(data, 500)))  # type: ignore[arg-type]
    if len(said) > 250 or len(said.splitlines()) > 1:
        raise AssertionError(f"not one short line: {said[:300]!r}")
    return said


# ------------------------------------------------------------------------------------------------------------- results


def _cells() -> list[tuple[Cell, dict[str, Any]]]:
    """The cells of a study of two formats, one task, one use case, as far as they are read."""
    facts = asdict(EngineFacts(engine="fake", kernel="none", device="none", versions={"torch": "1"}))
    load, case = asdict(Load(kind="synchronous")), asdict(_CASE)
    found = []
    for format in ("baseline", "w8a8-fp"):
        answers = [asdict(Answer(task="mmlu", item=str(at), prediction="A", score=float(at % 3 > 0))) for at in range(6)]
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


def _results(folder: Path) -> tuple[Ledger, list[tuple[Cell, dict[str, Any]]]]:
    ledger, cells = Ledger(Path(tempfile.mkdtemp(dir=folder))), _cells()
    raw = {"model": "m", "formats": ["baseline", "w8a8-fp"], "tasks": ["mmlu"], "use_cases": ["8/4"],
           "hardware": [{"name": "local", "usd_per_hour": 1.0}]}  # fmt: skip
    study = parse_study(raw)
    ledger.write_study(study.model_dump(mode="json"), [cell for cell, _ in cells], _CONFIG)
    for cell, result in cells:
        ledger.put(cell, result, seconds=1.0)
    return ledger, cells


def _stored(folder: Path) -> Parser:
    """A result that is not what a study writes, under a checksum that fits."""
    ledger, cells = _results(folder)
    seeds = [written({"at": at, "result": result}) for at, (_, result) in enumerate(cells)]

    def load(data: bytes) -> object:
        try:
            told = json.loads(data)
            cell, result = cells[told["at"] % len(cells)][0], told["result"]
            fits = hashlib.sha256(canonical(result).encode(errors="backslashreplace")).hexdigest()
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
            return None
        record = {"cell": asdict(cell), "finished": "2026-01-01T00:00:00", "seconds": 1, "result": result, "sha256": fits}
        path = ledger.path(cell)
        before = path.read_bytes()
        try:
            path.write_bytes(written(record))
            found = assemble(ledger.root)
            return list(ledger.all()), ledger.damaged(), render_markdown(found)
        finally:
            path.write_bytes(before)

    return Parser(name="stored result", seeds=tuple(seeds), mutate=other_json, read=load)


def _plan(folder: Path) -> Parser:
    """What lies beside the results: the plan, the study, the model's config, why a cell failed."""
    ledger, _ = _results(folder)
    seeds = tuple((ledger.root / name).read_bytes() for name in ("plan.json", "study.json", "model.json"))

    def load(data: bytes) -> object:
        name = ("plan.json", "study.json", "model.json")[len(data) % 3]
        path = ledger.root / name
        before = path.read_bytes()
        try:
            path.write_bytes(data)
            return assemble(ledger.root)
        finally:
            path.write_bytes(before)

    return Parser(name="study's folder", seeds=seeds, mutate=other_json, read=load)
