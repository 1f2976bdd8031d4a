"""What calibration data is and what it does inside the model, so that its user can judge whether it will do.

The text side looks at the token sequences. The activation side looks at the inputs of each stage, the linear layers
that read one tensor (q, k and v; gate and up), in the block walk. With m_i = max|x_i| over the calibration tokens, one
a column:

    outlier ratio      max_i m_i / median_i m_i
    outlier column     m_i >= 10 median_i m_i
    top overlap        Jaccard |A & B| / |A | B| of the top 1 % of the columns by m_i (one at least), A on one half of
                       the tokens, B on the other (`InputStats.half_max_abs_2I`)
    rank correlation   Spearman's, of m_i on the one half with m_i on the other, over all columns

SmoothQuant (arXiv 2211.10438) rests on outliers that stay in the same columns whatever the token: there the overlap is
near 1. Where it is low, scales found on this data may miss the columns that matter on other data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import regex
import torch
from torch import Tensor

from bitworth.guard.templates import apply_template
from bitworth.quantizers import InputStats
from bitworth.types import Audit, ExpertAudit, SourceShare, StageAudit, TextAudit

OUTLIER = 10.0
"""A column is an outlier from this many medians on."""
LISTED = 16
"""Most outlier columns that a stage lists."""
STABLE = 0.5
"""Top columns that overlap less between halves of the data are not the same columns."""
LEAST_EXPERT_SHARE = 0.1
"""An expert that saw less than this part of its mixture's median saw little."""

_COMMON_SCRIPTS = """
    Latin Cyrillic Greek Han Hiragana Katakana Hangul Arabic Hebrew Devanagari Bengali Tamil Telugu Gujarati Gurmukhi
    Kannada Malayalam Sinhala Thai Lao Myanmar Khmer Tibetan Ethiopic Armenian Georgian
"""
_SCRIPTS = _COMMON_SCRIPTS.split()
_LETTERS = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}}+)" for name in _SCRIPTS) + r"|(?P<other>\p{L}+)")
_EXPERT = re.compile(r"(?P<module>.*\bexperts)\.(?P<number>\d+)(?:\.|$)")


# --- text ---------------------------------------------------------------------------------------------------------


def audit_text(tokens_ST: Tensor, tokenizer: Any, sources: tuple[SourceShare, ...]) -> TextAudit:
    """What the sequences hold; `sources` says where they came from."""
    rows: list[list[int]] = tokens_ST.tolist()
    texts = [str(tokenizer.decode(row, skip_special_tokens=False)) for row in rows]
    written = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
    special = torch.tensor(sorted(special_ids(tokenizer)), dtype=tokens_ST.dtype)
    bos = tokenizer.bos_token_id
    markers = chat_markers(tokenizer)
    hits = sum(any(marker in text for marker in markers) for text in texts)
    return TextAudit(
        tokens=tokens_ST.numel(),
        samples=len(rows),
        length=tokens_ST.shape[1],
        sources=sources,
        scripts=scripts(written),
        chat_markers=markers,
        chat_share=hits / len(rows) if markers else None,
        bos_token=tokenizer.bos_token,
        tokenizer_adds_bos=adds_bos(tokenizer),
        bos_share=0.0 if bos is None else sum(row[0] == bos for row in rows) / len(rows),
        special_share=float(torch.isin(tokens_ST, special).double().mean()),
        vocabulary_share=len({id for row in rows for id in row}) / len(tokenizer),
        duplicates=len(rows) - len({tuple(row) for row in rows}),
    )


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer starts a text with BOS by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]


