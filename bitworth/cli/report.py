"""`bitworth report`: the page, its Markdown, the document and the model card, from a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from bitworth.cli import names
from bitworth.cli.console import Json, Terminal
from bitworth.errors import BitworthError


def report(
    results: Annotated[Path, typer.Argument(help="A folder that `bitworth run STUDY --out FOLDER` wrote.")],
    card: Annotated[
        str | None,
        typer.Option(
            help="The format whose checkpoint card.md is about (the one chosen most often).",
            autocompletion=names.study_formats,
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The model's name on the Hub, for card.md, where the study names a folder.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="A folder to write every plot into as SVG and PNG, too.")] = None,
    json: Json = False,
) -> None:
    """Write report.html, report.md, card.md and recommendation.json from a results folder."""
    from bitworth.assembly import assemble
    from bitworth.report import CARD, write_card, write_report
    from bitworth.report.card import render_card, winner
    from bitworth.report.plot_files import write_plots

    result = assemble(results)
    about = card if card is not None else winner(result)
    if about is not None:
        render_card(result, about, results, base_model=base_model)  # refuses what is wrong before anything is written
    elif base_model is not None:
        raise BitworthError("No checkpoint was chosen, so there is no card; name a format with --card.")
    page = write_report(result, results).resolve()
    if about is not None:
        write_card(result, results, about, base_model=base_model)
    written = str((results / CARD).resolve()) if about is not None else None
    drawn = [str(path) for path in write_plots(result, plots)] if plots is not None else []
    document = {"report": str(page), "card": written, "card_of": about, "plots": drawn}
    said = f"Report: {page}" + (f"\nModel card of {about}: {written}" if about else "")
    said += f"\n{len(drawn)} plots in {plots}" if drawn else ""
    Terminal(as_json=json).answer(document, lambda: Text(said))
