from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitworth.audit import (
    adds_bos,
    audit_of,
    audit_stage,
    audit_text,
    chat_markers,
    expert_coverage,
    outlier_columns,
    outlier_ratio,
    rank_correlation,
    scripts,
    special_ids,
    top_overlap,
)
from bitworth.quantizers import InputStats
from bitworth.types import ExpertAudit, SourceShare, StageAudit, TextAudit

BOS, EOS = 256, 257
SHARES = (SourceShare(source="a.txt", weight=1.0, samples=4),)


def with_bos(tokenizer: Any) -> Any:
    """The tokenizer, starting texts with BOS by itself, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return tokenizer


def row(tokenizer: Any, text: str, length: int = 16) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == length, len(ids)
    return ids


# --- text ---------------------------------------------------------------------------------------------------------


def test_a_text_by_hand() -> None:
    tokenizer = byte_tokenizer()
    rows = [
        row(tokenizer, "<|user|>hi there"),
        row(tokenizer, "abcdefghабвг"),
        row(tokenizer, "abcdefghабвг"),
        [BOS, *row(tokenizer, "0123456789 .,:", 14), EOS],
    ]
    found = audit_text(torch.tensor(rows), tokenizer, SHARES)
    assert (found.tokens, found.samples, found.length, found.sources) == (64, 4, 16, SHARES)
    latin, cyrillic = 4 + 2 + 5 + 8 + 8, 4 + 4
    assert found.scripts == pytest.approx({"Latin": latin / 35, "Cyrillic": cyrillic / 35})
    assert found.chat_markers == ("<|user|>", "<|assistant|>")
    assert found.chat_share == 0.25
    assert (found.bos_token, found.tokenizer_adds_bos, found.bos_share) == ("<bos>", False, 0.25)
    assert found.special_share == 2 / 64
    assert found.vocabulary_share == len({id for ids in rows for id in ids}) / 259
    assert found.duplicates == 1


def test_special_tokens_are_those_that_mark() -> None:
    assert special_ids(byte_tokenizer()) == {256, 257, 258}


def test_whether_a_tokenizer_adds_bos() -> None:
    assert not adds_bos(byte_tokenizer())
    assert adds_bos(with_bos(byte_tokenizer()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("123 !?", {}),
        ("漢字 ひら カタ", {"Han": 1 / 3, "Hiragana": 1 / 3, "Katakana": 1 / 3}),
        ("αβγδ ж", {"Greek": 0.8, "Cyrillic": 0.2}),
        ("ᚠᚢ ab", {"other": 0.5, "Latin": 0.5}),
        ("é", {"Latin": 1.0}),
    ],
)
def test_scripts(text: str, expected: dict[str, float]) -> None:
    assert scripts([text]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("template", "markers"),
    [
        (None, ()),
        ("{{ raise_exception('no') }}", ()),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", ()),
        (
            "{{ bos_token }}"
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}",
            ("<|im_start|>user", "<|im_start|>assistant"),
        ),
        (
            "<|im_start|>system\nBe kind.<|im_end|>\n"
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}",
            ("<|im_start|>user", "<|im_start|>assistant"),
        ),
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
            "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
            ("[INST]", "[/INST]"),
        ),
    ],
)
def test_chat_markers(template: str | None, markers: tuple[str, ...]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    assert chat_markers(tokenizer) == markers


# --- activations --------------------------------------------------------------------------------------------------


def stats_of(*chunks: Tensor) -> InputStats:
    stats = InputStats(chunks[0].shape[-1])
    for chunk in chunks:
        stats.add(chunk)
    return stats


def test_a_stage_by_hand() -> None:
    """Peaks 1, 2, 3, 40 and 50: the median is 3, so 30 and more is an outlier."""
    inputs = torch.tensor([[1.0, -2.0, 1.0, 40.0, 4.0], [0.5, 1.0, -3.0, -20.0, 50.0]])
    found = audit_stage("layers.0", ["q", "k"], stats_of(inputs))
    assert found.layers == ("layers.0.q", "layers.0.k")
    assert (found.tokens, found.outlier_ratio, found.outliers, found.outlier_columns) == (2, 50 / 3, 2, (4, 3))
    assert found.top_overlap == 0.0  # column 3 leads in the first half, column 4 in the second
    # ranks 0.5, 2, 0.5, 4, 3 and 0, 1, 2, 3, 4: deviations (-1.5, 0, -1.5, 2, 1), (-2, -1, 0, 1, 2)
    assert found.rank_correlation == pytest.approx((3 + 2 + 2) / (9.5 * 10) ** 0.5)


def test_outliers_that_stay_are_told_from_those_that_move() -> None:
    generator = torch.Generator().manual_seed(0)
    steady = torch.randn(400, 200, generator=generator)
    steady[:, [7, 90]] *= 50
    moving = torch.randn(400, 200, generator=generator)
    moving[:200, [7, 90]] *= 50
    moving[200:, [8, 91]] *= 50
    stay, move = (audit_stage("b", ["q"], stats_of(inputs)) for inputs in (steady, moving))
    assert (stay.top_overlap, move.top_overlap) == (1.0, 0.0)
    assert set(stay.outlier_columns) == {7, 90}
    assert set(move.outlier_columns) == {7, 8, 90, 91}
    assert audit_of(TEXT, [stay]).doubts == ()
    [doubt] = audit_of(TEXT, [stay, move]).doubts
    assert doubt.startswith("in 1 of 2 stages the largest columns differ between halves of the data (first: b.q)")


def test_too_little_data_gives_no_figure() -> None:
    assert (
        audit_stage("b", ["q"], None) == audit_stage("b", ["q"], InputStats(3)) == StageAudit(layers=("b.q",), tokens=0)
    )
    one = audit_stage("b", ["q"], stats_of(torch.tensor([[1.0, 2.0, 3.0]])))
    assert (one.outlier_ratio, one.top_overlap, one.rank_correlation) == (1.5, None, None)
    dead = audit_stage("b", ["q"], stats_of(torch.zeros(4, 3)))
    assert (dead.outlier_ratio, dead.outliers, dead.rank_correlation) == (None, 0, None)


def test_only_the_largest_outliers_are_listed() -> None:
    peaks = torch.ones(100)
    peaks[:40] = torch.arange(40, 0, -1) + 100.0
    found = audit_stage("b", ["q"], stats_of(peaks[None]))
    assert found.outliers == 40
    assert found.outlier_columns == tuple(range(16))


@given(st.lists(st.floats(0, 1e6, width=32), min_size=2, max_size=60))
def test_figures_do_not_depend_on_scale_or_order(values: list[float]) -> None:
    peaks = torch.tensor(values, dtype=torch.float64)
    turned = peaks.flip(0) * 4
    one, other = outlier_ratio(peaks), outlier_ratio(turned)
    assert (one is None) == (other is None)
    assert one is None or one == pytest.approx(other)
    assert len(outlier_columns(peaks)) == len(outlier_columns(turned))
    same = rank_correlation(peaks, peaks * 4)
    assert same is None or same == pytest.approx(1)
    assert top_overlap(torch.stack([peaks, peaks])) == 1.0


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    one, other = (torch.tensor([pair[side] for pair in pairs], dtype=torch.float64) for side in (0, 1))
    found = rank_correlation(one, other)
    if found is None:
        assert len(one.unique()) == 1 or len(other.unique()) == 1
    else:
        assert found == pytest.approx(float(scipy_stats.spearmanr(one, other).statistic))


# --- together -----------------------------------------------------------------------------------------------------

TEXT = TextAudit(
    tokens=64,
    samples=4,
    length=16,
    sources=SHARES,
    scripts={"Latin": 1.0},
    chat_markers=("<|user|>",),
    chat_share=0.5,
    bos_token="<bos>",
    tokenizer_adds_bos=True,
    bos_share=1.0,
    special_share=0.1,
    vocabulary_share=0.2,
    duplicates=0,
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bos_share": 0.25}, "75 % of the sequences do not start with <bos>"),
        ({"bos_share": 0.25, "tokenizer_adds_bos": False}, None),
        ({"chat_share": 0.0}, "a chat template that no sequence holds"),
        ({"chat_share": None}, None),
        ({"duplicates": 2}, "2 of 4 sequences repeat another one"),
    ],
)
def test_doubts_about_a_text(change: dict[str, Any], said: str | None) -> None:
    doubts = audit_of(replace(TEXT, **change), []).doubts
    assert len(doubts) == (said is not None)
    assert said is None or doubts[0].startswith(said) or said in doubts[0]


def seen(layer: str, tokens: int) -> StageAudit:
    return StageAudit(layers=(layer,), tokens=tokens)


def test_experts_are_counted_by_mixture() -> None:
    rows = [seen("m.0.self_attn.q_proj", 100)]
    for number, tokens in enumerate((90, 80, 2, 0)):
        rows.append(
            StageAudit(layers=tuple(f"m.0.mlp.experts.{number}.{leaf}" for leaf in ("w1", "w3")), tokens=tokens)
        )
        rows.append(seen(f"m.0.mlp.experts.{number}.w2", tokens))
    rows.append(seen("m.1.mlp.experts.10.w1", 5))
    assert expert_coverage(rows) == (
        ExpertAudit(module="m.0.mlp.experts", tokens={0: 90, 1: 80, 2: 2, 3: 0}, unreached=(3,)),
        ExpertAudit(module="m.1.mlp.experts", tokens={10: 5}, unreached=()),
    )
    audit = audit_of(TEXT, rows)
    assert [stage.layers[0] for stage in audit.stages] == ["m.0.self_attn.q_proj"]
    assert audit.doubts == (
        "1 of 5 experts saw no calibration token and were rounded without data",
        "1 of 5 experts saw less than a tenth of their mixture's median of tokens",
    )


def test_markers_of_a_real_folder(tiny_llama: Path) -> None:
    from bitworth.calibration import load_tokenizer

    assert chat_markers(load_tokenizer(tiny_llama)) == ("<|user|>", "<|assistant|>")
