"""Do documents of others ever crash or hang a reader? Valid ones, made wrong at random, for as long as asked.

Every reader of `parsers` gets about the same time, in this process. A crash is any exception but the reader's own
sentence; a hang is more than a second of CPU time (a paused machine is none). What crashed is kept with --keep, and the
seed gives each reader the same documents in the same order again; how many of them it comes to depends on the time.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from claims import Claim, say
from mutations import wild_value, written
from parsers import Parser, parsers, read

HANG_S = 1.0
_WILD = 0.03
"""Share of documents that are no valid one made wrong, but any value at all."""


class Hang(BaseException):
    """A reader took too long; no Exception, so that no reader takes it for its own."""


@dataclass(slots=True)
class Found:
    """What a run came to; `crashes` and `hangs` count documents by the place in the code."""

    inputs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    hangs: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 documents")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inputs", type=int, help="documents (1,000,000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of CPU time, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="readers whose name holds this")
    parser.add_argument("--keep", type=Path, help="a folder for one document of each kind of crash")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    count = arguments.inputs or (20_000 if arguments.quick else 1_000_000)
    with tempfile.TemporaryDirectory(prefix="bitworth-fuzz-") as scratch:
        readers = [one for one in parsers(Path(scratch)) if (arguments.only or "") in one.name]
        found = fuzz(readers, count, arguments.seconds, arguments.seed, arguments.keep)
    _explain(found)
    total, least = found.inputs.total(), min(found.inputs.values())
    say(
        [
            Claim("documents read", f">= {count}", float(total), "inputs", total >= count),
            Claim(
                f"documents of the slowest of {len(readers)} readers", ">= 100", float(least), "inputs", least >= 100
            ),
            Claim("crashes", "0", float(found.crashes.total()), "inputs", not found.crashes),
            Claim(f"documents that took over {HANG_S:g} s", "0", float(found.hangs.total()), "inputs", not found.hangs),
        ],
        as_json=arguments.json,
    )


def fuzz(readers: list[Parser], count: int, seconds: float, seed: int, keep: Path | None) -> Found:
    """Give `count` documents to the readers, each time to the one that has had least time so far."""
    chances = {reader.name: random.Random(f"{seed} {reader.name}") for reader in readers}
    found, end = Found(), time.process_time() + seconds
    previous = signal.signal(signal.SIGPROF, _stop)
    for reader in readers:
        for valid in reader.seeds:
            reader.read(valid)  # the first reading may import, and a valid document must be read
    found = Found()
    try:
        for _ in range(count):
            if time.process_time() > end:
                break
            reader = min(readers, key=lambda one: found.seconds[one.name])
            rng = chances[reader.name]
            data = written(wild_value(rng)) if rng.random() < _WILD else reader.mutate(rng, reader.seeds)
            _try(reader, data, found, keep)
    finally:
        signal.signal(signal.SIGPROF, previous)
    return found


def _try(reader: Parser, data: bytes, found: Found, keep: Path | None) -> None:
    began = time.process_time()
    where = _outcome(reader, data, found)
    found.inputs[reader.name] += 1
    found.seconds[reader.name] += time.process_time() - began  # type: ignore[assignment]
    if where is not None and keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / f"{reader.name.replace(' ', '-')}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
        if not path.exists():
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(where, encoding="utf-8", errors="replace")


def _outcome(reader: Parser, data: bytes, found: Found) -> str | None:
    """Where a reading went wrong; None for a value or a refusal."""
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        found.refused[reader.name] += read(reader, data) is not None
        return None
    except Hang as error:
        where = f"{reader.name}: hangs at {_place(error)}"
        found.hangs[where] += 1
    except Exception as error:
        where = f"{reader.name}: {type(error).__name__} at {_place(error)}: {str(error)[:160]}"
        found.crashes[where.partition(": ")[0] + ": " + where.split(": ")[1]] += 1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return where


def _place(error: BaseException) -> str:
    """The last line of the traceback that is in bitworth."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/bitworth/" in frame.filename] or list(frames)
    return f"{own[-1].filename.rpartition('/bitworth/')[2]}:{own[-1].lineno}"


def _stop(*_: object) -> None:
    raise Hang


def _explain(found: Found) -> None:
    """How many of what, on stderr."""
    for name, count in found.inputs.items():
        print(f"{name:<32} {count:>9,} inputs, {found.refused[name]:>9,} refused", file=sys.stderr)
    for what, places in (("crash", found.crashes), ("hang", found.hangs)):
        for where, count in places.most_common():
            print(f"{what} x {count}: {where}", file=sys.stderr)


if __name__ == "__main__":
    main()
