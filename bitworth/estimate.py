"""About how long a study's cells take on this machine and what they leave on its disk, before any is run.

Arithmetic and bytes moved, from tensor shapes alone, over this machine's rates, which a probe of half a second
measures; meant to tell minutes from hours. Cells that start a server stray furthest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitworth import tasks
from bitworth.ledger import key_of, revive
from bitworth.load.rates import ramp_of
from bitworth.quantization import LARGE_CHUNK_TOKENS
from bitworth.sizes import Size, checkpoint_bytes, size_of
from bitworth.types import OWN_TEXT, Cell, Recipe

_START_S = 8.0
"""Importing torch and transformers and loading a model, once a cell that uses one."""
_TEXT_BYTES_A_TOKEN = 4.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What this machine does: float32 operations and bytes read a second."""

    operations: float
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds of work and bytes left on disk."""

    seconds: float
    bytes: float = 0


_UNKNOWN = Estimate(seconds=math.nan, bytes=math.nan)


def estimates(cells: Sequence[Cell]) -> dict[str, Estimate]:
    """Each cell's estimate by its key; not a number where the model is not on this machine."""
    rates = probe()
    sizes: dict[str, Size] = {}
    found = {}
    for cell in cells:
        base = cell.where.get("model") or cell.where["checkpoint"]
        if Path(base).is_absolute() and base not in sizes:
            sizes[base] = size_of(Path(base))
        # checkpoints that are still to be made have the shape of the model they are made from
        size = sizes.get(base) or next(iter(sizes.values()), None)
        found[key_of(cell)] = _estimate(cell, size, rates) if size is not None else _UNKNOWN
    return found


def probe(seconds: float = 0.25) -> Rates:
    """Measure a matrix product and a pass over memory."""
    import torch

    square, flat = torch.ones(768, 768), torch.ones(16 << 20)
    products = _repeat(lambda: square @ square, seconds)
    passes = _repeat(flat.sum, seconds)
    return Rates(operations=2 * 768**3 * products, bytes=flat.nbytes * passes)


def _repeat(work: object, seconds: float) -> float:
    """How often a second `work` can be called, after one call to warm up."""
    assert callable(work)
    work()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - began)


def _estimate(cell: Cell, size: Size, rates: Rates) -> Estimate:
    forward = 2 * size.used / rates.operations  # seconds a token
    head = 2 * size.head / rates.operations
    if cell.kind == "quantize":
        return _quantize(cell, size, rates, forward)
    if cell.kind == "evaluate":
        task = tasks.get(cell.inputs["task"]["name"])
        questions = min(cell.inputs["task"]["limit"] or task.questions, task.questions)
        samples = cell.inputs["task"].get("samples") or task.samples
        each = task.tokens + samples * task.answer_tokens
        return Estimate(seconds=_START_S + 1.5 * questions * each * forward)
    if cell.kind == "diverge":
        tokens = Path(cell.where["text"]).stat().st_size / _TEXT_BYTES_A_TOKEN
        if cell.inputs["windows"]:
            tokens = min(tokens, cell.inputs["windows"] * cell.inputs["window"])
        models = 2 if cell.inputs["baseline"] else 1
        return Estimate(seconds=_START_S + 1.5 * models * tokens * (forward + head))
    return Estimate(seconds=_START_S + _requests(cell, size, rates, forward + head))


def _quantize(cell: Cell, size: Size, rates: Rates, forward: float) -> Estimate:
    calibration = cell.inputs["calibration"]
    tokens = calibration["samples"] * calibration["length"] if calibration is not None else 0
    recipe = revive(Recipe, cell.inputs["recipe"])
    found = quantizing(recipe, tokens, size, rates)
    beside = 0.0
    if calibration is not None:
        beside = _own_text(cell, size, rates, forward) + learning(recipe, tokens, calibration["length"], size, rates)
    return Estimate(seconds=found.seconds + beside, bytes=found.bytes)


def quantizing(recipe: Recipe, tokens: int, size: Size, rates: Rates) -> Estimate:
    """One recipe alone on so many calibration tokens (0: none); its checkpoint's bytes."""
    seconds = _START_S + 4 * (size.linear + size.head) / rates.bytes * 10
    return Estimate(seconds=seconds + walking(tokens, size, rates), bytes=checkpoint_bytes(recipe, size))


def walking(tokens: int, size: Size, rates: Rates) -> float:
    """Seconds of one stream's forward passes, second moments and roundings.

    A mixture that several chunks go through is passed three times: for gate and up, for down, and to go on.
    """
    if not tokens:
        return 0.0
    passes = 3 if size.used < size.linear and tokens > LARGE_CHUNK_TOKENS else 1
    forward = passes * 2 * size.used / rates.operations
    moments = 2 * size.used_squares * 4 / 7 / rates.operations  # q, k, v share theirs, and so do gate and up
    return 1.7 * (tokens * (forward + moments) + size.rounding / rates.operations)


def learning(recipe: Recipe, tokens: int, length: int, size: Size, rates: Rates) -> float:
    """Seconds of a recipe's steps after rounding, and of passing all tokens once before and once after them."""
    if recipe.tuning is None:
        return 0.0
    forward = 2 * size.used / rates.operations
    steps = recipe.tuning.steps * recipe.tuning.batch * recipe.tuning.read(length)
    return 1.7 * forward * (3 * steps + 2 * tokens)


def _own_text(cell: Cell, size: Size, rates: Rates, forward: float) -> float:
    """Writing the calibration's own share of text: 32 sequences side by side, a token of each at a time."""
    calibration = cell.inputs["calibration"]
    rows = calibration["sources"]
    own = sum(row["weight"] for row in rows if row["content"].startswith(OWN_TEXT))
    samples = calibration["samples"] * own / sum(row["weight"] for row in rows)
    step = max(32 * forward, 4 * (size.linear + size.head) / rates.bytes)
    return float(samples / 32 * calibration["length"] * step)


def _requests(cell: Cell, size: Size, rates: Rates, forward: float) -> float:
    use_case: dict[str, int] = cell.inputs["use_case"]
    load, count = cell.inputs["load"], int(cell.inputs["requests"])
    streams: int = load["streams"] or 1
    ramp = ramp_of(count, streams if load["kind"] == "throughput" else None) if "ramp" in cell.inputs else 0
    requests = 1 + ramp + count
    step = max(forward * min(streams, requests), 4 * (size.linear + size.head) / rates.bytes)
    rounds = -(-requests // streams)
    return 1.5 * (requests * use_case["prompt_tokens"] * forward + rounds * use_case["output_tokens"] * step)
