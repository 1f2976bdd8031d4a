"""The in-process engine for accuracy: a checkpoint run with exactly the arithmetic of its format, in float32.

Multiple-choice requests are scored as lm-eval's HF backend scores them, token for token (the same split of context and
continuation, the same BOS, the same truncation), but each shared prefix is computed once and nothing is padded
(`packing`), and the output head runs only where a continuation is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitworth import checkpoint as storage
from bitworth.engines import packing
from bitworth.engines import sampling as sampling_
from bitworth.engines.exact import activation_of, inputs_as_they_are, quantize_inputs
from bitworth.engines.layers import load_mixture, plain_linears
from bitworth.engines.prompts import (
    encode_prompt,
    end_tokens,
    has_chat_template,
    load_tokenizer,
    max_length,
    render,
)
from bitworth.engines.scorer import Progress
from bitworth.errors import BitworthError
from bitworth.kv_cache import quantize_cache
from bitworth.skeleton import config_in, model_class
from bitworth.tasks.base import Request, Score
from bitworth.types import Completion, EngineFacts, Prompt, Sampling

CPU_TOKENS, GPU_TOKENS = 512, 8192
"""Tokens computed at once: enough to keep the cores busy, few enough to keep masks and logits small."""
LOGITS_AT_ONCE = 32
"""Rows of logits normalized at once: their temporaries stay in memory that the allocator keeps."""
LEAST_TRUNK = 32
"""A shared prefix shorter than this is cheaper to compute again than to keep."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request in tokens: the model's input, and the continuation that its last positions must predict."""

    inputs: list[int]
    targets: list[int]

    @property
    def start(self) -> int:
        """The position whose output predicts the first target."""
        return len(self.inputs) - len(self.targets)


def load_exact(checkpoint: Path, *, device: str | None = None) -> TorchModel:
    """Load a plain or compressed-tensors checkpoint in float32, on the GPU where there is one.

    Raises:
        BitworthError: the folder is missing, damaged, needs code of its own, or is not a decoder that generates text.
        Unsupported: a number format or layer that this engine cannot run exactly.
    """
    raw = storage.read_config(checkpoint)
    _decoder_only(raw, checkpoint)
    reader = storage.Reader(checkpoint)
    weights = reader.weights()
    model, quantized = load_mixture(checkpoint, weights) or (
        _build(checkpoint, {name: weights.get(name).float() for name in sorted(weights.names)}),
        {name: name for name in sorted(weights.quantized)},
    )
    scheme = weights.scheme
    if scheme is not None and scheme.activation is not None:
        grid = scheme.activation
        plain_linears(model)
        quantize_inputs(
            model, {name: activation_of(grid, weights.input_scale(stored)) for name, stored in quantized.items()}
        )
    if scheme is not None and scheme.kv_cache is not None:
        quantize_cache(model, scheme.kv_cache, weights.cache_scales)
    place, tokenizer = device or ("cuda" if torch.cuda.is_available() else "cpu"), load_tokenizer(checkpoint)
    kernel = f"float32, {scheme.title if scheme else 'unquantized'}"
    return TorchModel(model.to(place), tokenizer, kernel=kernel, ends=end_tokens(checkpoint, tokenizer))


