"""`bitworth benchmark`: the verb's options and what it prints."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.cli import names
from bitworth.cli.console import Json, Quiet, Terminal, pairs_table
from bitworth.cli.loads import check_streams, parse_load
from bitworth.errors import BitworthError, Incomplete, Unsupported
from bitworth.ledger import write_atomic, write_json
from bitworth.types import Hardware, Limits, Load

if TYPE_CHECKING:
    from bitworth.engines.generator import Driver, Generator
    from bitworth.load.run import LoadRun
    from bitworth.load.traces import Workload

_LOCAL = ("127.0.0.1", "localhost", "::1")
#: Requests that count where several run at once, unless the user says how many; alone, fewer tell as much.
_TOGETHER, _ALONE = 100, 8


def benchmark(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint or model folder, hub id, or URL of a running server.")],
    use_case: Annotated[
        list[str] | None,
        typer.Option(
            help="A use case of the paper or PROMPT/OUTPUT tokens; several are mixed, rag=2 weighs one twice.",
            autocompletion=names.use_cases,
        ),
    ] = None,
    scale: Annotated[float, typer.Option(help="Shrink the use cases by this factor.", min=1e-6, max=1.0)] = 1.0,
    trace: Annotated[
        Path | None, typer.Option(help="Replay a trace instead: JSON Lines of time_s, prompt_tokens, output_tokens.")
    ] = None,
    load: Annotated[
        str,
        typer.Option(
            help="synchronous, throughput, constant:RATE, poisson:RATE (requests a second) or sweep.",
            autocompletion=names.loads,
        ),
    ] = "synchronous",
    streams: Annotated[int | None, typer.Option(help="Requests at once under throughput.", min=1)] = None,
    max_ttft_s: Annotated[float | None, typer.Option(help="Sweep: most seconds to the first token.", min=0)] = None,
    max_itl_s: Annotated[float | None, typer.Option(help="Sweep: most seconds between tokens.", min=0)] = None,
    max_latency_s: Annotated[float | None, typer.Option(help="Sweep: most seconds a request.", min=0)] = None,
    percentile: Annotated[float, typer.Option(help="Sweep: which percentile keeps to them.", min=1, max=99.99)] = 95.0,
    engine: Annotated[
        str,
        typer.Option(help="torch, vllm, or the URL of an OpenAI-compatible server.", autocompletion=names.engines),
    ] = "torch",
    requests: Annotated[
        int | None,
        typer.Option(help="Requests that count (8 alone or with torch; 100, or five a stream if more).", min=1),
    ] = None,
    warmup: Annotated[int, typer.Option(help="Requests before those that count, one at a time.", min=0)] = 1,
    repeat: Annotated[int, typer.Option(help="Measure all of it so many times.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of mixes and arrival times.")] = 0,
    client: Annotated[
        Literal["bitworth", "guidellm"], typer.Option(help="Who sends the requests to a server.")
    ] = "bitworth",
    guidellm: Annotated[str, typer.Option(help="GuideLLM's command, where it is not on the PATH.")] = "guidellm",
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's folder, where a URL alone is given: for prompts of exact length.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name at a server that has several.")] = None,
    silent_s: Annotated[
        float, typer.Option(help="A request fails when the server sends nothing for so long.", min=0.01)
    ] = 600.0,
    wait_s: Annotated[float, typer.Option(help="Wait so long for a server that is still starting.", min=0)] = 0.0,
    hardware: Annotated[
        str, typer.Option(help="The row of the catalogue whose price counts.", autocompletion=names.devices)
    ] = "local",
    count: Annotated[int, typer.Option(help="Devices of that row.", min=1)] = 1,
    usd_per_hour: Annotated[float | None, typer.Option(help="Your price an hour for all of it.", min=0)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the figures (benchmark.json) and every request (timings.jsonl).")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time a checkpoint or a running server under a use case, a mix or a trace, and price it."""
    from bitworth.engines.schedule import loop_of
    from bitworth.hardware import hardware as row_of
    from bitworth.load.rates import ENOUGH_BATCHES

    terminal = Terminal(as_json=json, quiet=quiet)
    row = row_of(hardware, count)
    if usd_per_hour is not None:
        row = replace(row, usd_per_hour=usd_per_hour, price_source="the command line")
    limits = Limits(
        max_first_token_s=max_ttft_s, max_inter_token_s=max_itl_s, max_latency_s=max_latency_s, percentile=percentile
    )
    workload = parse_workload(use_case or [], scale, trace)
    arrival = Load(kind="trace") if trace is not None else parse_load(load, streams, limits)
    _check_options(arrival, streams, limits)
    target = _Target(checkpoint, engine, tokenizer, model, silent_s, wait_s, terminal)
    together = arrival.kind != "synchronous" and target.engine != "torch"
    settings: dict[str, Any] = {
        "requests": requests or (max(_TOGETHER, ENOUGH_BATCHES * (loop_of(arrival) or 0)) if together else _ALONE),
        "warmup": warmup,
        "repeats": repeat,
        "seed": seed,
    }
    if out is not None:  # before anything is measured
        _check_folder(out)
    document = _measured(target, workload, arrival, row, client, guidellm, settings, out)
    if out is not None:
        write_json(out / "benchmark.json", document)
    terminal.answer(document, lambda: _shown(document))
    if document.get("unsupported"):
        raise Incomplete(f"Nothing was measured: {document['unsupported']}")


