"""Seconds of one pass through a decoder: bytes moved and operations done, over what the device and kernels allow.

    pass = linear + head + attention + blocks + links + stages

    linear     weights read / (bandwidth x share) + operations / (rate x share), one after the other: kernels overlap
               them less than they might; for 4-bit weights no less than what the multiprocessors unpack
    head       the same for the 16-bit output head, one row a sequence that gives a token
    attention  cached keys and values read / bandwidth, and operations of the prompt's own pairs / rate
    blocks     cycles a block over the clock
    links      two all-reduces a block of the hidden states, a ring over the devices of one machine
    stages     a hand-over for each machine after the first

Weights, cache and operations are shared by the tensor-parallel devices of one machine (at most eight); machines are
pipeline stages, of which one token passes all in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitworth.errors import BitworthError
from bitworth.prediction.architecture import Architecture
from bitworth.prediction.constants import FITTED, LINK_SHARE, Constants
from bitworth.prediction.formats import Kernel
from bitworth.types import Hardware, UseCase

DEVICES_A_MACHINE = 8
#: Share of a device's memory that a server may use (vLLM's default), and GiB it keeps for activations and graphs.
MEMORY_SHARE, KEPT_GIB = 0.9, 1.5
_HALF = 2  # bytes of a 16-bit number


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model in a format on the devices that serve one copy of it."""

    architecture: Architecture
    kernel: Kernel
    hardware: Hardware
    constants: Constants = FITTED

    def __post_init__(self) -> None:
        """Refuse a device whose rates are unknown or that lacks the format's arithmetic."""
        row = self.hardware
        if row.bandwidth_gb_s is None or row.clock_ghz is None or row.processors is None:
            raise BitworthError(
                f"{row.name} cannot be predicted without its bandwidth_gb_s, clock_ghz, processors and tera_ops."
            )
        if self.kernel.arithmetic not in row.tera_ops:
            raise BitworthError(
                f"{row.name} has no {self.kernel.arithmetic} arithmetic, which {self.kernel.name} needs; "
                f"it has {', '.join(row.tera_ops) or 'none that is known'}."
            )
        if row.count > DEVICES_A_MACHINE and row.count % DEVICES_A_MACHINE:
            raise BitworthError(
                f"{row.count} devices do not fill machines of {DEVICES_A_MACHINE}; give a multiple of it, or fewer."
            )

    @property
    def stages(self) -> int:
        """Machines, each a pipeline stage."""
        return max(1, self.hardware.count // DEVICES_A_MACHINE)

    @property
    def tensor(self) -> int:
        """Devices that share every layer."""
        return self.hardware.count // self.stages

    @property
    def weight_bytes(self) -> float:
        """Bytes of the whole model in memory."""
        a = self.architecture
        return a.stored_weights * self.kernel.weight_bytes + _HALF * a.kept_weights

    @property
    def cache_bytes_a_token(self) -> float:
        """Bytes of keys and values, in 16 bits, that one token leaves in all blocks, copies of heads included."""
        a = self.architecture
        return _HALF * a.kv_elements * a.kv_heads_on(self.tensor) * self.tensor / a.kv_heads

    @property
    def usable_gib(self) -> float:
        """GiB of one device that weights and cache may take."""
        return self.hardware.memory_gib * MEMORY_SHARE - KEPT_GIB

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit the cache beside the weights; negative where the weights alone do not fit."""
        room = self.hardware.count * self.usable_gib * 2**30
        return int((room - self.weight_bytes) / self.cache_bytes_a_token)

    def pass_seconds(self, tokens: float, *, sequences: float, cached: float = 0.0, pairs: float = 0.0) -> float:
        """One pass over all stages, which wait for each other.

        Args:
            tokens: new tokens of all sequences.
            sequences: sequences that give a token.
            cached: tokens of cache that attention reads, all sequences.
            pairs: pairs of query and key inside prompts, all sequences.
        """
        parts = self.linear_seconds(tokens) + self.head_seconds(sequences) + self.attention_seconds(cached, pairs)
        return parts + self.block_seconds + self.link_seconds(tokens) + self.constants.stage_s * (self.stages - 1)

    def linear_seconds(self, tokens: float) -> float:
        """The quantized linear layers."""
        return self._reading_seconds(tokens) + tokens * self._token_seconds

    def seconds_by_tokens(self, most: int) -> NDArray[np.float64]:
        """What depends on a pass's tokens alone, linear layers and links, for 0, 1, ... `most` of them."""
        tokens = np.arange(most + 1)
        reading = [self._reading_seconds(number) for number in (tokens if self.architecture.mixtures else tokens[:1])]
        table: NDArray[np.float64] = np.array(reading) + tokens * (self._token_seconds + self.link_seconds(1))
        return table

    def head_seconds(self, sequences: float) -> float:
        """The output head, in 16 bits."""
        weights = self.architecture.head_weights / self.tensor
        return _HALF * weights / self._bandwidth + 2 * weights * sequences / self._rate16

    def attention_seconds(self, cached: float, pairs: float) -> float:
        """Reading the cache, and the products of a prompt with itself."""
        a = self.architecture
        reading = cached * self.cache_bytes_a_token / self.tensor / self._bandwidth
        return reading + 4 * a.layers * a.heads * a.head_dim * pairs / self.tensor / self._rate16

    @property
    def block_seconds(self) -> float:
        """What the blocks' kernels take whatever they work on."""
        c = self.constants
        cycles = c.block_kilocycles + (c.rounding_kilocycles if self.kernel.quantizes else 0.0)
        return self.architecture.layers * cycles * 1e3 / ((self.hardware.clock_ghz or 0) * 1e9)

    def link_seconds(self, tokens: float) -> float:
        """Two all-reduces a block, each of `tokens` x hidden 16-bit numbers, in a ring."""
        if self.tensor == 1 or not self.hardware.link_gb_s:
            return 0.0
        sent = 2 * (self.tensor - 1) / self.tensor * tokens * self.architecture.hidden * _HALF
        return 2 * self.architecture.layers * sent / (self.hardware.link_gb_s * 1e9 * LINK_SHARE)

    def prefill_seconds(self, prompt: float) -> float:
        """One prompt by itself, to its first token."""
        return self.pass_seconds(prompt, sequences=1, pairs=self.pairs(prompt))

    def decode_seconds(self, context: float) -> float:
        """One more token of one sequence that has `context` tokens."""
        return self.pass_seconds(1, sequences=1, cached=self.seen(context))

    def latency_seconds(self, case: UseCase) -> float:
        """A request alone: its prompt, then one pass a token after the first (paper, section 5, synchronous)."""
        middle = case.prompt_tokens + case.output_tokens / 2
        return self.prefill_seconds(case.prompt_tokens) + (case.output_tokens - 1) * self.decode_seconds(middle)

    def seen(self, context: float) -> float:
        """Tokens of a context that attention looks at, on average over the blocks."""
        return self.architecture.kept_tokens(context)

    def pairs(self, prompt: float) -> float:
        """Pairs of query and key in a prompt: a triangle, or a band where there is a window; the mean of the blocks."""
        a, band = self.architecture, min(prompt, self.architecture.window or prompt)
        return (1 - a.windowed) * prompt**2 / 2 + a.windowed * band * (prompt - band / 2)

    def with_constants(self, constants: Constants) -> Deployment:
        """The same with other constants."""
        return replace(self, constants=constants)

    def _reading_seconds(self, tokens: float) -> float:
        """The weights that a pass needs, read, and unpacked where that takes longer."""
        held = self.architecture.read_weights(tokens) * self.kernel.weight_bytes / self.tensor
        reading = held / self._bandwidth
        if self.kernel.unpacks:
            return max(reading, held / ((self.hardware.processors or 0) * self.constants.unpack_gb_s * 1e9))
        return reading

    @property
    def _token_seconds(self) -> float:
        """The products of one token."""
        return 2 * self.architecture.used_weights / self.tensor / self._rate

    @property
    def _bandwidth(self) -> float:
        return (self.hardware.bandwidth_gb_s or 0) * 1e9 * self.constants.bandwidth_share

    @property
    def _rate(self) -> float:
        share = self.constants.compute8_share if self.kernel.quantizes else self.constants.compute16_share
        return self.hardware.tera_ops[self.kernel.arithmetic] * 1e12 * share

    @property
    def _rate16(self) -> float:
        return self.hardware.tera_ops["bf16"] * 1e12 * self.constants.compute16_share