class TorchModel:
    """A causal language model in float32 with its tokenizer; see `engines.scorer.Scorer` and `generator.Completer`."""

    def __init__(
        self, model: Any, tokenizer: Any, *, kernel: str = "float32", ends: frozenset[int] = frozenset()
    ) -> None:
        """Wrap a transformers causal model that is ready to run; `ends` are the tokens that end what it writes."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.max_length = max_length(model.config, tokenizer)
        self.tokens_at_once = GPU_TOKENS if self.device.type == "cuda" else CPU_TOKENS
        self._kernel = kernel
        self.ends = ends
        self._packs: bool | None = None
        self._pads: bool | None = None

    @property
    def facts(self) -> EngineFacts:
        """What its figures were measured with."""
        import transformers

        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return EngineFacts(engine="torch", kernel=self._kernel, device=str(self.device), versions=versions)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids; `special_tokens` adds whatever the tokenizer adds by itself (BOS)."""
        return list(self.tokenizer.encode(text, add_special_tokens=special_tokens))

    @torch.inference_mode()
    def logits(self, tokens_BT: Tensor) -> Tensor:
        """float32 logits [B, T, vocabulary]."""
        output = self.model(input_ids=tokens_BT.to(self.device), use_cache=False)
        return output.logits.float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def loglikelihoods(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Score]:
        """Natural-log probability of each continuation given its context, and whether greedy decoding writes it.

        Raises:
            BitworthError: an empty continuation, or one longer than the model's context.
        """
        run = _Run(self, [self._encode_request(*request) for request in requests], progress)
        run.score(sorted(range(len(requests)), key=lambda index: run.requests[index].inputs))
        return [run.scores[index] for index in range(len(requests))]

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations may be among the prompts."""
        return has_chat_template(self.tokenizer)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """See `engines.generator.Completer`."""
        return sampling_.write(self, [encode_prompt(self.tokenizer, prompt) for prompt in prompts], sampling, progress)

    def pads(self) -> bool:
        """Whether padded rows behind a cache give this architecture's own answers; tried once."""
        if self._pads is None:
            with inputs_as_they_are(self.model):
                self._pads = sampling_.pads(self)
        return self._pads

    def packs(self) -> bool:
        """Whether packed rows give this architecture's own answers; tried once, on a row that would show it."""
        if self._packs is None:
            with inputs_as_they_are(self.model):
                self._packs = _packs(self)
        return self._packs

    def _encode_request(self, prompt: Prompt, continuation: str) -> Encoded:
        """lm-eval's `TemplateLM.loglikelihood` and `_encode_pair`: encode the whole, then split."""
        context = render(self.tokenizer, prompt)
        if context:
            spaces = len(context) - len(context.rstrip())
            if spaces:
                context, continuation = context[:-spaces], context[-spaces:] + continuation
            before = self._encode_special(context)
            targets = self._encode_special(context + continuation)[len(before) :]
        else:
            targets, prefix = self.encode(continuation, special_tokens=False), self._prefix()
            before, targets = ([prefix], targets) if targets[:1] != [prefix] else (targets[:1], targets[1:])
        if not targets:
            raise BitworthError(
                f"The continuation {continuation[:40]!r} adds no token to its context, so it has no score."
            )
        if len(targets) > self.max_length:
            raise BitworthError(
                f"A continuation of {len(targets)} tokens exceeds the model's context of {self.max_length}."
            )
        return Encoded((before + targets)[-(self.max_length + 1) :][:-1], targets)

    def _encode_special(self, text: str) -> list[int]:
        """As lm-eval's HF backend: the tokenizer's own special tokens, unless the text already starts with BOS."""
        return self.encode(text, special_tokens=not text.startswith(self.tokenizer.decode([self._prefix()])))

    def _prefix(self) -> int:
        """BOS, or EOS where there is none: what an empty context is conditioned on."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise BitworthError("The tokenizer has neither BOS nor EOS, so nothing can be scored without a context.")


class _Run:
    """One call of `loglikelihoods`: recursion over families of requests that share a prefix."""

    def __init__(self, engine: TorchModel, requests: list[Encoded], progress: Progress | None) -> None:
        self.engine, self.requests, self.progress = engine, requests, progress
        self.scores: dict[int, Score] = {}

    def score(self, order: list[int]) -> None:
        """Score the requests, given in lexicographic order of their inputs."""
        if not order:
            return
        if self.engine.packs():
            self._family(order, 0, None)
            return
        for index in order:
            self._forward([index], 0, None, packed=False)

    def _family(self, order: list[int], depth: int, cache: Any) -> None:
        """Requests alike in their first `depth` tokens, whose keys and values `cache` holds."""
        limit = self.engine.tokens_at_once
        inputs = [self.requests[index].inputs for index in order]
        if len(order) == 1 or packing.size(inputs, depth) <= limit:
            self._forward(order, depth, cache)
            return
        families = [[order[i] for i in run] for run in packing.families(inputs, depth + LEAST_TRUNK)]
        if len(families) == 1:
            trunk = min(packing.common(inputs[0], inputs[-1]), min(self.requests[index].start for index in order))
            if trunk >= depth + LEAST_TRUNK:
                grown = self._grow(cache, inputs[0][depth:trunk], depth)
                self._family(order, trunk, grown)
                grown.crop(depth - trunk)
                return
            families = [[index] for index in order]
        self._bins(families, depth, cache)

    def _bins(self, families: list[list[int]], depth: int, cache: Any) -> None:
        """Fill rows with whole families; one too large for a row is taken by itself."""
        row: list[int] = []
        filled = 0
        for family in families:
            size = packing.size([self.requests[index].inputs for index in family], depth)
            if row and filled + size > self.engine.tokens_at_once:
                self._forward(row, depth, cache)
                row, filled = [], 0
            if size > self.engine.tokens_at_once:
                self._family(family, depth, cache)
            else:
                row, filled = row + family, filled + size
        if row:
            self._forward(row, depth, cache)

    def _grow(self, cache: Any, tokens: list[int], depth: int) -> Any:
        """The cache (a new one for None) with the keys and values of more tokens of the shared prefix."""
        from transformers import DynamicCache

        grown = cache if cache is not None else DynamicCache(config=self.engine.model.config)
        positions = torch.arange(depth, depth + len(tokens), device=self.engine.device)
        row = torch.tensor([tokens], device=self.engine.device)
        self.engine.model(
            input_ids=row, position_ids=positions[None], past_key_values=grown, use_cache=True, logits_to_keep=1
        )
        return grown

    def _forward(self, order: list[int], depth: int, cache: Any, *, packed: bool = True) -> None:
        """Compute one row and score its requests; `cache` is left as it was."""
        row = packing.pack([self.requests[index].inputs for index in order], depth=depth)
        nodes = {
            index: path[self.requests[index].start - depth :] for index, path in zip(order, row.paths, strict=True)
        }
        kept = sorted({node for wanted in nodes.values() for node in wanted})
        logits_KV = _row_logits(self.engine, row, kept, cache, packed=packed)
        if cache is not None:
            cache.crop(-len(row.tokens))
        place = {node: at for at, node in enumerate(kept)}
        normalizer_K = torch.cat([part.logsumexp(-1) for part in torch.split(logits_KV, LOGITS_AT_ONCE)])
        greedy_K = logits_KV.argmax(-1)
        for index, wanted in nodes.items():
            at = torch.tensor([place[node] for node in wanted], device=logits_KV.device)
            target = torch.tensor(self.requests[index].targets, device=logits_KV.device)
            logprob = float((logits_KV[at, target] - normalizer_K[at]).sum())
            self.scores[index] = Score(logprob, bool((greedy_K[at] == target).all()))
        if self.progress is not None:
            self.progress(len(self.scores), len(self.requests))


def _row_logits(engine: TorchModel, row: packing.Pack, kept: list[int], cache: Any, *, packed: bool = True) -> Tensor:
    """Logits [K, vocabulary] of a packed row's nodes `kept`."""
    device = engine.device
    arguments: dict[str, Any] = {"input_ids": torch.tensor([row.tokens], device=device)}
    if packed:
        seen = torch.from_numpy(row.mask()).to(device)
        blocked = torch.zeros(seen.shape, device=device).masked_fill_(~seen, torch.finfo(torch.float32).min)
        arguments |= {
            "attention_mask": blocked[None, None],
            "position_ids": torch.tensor([row.positions], device=device),
            "past_key_values": cache,
        }
    at = torch.tensor(kept, device=device)
    output = engine.model(**arguments, use_cache=cache is not None, logits_to_keep=at).logits[0]
    # A model that does not know `logits_to_keep` returns every position.
    logits: Tensor = output if output.shape[0] == len(kept) else output[at]
    return logits.float()


