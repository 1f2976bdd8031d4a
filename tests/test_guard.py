"""What comes from others is bounded before it is believed, and keys stay where they are."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import cells_of_a_study
from safetensors import SafetensorError, safe_open

from bitworth.cli.console import guarded
from bitworth.engines.http import HttpGenerator
from bitworth.errors import BitworthError
from bitworth.guard.documents import json_of, yaml_of
from bitworth.guard.folders import is_within, own_file
from bitworth.guard.headers import read_header
from bitworth.guard.keys import NAMES
from bitworth.guard.models import no_safetensors, refuse_code
from bitworth.guard.templates import apply_template
from bitworth.guard.text import visible
from bitworth.ledger import Ledger

CANARY = "sk-canary-0123456789abcdef"


def tensors_file(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(*shape: int, dtype: str = "U8", at: tuple[int, int] = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


def taken_by_the_library(path: Path) -> bool:
    """Whether safetensors itself opens the file."""
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


BAD = {
    "overlap": ({"a": entry(4), "b": entry(4)}, b"1234"),
    "gap": ({"a": entry(4), "b": entry(4, at=(6, 10))}, b"1234567890"),
    "another size": ({"a": entry(5)}, b"1234"),
    "beyond the file": ({"a": entry(8, at=(0, 8))}, b"1234"),
    "bytes left over": ({"a": entry(4)}, b"12345"),
    "backwards": ({"a": entry(4, at=(4, 0))}, b"1234"),
    "an unknown dtype": ({"a": entry(4, dtype="U9")}, b"1234"),
    "a negative size": ({"a": entry(-4)}, b"1234"),
    "a product beyond 64 bits": ({"a": entry(2**40, 2**40)}, b"1234"),
    "a name twice": (b'{"a": %s, "a": %s}' % ((json.dumps(entry(4)).encode(),) * 2), b"1234"),
    "a list": (b"[1]", b""),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": entry(4)}, b"1234"),
}


def test_names_that_are_given_twice_are_found_at_once(tmp_path: Path) -> None:
    """Fifty thousand names took minutes when each was counted among all."""
    empty = json.dumps(entry(0, at=(0, 0)))
    names = ["twice", *(f"n{number}" for number in range(50_000)), "twice"]
    path = tensors_file(tmp_path / "x", ("{" + ",".join(f'"{name}":{empty}' for name in names) + "}").encode())
    began = time.process_time()
    with pytest.raises(ValueError, match="it lists 'twice' twice"):
        read_header(path)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("case", BAD)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_header(tensors_file(tmp_path / "x.safetensors", *BAD[case]))


@pytest.mark.parametrize("length", [10**9, 2**63, 2**64 - 1])
def test_an_absurd_header_length_is_refused_without_reading_it(tmp_path: Path, length: int) -> None:
    with pytest.raises(ValueError, match="header"):
        read_header(tensors_file(tmp_path / "x.safetensors", {}, length=length))


def test_what_is_accepted_is_what_the_library_accepts(tmp_path: Path) -> None:
    """Ours may refuse more, never less."""
    rng, both = random.Random(0), 0
    for _ in range(200):
        at = sorted(rng.choice((0, 2, 4, 8)) for _ in range(4))
        header = {"a": entry(at[1] - at[0], at=(at[0], at[1])), "b": entry(at[3] - at[2], at=(at[2], at[3]))}
        path = tensors_file(tmp_path / "x.safetensors", header, bytes(rng.choice((4, 8))))
        try:
            read_header(path)
        except ValueError:
            continue
        both += 1
        assert taken_by_the_library(path)
    assert both > 3


def test_names_lead_nowhere_but_down(tmp_path: Path) -> None:
    for name in ("../x", "/etc/passwd", "a/../../x", "C:\\x", "..", "", "a\0b", "x" * 300, "\ud800"):
        assert not is_within(name)
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BitworthError, match="outside its folder"):
        own_file(tmp_path / "model", "link")


def test_aliases_count_for_what_they_stand_for() -> None:
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        laughs += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    with pytest.raises(ValueError, match="aliases"):
        yaml_of(laughs)
    for text in ("&a [*a]", "[" * 500 + "]" * 500, "x" * (1 << 19)):
        with pytest.raises(ValueError, match=r"\w"):
            yaml_of(text)
    with pytest.raises(yaml.YAMLError):
        yaml_of("!!python/object/apply:os.system [true]")
    assert yaml_of("a: &b [1]\nc: *b\n") == {"a": [1], "c": [1]}


def test_a_key_that_stands_twice_is_refused_and_one_that_is_merged_is_not() -> None:
    for text in ("a: 1\nb: 2\na: 3\n", "x: [{a: 1, 'a': 2}]\n"):
        with pytest.raises(ValueError, match="`a` stands twice"):
            yaml_of(text)
    assert yaml_of("x: &x {a: 1}\ny: {<<: *x, a: 2}\n")["y"] == {"a": 2}


@pytest.mark.parametrize(
    "text",
    [
        "- a\n" * 60_000,
        "- &a\n" * 49_000,
        "a: 1" + ":1" * 130_000,
        "[" * 200_000,
        "{a," * 80_000,
        "? " * 100_000,
        "- " * 100_000,
    ],
    ids=lambda text: text[:6],
)
def test_yaml_of_any_kind_takes_no_second(text: str) -> None:
    began = time.process_time()
    with pytest.raises((ValueError, yaml.YAMLError)):
        yaml_of(text)
    assert time.process_time() - began < 1


def test_json_that_is_nested_beyond_the_stack_is_refused() -> None:
    with pytest.raises(ValueError, match="nested"):
        json_of("[" * 100_000 + "]" * 100_000)


def test_code_of_a_models_own_is_refused_by_the_flag_it_wants(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="trust_remote_code"):
        refuse_code(tmp_path, {"auto_map": {"AutoModel": "m.M"}})
    (tmp_path / "pytorch_model.bin").touch()
    assert "pytorch_model.bin" in no_safetensors(tmp_path)


class Templated:
    """A tokenizer with a template, run as transformers runs it."""

    def __init__(self, template: str) -> None:
        self.template = template

    def apply_chat_template(self, turns: Any, **_: Any) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        return str(render_jinja_template(conversations=[turns], chat_template=self.template)[0][0])


def test_a_template_that_never_ends_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitworth.guard.templates.SECONDS", 0.3)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(BitworthError, match="did not end"):
        apply_template(Templated(endless), [{"role": "user", "content": "x"}])


def test_time_that_others_took_is_not_the_template_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy or paused machine makes no honest template a hostile one; sleep stands in for either."""
    monkeypatch.setattr("bitworth.guard.templates.SECONDS", 0.2)

    class Starved(Templated):
        def apply_chat_template(self, turns: Any, **how: Any) -> str:
            time.sleep(0.5)
            return super().apply_chat_template(turns, **how)

    assert apply_template(Starved("{{ messages[0].content }}"), [{"role": "user", "content": "x"}]) == "x"


