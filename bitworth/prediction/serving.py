"""Copies of a deployment that serve side by side, what limits each, and what its passes cost.

`simulation` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bitworth.errors import BitworthError
from bitworth.prediction.loop import Costs, Limits
from bitworth.prediction.roofline import DEVICES_A_MACHINE, Deployment
from bitworth.types import Hardware, UseCase

#: vLLM's defaults: sequences at once, and tokens of one pass.
MOST_SEQUENCES, CHUNK_TOKENS = 256, 2048
PASSES_UNDER_WAY = 2
"""vLLM prepares a pass while another runs, and takes back what a window leaves behind when a pass is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a server allows: sequences at once, and tokens of one pass, those of prompts and of answers together."""

    sequences: int = MOST_SEQUENCES
    pass_tokens: int = CHUNK_TOKENS

    @property
    def tokens_under_way(self) -> int:
        """Tokens of the passes that have begun, at most."""
        return PASSES_UNDER_WAY * self.pass_tokens


DEFAULT = Server()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """`copies` of one deployment side by side, its constants those of full batches."""

    deployment: Deployment
    copies: int = 1
    server: Server = DEFAULT

    @classmethod
    def of(cls, deployment: Deployment, copies: int = 1, server: Server = DEFAULT) -> Fleet:
        """Copies of a deployment, with the compute shares that full batches reach."""
        c = deployment.constants
        loaded = replace(c, compute16_share=c.serving16_share, compute8_share=c.serving8_share)
        return cls(deployment=deployment.with_constants(loaded), copies=copies, server=server)

    def slots(self, case: UseCase) -> float:
        """Sequences that one copy runs at once, when requests are half answered on average."""
        d = self.deployment
        room = d.cache_tokens / d.architecture.held_tokens(case.prompt_tokens + case.output_tokens / 2)
        return max(1.0, min(self.server.sequences, room))

    def costs(self, sequences: int) -> Costs:
        """Seconds of passes with up to so many sequences."""
        d = self.deployment
        heads = [d.head_seconds(max(1, number)) for number in range(sequences + 1)]
        return Costs(
            by_tokens=d.seconds_by_tokens(max(sequences, self.server.pass_tokens)),
            by_sequences=np.array(heads) + d.constants.host_s * np.arange(sequences + 1),
            a_cached=d.attention_seconds(1.0, 0.0),
            a_pair=d.attention_seconds(0.0, 1.0),
            a_pass=d.block_seconds + d.constants.stage_s * (d.stages - 1),
            window=d.architecture.window or 0,
            windowed=d.architecture.windowed,
        )

    def limits(self, slots: int) -> Limits:
        """What a copy with so many slots may hold and read at once."""
        a = self.deployment.architecture
        whole, windowed = a.cached_blocks
        return Limits(
            slots=slots,
            budget=self.server.pass_tokens,
            capacity=self.deployment.cache_tokens,
            whole=whole / a.layers,
            windowed=windowed / a.layers,
            window=a.window or 0,
            beside=self.server.tokens_under_way,
        )


def fleets(deployment: Deployment, case: UseCase, server: Server = DEFAULT) -> list[Fleet]:
    """Every way to split the devices into copies whose cache holds a request; copies of 1, 2, 4, 8 devices or machines.

    Raises:
        BitworthError: there is none, because the model fits in none or its heads cannot be shared by so many devices.
    """
    total = deployment.hardware.count
    roomy = []
    for each in (size for size in range(1, total + 1) if total % size == 0):
        if each > DEVICES_A_MACHINE and each % DEVICES_A_MACHINE:
            continue
        one = replace(deployment, hardware=share_of(deployment.hardware, each))
        if one.cache_tokens >= needed_tokens(one, case, server):
            roomy.append(one)
    if not roomy:
        raise BitworthError(too_big(deployment, case))
    found = [Fleet.of(one, total // one.hardware.count, server) for one in roomy if splits(one)]
    if not found:
        raise BitworthError(_unshared(deployment, case, max(one.tensor for one in roomy)))
    return found


def needed_tokens(deployment: Deployment, case: UseCase, server: Server = DEFAULT) -> float:
    """Tokens of the cache, of all blocks, that a request may take up to its end."""
    return deployment.architecture.held_tokens(case.prompt_tokens + case.output_tokens, server.tokens_under_way)


def splits(deployment: Deployment) -> bool:
    """Whether heads and MLPs can be shared evenly by the devices of a machine."""
    return deployment.architecture.unsplittable(deployment.tensor) is None


def share_of(row: Hardware, count: int) -> Hardware:
    """`count` of the devices, at their share of the price."""
    return replace(row, count=count, usd_per_hour=row.usd_per_hour * count / row.count)


def too_big(deployment: Deployment, case: UseCase) -> str:
    """The sentence that says by how much a model does not fit, and how many devices would do."""
    row = deployment.hardware
    count = _enough(deployment, case)
    would = "give devices with more memory, or a format with fewer bits"
    if count is not None:
        would = f"{count} x {row.name} would hold it"
    return (
        f"The model in {deployment.kernel.name} and one request need {_needed_gib(deployment, case):.0f} GiB, and "
        f"{row.words} offer{'s' if row.count == 1 else ''} {row.count * deployment.usable_gib:.0f} GiB; {would}."
    )


def _unshared(deployment: Deployment, case: UseCase, tensor: int) -> str:
    """The sentence that says that copies which have room, of at most so many devices, cannot share the model."""
    count = _enough(deployment, case)
    would = "give a number of devices that divides them"
    if count is not None:
        what = f"the model in {deployment.kernel.name} and one request"
        needed = _needed_gib(deployment, case)
        would = f"{count} x {deployment.hardware.name} would hold {what}, which need {needed:.0f} GiB"
    return f"{deployment.architecture.unsplittable(tensor)}; {would}."


def _needed_gib(deployment: Deployment, case: UseCase) -> float:
    cache = needed_tokens(deployment, case) * deployment.cache_bytes_a_token
    return (deployment.weight_bytes + cache) / 2**30


def _enough(deployment: Deployment, case: UseCase) -> int | None:
    """The least number of such devices that hold the model and one request as one copy; None where none does."""
    for count in (1, 2, 4, 8, 16, 32, 64):
        one = replace(deployment, hardware=share_of(deployment.hardware, count))
        if splits(one) and one.cache_tokens >= needed_tokens(one, case):
            return count
    return None
