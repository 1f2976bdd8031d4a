"""The same questions in several languages, one row a task: what a format loses in each (`by language` in reports).

MGSM (arXiv 2210.03057): 250 of GSM8K's problems in eleven languages, answered directly or by a chain of thought in the
language itself. Belebele (arXiv 2308.16884): questions about passages with four choices each, here in MGSM's languages.

A problem is a cluster with its translations: a model that slips on one tends to slip on the others.
"""

from __future__ import annotations

from dataclasses import replace

from bitworth.tasks.base import TaskDef
from bitworth.tasks.passages import column, place

MGSM_LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
BELEBELE_LANGUAGES = (
    "ben_Beng",
    "deu_Latn",
    "eng_Latn",
    "spa_Latn",
    "fra_Latn",
    "jpn_Jpan",
    "rus_Cyrl",
    "swh_Latn",
    "tel_Telu",
    "tha_Thai",
    "zho_Hans",
)
"""MGSM's languages, as Belebele calls them; it has 111 more."""

_MGSM = TaskDef(
    name="mgsm_direct",
    yaml="mgsm/direct/mgsm_direct_{subset}.yaml",
    kind="generated",
    metric="exact_match",
    filter="flexible-extract",
    dataset="juletxara/mgsm",
    folders=("juletxara/mgsm",),
    flat="mgsm",
    stems=("mgsm_{subset}",),
    questions=250 * len(MGSM_LANGUAGES),
    tokens=150,
    answer_tokens=30,
    chat=True,
    multiturn=True,
    subsets=MGSM_LANGUAGES,
    macro=True,
    sharing=place,
    splits=("test",),
)
TASKS = (
    _MGSM,
    replace(
        _MGSM,
        name="mgsm_native_cot",
        yaml="mgsm/native_cot/mgsm_native_cot_{subset}.yaml",
        answer_tokens=250,
        max_tokens=1024,
    ),
    TaskDef(
        name="belebele",
        yaml="belebele/belebele_{subset}.yaml",
        metric="acc",
        dataset="facebook/belebele",
        folders=("facebook/belebele",),
        flat="belebele",
        stems=("{subset}", "data/{subset}"),
        questions=900 * len(BELEBELE_LANGUAGES),
        tokens=250,
        subsets=BELEBELE_LANGUAGES,
        macro=True,
        sharing=column("link"),
        splits=("test",),
        pool="",
    ),
)
