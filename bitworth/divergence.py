"""How far a model's next-token distribution is from its baseline's on a text.

Perplexity by non-overlapping windows, as GPTQ and llm-compressor report it: the text is tokenized once without special
tokens, cut into windows of `window` tokens (a rest is dropped), and the last `window - 1` tokens of each are
predicted. KL is KL(baseline || model), a flip is a position whose most probable token differs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bitworth.engines.scorer import Progress, Scorer
from bitworth.errors import BitworthError
from bitworth.types import Divergence

if TYPE_CHECKING:
    import torch

_POSITIONS = 128
"""Positions turned into probabilities at once: bounds memory at _POSITIONS x vocabulary."""


def diverge_models(
    model: Scorer,
    baseline: Scorer | None,
    text: str,
    *,
    window: int,
    limit_windows: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Both models over the same windows, one window in memory at a time; without a baseline only perplexity.

    Raises:
        BitworthError: a window of fewer than 2 tokens, a text shorter than one window, or two vocabularies.
    """
    windows = _windows(model.encode(text, special_tokens=False), window, limit_windows)
    if baseline is not None and baseline.encode(text[:2000]) != model.encode(text[:2000]):
        raise BitworthError("The model and its baseline tokenize the text differently, so they cannot be compared.")
    sums = [0.0, 0.0, 0.0, 0.0]
    for done, tokens in enumerate(windows):
        for index, value in enumerate(_window_sums(model, baseline, tokens)):
            sums[index] += value
        if progress is not None:
            progress(done + 1, len(windows))
    count = len(windows) * (window - 1)
    nll, baseline_nll, kl, flips = (value / count for value in sums)
    return Divergence(
        perplexity=_perplexity(nll),
        baseline_perplexity=None if baseline is None else _perplexity(baseline_nll),
        kl_nats=None if baseline is None else kl,
        top1_flip_pct=None if baseline is None else 100.0 * flips,
        tokens=count,
    )


def _windows(tokens: list[int], window: int, limit: int | None) -> list[list[int]]:
    if window < 2:
        raise BitworthError(f"A window of {window} token predicts nothing; use at least 2.")
    windows = [tokens[start : start + window] for start in range(0, len(tokens) - window + 1, window)][:limit]
    if not windows:
        raise BitworthError(f"The text has {len(tokens)} tokens, fewer than one window of {window}; give more text.")
    return windows


def _window_sums(model: Scorer, baseline: Scorer | None, tokens: list[int]) -> tuple[float, float, float, float]:
    """Sums over a window's positions: negative log-likelihoods (model, baseline), KL, flips."""
    import torch

    row = torch.tensor([tokens])
    logits_TV = model.logits(row)[0, :-1]
    reference_TV = None if baseline is None else baseline.logits(row)[0, :-1]
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(tokens) - 1, _POSITIONS):
        part = slice(start, start + _POSITIONS)
        target_T1 = row[0, 1:][part].unsqueeze(1)
        sums += _part_sums(logits_TV[part], None if reference_TV is None else reference_TV[part], target_T1)
    nll, baseline_nll, kl, flips = sums.tolist()
    return nll, baseline_nll, kl, flips


def _part_sums(logits_TV: torch.Tensor, reference_TV: torch.Tensor | None, target_T1: torch.Tensor) -> torch.Tensor:
    import torch

    target_T1 = target_T1.to(logits_TV.device)
    logp_TV = logits_TV.log_softmax(-1)
    nll = -logp_TV.gather(1, target_T1).double().sum()
    zero = torch.zeros_like(nll)
    if reference_TV is None:
        return torch.stack([nll, zero, zero, zero]).cpu()
    reference_TV = reference_TV.to(logits_TV.device).log_softmax(-1)
    baseline_nll = -reference_TV.gather(1, target_T1).double().sum()
    kl = (reference_TV.exp() * (reference_TV - logp_TV)).sum(-1).double().clamp(min=0).sum()
    flips = (reference_TV.argmax(-1) != logp_TV.argmax(-1)).double().sum()
    return torch.stack([nll, baseline_nll, kl, flips]).cpu()


def _perplexity(nll: float) -> float:
    """exp of a mean, infinite rather than an error where a broken model makes it overflow."""
    return math.exp(nll) if nll < 700 else math.inf
