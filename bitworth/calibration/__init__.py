"""Calibration sources to token sequences of one length.

A source is a text or JSON Lines file, or a name that stands for one (`sources`), `random` or `self`; several are mixed
by weight.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitworth.audit import adds_bos, audit_text
from bitworth.calibration.cutting import cut, largest_remainder, longest, parts_of
from bitworth.calibration.documents import documents, separates
from bitworth.calibration.synthetic import Progress, own_text, random_tokens
from bitworth.errors import BitworthError
from bitworth.guard.models import no_tokenizer
from bitworth.sources import resolve_file
from bitworth.types import OWN_TEXT, RANDOM_TOKENS, Calibration, CalibrationSource, SourceShare, TextAudit

__all__ = ["calibrate", "calibration_tokens", "load_tokenizer"]

Note = Callable[[str], None]

_NAMED = ("hub:", "demo:")


def calibrate(
    model: Path, spec: Calibration, note: Note, progress: Progress = lambda *_: None
) -> tuple[Tensor, TextAudit]:
    """The sequences (samples, length) of `calibration_tokens`, and what they hold."""
    drawing = _Drawing(model, load_tokenizer(model), spec, note, progress)
    tokens_ST, shares = drawing.mixed()
    return tokens_ST, audit_text(tokens_ST, drawing.tokenizer, shares)


def calibration_tokens(model: Path, spec: Calibration, note: Note) -> Tensor:
    """Sequences (samples, length) of token ids, cut without overlap from each source and picked in a seeded order.

    Documents of a JSONL file (`text`, `messages`, or `instruction`/`output` and the like) are joined by the end-of-text
    token. Each source of a mix gives its weight's share of the samples (largest remainder), all shuffled together. When
    a text is too short, `note` is told and fewer samples come back; of a single source, shorter ones too.

    Raises:
        BitworthError: there is no source, or a weight that is not positive; a file is missing, empty, or holds no text;
            a source of a mix does not fill one sequence; the tokenizer cannot be loaded or lacks what was asked for.
    """
    return _Drawing(model, load_tokenizer(model), spec, note, lambda *_: None).mixed()[0]


def load_tokenizer(model: Path) -> Any:
    """The model's tokenizer.

    Raises:
        BitworthError: the folder holds none that transformers can read.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        absent = f"{model} holds no tokenizer that transformers can read: {first}"
        raise BitworthError(no_tokenizer(model, absent)) from error


@dataclass(slots=True)
class _Drawing:
    """Draws the sequences of one calibration."""

    model: Path
    tokenizer: Any
    spec: Calibration
    note: Note
    progress: Progress

    def mixed(self) -> tuple[Tensor, tuple[SourceShare, ...]]:
        """All sequences in their seeded order, and how many each source gave."""
        mix, spec = self.spec.mix, self.spec
        _check(mix)
        counts = largest_remainder(spec.samples, [part.weight for part in mix])
        drawn = [self._of(part, count) for part, count in zip(mix, counts, strict=True)]
        rows = [row for part in drawn for row in part]
        if len(mix) > 1:
            random.Random(spec.seed).shuffle(rows)
        shares = tuple(
            SourceShare(source=_name(part), weight=part.weight, samples=len(found))
            for part, found in zip(mix, drawn, strict=True)
        )
        return torch.tensor(rows), shares

    def _of(self, part: CalibrationSource, count: int) -> list[list[int]]:
        if count == 0:
            self.note(f"the calibration source {_name(part)} has too small a weight for one of the samples")
            return []
        size: dict[str, Any] = {"samples": count, "length": self.spec.length, "seed": self.spec.seed}
        if part.source == RANDOM_TOKENS:
            return _rows(random_tokens(self.model, self.tokenizer, bos=self._bos(), **size))
        if part.source == OWN_TEXT:
            keep = self.spec.bos != "never"
            return _rows(own_text(self.model, self.tokenizer, keep_bos=keep, progress=self.progress, **size))
        if part.source.startswith(_NAMED):
            return self._of_file(resolve_file(part.source, "calibration text"), part, count)
        return self._of_file(Path(part.source), part, count)

    def _of_file(self, path: Path, part: CalibrationSource, count: int) -> list[list[int]]:
        ids, bos, wanted = self._ids(path), self._bos(), self.spec.length
        if len(ids) < 2:
            raise BitworthError(
                f"The calibration file {path} holds no text; give plain text or JSONL with a `text` key."
            )
        length = min(wanted, longest(ids, bos))
        if length < wanted and len(self.spec.mix) > 1:
            raise BitworthError(
                f"The calibration source {_name(part)} holds {length} tokens, which is less than one sequence of "
                f"{wanted}; give more of it, or ask for a smaller length."
            )
        pieces = cut(ids, length, bos)
        random.Random(self.spec.seed).shuffle(pieces)
        if len(pieces) < count or length < wanted:
            self.note(
                f"the calibration text {_name(part)} gives {len(pieces)} samples of {length} tokens, "
                f"not {count} of {wanted}; all of it was used"
            )
        return pieces[:count]

    def _ids(self, path: Path) -> array[int]:
        ids = array("i")  # a list would take nine times the memory
        end = self.tokenizer.eos_token_id if separates(path, self.spec.chat_template) else None
        for document in documents(path, self.tokenizer, self.spec.chat_template):
            for part in parts_of(document, self._encode):
                ids.extend(self._encode(part))
            if end is not None:
                ids.append(end)
        return ids

    def _encode(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _bos(self) -> int | None:
        """The token that each sequence starts with, or None."""
        bos: int | None = self.tokenizer.bos_token_id
        if self.spec.bos == "always" and bos is None:
            raise BitworthError("The model's tokenizer has no BOS token to start sequences with; leave `bos` at auto.")
        if self.spec.bos == "auto":
            return bos if adds_bos(self.tokenizer) else None
        return bos if self.spec.bos == "always" else None


def _check(mix: tuple[CalibrationSource, ...]) -> None:
    if not mix:
        raise BitworthError("The calibration names no source; give a file, `random` or `self`.")
    for part in mix:
        if not 0 < part.weight < float("inf"):
            raise BitworthError(
                f"The calibration source {_name(part)} has weight {part.weight:g}; it must be positive."
            )
    names = [part.source for part in mix]
    twice = next((part for part in mix if names.count(part.source) > 1), None)
    if twice is not None:
        raise BitworthError(f"The calibration source {_name(twice)} is named twice; add up its weights instead.")


def _name(part: CalibrationSource) -> str:
    return part.name or (part.source if part.source.startswith(_NAMED) else Path(part.source).name)


def _rows(tokens_ST: Tensor) -> list[list[int]]:
    rows: list[list[int]] = tokens_ST.tolist()
    return rows
