"""The local executor: a cell's fault costs the cell, and nothing outlives the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitworth.errors import BitworthError
from bitworth.execute import Tell
from bitworth.execute.local import LocalExecutor
from bitworth.types import Cell


def cell(do: str) -> Cell:
    return Cell(kind="evaluate", title=do, format="f", inputs={"do": do})


def work(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """What the cell's input asks for."""
    match cell.inputs["do"]:
        case "refuse":
            raise BitworthError("It will not do.")
        case "fault":
            raise ValueError("odd value")
        case "memory":
            raise MemoryError
        case "leave":
            os._exit(3)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "print":
            print("noise on standard output")
        case "sleep":
            time.sleep(60)
    for done in (1, 2):
        tell("steps", done, 2)
    return {"pid": os.getpid(), "root": root}


class Log:
    """A Watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def started(self, cell: Cell) -> None:
        self.lines.append(("started", cell.title))

    def told(self, cell: Cell, what: str, done: int, total: int) -> None:
        self.lines.append(("told", what, done, total))

    def ended(self, cell: Cell, result: dict[str, Any] | None, cause: str | None, seconds: float) -> None:
        self.lines.append(("ended", cell.title, result, cause))

    def causes(self) -> dict[str, str | None]:
        return {line[1]: line[3] for line in self.lines if line[0] == "ended"}


def test_progress_and_results_come_back_and_one_worker_serves_all() -> None:
    log = Log()
    LocalExecutor().run([cell("a"), cell("b")], work, "/root/of/results", log)
    kinds = [line[0] for line in log.lines]
    assert kinds == ["started", "told", "told", "ended"] * 2
    assert log.lines[1:3] == [("told", "steps", 1, 2), ("told", "steps", 2, 2)]
    first, second = (line[2] for line in log.lines if line[0] == "ended")
    assert first == second
    assert first["root"] == "/root/of/results"
    assert first["pid"] != os.getpid()
    assert not psutil.pid_exists(first["pid"])


@pytest.mark.parametrize("module", ["wave", "no_such_module"])
def test_a_worker_may_get_ready_ahead_and_goes_unused(module: str) -> None:
    log = Log()
    with closing(LocalExecutor(partial(import_module, module))) as executor:
        early = {process.pid for process in psutil.Process().children()}
        executor.run([cell("a")], work, ".", log)
    assert log.lines[-1][2]["pid"] in early
    before = psutil.Process().children()  # a tracker of multiprocessing's own stays
    with closing(LocalExecutor(partial(import_module, module))):
        assert len(psutil.Process().children()) == len(before) + 1
    assert psutil.Process().children() == before


def test_a_fault_costs_the_cell_alone() -> None:
    log = Log()
    faults = ("refuse", "fault", "memory", "leave", "killed", "segfault")
    LocalExecutor().run([cell(name) for name in (*faults, "fine")], work, ".", log)
    causes = log.causes()
    assert causes["refuse"] == "It will not do."
    assert causes["fault"] is not None
    assert causes["fault"].startswith("ValueError: odd value (test_local.py:")
    assert causes["memory"] == "The cell needs more memory than this machine has."
    assert causes["leave"] == "The worker left with exit code 3."
    assert "runs out of memory" in str(causes["killed"])
    assert causes["segfault"] == "The worker died of SIGSEGV."
    assert causes["fine"] is None


def test_cells_are_drawn_one_at_a_time() -> None:
    log = Log()
    ended: list[int] = []

    def cells() -> Any:
        for number in range(3):
            ended.append(sum(line[0] == "ended" for line in log.lines))
            yield cell(str(number))

    LocalExecutor().run(cells(), work, ".", log)
    assert ended == [0, 1, 2]


def test_what_work_prints_stays_off_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    LocalExecutor().run([cell("print")], work, ".", Log())
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "noise" in captured.err


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow(beside=True)),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow(beside=True)),
    ],
)
def test_the_worker_goes_with_its_driver(tmp_path: Path, how: signal.Signals) -> None:
    script = (
        f"import signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_local as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which what runs in the background may ignore
        "if __name__ == '__main__':\n    t.LocalExecutor().run([t.cell('sleep')], t.work, '.', t.Log())\n"
    )
    path = tmp_path / "driver.py"
    path.write_text(script)
    driver = subprocess.Popen([sys.executable, str(path)], stderr=subprocess.DEVNULL)
    workers = wait_for(lambda: workers_of(driver.pid))
    driver.send_signal(how)
    driver.wait(20)
    assert wait_for(lambda: not any(process.is_running() for process in workers))


def workers_of(pid: int) -> list[psutil.Process]:
    """Children that have come up to their loop (the resource tracker is not one)."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def wait_for(condition: Any, seconds: float = 20) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_what_leaves_does_not_look_for_cycles_first() -> None:
    """Registered first, so called last: by then everything is out of the collector's sight."""
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); "
        "from bitworth.execute.processes import leave_at_once; leave_at_once()"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_model_that_was_got_ready_is_the_one_that_is_asked(tiny_llama: Path) -> None:
    from bitworth import work as real

    real.get_ready(tiny_llama)
    ready = real._model(tiny_llama)
    assert real._model(tiny_llama) is ready
    assert ready._packs is not None
    real._models.clear()
