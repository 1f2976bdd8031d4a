"""The most queries a second that copies of a model answer, in closed form: full batches, requests spread evenly.

A copy runs `slots` sequences at once: what the server allows, or what its cache holds of requests half answered. A
query costs its share of prompts read in full chunks and of passes that give each slot a token:

    seconds a query = prompt pass / prompts in it + output tokens x (decode pass + host x slots) / slots
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitworth.errors import BitworthError
from bitworth.prediction.roofline import DEVICES_A_MACHINE, Deployment
from bitworth.types import Hardware, UseCase

#: vLLM's defaults: sequences at once, and tokens of one pass.
MOST_SEQUENCES, CHUNK_TOKENS = 256, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """`copies` of one deployment side by side, its constants those of full batches."""

    deployment: Deployment
    copies: int = 1

    @classmethod
    def of(cls, deployment: Deployment, copies: int = 1) -> Fleet:
        """Copies of a deployment, with the compute shares that full batches reach."""
        c = deployment.constants
        loaded = replace(c, compute16_share=c.serving16_share, compute8_share=c.serving8_share)
        return cls(deployment=deployment.with_constants(loaded), copies=copies)

    def slots(self, case: UseCase) -> float:
        """Sequences that one copy runs at once, when requests are half answered on average."""
        room = self.deployment.cache_tokens / (case.prompt_tokens + case.output_tokens / 2)
        return max(1.0, min(MOST_SEQUENCES, room))

    def step_seconds(self, sequences: float, cached: float, prompt_tokens: float = 0.0, pairs: float = 0.0) -> float:
        """A pass that gives each of `sequences` a token and reads `prompt_tokens` of prompts (see `pass_seconds`)."""
        passed = self.deployment.pass_seconds(
            sequences + prompt_tokens, sequences=max(sequences, 1.0), cached=cached, pairs=pairs
        )
        return passed + self.deployment.constants.host_s * sequences

    def seconds_a_query(self, case: UseCase) -> float:
        """One copy's time a query, saturated."""
        d, slots = self.deployment, self.slots(case)
        prompts = max(1.0, CHUNK_TOKENS / case.prompt_tokens)
        tokens, pairs = prompts * case.prompt_tokens, prompts * d.pairs(case.prompt_tokens)
        prefill = d.pass_seconds(tokens, sequences=prompts, pairs=pairs) / prompts
        cached = slots * d.seen(case.prompt_tokens + case.output_tokens / 2)
        return prefill + case.output_tokens * self.step_seconds(slots, cached) / slots

    def rate(self, case: UseCase) -> float:
        """Queries a second of all copies, for ever."""
        return self.copies / self.seconds_a_query(case)

    def latency_seconds(self, case: UseCase) -> float:
        """A request's mean time when all slots are taken (Little's law)."""
        return self.slots(case) * self.seconds_a_query(case)

    def rate_within(self, case: UseCase, seconds: float) -> float:
        """Queries finished a second by a run that starts empty and is cut off.

        The slots' requests, half answered on average, are lost at the end: slots / 2 of them.
        """
        lost = self.latency_seconds(case) / (2 * seconds)
        return self.rate(case) * max(0.1, 1 - lost)


def fleets(deployment: Deployment, case: UseCase) -> list[Fleet]:
    """Every way to split the devices into copies whose cache holds a request; copies of 1, 2, 4, 8 devices or machines.

    Raises:
        BitworthError: the model fits in none.
    """
    total, found = deployment.hardware.count, []
    for each in (size for size in range(1, total + 1) if total % size == 0):
        if each > DEVICES_A_MACHINE and each % DEVICES_A_MACHINE:
            continue
        one = replace(deployment, hardware=share_of(deployment.hardware, each))
        if splits(one) and one.cache_tokens >= case.prompt_tokens + case.output_tokens:
            found.append(Fleet.of(one, total // each))
    if not found:
        raise BitworthError(too_big(deployment, case))
    return found


def best_fleet(deployment: Deployment, case: UseCase) -> Fleet:
    """The split that answers most queries a second.

    Raises:
        BitworthError: the model fits in none.
    """
    return max(fleets(deployment, case), key=lambda fleet: fleet.rate(case))


def splits(deployment: Deployment) -> bool:
    """Whether attention heads can be shared evenly by the devices of a machine."""
    return deployment.architecture.heads % deployment.tensor == 0


def share_of(row: Hardware, count: int) -> Hardware:
    """`count` of the devices, at their share of the price."""
    return replace(row, count=count, usd_per_hour=row.usd_per_hour * count / row.count)


def too_big(deployment: Deployment, case: UseCase) -> str:
    """The sentence that says by how much a model does not fit, and how many devices would do."""
    d, row = deployment, deployment.hardware
    tokens = case.prompt_tokens + case.output_tokens
    needed = (d.weight_bytes + tokens * d.cache_bytes_a_token) / 2**30
    room = row.count * d.usable_gib
    for count in (1, 2, 4, 8, 16, 32, 64):
        larger = replace(d, hardware=share_of(row, count))
        if count > row.count and splits(larger) and larger.cache_tokens >= tokens:
            would = f"{count} x {row.name} would hold it"
            break
    else:
        would = "give devices with more memory, or a format with fewer bits"
    return (
        f"The model in {d.kernel.name} and one request need {needed:.0f} GiB, and {row.count} x {row.name} "
        f"offer{'s' if row.count == 1 else ''} {room:.0f} GiB; {would}."
    )
