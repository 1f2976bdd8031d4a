"""What a process gives up for good before it runs a stranger's program: limits, new privileges, odd system calls."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Mapping

NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
UNIX_SOCKETS, PARENT_DEATH_SIGNAL = 1, 1
NAMESPACE_FLAGS = 0x7E020000
NOT_PERMITTED, NO_SUCH_CALL = 1, 38
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000

_EVERYWHERE = (*range(425, 434), 442, 447)  # io_uring, the calls that mount, memfd_secret
CALLS: Mapping[str, tuple[int, dict[str, int], tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "clone": 56, "clone3": 435, "prctl": 157},
        # first memory that no limit counts: shared segments, memory files
        (
            *(29, 64, 68, 319),
            # other processes, namespaces, mounts, the kernel itself
            *(101, 103, 154, 155, 161, 163, 165, 166, 167, 169, 172, 173, 175, 176, 179, 246, 248, 249, 250, 272, 298),
            *(300, 304, 308, 310, 311, 313, 320, 321, 323),
            *_EVERYWHERE,
        ),
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "clone": 220, "clone3": 435, "prctl": 167},
        (
            *(194, 190, 186, 279),
            *(117, 116, 41, 51, 89, 40, 39, 224, 142, 105, 106, 60, 104, 217, 218, 219, 97, 241),
            *(262, 265, 268, 270, 271, 273, 294, 280, 282),
            *_EVERYWHERE,
        ),
    ),
}
"""By machine: the audit number, system calls that are looked at, and those that are refused."""


def confine(limits: Mapping[str, int]) -> None:
    """Set the limits (`processes` 0: none, where they would count the user's own), and filter system calls."""
    memory = limits["memory_mib"] << 20
    bounds = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_FSIZE: limits["scratch_mib"] << 20,
        resource.RLIMIT_NOFILE: limits["files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if limits["processes"]:
        bounds[resource.RLIMIT_NPROC] = limits["processes"]
    for which, most in bounds.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs cannot be set")
    _filter(libc)


def take_input() -> bytes:
    """All of standard input, which is empty from then on."""
    job = sys.stdin.buffer.read()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return job


def _filter(libc: ctypes.CDLL) -> None:
    """A seccomp filter where we know the machine's system calls; namespaces alone elsewhere."""
    machine = platform.machine()
    if machine not in CALLS or struct.calcsize("P") != 8:
        return
    program = assemble(machine)
    code = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    if libc.prctl(SET_SECCOMP, FILTER, header, 0, 0) and os.environ.get("BITWORTH_ROOM") != "none":
        raise OSError(ctypes.get_errno(), "the system call filter cannot be set")


def assemble(machine: str) -> bytes:
    """The filter, as the kernel's classic BPF.

    Each test is skipped by the tests that do not apply; an instruction is (code, jump if true, jump if false, value).
    """
    audit, named, refused = CALLS[machine]
    load, equal, any_bit, at_least, answer = 0x20, 0x15, 0x45, 0x35, 0x06
    number, architecture, first_argument = 0, 4, 16
    steps = [
        (load, 0, 0, architecture),
        (equal, 1, 0, audit),
        (answer, 0, 0, KILL),
        (load, 0, 0, number),
    ]
    if machine == "x86_64":  # its other numbering, x32
        steps += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, KILL)]
    for call in refused:
        steps += [(equal, 0, 1, call), (answer, 0, 0, ERROR | NOT_PERMITTED)]
    # glibc falls back to clone, whose flags can be seen here
    steps += [(equal, 0, 1, named["clone3"]), (answer, 0, 0, ERROR | NO_SUCH_CALL)]
    steps += [(equal, 0, 4, named["clone"]), (load, 0, 0, first_argument), (any_bit, 0, 1, NAMESPACE_FLAGS)]
    steps += [(answer, 0, 0, ERROR | NOT_PERMITTED), (answer, 0, 0, ALLOW)]
    steps += [(equal, 0, 4, named["socket"]), (load, 0, 0, first_argument), (equal, 1, 0, UNIX_SOCKETS)]
    steps += [(answer, 0, 0, ERROR | NOT_PERMITTED), (answer, 0, 0, ALLOW)]
    steps += [(equal, 0, 4, named["prctl"]), (load, 0, 0, first_argument), (equal, 0, 1, PARENT_DEATH_SIGNAL)]
    steps += [(answer, 0, 0, ERROR | NOT_PERMITTED), (answer, 0, 0, ALLOW)]
    steps += [(answer, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
