"""How every script here says what it measured: a table for people, `{"claims": [...]}` with --json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure, what it should be, and whether it is."""

    name: str
    target: str
    measured: float
    unit: str
    holds: bool


def say(claims: Sequence[Claim], *, as_json: bool) -> None:
    """Print the claims; one that does not hold is a finding, not a fault of the script."""
    if as_json:
        print(json.dumps({"claims": [asdict(claim) for claim in claims]}, indent=1))
    else:
        width = max(len(claim.name) for claim in claims)
        for claim in claims:
            verdict = "holds" if claim.holds else "DOES NOT HOLD"
            print(f"{claim.name:<{width}}  {claim.measured:10.3f} {claim.unit:<8} target {claim.target:<12} {verdict}")
