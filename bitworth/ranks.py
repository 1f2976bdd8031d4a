"""Processes that quantize one model together, a device each: what they add up, agree on and hand round.

Every rank walks all blocks over its own part of the calibration sequences. At each stage the ranks add up what they saw
of its inputs; each rounds its part of the stage's rows, which know nothing of each other, and hands the codes round. So
all ranks go on with the same quantized weights, whatever their processors make of a sum. The first one writes.

NCCL carries tensors between GPUs; gloo carries those of CPUs and what the ranks agree on.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from bitworth.errors import BitworthError, Interrupted

Value = TypeVar("Value")

#: How long a rank waits for another, which may be writing a large checkpoint; one that dies is noticed at once.
_PATIENCE = timedelta(hours=3)


class PeerLost(Interrupted):
    """Another rank is gone; what ended it is for that rank, or whoever started it, to say."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that work together; alone, every method gives back what it was given."""

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that reads calibration text and writes."""
        return self.number == 0

    def share(self, count: int) -> slice:
        """This rank's part of so many rows or sequences."""
        return _part(self.number, self.count, count)

    def add_up(self, *tensors: Tensor) -> None:
        """Put the sum over the ranks into each tensor."""
        self._reduce(tensors, distributed.ReduceOp.SUM)

    def take_largest(self, tensor: Tensor) -> None:
        """Put the largest over the ranks into each element; NaN, which might get lost, counts as infinity."""
        if self.count > 1:
            tensor.nan_to_num_(nan=torch.inf, posinf=torch.inf)
            self._reduce((tensor,), distributed.ReduceOp.MAX)

    def take_first(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor of this shape."""
        if self.count == 1:
            return tensor
        held = tensor.clone(memory_format=torch.contiguous_format)
        with _peers():
            distributed.broadcast(held, src=0)
        return held

    def gather_rows(self, own: Tensor, rows: int) -> Tensor:
        """All rows (rows, ...) from the `share` of each rank, bit for bit."""
        if self.count == 1:
            return own
        whole = own.new_empty(rows, *own.shape[1:])
        with _peers():
            for rank in range(self.count):
                part = _part(rank, self.count, rows)
                if part.start == part.stop:
                    continue
                piece = own.contiguous() if rank == self.number else torch.empty_like(whole[part])
                distributed.broadcast(piece.view(torch.uint8), src=rank)
                whole[part] = piece
        return whole

    def agree(self, holds: bool) -> bool:
        """Whether something holds on every rank; nobody goes on before all have asked."""
        if self.count == 1:
            return holds
        found = torch.tensor([int(holds)])
        self._reduce((found,), distributed.ReduceOp.MIN)
        return bool(found)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first rank makes; a `BitworthError` there is raised on all."""
        if self.count == 1:
            return make()
        said: list[Any] = [None, None]
        if self.first:
            try:
                said[0] = make()
            except BitworthError as error:
                said[1] = error
        with _peers():
            distributed.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        if said[1] is not None:
            raise said[1]
        made: Value = said[0]
        return made

    def _reduce(self, tensors: tuple[Tensor, ...], how: Any) -> None:
        if self.count > 1:
            with _peers():
                for tensor in tensors:
                    distributed.all_reduce(tensor, op=how)


ALONE = Ranks()


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def device_named(name: str | torch.device | None) -> torch.device:
    """The device of that name; the GPU where there is one, unless named.

    Raises:
        BitworthError: it is no device's name, or torch sees no such GPU.
    """
    try:
        place = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        place = None
    if place is None or (isinstance(name, str) and place.type not in ("cpu", "cuda")):  # a torch.device is meant
        raise BitworthError(f"'{name}' is no device; name cpu, cuda or cuda:1.")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        built = "" if torch.version.cuda else ", and this torch was built without CUDA"
        raise BitworthError(f"Device {name} is not here: torch sees {torch.cuda.device_count()} GPUs{built}; use cpu.")
    return place


def own_device(device: str | None) -> torch.device:
    """The device of a process that torchrun started: the GPU of its number, unless CPUs are asked for or all there is.

    Raises:
        BitworthError: there is no GPU of that number, or one GPU is named for all.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return numbered_device(device, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))


def numbered_device(device: str, number: int, count: int) -> torch.device:
    """The device of the rank `number` of `count` on this machine.

    Raises:
        BitworthError: there are fewer GPUs, or one GPU is named for all.
    """
    kind, _, one = device.partition(":")
    if one:
        raise BitworthError(f"{count} processes cannot share {device}; name the kind of device, {kind}.")
    if kind != "cuda":
        return device_named(kind)
    if torch.cuda.device_count() < count:
        here = torch.cuda.device_count()
        raise BitworthError(f"{count} GPUs were asked for and {here} can be seen here; ask for as many as there are.")
    return torch.device(kind, number)


@contextmanager
def joined(
    device: torch.device, *, meeting: str = "env://", number: int | None = None, count: int | None = None
) -> Iterator[Ranks]:
    """Be one of the ranks; where they meet and who this is are told by torchrun's variables unless given.

    Raises:
        PeerLost: the others did not come.
    """
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    # Its functions have the group of their import as a default: imported later, by a model's code, they would keep this
    # one and its threads past its end; a thread that lets a tensor go while the interpreter ends aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    if sys.platform == "linux" and meeting.startswith("file:"):  # all on this machine, whatever its name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with _peers():
        distributed.init_process_group(
            backend,
            init_method=meeting,
            timeout=_PATIENCE,
            rank=-1 if number is None else number,
            world_size=-1 if count is None else count,
        )
    yield Ranks(distributed.get_rank(), distributed.get_world_size())
    distributed.destroy_process_group()  # after a fault it could wait for who is gone; leaving the process will do


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(
            "Another of the processes that quantize together is gone; finished blocks are kept, run the same command "
            "again."
        ) from error


def _part(rank: int, ranks: int, count: int) -> slice:
    return slice(count * rank // ranks, count * (rank + 1) // ranks)
