"""From what is known of studies to HTML; whatever a model or a file said is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment
from markupsafe import Markup

from bitworth.progress import cell_words, left_words
from bitworth.report.marks import Mark, marks_of
from bitworth.report.page import environment
from bitworth.report.words import headline
from bitworth.types import BASELINE, StudyResult
from bitworth.view.answers import AnswerPage
from bitworth.view.folder import Standing
from bitworth.view.rows import Filters, Results, figures_of, options_of

_LABELS = {
    "study": "Study",
    "format": "Format",
    "task": "Task",
    "use_case": "Use case",
    "load": "Load",
    "hardware": "Hardware",
    "source": "Figures",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A study as the page shows it: where it stands, and the result last added up, of its `version`.

    `reading` while newer results are being added up; `problem` says why there is no result.
    """

    place: int
    root: Path
    standing: Standing
    result: StudyResult | None = None
    version: int = 0
    reading: bool = False
    problem: str | None = None


def state_of(study: Shown) -> dict[str, Any]:
    """What changes while a study runs, in words and figures; the page's program puts the words where they belong."""
    standing, progress = study.standing, study.standing.progress
    title, lede = headline(study.result) if study.result is not None else ("", "")
    return {
        "study": study.place,
        "name": standing.name,
        "model": standing.model,
        "folder": str(study.root),
        "cells": {"done": standing.done, "failed": standing.failed, "total": standing.total},
        "is_running": progress is not None,
        "left_s": progress.left_s if progress else None,
        "says": _says(standing),
        "running": [cell_words(cell) for cell in progress.running] if progress else [],
        "left": left_words(progress) if progress else "",
        "headline": title or ("Reading the results" if study.reading else ""),
        "lede": lede,
        "problem": study.problem or "",
        "version": study.version,
        "reading": study.reading,
    }


def _says(standing: Standing) -> str:
    """`12 of 19 cells done, 1 failed; running`."""
    failed = f", {standing.failed} failed" if standing.failed else ""
    state = "running" if standing.progress else "complete" if standing.done == standing.total else "not running"
    return f"{standing.done:,} of {standing.total:,} cells done{failed}; {state}"


def render_home(studies: Sequence[Shown], asked: Filters) -> str:
    """The whole page: the studies, the filters, the figures."""
    return _render(
        "home.html.j2",
        **_figures(studies, asked),
        studies=[state_of(study) for study in studies],
        selects=_selects(studies, asked),
    )


def render_figures(studies: Sequence[Shown], asked: Filters) -> str:
    """The figures alone, which the page puts in place of those it has."""
    return _render("figures.html.j2", **_figures(studies, asked))


def render_answers(
    study: Shown, tasks: Mapping[str, Sequence[str]], asked: Mapping[str, str], found: AnswerPage
) -> str:
    """A page of answers; `asked` has the task, the format and which questions."""
    formats = list(dict.fromkeys(format for names in tasks.values() for format in names))
    return _render(
        "answers.html.j2",
        study=state_of(study),
        selects=[
            ("task", "Task", [(name, name) for name in tasks], asked["task"]),
            ("format", "Format", [(name, name) for name in formats], asked["format"]),
            ("which", "Questions", [("changed", "with another score"), ("all", "all")], asked["which"]),
        ],
        asked=asked,
        found=found,
        baseline=BASELINE,
        turn=lambda page: "?" + urlencode({**asked, "page": page}),
    )


def render_problem(sentence: str) -> str:
    """A page that says what is wrong."""
    return _render("problem.html.j2", sentence=sentence)


@cache
def asset(name: str) -> str:
    """The style (the report's, then the view's own) or the program."""
    own = files("bitworth.view").joinpath(name).read_text(encoding="utf-8")
    if not name.endswith(".css"):
        return own
    return files("bitworth.report").joinpath("page.css").read_text(encoding="utf-8") + own


@cache
def _environment() -> Environment:
    return environment("bitworth.view")


def _render(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(**values)


def _figures(studies: Sequence[Shown], asked: Filters) -> dict[str, Any]:
    results: Results = {study.place: study.result for study in studies if study.result is not None}
    if asked.study:
        results = {place: result for place, result in results.items() if str(place) == asked.study}
    marks = _marks(results)
    return {
        "figures": figures_of(results, asked),
        "places": list(results),
        "names": _names(studies),
        "versions": versions_of(studies),
        "options": json.dumps(_options(studies)),
        "baseline": BASELINE,
        "swatch": lambda format: _swatch(marks.get(format)),
        "answers": lambda place, task, format: f"/study/{place}/answers?" + urlencode({"task": task, "format": format}),
    }


def versions_of(studies: Sequence[Shown]) -> str:
    """Changes when any study's figures do."""
    return ",".join(f"{study.version}" for study in studies)


def _options(studies: Sequence[Shown]) -> dict[str, list[str]]:
    return options_of({study.place: study.result for study in studies if study.result is not None})


def _names(studies: Sequence[Shown]) -> dict[int, str]:
    """Each study's name, with its folder's where two share one."""
    names = [study.standing.name for study in studies]
    return {
        study.place: name if names.count(name) == 1 else f"{name} ({study.root.name})"
        for study, name in zip(studies, names, strict=True)
    }


def _selects(studies: Sequence[Shown], asked: Filters) -> list[tuple[Any, ...]]:
    """Each filter's name, label, options as (value, words), and what it is set to."""
    options = {name: [(value, value) for value in values] for name, values in _options(studies).items()}
    if len(studies) > 1:
        options["study"] = [(str(place), name) for place, name in _names(studies).items()]
    chosen = asdict(asked)
    return [(name, label, options[name], chosen[name]) for name, label in _LABELS.items() if name in options]


def _marks(results: Results) -> dict[str, Mark]:
    return marks_of([format for result in results.values() for format in result.formats])


def _swatch(mark: Mark | None) -> Markup:
    """The report's mark; its colour is a class, since the page allows no style but the sheet's."""
    if mark is None:
        return Markup("")
    return Markup(
        '<svg class="swatch" viewBox="-1.2 -1.2 2.4 2.4" aria-hidden="true"><path class="{}" d="{}"/></svg>'
    ).format(mark.colour.removeprefix("--"), mark.shape)
