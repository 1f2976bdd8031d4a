"""How far a model's next-token distribution is from its baseline's on a text.

Perplexity by non-overlapping windows, as GPTQ and llm-compressor report it: the text is tokenized once without special
tokens, cut into windows of `window` tokens (a rest is dropped), and the last `window - 1` tokens of each are
predicted. KL is KL(baseline || model), a flip is a position whose most probable token differs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bitworth.engines.scorer import Progress, Scorer
from bitworth.errors import BitworthError
from bitworth.types import Divergence, KlSpan

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
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
    sums_T4 = np.zeros((window - 1, 4))
    for done, tokens in enumerate(windows):
        sums_T4 += _window_figures(model, baseline, tokens)
        if progress is not None:
            progress(done + 1, len(windows))
    means_T4 = sums_T4 / len(windows)
    nll, baseline_nll, kl, flips = (float(value) for value in means_T4.mean(axis=0))
    return Divergence(
        perplexity=_perplexity(nll),
        baseline_perplexity=None if baseline is None else _perplexity(baseline_nll),
        kl_nats=None if baseline is None else kl,
        top1_flip_pct=None if baseline is None else 100.0 * flips,
        tokens=len(windows) * (window - 1),
        kl_by_position=() if baseline is None else _spans(means_T4[:, 2]),
    )


def _spans(kl_T: Floats) -> tuple[KlSpan, ...]:
    """1, 2 to 3, 4 to 7, ... tokens read, the last span with what is left."""
    edges = [2**power for power in range(len(kl_T).bit_length())]
    ends = [*(edge - 1 for edge in edges[1:]), len(kl_T)]
    return tuple(
        KlSpan(first=first, last=last, kl_nats=float(kl_T[first - 1 : last].mean()))
        for first, last in zip(edges, ends, strict=True)
    )


def _windows(tokens: list[int], window: int, limit: int | None) -> list[list[int]]:
    if window < 2:
        raise BitworthError(f"A window of {window} token predicts nothing; use at least 2.")
    windows = [tokens[start : start + window] for start in range(0, len(tokens) - window + 1, window)][:limit]
    if not windows:
        raise BitworthError(f"The text has {len(tokens)} tokens, fewer than one window of {window}; give more text.")
    return windows


def _window_figures(model: Scorer, baseline: Scorer | None, tokens: list[int]) -> Floats:
    """Of each position of a window, [T - 1, 4]: negative log-likelihoods (model, baseline), KL, flips."""
    import torch

    row = torch.tensor([tokens])
    logits_TV = model.logits(row)[0, :-1]
    reference_TV = None if baseline is None else baseline.logits(row)[0, :-1]
    found: list[torch.Tensor] = []
    for start in range(0, len(tokens) - 1, _POSITIONS):
        part = slice(start, start + _POSITIONS)
        target_T1 = row[0, 1:][part].unsqueeze(1)
        found.append(_part(logits_TV[part], None if reference_TV is None else reference_TV[part], target_T1))
    return np.asarray(torch.cat(found).numpy(), dtype=np.float64)


def _part(logits_TV: torch.Tensor, reference_TV: torch.Tensor | None, target_T1: torch.Tensor) -> torch.Tensor:
    import torch

    target_T1 = target_T1.to(logits_TV.device)
    logp_TV = logits_TV.log_softmax(-1)
    nll = -logp_TV.gather(1, target_T1)[:, 0].double()
    zero = torch.zeros_like(nll)
    if reference_TV is None:
        return torch.stack([nll, zero, zero, zero], dim=1).cpu()
    reference_TV = reference_TV.to(logits_TV.device).log_softmax(-1)
    baseline_nll = -reference_TV.gather(1, target_T1)[:, 0].double()
    kl = (reference_TV.exp() * (reference_TV - logp_TV)).sum(-1).double().clamp(min=0)
    flips = (reference_TV.argmax(-1) != logp_TV.argmax(-1)).double()
    return torch.stack([nll, baseline_nll, kl, flips], dim=1).cpu()


def _perplexity(nll: float) -> float:
    """exp of a mean, infinite rather than an error where a broken model makes it overflow."""
    return math.exp(nll) if nll < 700 else math.inf
