"""`--on` and `--storage`: where a study's cells run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bitworth.errors import BitworthError
from bitworth.execute import Executor
from bitworth.execute.parts import QUESTIONS
from bitworth.sources import Note
from bitworth.types import Hardware

On = Annotated[
    str | None,
    typer.Option("--on", help="`ray` (the cluster of this machine, or $RAY_ADDRESS), or ray://HOST:10001; else here."),
]
StorageUrl = Annotated[
    str | None,
    typer.Option("--storage", help="With --on: where files travel (folder, s3://...), if nodes do not see --out."),
]
PartQuestions = Annotated[
    int, typer.Option("--part-questions", help="With --on: larger tasks are answered in parts of so many.", min=1)
]
Place = tuple[Executor | None, Sequence[Mapping[str, str]]]
"""The executor (None: the local one), and the machines that timings are taken on (none: this one)."""


@contextmanager
def placed(
    on: str | None,
    storage: str | None,
    out: Path,
    hardware: Sequence[Hardware],
    note: Note,
    part_questions: int = QUESTIONS,
) -> Iterator[Place]:
    """What --on names, connected until the end of the block.

    Raises:
        BitworthError: another name than `ray`, or what `execute.ray.connect` raises.
    """
    if on is None:
        if storage is not None:
            raise BitworthError("--storage is for cells that run elsewhere; give --on ray too, or leave it out.")
        yield None, ()
        return
    if on != "ray" and not on.startswith("ray://"):
        raise BitworthError(f"--on {on}: cells run on `ray` or ray://HOST:10001; leave --on out to run them here.")
    from bitworth.execute.fleet import FleetExecutor
    from bitworth.execute.placement import machines
    from bitworth.execute.ray import connect

    with connect(None if on == "ray" else on, out, storage=storage, note=note) as cluster:
        nodes = cluster.nodes()
        note(f"{len(nodes)} nodes of the Ray cluster run the cells.")
        executor = FleetExecutor(cluster, part_questions=part_questions, note=note)
        yield executor, machines(nodes, hardware)
