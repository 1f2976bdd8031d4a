"""What a shell completes the names of options with; nothing here imports torch, and each list is made when asked for.

`bitworth --install-completion` sets a shell (bash, zsh, fish) up; `bitworth --show-completion` prints what it adds.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import typer

from bitworth.errors import BitworthError


def recipes(incomplete: str) -> list[str]:
    """Recipes; what may follow one once it is written out."""
    from bitworth.recipes import ADDITIONS, NAMES

    added = [name + addition for name in NAMES for addition in ADDITIONS if incomplete.startswith(name)]
    return _starting([*NAMES, *added], incomplete)


def formats(incomplete: str) -> list[str]:
    """Number formats, `all` among them."""
    from bitworth import preflight

    return _starting(("all", *preflight.NAMES), incomplete)


def predicted_formats(incomplete: str) -> list[str]:
    """Number formats that can be predicted."""
    return _starting(("bf16", "w8a8-fp", "w8a8-int", "w4a16-int"), incomplete)


def tasks(incomplete: str) -> list[str]:
    """Tasks and suites."""
    from bitworth import tasks as registry

    return _starting((*registry.NAMES, *registry.SUITES), incomplete)


def use_cases(incomplete: str) -> list[str]:
    """The paper's use cases."""
    from bitworth.workloads import NAMES

    return _starting(NAMES, incomplete)


def devices(incomplete: str) -> list[str]:
    """Rows of the catalogue."""
    from bitworth.hardware import NAMES

    return _starting(NAMES, incomplete)


def engines(incomplete: str) -> list[str]:
    """What runs a checkpoint, where it is no URL."""
    from bitworth.engines import NAMES

    return _starting(NAMES, incomplete)


def loads(incomplete: str) -> list[str]:
    """Ways in which requests arrive; those with a rate wait for it."""
    return _starting(("synchronous", "throughput", "constant:", "poisson:", "sweep"), incomplete)


def study_formats(context: typer.Context, incomplete: str) -> list[str]:
    """Formats of the study in the results folder that stands on the command line."""
    return _starting(_named(context, "formats"), incomplete)


def study_tasks(context: typer.Context, incomplete: str) -> list[str]:
    """Tasks of that study."""
    return _starting(_named(context, "tasks"), incomplete)


def study_use_cases(context: typer.Context, incomplete: str) -> list[str]:
    """Use cases of that study."""
    return _starting(_named(context, "use_cases"), incomplete)


def _named(context: typer.Context, part: str) -> list[str]:
    """Names in a part of the study; none where the folder holds no study."""
    from bitworth.ledger import Ledger

    # an option that still wants its value leaves the argument before it unparsed
    folder = context.params.get("results") or next(iter(context.args), "")
    with suppress(BitworthError, TypeError, KeyError):
        return [str(row["name"]) for row in Ledger(Path(folder)).read_study()[part]]
    return []


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
