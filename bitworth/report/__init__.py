"""The evidence on a page: report.html, report.md and recommendation.json of a study, and its summary on a terminal."""

from __future__ import annotations

from pathlib import Path

from bitworth.ledger import write_atomic
from bitworth.report.document import as_text, cost_as_json, result_as_json, summary_rows
from bitworth.types import StudyResult

__all__ = ["cost_as_json", "result_as_json", "summary_rows", "write_report"]


def write_report(result: StudyResult, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `recommendation.json` into `folder`; returns the page's path.

    Equal results give equal bytes. Each file is replaced as a whole, so none is ever seen half-written.

    Raises:
        WorkFailed: the folder cannot be written.
    """
    from bitworth.report.markdown import render_markdown
    from bitworth.report.page import render_page

    page = folder / "report.html"
    write_atomic(folder / "recommendation.json", as_text(result_as_json(result)))
    write_atomic(folder / "report.md", render_markdown(result))
    write_atomic(page, render_page(result))
    return page
