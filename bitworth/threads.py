"""Work on a processor that falls into parts which know nothing of each other, a thread each.

Inside a part torch multiplies in that part's thread alone: handing every small product to a team, and waiting for it,
costs more than most of them take, and such a team's threads wait by spinning where others want to work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

_Part = TypeVar("_Part")
_Made = TypeVar("_Made")


def side_by_side(work: Callable[[_Part], _Made], parts: Sequence[_Part]) -> list[_Made]:
    """What `work` makes of each part, in order; as many at once as torch has threads here."""
    threads = torch.get_num_threads()
    if min(threads, len(parts)) < 2:
        return [work(part) for part in parts]
    inference = torch.is_inference_mode_enabled()

    def alone(part: _Part) -> _Made:
        torch.set_num_threads(1)
        with torch.inference_mode(inference), torch.no_grad():  # which threads do not take over from each other
            return work(part)

    try:
        return list(_pool(threads).map(alone, parts))
    finally:
        torch.set_num_threads(threads)  # what threads still to come begin with is what was set last


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: much of the work takes no longer than starting some would."""
    return ThreadPoolExecutor(threads)
