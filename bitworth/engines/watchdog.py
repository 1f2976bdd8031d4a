"""Runs a command in a process group of its own and lets nothing of it outlive whoever started it, even by kill -9.

    python watchdog.py PARENT LOG GRACE_S COMMAND...

The command's output goes to LOG. On SIGTERM its group gets a SIGTERM and, after GRACE_S seconds, a SIGKILL; on SIGINT,
or when process PARENT has gone, a SIGKILL at once. Whatever the command leaves running when it ends is killed too. The
exit status is the command's, 128 + N where signal N ended it. Only the standard library: it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

POLL_S = 0.1
_PR_SET_PDEATHSIG = 1


def main(parent: int, log: str, grace_s: float, command: list[str]) -> int:
    """Run the command to its end or the parent's; returns the exit status to leave with."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            preexec_fn=_die_with_parent,
        )
    deadline: float | None = None
    while not _ended(child.pid) and os.getppid() == parent and signal.SIGINT not in asked:
        if asked and deadline is None:
            deadline = time.monotonic() + grace_s
            _signal(child.pid, signal.SIGTERM)
        if deadline is not None and time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    # The leader is not yet reaped, so the group's number cannot belong to anyone else.
    _signal(child.pid, signal.SIGKILL)
    status = child.wait()
    return status if status >= 0 else 128 - status


def _die_with_parent() -> None:
    """Should the watchdog itself be killed, Linux kills the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _ended(pid: int) -> bool:
    """Whether the process has ended, leaving it unreaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # all of it has ended


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]))
