"""Does a process that runs study after study grow, or leave anything behind?

Small studies with the fake engine, each in a fresh folder, through the verbs of the command line: plan, run, status,
recommend, report. Cells run in this process, so that what they leak is seen here; every tenth study runs them in a
worker process, as `bitworth run` does. After a warm-up nothing may be more than it was: memory, processes, threads,
open files, sockets that listen, semaphores, temporary files.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import psutil
from claims import Claim, say

from bitworth import running
from bitworth.cli import app
from bitworth.execute import Watcher, Work
from bitworth.types import Cell

WARM_UP = 3
"""Studies before what there is counts as what there was."""
_WORKER_EVERY = 10
_MOST_MIB_A_STUDY = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the process holds after a study; names where there are any, so that a leak can be told."""

    rss_mib: float
    children: tuple[str, ...]
    threads: int
    descriptors: int
    listening: int
    semaphores: tuple[str, ...]
    temporary: tuple[str, ...]


class InProcess:
    """An executor without a worker."""

    def run(self, cells: Iterable[Cell | None], work: Work, root: str, watcher: Watcher) -> None:
        """One cell after another; a failure is the soak's own."""
        for cell in filter(None, cells):
            watcher.ended(cell, work(cell, root, lambda *_: None), None, 1.0)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--minutes", type=float, help="how long (10)")
    arguments = parser.parse_args()
    minutes = arguments.minutes or (0.5 if arguments.quick else 10.0)
    before = _semaphores()
    with tempfile.TemporaryDirectory(prefix="bitworth-soak-") as scratch:
        found = soak(Path(scratch), minutes, before)
    _explain(found)
    say(claims(found), as_json=arguments.json)


def soak(scratch: Path, minutes: float, before: frozenset[str]) -> list[Held]:
    """What was held after each study, until the time is up; at least a few after the warm-up."""
    study, temporary = _study(scratch), scratch / "tmp"
    temporary.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    found: list[Held] = []
    end = time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < end or len(found) < WARM_UP + 4:
            _round(study, scratch / "results", in_worker=len(found) % _WORKER_EVERY == 1)
            found.append(_held(temporary, before))
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
    return found


def claims(found: Sequence[Held]) -> list[Claim]:
    """What grew since the warm-up."""
    first, rest = found[WARM_UP - 1], found[WARM_UP:]
    growth = slope([held.rss_mib for held in rest])
    counted = [("threads", "threads"), ("open files and sockets", "descriptors"), ("listening sockets", "listening")]
    named = [("child processes", "children"), ("semaphores", "semaphores"), ("temporary files", "temporary")]
    more = {what: max(getattr(held, name) for held in rest) - getattr(first, name) for what, name in counted}
    more |= {what: max(len(getattr(held, name)) for held in rest) for what, name in named}
    return [
        Claim("studies run", ">= 7", float(len(found)), "studies", len(found) >= WARM_UP + 4),
        Claim("memory's growth a study", f"< {_MOST_MIB_A_STUDY}", growth, "MiB", growth < _MOST_MIB_A_STUDY),
        *(Claim(f"{what} left", "0", float(count), "", count <= 0) for what, count in more.items()),
    ]


def slope(values: Sequence[float]) -> float:
    """The median of all pairs' slopes (Theil and Sen): one study that grew for once does not count as growth."""
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(values), 2))


def _round(study: Path, out: Path, *, in_worker: bool) -> None:
    shutil.rmtree(out, ignore_errors=True)
    _verb("plan", study, "--out", out)
    if in_worker:
        _verb("run", study, "--out", out)
    else:
        running.run(study, out, executor=InProcess())
    for verb in ("status", "recommend", "report"):
        _verb(verb, out)
    leavings = [path.name for path in out.rglob("*") if path.name.endswith(".tmp")]
    if leavings:
        raise AssertionError(f"left in the results: {leavings}")


def _verb(*arguments: object) -> None:
    """One verb with --json; what it prints must be one document."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        app([str(argument) for argument in (*arguments, "--json")], standalone_mode=False)
    json.loads(printed.getvalue())


def _held(temporary: Path, before: frozenset[str]) -> Held:
    gc.collect()
    process = psutil.Process()
    trackers = "multiprocessing.resource_tracker"  # Python's own, one a process, for good
    children = [" ".join(child.cmdline()) for child in process.children(recursive=True)]
    return Held(
        rss_mib=process.memory_info().rss / 2**20,
        children=tuple(child for child in children if trackers not in child),
        threads=process.num_threads(),
        descriptors=process.num_fds(),
        listening=sum(one.status == psutil.CONN_LISTEN for one in process.net_connections()),
        semaphores=tuple(sorted(_semaphores() - before)),
        temporary=tuple(sorted(path.name for path in temporary.rglob("*"))),
    )


def _semaphores() -> frozenset[str]:
    """Named semaphores and shared memory of this user; elsewhere than on Linux they cannot be listed."""
    folder = Path("/dev/shm")
    owned = [path for path in folder.glob("*") if path.exists() and path.stat().st_uid == os.getuid()]
    return frozenset(path.name for path in owned)


def _explain(found: Sequence[Held]) -> None:
    for number, held in enumerate(found):
        if number % max(1, len(found) // 20) == 0 or number == len(found) - 1:
            print(f"study {number}: {held.rss_mib:.1f} MiB, {held.threads} threads, {held.descriptors} descriptors",
                  *held.children, *held.semaphores, *held.temporary, file=sys.stderr)  # fmt: skip


def _study(scratch: Path) -> Path:
    """A study of a random two-layer Llama that takes a second."""
    import yaml

    words = ("the", "cat", "sat", "on", "a", "red", "mat", "and", "then", "it", "ran")
    shuffled = random.Random(0)
    (scratch / "text.txt").write_text(" ".join(shuffled.choice(words) for _ in range(800)))
    _save_model(scratch / "model")
    path = scratch / "study.yaml"
    study = {
        "model": str(scratch / "model"),
        "formats": ["baseline", "w8a8-fp", "w4a16-int-gptq"],
        "group_size": 32,
        "calibration": {"source": str(scratch / "text.txt"), "samples": 2, "length": 32},
        "divergence": {"text": str(scratch / "text.txt"), "window": 32, "windows": 2},
        "use_cases": ["16/4"],
        "loads": ["synchronous", {"kind": "throughput", "streams": 4}],
        "requests": 4,
        "engine": "fake",
    }
    path.write_text(yaml.safe_dump(study))
    return path


def _save_model(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=258, bos_token_id=256, eos_token_id=257)).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, "<bos>", "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)


if __name__ == "__main__":
    main()
