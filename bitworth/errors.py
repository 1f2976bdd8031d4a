"""The one exception a user may see: a sentence that says what was wrong, where, and what to do."""

from __future__ import annotations

import errno
import re

_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
#: A sentence may quote what somebody else wrote, at whatever length.
_LONGEST = 4000


class BitworthError(Exception):
    """Bad input or a step that cannot go on; its message is one sentence fit for a terminal.

    Raise it with what was wrong, where it was found and what would have been right.
    `exit_code` is 2 for input that must change, 1 for work that failed.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        line = _BREAKS.sub(" ", sentence).strip()
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...")


class WorkFailed(BitworthError):
    """Valid input, but the work could not be finished (a server died, the disk is full)."""

    exit_code = 1


class Incomplete(WorkFailed):
    """Work that left something out, whose document was printed already: with --json there is no second one."""


class Interrupted(WorkFailed):
    """Work that could not go on, of which so much is kept that the same command takes it up again."""


class Unsupported(BitworthError):
    """An engine cannot run a format on this hardware; the message is the reason shown to the user."""

    exit_code = 1


def disk_reason(error: OSError) -> str:
    """What to tell a user about a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and run the same command again, finished work is kept"
    return error.strerror or str(error)
