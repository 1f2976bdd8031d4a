"""Rooms: separate processes that see an interpreter, an empty scratch folder and nothing else.

Two ways to build one are known, and the first that works here is taken: bubblewrap where it is installed (some systems
let no other program make namespaces), else our own namespaces (`inside.launcher`). A third way, `none`, is a plain
process with limits: it protects against accidents, not against intent, and is only ever taken when asked for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil

from bitworth.errors import BitworthError

Isolation = Literal["bubblewrap", "namespaces", "none"]
WAYS: tuple[Isolation, ...] = ("bubblewrap", "namespaces")
HERE = Path(__file__).resolve().parent
NUMPY = ("numpy", "numpy.libs")
"""What a program finds installed besides the standard library."""
PACKAGES = ("site-packages", "dist-packages")
"""Folders of what else is installed, which depends on the machine."""
ROOM = "/room"
"""Where our own part and numpy lie in a room."""
ENVIRONMENT = {
    "HOME": "/scratch",
    "TMPDIR": "/scratch",
    "LANG": "C.UTF-8",
    "PATH": "",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
_BOOT = (
    "import json, sys; sys.path.insert(0, {folder!r}); from inside.{role} import main; del sys.path[0]; "
    "main(json.loads(sys.argv[1]))"
)


class Room:
    """A process in a room, with what it prints on one pipe. `end` leaves nothing of it."""

    def __init__(
        self,
        way: Isolation,
        role: str,
        settings: Mapping[str, Any],
        *,
        job: bytes,
        scratch_mib: int,
        fds: tuple[int, ...],
    ) -> None:
        """Start `inside.<role>` with the settings; `job` becomes its standard input, `fds` are open for it.

        Args:
            way: how the room is built.
            role: candidate or checker.
            settings: what its `main` gets.
            job: bytes that it reads.
            scratch_mib: size of its scratch folder.
            fds: file descriptors that it gets, under their own numbers.
        """
        self.way = way
        self.output, writes = os.pipe()
        ends_when_closed, self._lifeline = os.pipe()
        given, gives = os.pipe()
        command = _command(way, role, settings, scratch_mib, ends_when_closed)
        try:
            self.process = subprocess.Popen(
                command,
                stdin=given,
                stdout=writes,
                stderr=writes,
                pass_fds=(*fds, *([ends_when_closed] if way == "namespaces" else [])),
                env={**ENVIRONMENT, "BITWORTH_ROOM": way},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            for descriptor in (self.output, self._lifeline, gives):
                os.close(descriptor)
            raise BitworthError(f"A sandbox cannot be started: {error.strerror}; allow more processes.") from error
        finally:
            for descriptor in (writes, ends_when_closed, given):
                os.close(descriptor)
        os.set_blocking(gives, False)
        self._job, self._gives = memoryview(job), gives

    @property
    def wants(self) -> int | None:
        """The file descriptor that takes more of the job, None once it has all of it."""
        return self._gives if self._gives >= 0 else None

    def feed(self) -> None:
        """Hand over more of the job."""
        try:
            self._job = self._job[os.write(self._gives, self._job) :]
        except BlockingIOError:
            return
        except OSError:
            self._job = self._job[:0]
        if not self._job:
            os.close(self._gives)
            self._gives = -1

    def processes(self) -> list[psutil.Process]:
        """Everything that runs in the room."""
        with suppress(psutil.Error):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def end(self) -> None:
        """Kill what still runs and let go of the pipes."""
        os.close(self._lifeline)  # our launcher then kills the room's first process, and the kernel the rest
        if self.way == "bubblewrap":
            with suppress(psutil.Error):
                for first in psutil.Process(self.process.pid).children():
                    first.kill()
        if self.way != "none":  # both end after all that was in the room
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        left = self.processes()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()
        for descriptor in (self.output, self._gives):
            if descriptor >= 0:
                os.close(descriptor)


def _command(way: Isolation, role: str, settings: Mapping[str, Any], scratch_mib: int, lifeline: int) -> list[str]:
    folder = str(HERE) if way == "none" else ROOM
    inner = [_python(), "-I", "-S", "-B", "-c", _BOOT.format(folder=folder, role=role), json.dumps(settings)]
    if way == "none":
        return inner
    if way == "bubblewrap":
        return _bubblewrap(inner, scratch_mib)
    plan = {
        "root": _may_mount(),
        "visible": _visible(),
        "hidden": _hidden(),
        "links": _links(),
        "scratch_mib": scratch_mib,
        "command": inner,
        "environment": {**ENVIRONMENT, "BITWORTH_ROOM": way},
        "lifeline": lifeline,
    }
    return [_python(), "-I", "-S", "-B", str(HERE / "inside" / "launcher.py"), json.dumps(plan)]


def _bubblewrap(inner: list[str], scratch_mib: int) -> list[str]:
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--cap-drop", "ALL", "--uid", "1000", "--gid", "1000"]
    for path, place in _visible():
        command += ["--ro-bind", path, place]
    for path in _hidden():
        command += ["--tmpfs", path, "--remount-ro", path]
    for name in ("null", "zero", "full", "random", "urandom"):
        command += ["--dev-bind-try", f"/dev/{name}", f"/dev/{name}"]
    for link, target in _links():
        command += ["--symlink", target, link]
    command += ["--size", str(scratch_mib << 20), "--tmpfs", "/scratch", "--remount-ro", "/", "--chdir", "/scratch"]
    return [*command, "--", *inner]


def _python() -> str:
    """The interpreter behind a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def _visible() -> list[tuple[str, str]]:
    """Real paths that a room shows, and where: the interpreter and its library in their places, the rest in `ROOM`."""
    found = [(path, path) for path in _outermost(_interpreter())] + [(str(HERE / "inside"), f"{ROOM}/inside")]
    folder = _installed_numpy()
    places = [folder / name for name in NUMPY] if folder is not None else []
    return found + [(os.path.realpath(place), f"{ROOM}/{place.name}") for place in places if place.exists()]


