"""The audit of calibration data on a terminal: what it was, what it did in the model, what is in doubt."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitworth.types import Audit, TextAudit

_SHOWN = 4
"""Scripts that are named."""


def audit_summary(audits: Mapping[str, Audit]) -> RenderableType:
    """By format's name; the text is the same for all formats of one run and is shown once."""
    first = next(iter(audits.values()))
    parts: list[RenderableType] = [_text_table(first.text), _stage_table(audits)]
    doubts: dict[str, list[str]] = {}
    for name, audit in audits.items():
        for doubt in audit.doubts:
            doubts.setdefault(doubt, []).append(name)
    for doubt, names in doubts.items():
        whose = "" if len(names) == len(audits) else f" ({', '.join(names)})"
        parts.append(Text(f"Calibration: {doubt}{whose}.", style="yellow"))
    return Group(*parts)


def _text_table(text: TextAudit) -> Table:
    table = Table(title="Calibration", title_justify="left", show_header=False)
    table.add_row("tokens", f"{text.tokens:,} in {text.samples} sequences of {text.length}")
    sources = (f"{_percent(row.samples / text.samples)} {row.source} ({row.samples})" for row in text.sources)
    table.add_row("sources", ", ".join(sources))
    shares = list(text.scripts.items())[:_SHOWN]
    table.add_row("scripts of its letters", ", ".join(f"{_percent(share)} {name}" for name, share in shares) or "none")
    table.add_row("with chat markers", "no template" if text.chat_share is None else _percent(text.chat_share))
    adds = "the tokenizer adds it" if text.tokenizer_adds_bos else "the tokenizer adds none"
    table.add_row("start with BOS", f"{_percent(text.bos_share)}; {adds}")
    table.add_row("special tokens", _percent(text.special_share))
    table.add_row("vocabulary seen", _percent(text.vocabulary_share))
    table.add_row("repeated sequences", str(text.duplicates))
    return table


def _stage_table(audits: Mapping[str, Audit]) -> Table:
    """Medians over the stages, with the worst stage's figure in parentheses."""
    mixtures = any(audit.experts for audit in audits.values())
    columns = ["outlier ratio", "with outliers", "overlap", "rank corr.", *(["experts unreached"] if mixtures else [])]
    table = Table("format", *columns, title="Inputs of its layers: median stage (worst stage)", title_justify="left")
    for name, audit in audits.items():
        ratios = [row.outlier_ratio for row in audit.stages if row.outlier_ratio is not None]
        overlaps = [row.top_overlap for row in audit.stages if row.top_overlap is not None]
        ranks = [row.rank_correlation for row in audit.stages if row.rank_correlation is not None]
        cells = [
            f"{median(ratios):.1f} ({max(ratios):.1f})" if ratios else "",
            f"{sum(row.outliers > 0 for row in audit.stages)} of {len(audit.stages)}",
            f"{median(overlaps):.2f} ({min(overlaps):.2f})" if overlaps else "",
            f"{median(ranks):.2f} ({min(ranks):.2f})" if ranks else "",
        ]
        experts = sum(len(mixture.tokens) for mixture in audit.experts)
        unreached = sum(len(mixture.unreached) for mixture in audit.experts)
        table.add_row(name, *cells, *([f"{unreached} of {experts}"] if mixtures else []))
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"
