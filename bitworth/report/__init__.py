"""The evidence on a page: report.html, report.md, card.md and recommendation.json, and a summary on a terminal."""

from __future__ import annotations

from pathlib import Path

from bitworth.ledger import write_atomic
from bitworth.report.document import as_text, cost_as_json, result_as_json, summary_rows
from bitworth.types import StudyResult

__all__ = ["cost_as_json", "result_as_json", "summary_rows", "write_card", "write_report"]

CARD = "card.md"


def write_report(result: StudyResult, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `recommendation.json` into `folder`; returns the page's path.

    Where a checkpoint wins, its model card is `card.md`; a card of an earlier winner goes where none does.
    Equal results give equal bytes. Each file is replaced as a whole, so none is ever seen half-written.

    Raises:
        WorkFailed: the folder cannot be written.
    """
    from bitworth.report.card import winner
    from bitworth.report.markdown import render_markdown
    from bitworth.report.page import render_page

    page = folder / "report.html"
    write_atomic(folder / "recommendation.json", as_text(result_as_json(result)))
    write_atomic(folder / "report.md", render_markdown(result))
    write_atomic(page, render_page(result))
    won = winner(result)
    if won is not None:
        write_card(result, folder, won)
    else:
        (folder / CARD).unlink(missing_ok=True)
    return page


def write_card(result: StudyResult, folder: Path, format: str, *, base_model: str | None = None) -> Path:
    """Write the model card of a format's checkpoint as `card.md` into `folder`; returns its path.

    Raises:
        BitworthError: see `bitworth.report.card.render_card`.
        WorkFailed: the folder cannot be written.
    """
    from bitworth.report.card import render_card

    path = folder / CARD
    write_atomic(path, render_card(result, format, folder, base_model=base_model))
    return path