def _interpreter() -> list[str]:
    """Real paths of the interpreter, its library and the system's."""
    prefix = Path(_python()).parent.parent
    named = [*_SYSTEM, _python(), str(prefix / "lib"), str(prefix / "lib64"), sysconfig.get_path("stdlib")]
    return sorted({os.path.realpath(path) for path in named if os.path.exists(path)})


def _outermost(paths: Sequence[str]) -> list[str]:
    """Those that lie within no other."""
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


@cache
def _hidden() -> list[str]:
    """Real paths of the folders of installed packages among what a room shows, which it shows empty."""
    shown = _interpreter()
    named = [place for path in shown for depth in ("", "*/") for place in Path(path).glob(f"{depth}*-packages")]
    real = {os.path.realpath(place) for place in named if place.name in PACKAGES and place.is_dir()}
    return _outermost(sorted(path for path in real if any(path.startswith(f"{one}/") for one in shown)))


@cache
def _links() -> list[tuple[str, str]]:
    """Symbolic links of the system, such as /lib64, and where temporary files go."""
    system = [(path, os.readlink(path)) for path in _SYSTEM if os.path.islink(path)]
    return [*system, ("/tmp", "/scratch"), ("/dev/shm", "/scratch")]


def numpy_folder(way: Isolation) -> str | None:
    """The folder in which a program finds numpy, and nothing else."""
    folder = _installed_numpy()
    return None if folder is None else str(folder) if way == "none" else ROOM


@cache
def _installed_numpy() -> Path | None:
    """The folder that numpy lies in, among all else that is installed."""
    found = importlib.util.find_spec("numpy")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(os.path.realpath(places[0])).parent if places else None


def _may_mount() -> bool:
    """Whether this process may mount and map users without a user namespace: root, outside of most containers."""
    if os.geteuid():
        return False
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    needed = 1 << 21 | 1 << 7 | 1 << 6  # CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID
    return int(held.split()[1], 16) & needed == needed


def isolation(*, unsafe: bool = False) -> Isolation:
    """How programs are kept apart here; `unsafe` allows `none` where nothing better works.

    Raises:
        BitworthError: nothing works, and it was not allowed.
    """
    tried = {way: works(way) for way in WAYS}
    for way, fault in tried.items():
        if fault is None:
            return way
    if unsafe:
        return "none"
    reasons = "; ".join(f"{way}: {fault}" for way, fault in tried.items())
    raise BitworthError(
        f"Programs that a model writes cannot be isolated on this machine ({reasons}); install bubblewrap, allow user "
        "namespaces, or accept that such programs can do all that you can with --unsafe-code-execution."
    )


@cache
def works(way: Isolation) -> str | None:
    """None where a program runs in such a room, else why it does not; tried once."""
    if way == "bubblewrap" and shutil.which("bwrap") is None:
        return "it is not installed"
    if sys.platform != "linux":
        return "it needs Linux"
    from bitworth.sandbox.running import run_program

    ran = run_program("print('works')", isolation=way)
    if ran.output == "works\n" and ran.status == "finished" and not ran.exit_code:
        return None
    return (" ".join(ran.output.split()) or f"a room ended with {ran.exit_code}")[:160]
