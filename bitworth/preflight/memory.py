"""What a device must hold, in GiB, part by part, and what is left for keys and values.

    needed = codes + scales + kept + activations + runtime + cache        there = share of the device's memory

All of it on the fullest device: the one whose stage has most blocks, counting embedding and head with it. The share is
vLLM's setting, `activations` follows from the tokens of one pass, and `runtime` (context, graphs, buffers of the links)
is a judgement: nothing was measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitworth.prediction import Architecture
from bitworth.prediction.roofline import MEMORY_SHARE
from bitworth.prediction.serving import CHUNK_TOKENS, DEFAULT, MOST_SEQUENCES
from bitworth.preflight.shapes import Matrix, Split, matrices
from bitworth.types import Hardware, Scheme, UseCase

RUNTIME_GIB = 1.0
#: Tokens that the cache gives out at once, and rows that vLLM pads the vocabulary to.
_BLOCK, _VOCABULARY = 16, 64
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """GiB on the fullest device, and what fits beside the weights.

    `cache_gib` is what all streams need at their full length. `most_streams` counts requests of the use case;
    `most_context_tokens` is how long each of the asked streams may grow, None where a window bounds what it leaves.
    """

    codes_gib: float
    scales_gib: float
    kept_gib: float
    activations_gib: float
    runtime_gib: float
    cache_gib: float
    there_gib: float
    most_streams: int
    most_context_tokens: int | None

    @property
    def weights_gib(self) -> float:
        """Everything that a checkpoint stores."""
        return self.codes_gib + self.scales_gib + self.kept_gib

    @property
    def needed_gib(self) -> float:
        """All parts together."""
        return self.weights_gib + self.activations_gib + self.runtime_gib + self.cache_gib


def memory_of(
    a: Architecture, scheme: Scheme | None, row: Hardware, split: Split, case: UseCase, streams: int
) -> Memory:
    """The parts for `streams` requests at once; `scheme` is None for the unquantized model."""
    half = bytes_of_16_bits(scheme, row)
    layers = matrices(a, split.tensor)
    stage = math.ceil(a.layers / split.stages) / a.layers
    stored = [stored_bytes(scheme, matrix, half) for matrix in layers]
    codes = stage * sum(one for one, _ in stored)
    scales = stage * sum(other for _, other in stored)
    kept = _kept(a, split, stage) * half
    activations = _activations(a, layers) * half + 2 * 4 * MOST_SEQUENCES * a.vocabulary  # logits and their softmax
    runtime, there = RUNTIME_GIB * _GIB, row.memory_gib * MEMORY_SHARE * _GIB
    token = _cache_bytes_a_token(a, scheme, split, half)
    room = there - codes - scales - kept - activations - runtime
    if on_processor(row):
        room = min(room, processor_cache_gib(row) * _GIB)
    blocks, held = max(0.0, room // (_BLOCK * token)), _held(a, case.prompt_tokens + case.output_tokens)
    return Memory(
        codes_gib=codes / _GIB,
        scales_gib=scales / _GIB,
        kept_gib=kept / _GIB,
        activations_gib=activations / _GIB,
        runtime_gib=runtime / _GIB,
        cache_gib=streams * held * _BLOCK * token / _GIB,
        there_gib=there / _GIB,
        most_streams=int(blocks / held),
        most_context_tokens=_longest(a, blocks / streams),
    )


def stored_bytes(scheme: Scheme | None, matrix: Matrix, half: int = 2) -> tuple[int, int]:
    """Bytes of codes and of scales that one device holds of all matrices of the kind, while a server loads them.

    INT4 weights for INT8 activations arrive a byte each. Scales are of 16 bits by group, of 32 by channel, of 8 in the
    FP4 formats; for FP8 activations vLLM's kernel keeps each group's eight times over, in 8 bits.
    """
    size = matrix.times * matrix.inputs * matrix.outputs
    if scheme is None or scheme.weight is None:
        return size * half, 0
    grid = scheme.weight
    groups = math.ceil(matrix.inputs / grid.group_size) if grid.group_size else 1
    wide = {"w4a8-fp": 8}.get(scheme.name, 1 if grid.scales != "float" else half if grid.group_size else 4)
    bits = 8 if scheme.name == "w4a8-int" else grid.bits
    return size * bits // 8, matrix.times * groups * matrix.outputs * wide


def on_processor(row: Hardware) -> bool:
    """Whether the row is a machine without a GPU."""
    return (row.capability or "").startswith(("avx", "cpu"))


def processor_cache_gib(row: Hardware) -> float:
    """What `engines.vllm` gives a server on a CPU for its cache: a sixteenth of the memory, 1 GiB at least."""
    return max(1.0, row.memory_gib // 16)


def bytes_of_16_bits(scheme: Scheme | None, row: Hardware) -> int:
    """Four where a processor without bfloat16 computes in float32 (`engines.vllm.cpu_dtype`)."""
    packed = scheme is not None and scheme.name in ("w4a16-int", "w4a8-fp")
    return 4 if on_processor(row) and row.capability != "avx512_bf16" and not packed else 2


def _kept(a: Architecture, split: Split, stage: float) -> float:
    """Weights that stay in 16 bits: embedding and head, and whole routers on each device."""
    rows = math.ceil(a.vocabulary / _VOCABULARY) * _VOCABULARY
    return (1 if a.tied else 2) * rows * a.hidden / split.tensor + stage * a.router_weights


def _activations(a: Architecture, layers: tuple[Matrix, ...]) -> float:
    """Numbers alive in the widest layer of a full pass: the residual stream, the normed one, outputs and products."""
    per_token = max(
        (a.chosen if matrix.expert else 1) * (matrix.inputs + matrix.outputs)
        + (a.matrices - 1 > 0 and "up" in matrix.name) * (matrix.outputs // (a.matrices - 1))
        for matrix in layers
    )
    return float(CHUNK_TOKENS * (2 * a.hidden + per_token))


def _cache_bytes_a_token(a: Architecture, scheme: Scheme | None, split: Split, half: int) -> int:
    """Bytes of keys and values that a token leaves on one device."""
    size = 1 if scheme is not None and scheme.kv_cache is not None else half
    return 2 * math.ceil(a.layers / split.stages) * a.kv_heads_on(split.tensor) * a.head_dim * size


def _held(a: Architecture, context: int) -> float:
    """Blocks of a request at its end, on average over the layers; of a window, those of it and of passes under way."""
    return a.held_tokens(math.ceil(context / _BLOCK), _in_blocks(a) - (a.window or 0))


def _longest(a: Architecture, blocks: float) -> int | None:
    """Tokens of a context that takes so many blocks, None where a window bounds what any takes."""
    whole, windowed = a.cached_blocks
    beyond = blocks * a.layers - (whole + windowed) * _in_blocks(a)
    if not windowed or beyond < 0:
        return int(blocks * a.layers / (whole + windowed)) * _BLOCK
    return int(_in_blocks(a) + beyond / whole) * _BLOCK if whole else None


def _in_blocks(a: Architecture) -> int:
    """Blocks of a layer with a window, at most: those of the window and of passes under way, begun anywhere in one."""
    return math.ceil(((a.window or 0) - 1 + DEFAULT.tokens_under_way) / _BLOCK) + 1
