"""Shell completion as the shells ask for it, and what the terminal shows of a study."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from folders import write_results
from rich.console import Console

from bitworth import hardware, recipes, tasks, workloads
from bitworth.cli.console import Terminal
from bitworth.ledger import key_of
from bitworth.progress import Tracker
from bitworth.types import Cell

ASK = "import sys; sys.argv = ['bitworth']\nfrom bitworth.cli import main\n"
CHECKED = """
import json, os
for line in sys.stdin:
    words = ["bitworth", *json.loads(line)]
    if os.fork() == 0:  # as a shell asks: each in a process, which need not import anew
        os.environ |= {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        try:
            main()
        finally:
            assert not {'torch', 'transformers', 'lm_eval', 'pandas'} & sys.modules.keys()
    os.wait()
    print("", end="\\0", flush=True)
"""


def completed(*asked: Sequence[str]) -> list[list[str]]:
    """What bash is given for the last word of each."""
    done = subprocess.run(
        [sys.executable, "-c", ASK + CHECKED],
        env={**os.environ, "_BITWORTH_COMPLETE": "complete_bash"},
        input="\n".join(map(json.dumps, asked)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Error" not in done.stderr, done.stderr
    return [names.split() for names in done.stdout.split("\0")[:-1]]


def test_names_complete_without_torch() -> None:
    asked: list[tuple[tuple[str, ...], list[str]]] = [
        (("quantize", "m", "--recipe", "w4a16"), [n for n in recipes.NAMES if n.startswith("w4a16")]),
        (("evaluate", "m", "--task", "mmlu"), [n for n in (*tasks.NAMES, *tasks.SUITES) if n.startswith("mmlu")]),
        (("benchmark", "m", "--use-case", "code_"), [n for n in workloads.NAMES if n.startswith("code_")]),
        (("predict", "m", "--gpu", "A"), [n for n in hardware.NAMES if n.startswith("A")]),
        (("check", "m", "--gpu", "H"), [n for n in hardware.NAMES if n.startswith("H")]),
        (("export", "m", "--to", ""), ["parquet", "mlflow"]),
        (("quan",), ["quantize"]),
    ]
    assert all(names for _, names in asked)
    assert completed(*(words for words, _ in asked)) == [names for _, names in asked]


def test_a_whole_recipe_is_offered_what_may_follow() -> None:
    offered = ["w8a8-fp", "w8a8-fp-static", "w8a8-fp+kv-fp8"]
    assert completed(("quantize", "m", "--recipe", "w8a8-fp")) == [offered]


def test_a_studys_own_names_complete(tmp_path: Path) -> None:
    write_results(tmp_path, {"baseline": {"mmlu": [1]}, "w8a8-fp": {"mmlu": [1]}})
    here, nowhere = str(tmp_path), str(tmp_path / "none")
    asked = [("gate", here, "--format", "w"), ("gate", here, "--task", ""), ("gate", nowhere, "--format", "w")]
    assert completed(*asked) == [["w8a8-fp"], ["mmlu"], []]


@pytest.mark.parametrize(
    "shell", ["bash", *(pytest.param(name, marks=pytest.mark.slow(beside=True)) for name in ("zsh", "fish"))]
)
def test_each_shell_is_given_a_script_that_it_reads(shell: str) -> None:
    environment = {**os.environ, "_BITWORTH_COMPLETE": f"source_{shell}"}
    done = subprocess.run(
        [sys.executable, "-c", ASK + "main()"], env=environment, capture_output=True, text=True, check=False
    )
    assert f"complete_{shell}" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


# --- the terminal -------------------------------------------------------------------------------------------------

CELLS = [Cell(kind="evaluate", title=f"task {at}", format="f", inputs={"task": at}) for at in range(4)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(*, is_terminal: bool, **settings: Any) -> str:
    """What four cells of ten seconds each leave on standard error, the third half done when it is looked at."""
    out, clock = io.StringIO(), Clock()
    terminal = Terminal(**settings)
    terminal._err = Console(file=out, force_terminal=is_terminal, width=120, highlight=False)
    tracker = Tracker(CELLS, {key_of(CELLS[0]): 10.0}, clock)
    with terminal.watching(4, 1, tracker) as watcher:
        for cell in CELLS[1:]:
            for who in (tracker, watcher):
                who.started(cell)
                who.told(cell, "questions", 0, 20)
            clock.now += 5
            for who in (tracker, watcher):
                who.told(cell, "questions", 10, 20)
            if watcher._bars is not None:
                watcher._bars.refresh()
            clock.now += 5
            for who in (tracker, watcher):
                who.ended(cell, {}, None, 10.0)
    return out.getvalue()


def test_lines_where_there_is_no_terminal() -> None:
    said = watched(is_terminal=False)
    assert said.splitlines() == [
        "[2/4] task 1: 10 s (about 20 s left)",
        "[3/4] task 2: 10 s (about 10 s left)",
        "[4/4] task 3: 10 s",
    ]


def test_bars_on_a_terminal_have_rates_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    said = watched(is_terminal=True)
    assert "2 a second, 5 s left" in said
    assert "about 25 s left" in said  # five for the running one, ten for each of the other two
    assert "\x1b[" in said


def test_colours_and_bars_are_left_out_where_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(is_terminal=False, quiet=True) == ""
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in watched(is_terminal=True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    said = watched(is_terminal=True)
    assert not any(f"\x1b[{code}m" in said for code in (31, 32, 33, 34, 35, 36))
