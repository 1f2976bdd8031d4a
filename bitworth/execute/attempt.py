"""One try at a cell, in the process that does the work: its result, or the sentence that says why there is none."""

from __future__ import annotations

import os
from typing import Any

from bitworth.errors import BitworthError
from bitworth.execute import Tell, Work
from bitworth.types import Cell


def attempt(cell: Cell, work: Work, root: str, tell: Tell) -> tuple[dict[str, Any] | None, str | None]:
    """(result, None), or (None, cause): a cell's fault must not take the study down."""
    try:
        return work(cell, root, tell), None
    except BitworthError as error:
        return None, str(error)
    except MemoryError:
        return None, "The cell needs more memory than this machine has."
    except Exception as error:
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        return None, f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})."
