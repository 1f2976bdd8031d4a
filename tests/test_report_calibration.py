"""What people read of the audit; `test_audit.py` has its figures."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from test_audit import TEXT, seen

from bitworth.audit import audit_of
from bitworth.report.calibration import audit_summary
from bitworth.types import Audit, StageAudit


def printed(audits: dict[str, Audit]) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(audit_summary(audits))
    return capture.get()


def test_the_text_once_and_a_row_a_format() -> None:
    stages = [
        StageAudit(layers=(f"m.{at}.q",), tokens=9, outlier_ratio=ratio, top_overlap=0.9, rank_correlation=0.8)
        for at, ratio in enumerate((2.0, 3.0, 40.0))
    ]
    audit = audit_of(TEXT, [*stages[:2], replace(stages[2], outliers=4, top_overlap=0.25)])
    said = printed({"one": audit, "other": audit_of(TEXT, stages[:2])})
    assert said.count("64 in 4 sequences of 16") == 1
    assert said.count("100 % a.txt (4)") == 1
    assert "100 %; the tokenizer adds it" in said
    assert "3.0 (40.0)" in said
    assert "0.90 (0.25)" in said
    assert "1 of 3" in said
    assert "experts" not in said
    assert "SmoothQuant" in said
    assert "doubt; take more data or more kinds of it (one)." in " ".join(said.split())


def test_experts_have_a_column_where_there_are_any() -> None:
    rows = [seen("m.0.mlp.experts.0.w1", 5), seen("m.0.mlp.experts.1.w1", 0)]
    said = printed({"one": audit_of(TEXT, rows)})
    assert "1 of 2" in said
    assert "1 of 2 experts saw no calibration token" in said


def test_a_model_without_template_says_so() -> None:
    assert "no template" in printed({"one": audit_of(replace(TEXT, chat_share=None, chat_markers=()), [])})
