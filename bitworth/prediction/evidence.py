"""The paper's speed tables as cells: what it measured, without what it misprinted.

Table 5 has latencies of requests one at a time, table 6 the most queries a second; both have the seven use cases. Cells
that contradict their neighbours in print are left out by name, in `DEFECTS`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Literal

from bitworth.hardware import hardware
from bitworth.prediction.architecture import Architecture
from bitworth.prediction.formats import kernel
from bitworth.prediction.roofline import Deployment
from bitworth.prediction.serving import Server
from bitworth.types import Hardware, UseCase

Table = Literal["synchronous", "throughput"]

#: The Llama 3.1 models of the paper, as their config.json gives them.
_SHAPES = {"8B": (32, 4096, 32, 14336), "70B": (80, 8192, 64, 28672), "405B": (126, 16384, 128, 53248)}
MODELS = {
    size: Architecture(
        layers=layers, hidden=hidden, heads=heads, kv_heads=8, head_dim=128, width=width, vocabulary=128256
    )
    for size, (layers, hidden, heads, width) in _SHAPES.items()
}
FORMATS = {"BF16": "bf16", "FP8": "w8a8-fp", "INT8": "w8a8-int", "INT4": "w4a16-int"}
#: (table, size, GPU, use case): cells of all formats that are printed about twice too fast.
DEFECTS = {
    ("synchronous", "70B", "A100", "docstring"),
    ("synchronous", "70B", "A6000", "docstring"),
    ("throughput", "70B", "A100", "docstring"),
}
#: vLLM 0.6.4's defaults for a model of long contexts (2,048 tokens a pass came later, with vLLM's pull request 10544).
SERVER = Server(sequences=256, pass_tokens=512)
#: A run of table 6: seconds, and requests that its load generator (GuideLLM 0.1) keeps under way.
RUN_S, STREAMS = 360.0, 512
#: Table 6, 405B on 16 A100: queries a dollar are printed at the price of 16 H100; only the rates count.
MISPRICED = ("405B", "A100")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One printed figure: seconds (synchronous) or queries a second (throughput), and half of its last digit."""

    table: Table
    size: str
    hardware: Hardware
    format: str
    case: UseCase
    value: float
    half_digit: float

    @property
    def group(self) -> tuple[str, str]:
        """What is held out together: model size and GPU."""
        return self.size, self.hardware.name

    @cached_property
    def deployment(self) -> Deployment:
        """All the devices as one copy of the model."""
        return Deployment(architecture=MODELS[self.size], kernel=kernel(self.format), hardware=self.hardware)

    @property
    def queries_per_usd(self) -> float:
        """At the catalogue's price."""
        rate = 1 / self.value if self.table == "synchronous" else self.value
        return 3600 * rate / self.hardware.usd_per_hour


@cache
def cells(table: Table) -> tuple[Cell, ...]:
    """A table's cells without the defects."""
    name = "table05_synchronous.csv" if table == "synchronous" else "table06_asynchronous.csv"
    found = (cell for row in _rows(name) for cell in _cells(table, row))
    return tuple(cell for cell in found if (table, *cell.group, cell.case.name) not in DEFECTS)


@cache
def cases() -> tuple[UseCase, ...]:
    """The paper's use cases, as its table gives them."""
    return tuple(
        UseCase(name=row["use_case"], prompt_tokens=int(row["prefill_tokens"]), output_tokens=int(row["decode_tokens"]))
        for row in _rows("use_cases.csv")
    )


def _cells(table: Table, row: dict[str, str]) -> Iterator[Cell]:
    if table == "synchronous":
        name, count, column = row["gpu"], int(row["num_gpus"]), "latency_s"
    else:
        devices, _, name = row["hardware"].partition("x")
        count, column = int(devices), "qps"
    for case in cases():
        cell = Cell(
            table=table,
            size=row["size"],
            hardware=hardware(name, count),
            format=FORMATS[row["format"]],
            case=case,
            value=float(row[f"{case.name}_{column}"]),
            half_digit=0.05,
        )
        yield cell if table == "synchronous" else _sharpened(cell, float(row[f"{case.name}_q_per_usd"]))


def _sharpened(cell: Cell, per_usd: float) -> Cell:
    """The rate that both printed figures round to: rates have one decimal, queries a dollar two digits or more."""
    if cell.group == MISPRICED:
        return cell
    price = cell.hardware.usd_per_hour
    step = 0.5 if per_usd < 1000 and cell.size == "405B" else 50.0
    low = max(cell.value - 0.05, (per_usd - step) * price / 3600)
    high = min(cell.value + 0.05, (per_usd + step) * price / 3600)
    if low >= high:
        return cell
    return replace(cell, value=(low + high) / 2, half_digit=(high - low) / 2)


def _rows(name: str) -> list[dict[str, str]]:
    text = (files("bitworth.paper") / "tables" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
