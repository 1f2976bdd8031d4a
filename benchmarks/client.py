"""What the load generator itself costs: the rate it sustains, what it adds to a latency, its memory; beside GuideLLM.

Both drive the same server in the same run, which has a process of its own and answers at once (instant_server.py):
whatever is measured is the client's, the loopback's and that server's. A rate is sustained when completions keep up
with 95 % of it, in one of two tries; of both clients' requests the first tenth is left out. Rates are one octave apart,
then the last octave is halved (twice; once with --quick). Memory is what the client's processes hold of their own, plus
the largest part that one of them may share; the most in one more run at the rate that was found, so that watching slows
no other run. The peer comes from `make peers`; without it, its claims say that nothing was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from claims import Claim, say
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bitworth.engines.guidellm import GuideLlm
from bitworth.errors import WorkFailed
from bitworth.load.metrics import Metrics, Spread, metrics_of, succeeded
from bitworth.types import EngineFacts, Load, Timing, UseCase

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".venv-peers" / "guidellm" / "bin" / "guidellm"
SHAPE = UseCase(name="64/16", prompt_tokens=64, output_tokens=16)
START = 100.0
KEEPS_UP = 0.95
MOST = 12800.0
SAMPLE_S = 0.1
RAMP = 0.1

Drive = Callable[[float, int], list[Timing]]
"""Sends so many requests at a constant rate."""


@dataclass(slots=True)
class Found:
    """What one client can do."""

    rate: float = 0.0
    latency: Spread | None = None
    memory_mib: float = math.nan
    tried: list[tuple[float, float]] = field(default_factory=list)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="runs of 2 s instead of 5, the peer's too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--guidellm", default=str(PEER), help="GuideLLM's command")
    arguments = parser.parse_args()
    seconds, halvings = (2.0, 1) if arguments.quick else (5.0, 2)
    with served() as url, tempfile.TemporaryDirectory() as scratch:
        own = explore(lambda rate, count: bitworth(url, rate, count, Path(scratch)), seconds, halvings)
        peer = None
        if Path(arguments.guidellm).is_file():
            facts = EngineFacts(engine=url, kernel="none", device="none")
            guide = GuideLlm(url, "instant", tokenizer(Path(scratch)), facts, arguments.guidellm)
            peer = explore(lambda rate, count: guidellm(guide, rate, count), seconds, halvings)
    for name, found in (("bitworth", own), ("guidellm", peer)):
        if found is not None:
            print(f"{name}: {found}", file=sys.stderr)
    say(claims(own, peer), as_json=arguments.json)


def claims(own: Found, peer: Found | None) -> list[Claim]:
    """The figures against the targets."""
    mean, p99 = latencies_ms(own)
    rows = [
        Claim("bitworth: highest rate sustained", "> 0", own.rate, "1/s", own.rate > 0),
        Claim("bitworth: mean latency at half of it", "< 5", mean, "ms", mean < 5),
        Claim("bitworth: p99 latency at half of it", "-", p99, "ms", True),
        Claim("bitworth: peak memory of all processes", "< 200", own.memory_mib, "MiB", own.memory_mib < 200),
    ]
    if peer is None or not peer.rate:
        missing = "(not measured: no GuideLLM, run `make peers`)" if peer is None else "(it sustained no rate)"
        return [
            *rows,
            Claim(f"rate over GuideLLM's {missing}", ">= 3", math.nan, "times", False),
            Claim(f"memory over GuideLLM's {missing}", "<= 0.2", math.nan, "times", False),
        ]
    times, share = own.rate / peer.rate, own.memory_mib / peer.memory_mib
    theirs, theirs_p99 = latencies_ms(peer)
    return [
        *rows,
        Claim("guidellm: highest rate sustained", "-", peer.rate, "1/s", True),
        Claim("guidellm: mean latency at half of it", "-", theirs, "ms", True),
        Claim("guidellm: p99 latency at half of it", "-", theirs_p99, "ms", True),
        Claim("guidellm: peak memory of all processes", "-", peer.memory_mib, "MiB", True),
        Claim("rate over GuideLLM's", ">= 3", times, "times", times >= 3),
        Claim("memory over GuideLLM's", "<= 0.2", share, "times", share <= 0.2),
    ]


def latencies_ms(found: Found) -> tuple[float, float]:
    """Mean and 99th percentile, in milliseconds."""
    return (math.nan, math.nan) if found.latency is None else (1000 * found.latency.mean_s, 1000 * found.latency.at(99))


def explore(drive: Drive, seconds: float, halvings: int) -> Found:
    """The highest rate that the client sustains, its memory there, and the latency at half of it."""
    found = Found()

    def run(rate: float) -> Metrics:
        metrics = metrics_of(drive(rate, math.ceil(rate * seconds)))
        found.tried.append((rate, round(metrics.queries_per_second, 1)))
        return metrics

    def keeps_up(rate: float) -> bool:
        try:
            return run(rate).queries_per_second >= KEEPS_UP * rate
        except WorkFailed:  # so many requests at once that they fail
            found.tried.append((rate, 0.0))
            return False

    def sustains(rate: float) -> bool:
        return keeps_up(rate) or keeps_up(rate)  # what else the machine does may spoil one try

    low, high = 0.0, START
    while high <= MOST and sustains(high):
        low, high = high, 2 * high
    while not low and high > 1:  # not even the first
        low, high = (high / 2, high) if sustains(high / 2) else (0.0, high / 2)
    for _ in range(halvings if low else 0):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if sustains(middle) else (low, middle)
    found.rate = low
    if low:
        with memory_of_children() as peak:
            run(low)
        found.memory_mib, found.latency = peak[0], run(low / 2).latency
    return found


def bitworth(url: str, rate: float, count: int, scratch: Path) -> list[Timing]:
    """The command as a user gives it."""
    command = [sys.executable, "-m", "bitworth", "benchmark", url, "--use-case", SHAPE.name, "--json", "--quiet"]
    command += ["--load", f"constant:{rate:g}", "--requests", str(count), "--out", str(scratch / "own")]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise WorkFailed(f"bitworth failed at {rate:g} requests a second.")
    lines = (scratch / "own" / "timings.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [Timing(**{name: value for name, value in row.items() if name != "repeat"}) for row in rows]


def guidellm(guide: GuideLlm, rate: float, count: int) -> list[Timing]:
    """The peer's command; as bitworth does, a tenth more is sent and left out."""
    ramp = math.ceil(RAMP * count)
    timings = guide.drive(SHAPE, Load(kind="constant", rate=rate), ramp + count, 0)
    return succeeded(timings[ramp:])


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The URL of the server, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "instant_server.py")], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        SERVERS.add(process.pid)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


#: Not part of any client.
SERVERS: set[int] = set()


@contextlib.contextmanager
def memory_of_children() -> Iterator[list[float]]:
    """A list whose one number is, on leaving, the most MiB that this process's other children held together."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_S):
            children = [child for child in psutil.Process().children(recursive=True) if child.pid not in SERVERS]
            held = [_held(child) for child in children]
            total = sum(own for own, _ in held) + max((shared for _, shared in held), default=0)
            peak[0] = max(peak[0], total / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _held(process: psutil.Process) -> tuple[int, int]:
    """Resident bytes that are the process's own, and those that it may share."""
    try:
        full = process.memory_full_info()
        return full.uss, full.rss - full.uss
    except psutil.Error:
        return 0, 0  # it has just ended


def tokenizer(folder: Path) -> Path:
    """A tokenizer of bytes, as a model folder: GuideLLM wants one for its prompts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