def _check_options(load: Load, streams: int | None, limits: Limits) -> None:
    """Refuse options that the load does not have.

    Raises:
        BitworthError: streams without throughput, limits without a sweep.
    """
    check_streams(load, streams)
    if limits != Limits(percentile=limits.percentile) and load.kind != "sweep":
        raise BitworthError(f"--max-ttft-s, --max-itl-s, --max-latency-s are for --load sweep; {load.kind} has none.")


def _check_folder(out: Path) -> None:
    """Refuse what cannot become a folder for results; nothing is made yet."""
    from bitworth.diagnosis import nearest

    place = nearest(out)
    if not place.is_dir() or not os.access(place, os.W_OK):
        why = "is a file" if place.is_file() else "cannot be written"
        raise BitworthError(f"--out {out} cannot be a folder for results: {place} {why}.")


def parse_workload(use_cases: list[str], scale: float, trace: Path | None) -> Workload:
    """One use case, several with weights (`rag=2`), or a trace.

    Raises:
        BitworthError: neither or both, a use case that is unknown, or a weight that is none.
    """
    from bitworth.load.traces import Workload, read_trace
    from bitworth.workloads import use_case as shape_of

    if bool(use_cases) == (trace is not None):
        raise BitworthError("Say what to ask: --use-case NAME (once, or several for a mix) or --trace FILE.")
    if trace is not None:
        return Workload(name=trace.stem, trace=read_trace(trace))
    parts = []
    for text in use_cases:
        name, given, weight = text.partition("=")
        if given and not re.fullmatch(r"\d+(\.\d*)?|\.\d+", weight):
            raise BitworthError(f"use case '{text}': write a positive number as its weight, such as {name}=2.")
        parts.append((shape_of(name).scaled(scale), float(weight) if given else 1.0))
    return Workload(name=" + ".join(use_cases) if len(parts) > 1 else parts[0][0].name, parts=tuple(parts))


