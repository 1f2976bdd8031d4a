"""Builds a room out of Linux namespaces and runs one command in it; see `bitworth.sandbox.rooms` for the plan.

As root the mounts are made first and the process then moves into a user namespace in which it is nobody; as anyone else
the user namespace comes first, since it is what allows the rest. The command is process 1 of its own process namespace,
so that whatever it started ends with it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import sys
from collections.abc import Mapping
from typing import Any

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT = 1, 2, 4, 8, 32
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
NO_ATIME, NO_DIR_ATIME, REL_ATIME = 1024, 2048, 1 << 21
KEPT_FLAGS = ((8, NO_EXEC), (1024, NO_ATIME), (2048, NO_DIR_ATIME), (4096, REL_ATIME))
"""What `statvfs` calls them, and what `mount` does: flags that a user namespace may not take off."""
DETACH = 2
PARENT_DEATH_SIGNAL = 1
INSIDE_ID, NOBODY = 1000, 65534
OLD, SCRATCH = "/.old", "/scratch"
DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def main(plan: Mapping[str, Any]) -> int:
    """Run the plan's command; its exit status, or 128 plus the signal that ended it.

    Ends it at once when the file descriptor `lifeline` closes at the other end, which it does when its owner dies.
    """
    root = bool(plan["root"])
    shared = NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP
    if root:
        os.setgroups([])
        unshare(shared)
    else:
        who = os.geteuid(), os.getegid()
        unshare(shared | NEWUSER)
        write_maps("self", *who)
    asks, answers = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            _enter(plan, root, asks[1], answers[0])
        except OSError as error:
            os.write(2, f"sandbox: {error}\n".encode())
        os._exit(97)
    os.close(asks[1])
    if root and os.read(asks[0], 1):
        write_maps(str(child), NOBODY, NOBODY)
        os.write(answers[1], b".")
    return _wait(child, int(plan["lifeline"]))


def _enter(plan: Mapping[str, Any], root: bool, ask: int, answer: int) -> None:
    """The child: mounts, then who it is, then the command."""
    os.close(int(plan["lifeline"]))
    build(plan)
    if root:
        unshare(NEWUSER)
        os.write(ask, b".")
        os.read(answer, 1)
        os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
        os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    _call("prctl", PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    os.chdir(SCRATCH)
    os.umask(0o022)
    os.execve(plan["command"][0], plan["command"], plan["environment"])


def build(plan: Mapping[str, Any]) -> None:
    """A root of its own: what the plan names, read-only, and a scratch folder of limited size."""
    unshare(NEWNS)
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", NO_SUID | NO_DEV, "mode=755,size=1m")
    os.mkdir("/tmp" + OLD)
    _call("pivot_root", b"/tmp", ("/tmp" + OLD).encode())
    os.chdir("/")
    for path, place in plan["visible"]:
        bind(path, NO_SUID | NO_DEV | READ_ONLY, place)
    for path in plan["hidden"]:
        mount("tmpfs", path, "tmpfs", NO_SUID | NO_DEV | NO_EXEC | READ_ONLY, "mode=755,size=4k")
    os.mkdir("/dev")
    for name in DEVICES:
        if os.path.exists(f"{OLD}/dev/{name}"):
            bind(f"/dev/{name}", NO_SUID | NO_EXEC, f"/dev/{name}")
    for link, target in plan["links"]:
        if not os.path.lexists(link):
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(target, link)
    os.mkdir(SCRATCH)
    size = f"mode=1777,size={plan['scratch_mib']}m,nr_inodes=4096"
    mount("tmpfs", SCRATCH, "tmpfs", NO_SUID | NO_DEV | NO_EXEC, size)
    _call("umount2", OLD.encode(), DETACH)
    os.rmdir(OLD)
    mount(None, "/", None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEV)


def bind(outside: str, flags: int, path: str) -> None:
    """Show a file or folder of the old root at a place of this one."""
    source = OLD + outside
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    try:
        mount(source, path, None, BIND)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount(source, path, None, BIND | RECURSIVE)  # mounts below it that this namespace may not take off
    has = os.statvfs(path).f_flag
    mount(None, path, None, REMOUNT | BIND | flags | sum(flag for seen, flag in KEPT_FLAGS if has & seen))


def write_maps(process: str, user: int, group: int) -> None:
    """Make `INSIDE_ID` of the process's user namespace stand for this user and group outside."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE_ID} {user} 1"),
        ("gid_map", f"{INSIDE_ID} {group} 1"),
    ):
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write(text)


def _wait(child: int, lifeline: int) -> int:
    process = os.pidfd_open(child)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    if all(at != process for at, _ in poll.poll()):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def unshare(flags: int) -> None:
    """Leave these namespaces for new ones."""
    _call("unshare", flags)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """As the system call."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _call("mount", *texts[:3], flags, texts[3])


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        told = [argument.decode() for argument in arguments if isinstance(argument, bytes)]
        raise OSError(number, f"{name} {' '.join(told)}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except OSError as error:
        sys.exit(f"sandbox: {error}")