def test_a_template_stays_in_the_sandbox() -> None:
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        apply_template(Templated("{{ ''.__class__.__mro__[1].__subclasses__() }}"), [{"role": "user", "content": "x"}])


def test_characters_that_are_not_seen_are_written_out() -> None:
    assert visible("a\u202eb\u2028c\x1b[31m\u200b") == "a[U+202E]b[U+2028]c[U+001B][31m[U+200B]"
    assert visible("plain\ttext\näöü 漢字") == "plain\ttext\näöü 漢字"


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> str:
    """The same key in every variable that may hold one."""
    for name in NAMES:
        monkeypatch.setenv(name, CANARY)
    return CANARY


def test_no_key_reaches_results_or_failures(tmp_path: Path, canary: str) -> None:
    ledger, (cell, result) = Ledger(tmp_path), cells_of_a_study()[0]
    ledger.put(cell, {**result, "said": f"Bearer {canary}", f"x{canary}": [canary]})
    assert canary not in str(ledger.get(cell))
    ledger.fail(cell, f"HTTP 401 (Incorrect key {canary}) from https://user:{canary}@host/v1 and http://me:pass@host")
    told = ledger.failure(cell)
    assert told is not None
    assert "me:pass" not in told
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    assert holding == []


def test_no_key_is_printed_where_a_command_fails(canary: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise BitworthError(f"The server said {canary} at http://me:word@host/\u202e.")

    def breaks() -> None:
        raise RuntimeError(f"unexpected {canary}")

    assert guarded(fails) == 2
    assert guarded(breaks) == 1
    with pytest.raises(BitworthError) as refused:
        HttpGenerator(f"http://{canary}@host:99999/v1")
    printed = "".join(capsys.readouterr()) + str(refused.value)
    assert canary not in printed
    assert "me:word" not in printed
    assert "\u202e" not in printed


def test_what_a_report_is_made_of_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever brought a key into a result: no file of the folder has it, nor any that the report is."""
    from folders import write_results

    from bitworth.assembly import assemble
    from bitworth.report import write_report

    canary = "sk-canary-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", canary)
    scores, seconds = {"arc_easy": [1, 0, 1]}, [1.0, 2.0]
    write_results(
        tmp_path, {"baseline": scores, "w8a8-fp": scores}, {"baseline": seconds, "w8a8-fp": seconds}, name=f"x {canary}"
    )
    write_report(assemble(tmp_path), tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if canary.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["study.json", "plan.json", "progress.json", "lock"])
def test_deep_documents_of_a_folder_are_a_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from folders import write_results

    from bitworth.ledger.checking import check
    from bitworth.progress import read_progress

    write_results(tmp_path, {"baseline": {"arc_easy": [1, 0]}, "w8a8-fp": {"arc_easy": [1, 0]}})
    (tmp_path / name).write_text("[" * 100_000)
    found = [finding.path for finding in check(Ledger(tmp_path))]
    assert found == ([name] if name in ("study.json", "plan.json") else [])
    assert read_progress(tmp_path) is None
    assert not Ledger(tmp_path).held()


def test_a_place_that_may_not_be_read_is_named_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def looks() -> None:
        raise PermissionError(13, "Permission denied", "/locked/model")

    assert guarded(looks) == 2
    assert "/locked/model cannot be used: Permission denied" in capsys.readouterr().err
