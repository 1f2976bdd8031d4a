"""Asks Linux for AMX's tiles, in every Python process that finds this on its path.

vLLM's kernel for weights of 4 bits uses them unasked, and dies of an illegal instruction where no kernel of oneDNN's
asked before (seen in 0.32). A process's leave does not outlive `exec`, so that its workers have to ask themselves.
"""

import ctypes
import platform
import sys

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

if sys.platform == "linux" and platform.machine() == "x86_64":
    ctypes.CDLL(None).syscall(*map(ctypes.c_long, (_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)))
