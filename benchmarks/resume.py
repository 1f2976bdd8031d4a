"""kill -9 at random moments, then finishing: is a finished result ever lost, changed or made twice?

The demo is run once undisturbed and once killed ten times (--quick: a tenth of it, three times). Accuracy figures
must be equal to the last digit; timings are measurements of their own and are compared by whether every cell has one.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import Claim, say
from demo import smaller

from bitworth.assembly import assemble
from bitworth.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--kills", type=int, help="how often to kill (10, or 3 with --quick)")
    parser.add_argument("--beside", type=Path, help="results of an undisturbed run, instead of making them")
    parser.add_argument("--seconds", type=float, default=600.0, help="about how long that takes here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bitworth-resume-") as scratch:
        folder = Path(scratch)
        study = ROOT / "studies" / "demo.yaml"
        if arguments.quick:
            study = smaller(study, folder / "quick.yaml")
        undisturbed, whole = arguments.beside, arguments.seconds
        if undisturbed is None:
            undisturbed, began = folder / "undisturbed", time.monotonic()
            run(study, undisturbed).wait()
            whole = time.monotonic() - began
        kills = arguments.kills or (3 if arguments.quick else 10)
        harmed = killed(study, folder / "killed", kills, whole, random.Random(arguments.seed))
        same = figures(undisturbed) == figures(folder / "killed")
    say(
        [
            Claim(f"results lost, changed or made twice over {kills} kills", "0", float(harmed), "results", not harmed),
            Claim("accuracy figures equal those of the undisturbed run", "1", float(same), "yes = 1", same),
        ],
        as_json=arguments.json,
    )


def run(study: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start the study."""
    command = [sys.executable, "-m", "bitworth", "run", str(study), "--out", str(out), "--json", "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def killed(study: Path, out: Path, kills: int, whole: float, moments: random.Random) -> int:
    """Kill the study at random moments of its length, then finish it; how many finished results were harmed."""
    seen: dict[Path, tuple[int, int]] = {}
    harmed = 0
    for turn in range(kills):
        process = run(study, out)
        time.sleep(moments.uniform(3, 3 + 1.5 * whole / kills))
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1)
        now = {path: stamp(path) for path in out.glob("cells/*/[!.]*.json")}
        harmed += sum(now.get(path) != before for path, before in seen.items()) + len(Ledger(out).damaged())
        seen = now
        print(f"kill {turn + 1}: {len(seen)} results", file=sys.stderr)
    if run(study, out).wait():
        raise SystemExit("the study did not finish")
    now = {path: stamp(path) for path in out.glob("cells/*/[!.]*.json")}
    return harmed + sum(now.get(path) != before for path, before in seen.items())


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a result is written again."""
    facts = os.stat(path)
    return facts.st_mtime_ns, facts.st_ino


def figures(out: Path) -> tuple[object, ...]:
    """Everything that must not depend on being killed."""
    result = assemble(out)
    sizes = {name: (made.size_mib, made.notes) for name, made in result.checkpoints.items()}
    timed = {(cost.format, cost.use_case.name, cost.load): cost.unsupported for cost in result.costs}
    return result.recoveries, result.divergences, sizes, timed, result.missing


if __name__ == "__main__":
    main()
