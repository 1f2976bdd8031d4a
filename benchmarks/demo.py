"""The demo end to end in a fresh results folder: wall time and peak memory of the whole process tree.

--fresh-cache also fetches the demo's model and data again; --quick runs the smallest study that passes every stage.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml
from claims import Claim, say

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fresh-cache", action="store_true", help="count the downloads too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bitworth-demo-") as scratch:
        study = ROOT / "studies" / "demo.yaml"
        if arguments.quick:
            study = smaller(study, Path(scratch) / "quick.yaml")
        environment = dict(os.environ)
        if arguments.fresh_cache:
            environment["BITWORTH_CACHE"] = str(Path(scratch) / "cache")
        seconds, peak_gib = timed_run(study, Path(scratch) / "out", environment)
    claims = [
        Claim("demo: wall time", "<= 15 min", seconds / 60, "min", seconds <= 900),
        Claim("demo: peak memory of all its processes", "<= 6 GiB", peak_gib, "GiB", peak_gib <= 6),
    ]
    say(claims, as_json=arguments.json)


def smaller(study: Path, path: Path) -> Path:
    """The study with a tenth of its questions, requests and calibration."""
    content = yaml.safe_load(study.read_text())
    for task in content["tasks"]:
        task["limit"] //= 10
    content["calibration"]["samples"] = 4
    content["divergence"]["windows"] = 2
    content["requests"] = 2
    path.write_text(yaml.safe_dump(content))
    return path


def timed_run(study: Path, out: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the most GiB that the command and its children held together, sampled ten times a second."""
    began = time.monotonic()
    command = [sys.executable, "-m", "bitworth", "run", str(study), "--out", str(out), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the study ended with exit code {process.returncode}")
    return time.monotonic() - began, peak / 2**30


def resident(pid: int) -> int:
    """Resident bytes of a process and its descendants."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it ended between two looks
    return total


if __name__ == "__main__":
    main()