def scripts(texts: Sequence[str]) -> dict[str, float]:
    """Shares of the letters by Unicode script, largest first; what is in none of 26 common ones is `other`.

    >>> scripts(["abc де"])
    {'Latin': 0.6, 'Cyrillic': 0.4}
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for run in _LETTERS.finditer(text):
            counts[run.lastgroup] += len(run.group())
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()}


def chat_markers(tokenizer: Any) -> tuple[str, ...]:
    """What the chat template writes before a user's and before an assistant's words; none where there is no template.

    Found by rendering a conversation of words that no template holds: the assistant's marker is what stands between a
    question and its answer, the user's what stands both before the first question and before the second. Of several
    lines the last counts, since those before it end the turn or are a system prompt.
    """
    from jinja2 import TemplateError

    words = ("Quizzaciously", "Floccinaucinihilipilification", "Syzygial")
    roles = ("user", "assistant", "user")
    turns = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    try:
        text = apply_template(tokenizer, turns)
    except (ValueError, TypeError, KeyError, AttributeError, TemplateError):
        return ()  # no template, or one of another kind of conversation
    places = [text.find(word) for word in words]
    if -1 in places:
        return ()
    first, second = places[0], places[1]
    before = text[:first]
    answers = text[first + len(words[0]) : second]
    asks = text[second + len(words[1]) : places[2]]
    found = (_common_end(before, asks).strip(), answers.strip())
    return tuple(marker.splitlines()[-1] for marker in found if marker)


def _common_end(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-length - 1] == other[-length - 1]:
        length += 1
    return one[len(one) - length :]


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that mark something instead of being text: BOS, EOS, turns, reserved ones."""
    added = {int(id) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {int(id) for id in tokenizer.all_special_ids}


# --- activations --------------------------------------------------------------------------------------------------


def audit_stage(prefix: str, layers: Sequence[str], stats: InputStats | None) -> StageAudit:
    """The figures of one stage's inputs; None for layers that calibration never reached."""
    names = tuple(f"{prefix}.{layer}" for layer in layers)
    if stats is None or not stats.tokens:
        return StageAudit(layers=names, tokens=0)
    peaks_I, halves_2I = stats.max_abs_I.double().cpu(), stats.half_max_abs_2I.double().cpu()
    outliers = outlier_columns(peaks_I)
    halved = stats.tokens > 1
    return StageAudit(
        layers=names,
        tokens=stats.tokens,
        outlier_ratio=outlier_ratio(peaks_I),
        outliers=len(outliers),
        outlier_columns=tuple(outliers[:LISTED]),
        top_overlap=top_overlap(halves_2I) if halved else None,
        rank_correlation=rank_correlation(halves_2I[0], halves_2I[1]) if halved else None,
    )


def outlier_ratio(peaks_I: Tensor) -> float | None:
    """Largest over median of the columns' max|x|; None where half of the columns are zero."""
    middle = float(peaks_I.quantile(0.5))
    return float(peaks_I.max()) / middle if middle > 0 else None


def outlier_columns(peaks_I: Tensor) -> list[int]:
    """Columns with at least ten times the median of max|x|, largest first; none where half of the columns are zero."""
    middle = float(peaks_I.quantile(0.5))
    if middle <= 0:
        return []
    found: list[int] = (peaks_I >= OUTLIER * middle).nonzero().flatten().tolist()
    return sorted(found, key=lambda column: (-float(peaks_I[column]), column))


def top_overlap(halves_2I: Tensor) -> float:
    """Jaccard overlap of each half's top 1 % columns, one at least."""
    count = max(1, round(halves_2I.shape[1] / 100))
    one, other = (set(half.argsort(descending=True, stable=True)[:count].tolist()) for half in halves_2I)
    return len(one & other) / len(one | other)


def rank_correlation(one_I: Tensor, other_I: Tensor) -> float | None:
    """Spearman's, ties at their mean rank; None where a side is the same in all columns."""
    ranks_2I = torch.stack([_ranks(one_I), _ranks(other_I)])
    centred_2I = ranks_2I - ranks_2I.mean(1, keepdim=True)
    size = float(centred_2I.square().sum(1).prod().sqrt())
    return float((centred_2I[0] * centred_2I[1]).sum()) / size if size > 0 else None


def _ranks(values_I: Tensor) -> Tensor:
    """Ranks from 0 on: as many as are smaller, and half of the others that are equal."""
    sorted_I = values_I.sort().values
    below_I = torch.searchsorted(sorted_I, values_I)
    return (below_I + torch.searchsorted(sorted_I, values_I, right=True) - 1) / 2


# --- together -----------------------------------------------------------------------------------------------------


def audit_of(text: TextAudit, rows: Sequence[StageAudit]) -> Audit:
    """The whole audit: experts are counted by mixture instead of having a row each."""
    stages = tuple(row for row in rows if _EXPERT.match(row.layers[0]) is None)
    experts = expert_coverage(rows)
    doubts = (*_text_doubts(text), *_stage_doubts(stages), *_expert_doubts(experts))
    return Audit(text=text, stages=stages, experts=experts, doubts=doubts)


def expert_coverage(rows: Sequence[StageAudit]) -> tuple[ExpertAudit, ...]:
    """Tokens that each expert saw: the most that any of its layers did."""
    found: dict[str, dict[int, int]] = {}
    for row in rows:
        for layer in row.layers:
            if match := _EXPERT.match(layer):
                seen = found.setdefault(match["module"], {})
                number = int(match["number"])
                seen[number] = max(seen.get(number, 0), row.tokens)
    return tuple(
        ExpertAudit(
            module=module,
            tokens=dict(sorted(seen.items())),
            unreached=tuple(sorted(number for number, tokens in seen.items() if not tokens)),
        )
        for module, seen in found.items()
    )


def _text_doubts(text: TextAudit) -> list[str]:
    doubts = []
    if text.tokenizer_adds_bos and text.bos_share < 1:
        doubts.append(
            f"{_percent(1 - text.bos_share)} of the sequences do not start with {text.bos_token}, as every prompt of "
            "this tokenizer does"
        )
    if text.chat_share is not None and text.chat_share < 0.01:
        doubts.append(
            "the model has a chat template that no sequence holds; if it will serve chats, calibrate on conversations"
        )
    if text.duplicates:
        doubts.append(f"{text.duplicates} of {text.samples} sequences repeat another one")
    return doubts


def _stage_doubts(stages: Sequence[StageAudit]) -> list[str]:
    """Outliers that move between the halves of the data."""
    moving = [
        stage for stage in stages if stage.outliers and stage.top_overlap is not None and stage.top_overlap < STABLE
    ]
    if not moving:
        return []
    return [
        f"in {len(moving)} of {len(stages)} stages the largest columns differ between halves of the data (first: "
        f"{moving[0].layers[0]}), so what SmoothQuant assumes is in doubt; take more data or more kinds of it"
    ]


def _expert_doubts(experts: Sequence[ExpertAudit]) -> list[str]:
    total = sum(len(mixture.tokens) for mixture in experts)
    never = sum(len(mixture.unreached) for mixture in experts)
    rarely = sum(
        0 < tokens < LEAST_EXPERT_SHARE * median(mixture.tokens.values())
        for mixture in experts
        for tokens in mixture.tokens.values()
    )
    doubts = []
    if never:
        doubts.append(f"{never} of {total} experts saw no calibration token and were rounded without data")
    if rarely:
        doubts.append(f"{rarely} of {total} experts saw less than a tenth of their mixture's median of tokens")
    return doubts


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"
