"""What quantizing would take on this machine, before it starts: memory by formula, time and disk by estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitworth.estimate import learning, probe, quantizing, walking
from bitworth.footprint import Footprint, footprint
from bitworth.quantization import chunk_tokens, fit_groups, needed, notes_on_loading, open_decoder
from bitworth.sizes import size_within
from bitworth.streams import walks_alone
from bitworth.types import Calibration, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Seconds and MiB on disk are estimates; `notes` says what the run itself would say before it starts."""

    memory: Footprint
    seconds: float
    disk_mib: float
    notes: tuple[str, ...] = ()


def forecast(
    model: Path,
    recipes: Sequence[Recipe],
    *,
    calibration: Calibration | None = None,
    allow_group_fallback: bool = False,
    states_mib: float | None = None,
    device: str | None = None,
) -> Forecast:
    """What `quantize` would take with the same arguments; disk counts the pieces that shards are joined from.

    Raises:
        BitworthError: what `quantize` would refuse about the model, the group sizes and calibration that is missing.
    """
    if any(recipe.needs_calibration for recipe in recipes):
        calibration = needed(recipes, calibration)
    decoder = open_decoder(model, device)
    fitted = [fit_groups(decoder, recipe, allow_group_fallback) for recipe in recipes]
    shared = calibration is not None and calibration.stream == "shared"
    tokens = calibration.samples * calibration.length if calibration is not None else 0
    length = calibration.length if calibration is not None else 0
    memory = footprint(
        decoder,
        [recipe for recipe, _ in fitted],
        tokens=tokens,
        length=length,
        chunk_tokens=chunk_tokens(decoder),
        shared=shared,
        states_mib=states_mib,
    )
    rates, size = probe(), size_within(decoder)
    calibrated = [recipe for recipe in recipes if recipe.needs_calibration]
    alone = sum(walks_alone(recipe, shared=shared) for recipe in calibrated)
    streams = alone + (len(calibrated) > alone)
    singly = [quantizing(recipe, 0, size, rates) for recipe, _ in fitted]
    learners = sum(recipe.tuning is not None for recipe in recipes)
    states = (1 + streams + 2 * learners) * tokens * decoder.width * 4
    learns = sum(learning(recipe, tokens, length, size, rates) for recipe in recipes)
    return Forecast(
        memory=memory,
        seconds=round(sum(each.seconds for each in singly) + streams * walking(tokens, size, rates) + learns, 1),
        disk_mib=round((2 * sum(each.bytes for each in singly) + states) / 2**20, 1),
        notes=tuple(note for recipe, notes in fitted for note in (*notes, *notes_on_loading(decoder, recipe))),
    )
