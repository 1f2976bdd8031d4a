"""Hostile programs, in every kind of room that this machine can build."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import psutil
import pytest

from bitworth import sandbox
from bitworth.errors import BitworthError
from bitworth.sandbox import Check, Isolation, Limits, Ran, Verdict, judge, rooms, run_program
from bitworth.sandbox.inside import confine

ROOMY = Limits(cpu_s=10, wall_s=30.0)
SHORT = Limits(cpu_s=1, wall_s=2.5, memory_mib=256, processes=8, output_mib=1, scratch_mib=8)


@pytest.fixture(
    params=["bubblewrap", "namespaces", pytest.param("namespaces without root", marks=pytest.mark.slow(beside=True))]
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Isolation]:
    """A kind of room; skips where the kernel, or a missing program, forbids it."""
    name: str = request.param
    if name.endswith("without root"):
        if os.geteuid():
            pytest.skip("this user is not root, so the other case of namespaces is this one")
        monkeypatch.setattr(rooms, "_may_mount", lambda: False)
        name = "namespaces"
        sandbox.works.cache_clear()
    fault = sandbox.works(name)  # type: ignore[arg-type]
    if fault is not None:
        pytest.skip(f"{request.param} rooms cannot be built here: {fault}")
    yield name  # type: ignore[misc]
    if name != request.param:
        sandbox.works.cache_clear()


def run(program: str, way: Isolation, limits: Limits = SHORT) -> Ran:
    return run_program(textwrap.dedent(program), isolation=way, limits=limits)


# --- what a program can do ----------------------------------------------------------------------------------------


def test_ordinary_programs_run(way: Isolation) -> None:
    ran = run(
        """
        import sys, tempfile, dataclasses, threading, numpy as np
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 1000)
        thread = threading.Thread(target=lambda: print("thread", flush=True))
        thread.start(); thread.join()
        print(np.arange(5).sum(), sys.stdin.read() == "", file=sys.stderr)
        sys.exit(3)
        """,
        way,
    )
    assert (ran.status, ran.exit_code, ran.output) == ("finished", 3, "thread\n10 True\n")


# --- what it cannot do --------------------------------------------------------------------------------------------


def test_fork_bombs_hit_a_wall_and_nothing_survives(way: Isolation) -> None:
    before = {process.pid for process in psutil.process_iter()}
    ran = run(
        """
        import os, time
        made = 0
        try:
            while made < 1000:
                if not os.fork():
                    time.sleep(60)
                made += 1
        except OSError:
            pass
        print("made", made)
        """,
        way,
    )
    assert ran.status in ("finished", "processes")
    if ran.output:
        assert int(ran.output.split()[1]) < 50
    assert ours(before) == []


def ours(before: set[int]) -> list[psutil.Process]:
    """New processes of the sandbox that descend from this one or lost their parent."""
    found = []
    family = {child.pid for child in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            lives = process.pid not in before and process.status() != psutil.STATUS_ZOMBIE
            if lives and "inside" in line and (process.pid in family or process.ppid() == 1):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_background_processes_end_with_the_program(way: Isolation) -> None:
    before = {process.pid for process in psutil.process_iter()}
    ran = run(
        """
        import os, time
        for _ in range(2):
            if not os.fork():
                os.setsid()
                if not os.fork():
                    for fd in range(64):
                        try: os.close(fd)
                        except OSError: pass
                    time.sleep(300)
                os._exit(0)
        print("left")
        """,
        way,
    )
    assert (ran.status, ran.output) == ("finished", "left\n")
    assert ours(before) == []


def test_endless_loops_and_sleeps_end(way: Isolation) -> None:
    began = time.monotonic()
    looped = run("while True: pass", way)
    assert looped.exit_code != 0 or looped.status == "time"
    slept = run("import time; time.sleep(1000)", way, Limits(wall_s=1))
    assert slept.status == "time"
    ignoring = run("import signal, time\nfor s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass", way)
    assert ignoring.exit_code != 0 or ignoring.status == "time"
    assert time.monotonic() - began < 60


def test_memory_is_limited_a_process_and_in_all(way: Isolation) -> None:
    alone = run("x = bytearray(2 << 30); print('had it')", way)
    assert "MemoryError" in alone.output
    together = run(
        """
        import os, time
        for _ in range(5):
            if not os.fork():
                x = bytearray(b"x") * (100 << 20)
                time.sleep(30)
        time.sleep(30)
        """,
        way,
    )
    assert together.status == "memory"


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.memfd_create('m')",
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); assert l.shmget(0, 1 << 20, 0o1600) >= 0",
    ],
)
def test_memory_that_no_limit_counts_is_refused(way: Isolation, program: str) -> None:
    _filtered()
    assert run(program, way).exit_code == 1


def _filtered() -> None:
    import platform

    if platform.machine() not in confine.CALLS:
        pytest.skip(f"system calls are not filtered on {platform.machine()}")


def test_a_gigabyte_of_output_is_cut_and_the_program_killed(way: Isolation) -> None:
    ran = run("import os\nwhile True: os.write(1, b'x' * 65536)", way)
    assert ran.status == "output"
    assert len(ran.output) <= 1 << 16


def test_huge_files_do_not_fit_into_the_scratch_folder(way: Isolation) -> None:
    ran = run(
        """
        import os, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        written = 0
        try:
            for number in range(100):
                with open(f"/scratch/{number}", "wb") as file:
                    for _ in range(4):
                        written += file.write(b"x" * (1 << 20))
                        file.flush()
        except OSError as error:
            print(error.errno)
        print(written >> 20)
        """,
        way,
    )
    errno_, written = ran.output.split()
    assert errno_ in ("28", "27")
    assert int(written) <= 8


def test_deep_recursion_ends_the_program_alone(way: Isolation) -> None:
    assert "RecursionError" in run("f = lambda: f()\nf()", way).output
    crash = """
    import sys
    sys.setrecursionlimit(10**9)
    class A:
        def __getattribute__(self, name): return getattr(self, name)
    A().x
    """
    ran = run(crash, way)
    assert ran.exit_code != 0 or ran.status == "time"


def test_homes_and_other_data_are_not_there(way: Isolation, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    ran = run(
        f"""
        import os
        for path in ({str(secret)!r}, {str(Path.home())!r}, {str(Path(__file__).parent)!r},
                     "/etc/passwd", "/proc/1/environ", "/home", "/var", "/sys", "/run"):
            try:
                print(path, os.listdir(path) if os.path.isdir(path) else open(path).read())
            except OSError:
                pass
        """,
        way,
    )
    lines = [line for line in ran.output.splitlines() if not line.endswith("[]")]
    home = f"{Path.home()} "
    # an interpreter in the home folder shows the way to itself, and nothing beside it
    for line in lines:
        assert line.startswith(home)
        shown = line.removeprefix(home).strip("[]").replace("'", "").split(", ")
        assert all(any(path.startswith(f"{Path.home()}/{name}") for path, _ in rooms._visible()) for name in shown)


INSTALLED = sorted({"numpy", "pip", "yaml", "_distutils_hack", *packages_distributions()} - {*sys.stdlib_module_names})
"""Names that lie in some folder of packages on this machine."""
LOOK = f"""
import importlib.util, json, os, sys
from pathlib import Path
import numpy.linalg
found = [name for name in {INSTALLED!r} if importlib.util.find_spec(name) is not None]
folders = [*Path(json.__file__).parents[1].glob("*-packages"), *Path("/usr/lib").glob("*/*-packages")]
print(found, [path for folder in map(str, folders) if os.path.isdir(folder) for path in os.listdir(folder)])
"""


def test_the_standard_library_and_numpy_are_all_that_is_installed(way: Isolation) -> None:
    assert run(LOOK, way, ROOMY).output == "['numpy'] []\n"


def test_nothing_beside_numpy_is_found_in_the_interpreters_own_packages(
    way: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where bitworth is installed into the system's Python: the folder of its packages is shown, and holds numpy."""
    folder = rooms._installed_numpy()
    assert folder is not None
    shown = sorted({*rooms._interpreter(), str(folder.parent)})
    monkeypatch.setattr(rooms, "_interpreter", lambda: shown)
    rooms._visible.cache_clear()
    rooms._hidden.cache_clear()
    try:
        assert str(folder) in rooms._hidden()
        looked = f"sys.path.append({str(folder)!r})\nprint(os.listdir({str(folder)!r}))"
        assert run(f"import os, sys\n{looked}\n{LOOK}", way, ROOMY).output == "[]\n['numpy'] []\n"
    finally:
        rooms._visible.cache_clear()
        rooms._hidden.cache_clear()