class _Target:
    """What is measured: a folder and the engine that runs it, or a server at a URL."""

    def __init__(
        self,
        checkpoint: str,
        engine: str,
        tokenizer: Path | None,
        model: str | None,
        silent_s: float,
        wait_s: float,
        terminal: Terminal,
    ) -> None:
        from bitworth import sources

        given = checkpoint.startswith(("http://", "https://"))
        self.engine = checkpoint if given else engine
        self.folder = tokenizer if given else sources.resolve_model(checkpoint, note=terminal.note)
        if self.folder is not None and not self.folder.is_dir():
            raise BitworthError(f"{self.folder} is not a model folder.")
        self.name, self.terminal = model, terminal
        self.silent_s, self._wait_s = silent_s, wait_s

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine."""
        return not self.engine.startswith("http") or urlsplit(self.engine).hostname in _LOCAL

    @contextmanager
    def running(self, context_tokens: int) -> Iterator[Generator]:
        """The engine, up."""
        from bitworth.engines import open_generator

        with open_generator(
            self.engine,
            self.folder,
            context_tokens=context_tokens,
            name=self.name,
            silent_s=self.silent_s,
            wait_s=self._wait_s,
        ) as generator:
            yield generator

    def vocabulary(self) -> Any:
        """Ids for prompts."""
        from bitworth.load.prompts import ANY_VOCABULARY, ordinary_tokens

        return ANY_VOCABULARY if self.folder is None else ordinary_tokens(self.folder)


def _measured(
    target: _Target,
    workload: Workload,
    load: Load,
    row: Hardware,
    client: str,
    guidellm: str,
    settings: dict[str, Any],
    out: Path | None,
) -> dict[str, Any]:
    """The document; what an engine cannot run here gives one that says so."""
    from bitworth.benchmarking import check_hardware, cost_of
    from bitworth.load.document import load_as_json
    from bitworth.load.run import run_load
    from bitworth.report import cost_as_json

    check_hardware(row, target.engine)
    vocabulary = target.vocabulary()
    try:
        with target.running(workload.context_tokens) as generator, target.terminal.steps("benchmark") as step:
            run = run_load(
                _guided(generator, target, guidellm) if client == "guidellm" else generator,
                workload,
                load,
                vocabulary=vocabulary,
                meter_gpu=target.is_local,
                progress=lambda done, total: step("requests", done, total),
                **settings,
            )
    except Unsupported as reason:
        cost = cost_of("checkpoint", None, workload.use_case, load, row, unsupported=str(reason))
        return cost_as_json(cost)
    cost = cost_of("checkpoint", run.measurement, workload.use_case, load, row)
    if out is not None:
        write_atomic(out / "timings.jsonl", _lines(run))
    return cost_as_json(cost) | {"client": client, **load_as_json(run, row.usd_per_hour)}


def _guided(generator: Generator, target: _Target, command: str) -> Driver:
    """GuideLLM in front of a server."""
    from bitworth.engines.guidellm import GuideLlm

    url, name = getattr(generator, "url", None), getattr(generator, "model", None)
    if url is None or name is None:
        raise BitworthError(f"GuideLLM drives servers only; the engine {target.engine} has no URL.")
    if target.folder is None:
        raise BitworthError("GuideLLM makes its prompts with a tokenizer; give the model's folder with --tokenizer.")
    return GuideLlm(url, name, target.folder, generator.facts, command, target.silent_s)


def _lines(run: LoadRun) -> str:
    """Every request as a line of JSON; `bitworth.load.chunks` unpacks when its tokens came."""
    from json import dumps

    rows = ({"repeat": number, **asdict(timing)} for number, part in enumerate(run.timings) for timing in part)
    return "".join(f"{dumps(row)}\n" for row in rows)


# --- what people read ---------------------------------------------------------------------------------------------


def _shown(document: dict[str, Any]) -> RenderableType:
    parts = [pairs_table("Cost", document)]
    if document.get("metrics"):
        parts.append(spreads_table(document["metrics"]))
    if document.get("sweep"):
        parts.append(_rates_table(document["sweep"]))
    return Group(*parts, *(Text(note) for note in document.get("notes", [])))


def spreads_table(metrics: dict[str, Any]) -> RenderableType:
    """Latencies by percentile, then the plain figures."""
    table = Table("milliseconds", "mean", "p50", "p90", "p95", "p99")
    rows = {
        "latency": "latency_s",
        "time to first token": "first_token_s",
        "inter-token": "inter_token_s",
        "per output token": "per_output_token_s",
        "client late": "client_late_s",
    }
    for title, name in rows.items():
        if metrics[name] is not None:
            table.add_row(title, *(f"{1000 * value:,.2f}" for value in metrics[name].values()))
    return Group(table, pairs_table("Rates", metrics))


def _rates_table(sweep: dict[str, Any]) -> RenderableType:
    table = Table("requests a second", "keeps to the limits", "why not")
    for row in sorted(sweep["rates"], key=lambda row: row["rate_per_second"]):
        why = "; ".join([*row["broken"], *([row["void"]] if row["void"] else [])])
        table.add_row(f"{row['rate_per_second']:.3g}", "yes" if row["passes"] else "no", why)
    return table