def _packs(engine: TorchModel) -> bool:
    """Compare a packed row, part of it behind a cached prefix, with its sequences run one by one."""
    config = engine.model.config
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type") in ("dynamic", "longrope"):
        return False  # positions turn with the longest one in the row
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < engine.max_length:
        return False  # one mask would serve layers that look back differently far
    last = config.vocab_size - 1
    sequences = [[min(token, last) for token in ids] for ids in ([5, 7, 11, 13, 17], [5, 7, 11, 19, 23, 29])]
    alone = [engine.logits(torch.tensor([ids]))[0, -1] for ids in sequences]
    run = _Run(engine, [], None)
    try:
        row = packing.pack(sequences, depth=2)
        both = _row_logits(engine, row, [path[-1] for path in row.paths], run._grow(None, sequences[0][:2], 0))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
        return False  # the architecture takes no mask or positions of ours
    return torch.allclose(torch.stack(alone), both, rtol=1e-3, atol=1e-3)


def _decoder_only(raw: dict[str, Any], folder: Path) -> None:
    """Refuse models that transformers cannot run as causal language models.

    Raises:
        BitworthError: with the architecture's name.
    """
    from transformers.models.auto import modeling_auto as auto

    known = {
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
    }
    named = [str(name) for name in raw.get("architectures") or []]
    inner = raw.get("text_config")
    encodes = any(part.get("is_encoder_decoder") for part in (raw, inner if isinstance(inner, dict) else {}))
    if encodes or (raw.get("is_decoder") is False and named == ["BertLMHeadModel"]) or not known.intersection(named):
        raise BitworthError(
            f"{folder} is a {', '.join(named) or 'nameless model'}, which transformers cannot run as a causal language "
            "model; the torch engine needs a ...ForCausalLM decoder, alone or with towers for images."
        )


def _build(folder: Path, state: dict[str, Tensor]) -> Any:
    """A transformers causal model holding exactly these weights."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = config_in(folder)
    config.dtype = torch.float32
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        model, info = model_class(config).from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except (RuntimeError, KeyError) as error:
        raise BitworthError(
            f"{folder}: its weights do not fit its config.json ({str(error).splitlines()[0]})."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing or info.get("mismatched_keys"):
        odd = missing[0] if missing else next(iter(info["mismatched_keys"]))[0]
        raise BitworthError(f"{folder}: its weights do not fit its config.json ({odd} is missing or of another shape).")
    return model


__all__ = ["TorchModel", "load_exact"]