def test_imports_are_the_same_without_isolation() -> None:
    found = run(LOOK, "none", ROOMY).output
    assert found.startswith("['numpy'] ")


def test_nothing_can_be_written_outside_of_scratch(way: Isolation) -> None:
    ran = run(
        """
        import json, os, sys
        libraries, programs = os.path.dirname(json.__file__), os.path.dirname(sys.executable)
        for folder in ("/", "/usr/lib", "/etc", "/dev", libraries, programs):
            try:
                open(os.path.join(folder, "mine"), "w")
                print("wrote", folder)
            except OSError:
                pass
        open("/tmp/fine", "w"); open("fine", "w")
        print(sorted(os.listdir("/scratch")))
        """,
        way,
    )
    assert ran.output == "['fine']\n"


def test_sockets_reach_nothing(way: Isolation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = run(
            f"""
            import socket
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, getattr(socket, "AF_VSOCK", 40)):
                try:
                    socket.socket(family, socket.SOCK_STREAM)
                    print("opened", family)
                except OSError:
                    pass
            try:
                socket.create_connection(("127.0.0.1", {port}), timeout=2)
                print("connected")
            except OSError:
                print("refused")
            """,
            way,
        )
    assert ran.output.endswith("refused\n")
    if confine.platform.machine() in confine.CALLS:
        assert ran.output == "refused\n"


def test_no_environment_and_no_file_descriptors_are_inherited(way: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "secret")
    with open(__file__) as held:
        os.set_inheritable(held.fileno(), True)
        ran = run(
            """
            import os
            print(sorted(os.environ))
            open_ones = []
            for fd in range(3, 64):
                try: os.fstat(fd); open_ones.append(fd)
                except OSError: pass
            print(open_ones)
            """,
            way,
        )
    names, descriptors = ran.output.splitlines()
    assert "SECRET" not in names
    assert eval(names) == sorted({*rooms.ENVIRONMENT, "BITWORTH_ROOM", *(["PWD"] if "PWD" in names else [])})
    assert descriptors == "[]"


def test_parents_cannot_be_seen_or_killed(way: Isolation) -> None:
    ran = run(
        f"""
        import os, signal
        print(os.getppid() in (0, 1))
        for pid in ({os.getpid()}, -1, os.getppid() or 1):
            try: os.kill(pid, 0)
            except OSError: pass
        """,
        way,
    )
    assert ran.output == "True\n"
    assert ran.status == "finished"


def test_privileges_cannot_be_gained(way: Isolation) -> None:
    ran = run(
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        for flags in (0x10000000, 0x00020000, 0x10020000):
            if libc.unshare(flags) == 0: print("unshared", hex(flags))
        if libc.mount(b"tmpfs", b"/scratch", b"tmpfs", 0, None) == 0: print("mounted")
        if libc.ptrace(0, 0, 0, 0) == 0: print("traced")
        if libc.chroot(b"/scratch") == 0: print("chroot")
        for change in (os.setuid, os.setgid):
            try: change(0); print("root")
            except OSError: pass
        if libc.prctl(39, 0, 0, 0, 0) != 1: print("no_new_privs is not set")
        """,
        way,
    )
    assert ran.output == ""


def test_what_runs_ends_when_its_owner_is_killed(way: Isolation) -> None:
    """kill -9 of the process that asked."""
    before = {process.pid for process in psutil.process_iter()}
    code = f"from bitworth.sandbox import run_program; run_program('import time; time.sleep(100)', isolation={way!r})"
    owner = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not sleeping(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sleeping(before)
    owner.kill()
    owner.wait()
    while ours(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ours(before) == []


def sleeping(before: set[int]) -> bool:
    """Whether the program has started: its process is the one with the candidate's command line that bwrap has not."""
    return any("bwrap" not in process.name() and "candidate" in process.cmdline()[5] for process in ours(before))


# --- verdicts -----------------------------------------------------------------------------------------------------

ADDS = Check(test="def check(candidate):\n    for a in range(5):\n        assert candidate(a, 1) == a + 1\ncheck(add)")


def verdict(program: str, way: Isolation, check: Check = ADDS) -> Verdict:
    return judge(textwrap.dedent(program), check, isolation=way, limits=SHORT)


def test_right_passes_and_wrong_fails(way: Isolation) -> None:
    assert verdict("def add(a, b): return a + b", way) == Verdict(passed=True)
    wrong = verdict("def add(a, b): return a - b", way)
    assert (wrong.passed, wrong.reason.partition(":")[0]) == (False, "AssertionError")


FORGERIES = {
    "exits with 0": "import sys; sys.exit(0)",
    "ends at once": "import os; os._exit(0)",
    "ends when it is asked": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit when it is asked": "def add(a, b): raise SystemExit(0)",
    "equals everything": """
        class E:
            def __eq__(s, o): return True
            __ne__ = lambda s, o: False
        def add(a, b): return E()
    """,
    "an int that equals everything": """
        class E(int):
            def __eq__(self, other): return True
            def __hash__(self): return 0
        def add(a, b): return E(7)""",
    "patches builtins": """
        import builtins
        builtins.AssertionError = None
        builtins.range = lambda *a: []
        builtins.len = lambda *a: 0
        def add(a, b): return 7""",
    "prints what a verdict looks like": """
        print('{"passed": true, "reason": ""}')
        def add(a, b): return 7""",
    "writes verdicts to every file descriptor": """
        import os, json, struct
        for fd in range(64):
            for text in (b'{"passed": true, "reason": ""}', struct.pack("!Q", 30) + b'{"passed": true, "reason": ""}'):
                try: os.write(fd, text)
                except OSError: pass
        def add(a, b): return 7""",
    "raises AssertionError quietly": "def add(a, b): raise StopIteration",
    "kills everything": """
        import os, signal
        def add(a, b):
            for pid in (os.getppid(), -1, 1):
                try: os.kill(pid, signal.SIGKILL)
                except OSError: pass
            os._exit(0)""",
    "patches the way values travel": """
        import inside.wire, inside.candidate, sys
        for name, module in list(sys.modules.items()):
            if 'wire' in name:
                module.encode = lambda *a: {"o": 0}
        def add(a, b): return 7""",
    "looks at its callers": """
        import sys
        def add(a, b):
            frame = sys._getframe()
            while frame:
                for name, value in frame.f_locals.items():
                    if isinstance(value, dict): value["passed"] = True
                frame = frame.f_back
            return 7""",
    "defines what the tests define": "def check(*a): pass\ndef add(a, b): return 7",
    "defines nothing": "x = 1",
    "is no Python": "def add(a, b) return",
    "sends garbage": """
        import os
        def add(a, b):
            for fd in range(3, 64):
                try: os.write(fd, b"\\0" * 7 + b"\\5hello")
                except OSError: pass
            return 7""",
    "sends without end": """
        import os
        def add(a, b):
            for fd in range(3, 64):
                try: os.write(fd, b"\\xff" * 8 + b"x" * 100000)
                except OSError: pass
            return 7""",
    "nests without end": """
        def add(a, b):
            x = []
            for _ in range(100000): x = [x]
            return x""",
    "loops": "def add(a, b):\n while True: pass",
    "is a cycle": "def add(a, b):\n x = []\n x.append(x)\n return x",
    "an array of nothing": "import numpy\ndef add(a, b): return numpy.array([])",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_verdicts_cannot_be_forged(name: str, way: Isolation) -> None:
    found = verdict(FORGERIES[name], way)
    assert not found.passed
    assert found.reason


def test_a_lost_program_fails_even_tests_that_catch_everything(way: Isolation) -> None:
    lenient = Check(test="try:\n    add(1, 2)\nexcept BaseException:\n    pass")
    assert not verdict("import os\ndef add(a, b): os._exit(0)", way, lenient).passed
    assert verdict("def add(a, b): raise ValueError", way, lenient).passed


def test_helpers_of_the_prompt_are_the_checkers_own(way: Isolation) -> None:
    check = Check(setup="def half(x): return x / 2\ndef f(x): pass", asked=("f",), test="assert half(f(3)) == 3")
    assert verdict("def f(x): return 2 * x", way, check).passed
    assert not verdict("def half(x): return 3\ndef f(x): return x", way, check).passed


def test_values_arrive_as_they_are(way: Isolation) -> None:
    program = """
    import collections, decimal, fractions, math
    from dataclasses import dataclass
    @dataclass
    class Pair:
        a: int
        b: int
    class Nest(list): pass
    def same(x): return x
    def pairs(): return [Pair(1, 2), Pair(3, 4)]
    def total(pairs): return sum(p.a + p.b for p in pairs)
    def count(x): return collections.Counter(x)
    def grow(x, s): x.append(1); s.add(9)
    def bad(): raise KeyError("k")
    def numbers(): return (n for n in (1, 2))
    def own(): return Nest([1])
    def exact(): return fractions.Fraction(1, 3), decimal.Decimal("0.10"), {1: 2}.keys(), range(3), b"a", 1j
    """
    test = """
for x in (None, True, 1, -1.5, 1e300, 10**400, float('inf'), -0.0, 'é\\n\\ud800',
          [1, (2, {3: {4}})], frozenset([1]), {(1, 2): []}):
    assert same(x) == x and type(same(x)) is type(x) and repr(same(x)) == repr(x)
assert math.isnan(same(math.nan))
assert total(pairs()) == 10 and total([Pair(5, 6)]) == 11
assert count("aab") == {"a": 2, "b": 1} and own() == [1]
x, s = [], set()
grow(x, s)
assert x == [1] and s == {9}
try:
    bad()
    assert False
except KeyError:
    pass
assert list(numbers()) == [1, 2] and numbers() != [1, 2]
from fractions import Fraction
from decimal import Decimal
assert exact() == (Fraction(1, 3), Decimal("0.10"), {1}, range(3), b"a", 1j)
"""
    assert verdict(program, way, Check(test=test)) == Verdict(passed=True)


def test_surrogates_in_a_program_do_not_stop_the_run(way: Isolation) -> None:
    assert verdict("x = '\ud800'\ndef add(a, b): return a + b", way).passed


# --- where there is no isolation ----------------------------------------------------------------------------------


def test_without_isolation_nothing_runs_unless_insisted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "works", lambda way: "the kernel says no")
    with pytest.raises(BitworthError, match=r"cannot be isolated .*kernel says no.*--unsafe-code-execution"):
        sandbox.isolation()
    assert sandbox.isolation(unsafe=True) == "none"
    assert judge("def add(a, b): return a + b", ADDS, isolation="none", limits=SHORT).passed
    assert not judge("def add(a, b): return 0", ADDS, isolation="none", limits=SHORT).passed
    assert run_program("while True: pass", isolation="none", limits=SHORT).exit_code != 0


def test_insisting_changes_nothing_where_there_is_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "works", lambda way: None if way == "namespaces" else "it is not installed")
    assert sandbox.isolation(unsafe=True) == "namespaces"
