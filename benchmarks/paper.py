"""The paper's tables computed again: is every disagreement explained, are known defects found, how long does it take?

The known defects were found by hand, before the rules were written, and are matched by kind and cell. `--quick` is the
same run; it takes a second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from claims import Claim, say

from bitworth.paper.defects import Defect
from bitworth.paper.review import review

_KNOWN: dict[str, tuple[str, str]] = {
    "price of 405B on 16xA100": ("price", "405B 16xA100 BF16"),
    "Arena-Hard of 70B exchanged": ("swapped", "70B W4A16-INT"),
    "average of 70B AWQ": ("arithmetic", "70B AWQ"),
    "MMLU of 70B": ("differs", "70B GPTQ"),
    "docstring of 70B on A100": ("out of line", "70B 1xA100 INT4"),
    "latency gains of 70B": ("text", ""),
}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = review()
    blamed = {key for defect in found.defects for key in defect.cells}
    explained = sum(check.agrees or (check.table, check.row, check.column) in blamed for check in found.checks)
    hits = sum(any(_is(defect, *known) for defect in found.defects) for known in _KNOWN.values())
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "bitworth", "paper", "--json"], stdout=subprocess.DEVNULL, check=True)
    took = time.monotonic() - began
    total = len(found.checks)
    say(
        [
            Claim(
                "derived figures that agree or lie in a defect", f"{total}", explained, "figures", explained == total
            ),
            Claim("defects known beforehand that are found", f"{len(_KNOWN)}", hits, "defects", hits == len(_KNOWN)),
            Claim("bitworth paper --json", "< 10", took, "s", took < 10),
        ],
        as_json=arguments.json,
    )


def _is(defect: Defect, kind: str, row: str) -> bool:
    latency = "synchronous latency" in defect.says
    return defect.kind == kind and (latency if kind == "text" else any(cell[1] == row for cell in defect.cells))


if __name__ == "__main__":
    main()
