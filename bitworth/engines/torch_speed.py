"""The in-process engine for speed: the transformers model with its linear layers on torch's low-bit kernels.

Everything that is not quantized runs alike for every format: same dtype, same merged projections, same attention, same
cache, so that a difference between two formats comes from their kernels. The dtype is bfloat16 on a GPU; on a CPU
whichever of float32 and bfloat16 a quick trial finds faster. Weights are read, packed and dropped one layer at a time.

Requests run alone (`synchronous`) or `streams` of them decoded together from start to end (`throughput`); those that
arrive at a rate need a scheduler, which this engine does not have. Decoding is greedy and never stops early.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitworth import checkpoint as storage
from bitworth.engines.generator import Progress
from bitworth.engines.kernels import kernel_for
from bitworth.engines.schedule import DEFAULT_STREAMS
from bitworth.engines.torch_load import key_value_cache, load
from bitworth.errors import BitworthError, Unsupported, WorkFailed
from bitworth.ranks import device_named
from bitworth.types import EngineFacts, Load, Timing

_BFLOAT16_GAIN = 0.75
"""bfloat16 is taken where the product of its times is below this share of float32's: noise must not decide."""


class TorchGenerator:
    """A model that decodes greedily in process; see `engines.generator.Generator`."""

    def __init__(self, model: Any, facts: EngineFacts) -> None:
        """Wrap a transformers causal model that is ready to run."""
        self.model, self._facts = model, facts
        self.device = next(model.parameters()).device
        text = model.config.get_text_config()
        self._vocabulary = text.vocab_size
        self._context = getattr(text, "max_position_embeddings", None)

    @property
    def facts(self) -> EngineFacts:
        """What its figures are measured with."""
        return self._facts

    def run(
        self, prompts: Sequence[Sequence[int]], output_tokens: int, load: Load, progress: Progress | None = None
    ) -> list[Timing]:
        """Time the prompts; under `throughput` those of one length start and end together, `load.streams` at once.

        Raises:
            Unsupported: requests that arrive at a rate.
            BitworthError: an empty or too long prompt, or a token that the model does not have.
            WorkFailed: memory ran out or torch failed.
        """
        if load.kind not in ("synchronous", "throughput"):
            raise Unsupported(
                f"The torch engine runs requests alone or in batches, not as they arrive ({load.name}); "
                "use --engine vllm or the URL of a server."
            )
        self._check(prompts, output_tokens)
        streams = 1 if load.kind == "synchronous" else load.streams or DEFAULT_STREAMS
        timings: dict[int, Timing] = {}
        began = time.perf_counter()
        for batch in batches(prompts, streams):
            start = time.perf_counter()
            try:
                _, first = self.generate([prompts[index] for index in batch], output_tokens)
            except RuntimeError as error:  # torch's out of memory is one too
                cause = str(error).splitlines()[0].rstrip(".")
                raise WorkFailed(f"torch failed in a batch of {len(batch)}: {cause}.") from error
            timing = Timing(
                start_s=start - began,
                first_token_s=first - began,
                end_s=time.perf_counter() - began,
                prompt_tokens=len(prompts[batch[0]]),
                output_tokens=output_tokens,
            )
            timings.update(dict.fromkeys(batch, timing))
            if progress is not None:
                progress(len(timings), len(prompts))
        return [timings[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> tuple[list[list[int]], float]:
        """The greedy continuations of prompts of one length, and `time.perf_counter()` at their first tokens."""
        tokens_BT = torch.tensor([list(prompt) for prompt in prompts], device=self.device)
        past = key_value_cache(self.model.config, tokens_BT.shape[1] + output_tokens)
        found, first = [], 0.0
        for _ in range(output_tokens):
            output = self.model(input_ids=tokens_BT, past_key_values=past, use_cache=True, logits_to_keep=1)
            tokens_BT = output.logits[:, -1:].argmax(-1)
            found.append(tokens_BT)
            if not first:
                tokens_BT.tolist()  # a GPU answers when it is done
                first = time.perf_counter()
        return torch.cat(found, 1).tolist(), first

    @torch.inference_mode()
    def logits(self, tokens_BT: Tensor) -> Tensor:
        """float32 logits [B, T, vocabulary], to compare with the engine for accuracy."""
        output = self.model(input_ids=tokens_BT.to(self.device), use_cache=False)
        return output.logits.float()  # type: ignore[no-any-return]

    def _check(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> None:
        if output_tokens < 1:
            raise BitworthError(f"A request must generate at least one token, not {output_tokens}.")
        for prompt in prompts:
            if not prompt or min(prompt) < 0 or max(prompt) >= self._vocabulary:
                raise BitworthError(
                    f"A prompt must be one or more token ids from 0 to {self._vocabulary - 1}; got {list(prompt[:5])}."
                )
            if self._context is not None and len(prompt) + output_tokens > self._context:
                raise Unsupported(
                    f"A request of {len(prompt)} + {output_tokens} tokens exceeds the model's context of "
                    f"{self._context}."
                )


def batches(prompts: Sequence[Sequence[int]], streams: int) -> Iterator[list[int]]:
    """Indices of up to `streams` prompts of one length at a time, each in the order given."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    for same in by_length.values():
        for start in range(0, len(same), streams):
            yield same[start : start + streams]


def open_torch(checkpoint: Path, device: str | None = None) -> TorchGenerator:
    """Load a plain or compressed-tensors checkpoint for timing, on the GPU where there is one.

    Raises:
        BitworthError: the folder is missing, damaged, or not a decoder that transformers has.
        Unsupported: torch has no kernel for the number format or a layer of it here.
    """
    import transformers

    place = device_named(device)
    raw = storage.read_config(checkpoint)
    reader = storage.Reader(checkpoint)
    scheme = reader.weights().scheme
    title, make = kernel_for(scheme, place) if scheme is not None else ("", None)
    dtype = torch.bfloat16 if place.type == "cuda" else compute_dtype(*_sides(raw))
    model = load(checkpoint, reader, dtype, place, make)
    name = str(dtype).removeprefix("torch.")
    facts = EngineFacts(
        engine="torch",
        kernel=f"{title}; rest {name}" if title else name,
        device=torch.cuda.get_device_name(place) if place.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    return TorchGenerator(model, facts)


def _sides(raw: dict[str, Any]) -> tuple[int, int]:
    """Sides of the largest matrix in a block, no larger than a trial needs."""
    text = raw.get("text_config") or raw
    hidden = int(text.get("hidden_size") or text.get("n_embd") or 1024)
    inner = int(text.get("intermediate_size") or 4 * hidden)
    return min(hidden, 4096), min(inner, 4096)


@cache
def compute_dtype(hidden: int, inner: int) -> torch.dtype:
    """Whichever of float32 and bfloat16 multiplies faster here, for 1 token and for 64; tried once a process.

    The weights tried exceed the caches, as a model's do when it decodes.
    """
    count = max(2, (48 << 20) // (4 * hidden * inner))
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        weights = [torch.ones(inner, hidden, dtype=dtype) for _ in range(count)]
        times[dtype] = _seconds(weights, 1) * _seconds(weights[: max(1, count // 8)], 64)
    return torch.bfloat16 if times[torch.bfloat16] < _BFLOAT16_GAIN * times[torch.float32] else torch.float32


def _seconds(weights: list[Tensor], tokens: int) -> float:
    x = torch.ones(tokens, weights[0].shape[1], dtype=weights[0].dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for weight in weights:
            nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - start)
    return best
