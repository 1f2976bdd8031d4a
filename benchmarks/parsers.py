"""Everything that reads a document of somebody else, with valid documents of its kind to start from.

What a reader may do with any document at all: return a value, or raise `BitworthError` with one sentence (or what its
docstring says it raises, where its only caller turns that into a sentence).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from documents import (
    ANSWERS,
    CALIBRATION,
    CASE,
    COMPLETION,
    CONFIG,
    CONVERSATION,
    GUIDELLM,
    LISTING,
    MIXTURE,
    OBSERVED,
    PROVENANCE,
    QUESTIONS,
    REFUSAL,
    STREAMS,
    STUDY,
    TRACES,
    cells_of_a_study,
    quantizations,
    tensors,
)
from folders_read import REQUESTS, archive_of, import_reader, other_archive, page_reader
from mutations import Mutate, other_bytes, other_json, other_lines, other_tensors, written
from served import (
    read_completion,
    read_conversation,
    read_guidellm,
    read_listing,
    read_refusal,
    read_stream,
)

from bitworth.assembly import assemble
from bitworth.calibration.documents import documents
from bitworth.checkpoint import Reader, WeightReader, read_config
from bitworth.engines.prompts import end_tokens
from bitworth.errors import BitworthError
from bitworth.hardware import hardware
from bitworth.judging.files import read_answers, read_questions
from bitworth.ledger import Ledger, canonical
from bitworth.load.prompts import ordinary_tokens
from bitworth.load.traces import Workload, read_trace
from bitworth.prediction import predict, read_architecture
from bitworth.prediction.calibrating import read_observation
from bitworth.preflight import check
from bitworth.preflight.server import doubt_about
from bitworth.report.markdown import render_markdown
from bitworth.report.origin import read_license, read_origin
from bitworth.schemes.config import scheme_from_config
from bitworth.study import load_study, parse_study
from bitworth.types import Cell, Load, Rule

Read = Callable[[bytes], object]


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
        Parser(name="study, as a mapping", seeds=(written(STUDY),), mutate=other_json, read=_read_mapping),
        _safetensors(folder),
        _checkpoint(folder),
        Parser(name="quantization_config", seeds=quantizations(), mutate=other_json, read=_read_quantization),
        _config(folder),
        _file(folder, "GuideLLM report", "report.json", (written(GUIDELLM),), other_json, read_guidellm),
        _file(folder, "trace", "trace.jsonl", TRACES, other_lines, _read_trace),
        *_calibrations(folder),
        _file(folder, "judge's questions", "q.jsonl", QUESTIONS, other_lines, read_questions),
        _file(folder, "judge's answers", "a.jsonl", ANSWERS, other_lines, read_answers),
        _file(folder, "constants' observation", "benchmark.json", (written(OBSERVED),), other_json,
              lambda path: read_observation(path.parent)),
        _file(folder, "provenance", "bitworth.json", (written(PROVENANCE),), other_json,
              lambda path: read_origin(path.parent)),
        _file(folder, "model card", "README.md", (b"---\nlicense: mit\ntags: [&b b, *b]\n---\n# t\n",), other_bytes,
              lambda path: read_license(path.parent)),
        Parser(name="stream", seeds=STREAMS, mutate=other_lines, read=read_stream, allowed=(ValueError,)),
        Parser(name="completion", seeds=(written(COMPLETION),), mutate=other_json, read=read_completion),
        Parser(name="conversation", seeds=(written(CONVERSATION),), mutate=other_json, read=read_conversation),
        Parser(name="model listing", seeds=(written(LISTING),), mutate=other_json, read=read_listing),
        Parser(name="refusal", seeds=(written(REFUSAL), b'"not found"'), mutate=other_json, read=read_refusal),
        _stored(folder),
        _plan(folder),
        Parser(name="archive", seeds=(archive_of(_results(folder)[0]),), mutate=other_archive,
               read=import_reader(folder)),
        Parser(name="request to the page", seeds=REQUESTS, mutate=other_bytes, read=page_reader(_results(folder)[0])),
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


def _study(folder: Path) -> Parser:
    import yaml

    text = yaml.safe_dump(STUDY).encode()
    anchors = b"model: &m x\nformats: [baseline, {name: a, base: w8a8-fp}]\ntasks: [{name: mmlu, limit: 3}]\nname: *m\n"
    return _file(
        folder, "study, as YAML", "study.yaml", (text, anchors), other_bytes, lambda path: _use(load_study(path))
    )


def _read_mapping(data: bytes) -> object:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None  # what YAML made is a value
    return _use(parse_study(value))


def _use(study: Any) -> object:
    """Everything that is made of a study before anything runs."""
    values = (study.recipes(), study.calibration_spec(), study.task_specs(), study.timed_loads(), study.constraint())
    study.calibration.words()
    workloads = study.workload_values()
    shapes = [(one.use_case, one.context_tokens, one.shapes(4, seed=0)) for one in workloads]
    return values, study.hardware_values(), shapes, study.model_dump(mode="json")


def _config(folder: Path) -> Parser:
    nested = {"architectures": ["XForConditionalGeneration"], "text_config": CONFIG, "vision_config": {}}
    told = {**CONFIG, "quantization_config": json.loads(quantizations()[1])}
    seeds = tuple(map(written, (CONFIG, MIXTURE, nested, told)))
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
    found = check(architecture, "w8a8-int", device, CASE, streams=2)
    return found.sentence, predict(architecture, "w4a16-int", device, CASE, Load(kind="synchronous"))


def _read_quantization(data: bytes) -> object:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None  # config.json as a whole is another reader's
    return scheme_from_config(value) if value else None


def _safetensors(folder: Path) -> Parser:
    from safetensors.torch import save

    return _file(folder, "safetensors", "model.safetensors", (save(tensors(), {"format": "pt"}),), other_tensors,
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
    config = {**CONFIG, "quantization_config": json.loads(quantizations()[0])}
    (home / "config.json").write_bytes(written(config))
    (home / "model-1.safetensors").write_bytes(save(tensors()))
    seed = written({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors(), "model-1.safetensors")})

    def load(data: bytes) -> object:
        (home / "model.safetensors.index.json").write_bytes(data)
        reader = Reader(home)
        return sorted(WeightReader(reader).names)

    return Parser(name="safetensors index", seeds=(seed,), mutate=other_json, read=load)


def _read_trace(path: Path) -> object:
    work = Workload(name="t", trace=read_trace(path))
    return work.use_case, work.context_tokens, work.shapes(2, seed=0)


def _calibrations(folder: Path) -> list[Parser]:
    rules: tuple[Rule, ...] = ("auto", "always", "never")

    def load(rule: Rule, path: Path) -> object:
        return list(documents(path, _Tokenizer(), rule))

    return [
        _file(folder, f"calibration, template {rule}", "c.jsonl", CALIBRATION, other_lines, partial(load, rule))
        for rule in rules
    ]


def _results(folder: Path) -> tuple[Ledger, list[tuple[Cell, dict[str, Any]]]]:
    ledger, cells = Ledger(Path(tempfile.mkdtemp(dir=folder))), cells_of_a_study()
    raw = {"model": "m", "formats": ["baseline", "w8a8-fp"], "tasks": ["mmlu"], "use_cases": ["8/4"],
           "hardware": [{"name": "local", "usd_per_hour": 1.0}]}  # fmt: skip
    study = parse_study(raw)
    ledger.write_study(study.model_dump(mode="json"), [cell for cell, _ in cells], CONFIG)
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
        record = {
            "cell": asdict(cell),
            "finished": "2026-01-01T00:00:00",
            "seconds": 1,
            "result": result,
            "sha256": fits,
        }
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
