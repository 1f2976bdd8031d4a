"""Quantizing on several devices of one machine: a process each, which end together.

The calibration sequences are dealt to the devices (`data`), each of which walks all blocks and rounds a part of every
layer (`ranks`); or the recipes are (`recipes`), each device walking alone, where there are as many that could not share
a walk. torchrun may start the processes instead, on several machines that share a file system: see `ranks.joined`.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from bitworth.errors import BitworthError, Interrupted
from bitworth.execute.processes import cause_of_death, settle_in, stop
from bitworth.quantization import Progress, folders_of, quantize
from bitworth.ranks import ALONE, PeerLost, Ranks, joined, launched, numbered_device, own_device
from bitworth.streams import walks_alone
from bitworth.types import Calibration, QuantizeResult, Recipe, Spread

#: How long the others may take to leave once one has failed: they notice, and clean up.
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process does; `meeting` is where those that work together find each other."""

    model: Path
    recipes: tuple[Recipe, ...]
    out: Mapping[str, Path]
    calibration: Calibration | None
    allow_group_fallback: bool
    states_mib: float | None
    device: str
    threads: int
    number: int = 0
    count: int = 1
    meeting: str | None = None


def quantize_on(
    devices: int,
    model: Path,
    recipes: Sequence[Recipe],
    out: Path | Mapping[str, Path],
    *,
    calibration: Calibration | None = None,
    allow_group_fallback: bool = False,
    states_mib: float | None = None,
    device: str | None = None,
    spread: Spread = "auto",
    progress: Progress = lambda *_: None,
) -> list[QuantizeResult]:
    """`quantize` on so many devices of this machine; a killed run goes on, on as many devices, as it does on one.

    Processes are spawned, so a script calls this under `if __name__ == "__main__"`.

    Args:
        devices: how many.
        model, recipes, out, calibration, allow_group_fallback, states_mib: as `quantize` takes them.
        device: their kind, `cuda` or `cpu`; GPUs where there are any.
        spread: whether calibration sequences or recipes are dealt to them; `auto` deals recipes where at least as many
            as devices have a walk of their own.
        progress: told of every block of the first device.

    Raises:
        BitworthError: what `quantize` raises, or there are fewer GPUs.
        Interrupted: a process died; finished blocks are kept.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if devices == 1:
        return quantize(
            model, recipes, out, calibration=calibration, allow_group_fallback=allow_group_fallback,
            states_mib=states_mib, device=kind, progress=progress,
        )  # fmt: skip
    places = [str(numbered_device(kind, number, devices)) for number in range(devices)]
    whole = Job(
        model=model,
        recipes=tuple(recipes),
        out=out if isinstance(out, Mapping) else folders_of(out, recipes),
        calibration=calibration,
        allow_group_fallback=allow_group_fallback,
        states_mib=states_mib,
        device=kind,
        threads=max(1, torch.get_num_threads() // devices),
    )
    with tempfile.TemporaryDirectory(prefix="bitworth-devices-") as folder:
        answers = _run(_jobs(whole, places, spread, f"file://{folder}/meeting"), progress)
    made = {result.format: result for results in answers for result in results}
    return [made[recipe.name] for recipe in recipes]


def _jobs(whole: Job, places: Sequence[str], spread: Spread, meeting: str) -> list[Job]:
    """The work as a job for each device, or for as many as there are piles of recipes."""
    shared = whole.calibration is not None and whole.calibration.stream == "shared"
    bundles = walks_of(whole.recipes, shared=shared)
    if spread == "recipes" or (spread == "auto" and len(bundles) >= len(places)):
        dealt = [part for part in deal(bundles, len(places)) if part]
        return [replace(whole, recipes=part, device=place) for part, place in zip(dealt, places, strict=False)]
    return [
        replace(whole, device=place, number=number, count=len(places), meeting=meeting)
        for number, place in enumerate(places)
    ]


def quantize_here(
    devices: int, model: Path, recipes: Sequence[Recipe], out: Path | Mapping[str, Path], **options: Any
) -> list[QuantizeResult]:
    """`quantize_on`, or this process's part of it where torchrun started it as one of several.

    Raises:
        BitworthError: as `quantize_on`; torchrun and `devices` both say how many there are.
    """
    if not launched():
        return quantize_on(devices, model, recipes, out, **options)
    if devices > 1 or options.pop("spread", "auto") == "recipes":
        raise BitworthError("torchrun starts the processes, which share the data; leave --devices and --spread out.")
    place = own_device(options.pop("device", None))
    with joined(place) as ranks:
        return quantize(model, recipes, out, ranks=ranks, device=place, **options)


def walks_of(recipes: Sequence[Recipe], *, shared: bool) -> list[list[Recipe]]:
    """The recipes that walk together, as `streams.streams_of` has them."""
    alone = [recipe for recipe in recipes if walks_alone(recipe, shared=shared)]
    rest = [recipe for recipe in recipes if recipe not in alone]
    together = [recipe for recipe in rest if recipe.needs_calibration]
    blind = [recipe for recipe in rest if not recipe.needs_calibration]
    return [*([recipe] for recipe in alone), *(group for group in (together, blind) if group)]


def deal(bundles: Sequence[list[Recipe]], devices: int) -> list[tuple[Recipe, ...]]:
    """Bundles to devices, the next largest to that which has least: a recipe on data counts ten of one without."""
    piles: list[list[Recipe]] = [[] for _ in range(devices)]
    sizes = [0] * devices
    for bundle in sorted(bundles, key=lambda bundle: -_size(bundle)):
        least = sizes.index(min(sizes))
        piles[least].extend(bundle)
        sizes[least] += _size(bundle)
    return [tuple(pile) for pile in piles]


def _size(bundle: Sequence[Recipe]) -> int:
    return sum(10 if recipe.needs_calibration else 1 for recipe in bundle)


@dataclass(slots=True, eq=False)
class _Running:
    """A process, its end of the pipe, and what it answered."""

    job: Job
    process: SpawnProcess
    pipe: Connection
    results: list[QuantizeResult] | None = None
    error: BitworthError | None = None

    @property
    def over(self) -> bool:
        return self.results is not None or self.error is not None


def _run(jobs: Sequence[Job], progress: Progress) -> list[list[QuantizeResult]]:
    """What every job gives; the first to fail ends them all, and what it said is raised."""
    with _started(jobs) as running:
        failed: list[BitworthError] = []
        deadline = float("inf")
        while not all(one.over for one in running) and time.monotonic() < deadline:
            for one in _heard(running, progress, min(1.0, max(0.0, deadline - time.monotonic()))):
                if one.error is not None:
                    failed.append(one.error)
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        if failed:
            raise next((error for error in failed if not isinstance(error, PeerLost)), failed[0])
        return [one.results or [] for one in running]


@contextmanager
def _started(jobs: Sequence[Job]) -> Iterator[list[_Running]]:
    context = multiprocessing.get_context("spawn")
    running: list[_Running] = []
    try:
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, os.getpid(), job), name=f"bitworth-{len(running)}")
            process.start()
            theirs.close()
            running.append(_Running(job, process, ours))
        yield running
    finally:
        for one in running:
            one.process.join(2 if one.over else 0)
            stop(one.process)
            one.pipe.close()


def _heard(running: Sequence[_Running], progress: Progress, patience: float) -> list[_Running]:
    """Take in what the processes say for a moment; those that ended meanwhile."""
    talking = {one.pipe: one for one in running if not one.over}
    for pipe in wait(list(talking), timeout=patience):
        one = talking[pipe]  # type: ignore[index]
        try:
            kind, *message = one.pipe.recv()
        except (EOFError, ConnectionResetError):
            one.error = _death(one)
            continue
        if kind == "told" and one is running[0]:
            progress(*message)
        elif kind == "ended":
            one.results, one.error = message
    return [one for one in talking.values() if one.over]


def _death(one: _Running) -> BitworthError:
    one.process.join()
    cause = cause_of_death(one.process.exitcode or 0, f"The process on {one.job.device}")
    return Interrupted(f"{cause.removesuffix('.')}; finished blocks are kept, run the same command again.")


def _serve(pipe: Connection, parent: int, job: Job) -> None:
    """The process: do the job, say how far it is, send back the results or the error."""
    settle_in(parent)
    torch.set_num_threads(job.threads)
    results: list[QuantizeResult] | None = None
    fault: BitworthError | None = None
    try:
        results = _work(job, lambda *message: pipe.send(("told", *message)))
    except BitworthError as error:
        fault = error
    except Exception as error:  # whatever it was, one sentence reaches the user
        fault = Interrupted(f"Unexpected {type(error).__name__} on {job.device}: {error}.")
    pipe.send(("ended", results, fault))
    pipe.close()
    os._exit(0 if fault is None else 1)  # what is left of a group that failed would wait for who is gone


def _work(job: Job, tell: Progress) -> list[QuantizeResult]:
    if job.meeting is None:
        return _quantize(job, ALONE, tell)
    with joined(torch.device(job.device), meeting=job.meeting, number=job.number, count=job.count) as ranks:
        return _quantize(job, ranks, tell)


def _quantize(job: Job, ranks: Ranks, tell: Progress) -> list[QuantizeResult]:
    return quantize(
        job.model, job.recipes, job.out, calibration=job.calibration, allow_group_fallback=job.allow_group_fallback,
        states_mib=job.states_mib, device=job.device, ranks=ranks, progress=tell,
    )  # fmt: skip
