"""Questions in several languages and questions that share a text: rows, prompts, groups, clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_tasks import write_jsonl

from bitworth import tasks
from bitworth.errors import BitworthError
from bitworth.evaluation import compare, compare_groups
from bitworth.tasks import multilingual, passages
from bitworth.types import Answer, Completion, Message, TaskSpec


@pytest.fixture
def mgsm(tmp_path: Path) -> Path:
    """Three problems in each language, as the authors' tables have them; the answers are 3, 1,000 and 7."""
    for language in multilingual.MGSM_LANGUAGES:
        lines = [f"{language} {at}: wie viele?\t{answer}" for at, answer in enumerate(("3", "1,000", "7"))]
        path = tmp_path / "mgsm" / f"mgsm_{language}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.fixture
def belebele(tmp_path: Path) -> Path:
    """Two passages with two questions each in every language, laid out as on the hub."""
    for language in multilingual.BELEBELE_LANGUAGES:
        rows = [
            {
                "link": f"https://example.org/{at // 2}",
                "question_number": at % 2 + 1,
                "flores_passage": f"{language} passage {at // 2}",
                "question": f"Which {at}?",
                **{f"mc_answer{number}": f"answer {number}" for number in (1, 2, 3, 4)},
                "correct_answer_num": "2",
                "dialect": language,
            }
            for at in range(4)
        ]
        write_jsonl(tmp_path / "facebook" / "belebele" / language / "test.jsonl", rows)
    return tmp_path


def test_mgsm_is_asked_in_each_language_and_translations_are_one_cluster(mgsm: Path) -> None:
    loaded = tasks.load(TaskSpec(name="mgsm_native_cot"), mgsm, chat=True)
    assert isinstance(loaded, tasks.LoadedOpen)
    assert loaded.facts["rows"] == 3 * 11
    asked = {question.item: question for question in loaded.questions}
    (turn,) = asked["de/1"].prompt
    assert isinstance(turn, Message)
    assert turn.content == "Frage: de 1: wie viele?\nSchritt-für-Schritt-Antwort:"
    assert {"Frage:", "問題："} <= set(loaded.sampling.stop)
    answers = {
        item: question.grade([Completion(text="Das sind 1000", finish="stop")]) for item, question in asked.items()
    }
    assert {answer.group for answer in answers.values()} == set(multilingual.MGSM_LANGUAGES)
    assert len({answer.cluster for answer in answers.values()}) == 3
    assert answers["de/1"].cluster == answers["te/1"].cluster != answers["te/2"].cluster
    assert [answers[f"sw/{at}"].score for at in range(3)] == [0.0, 1.0, 0.0]
    assert answers["sw/1"].measures == {"strict-match": 0.0}


def test_belebele_is_scored_by_choices_and_a_passage_is_a_cluster_in_all_languages(belebele: Path) -> None:
    loaded = tasks.load(TaskSpec(name="belebele"), belebele)
    assert isinstance(loaded, tasks.Loaded)
    first = loaded.questions[0]
    assert first.requests[0] == (
        "P: ben_Beng passage 0\nQ: Which 0?\nA: answer 1\nB: answer 2\nC: answer 3\nD: answer 4\nAnswer:",
        " A",
    )
    scores = [tasks.Score(value, False) for value in (-3.0, -1.0, -2.0, -4.0)]
    answers = [question.grade(scores) for question in loaded.questions]
    assert all(answer.score == 1.0 and answer.prediction == "B" for answer in answers)
    assert len({answer.cluster for answer in answers}) == 2
    assert {answer.group for answer in answers} == set(multilingual.BELEBELE_LANGUAGES)


def test_the_multilingual_suite_has_only_tasks_that_tell_languages_apart() -> None:
    assert all(tasks.get(spec.name).subsets for spec in tasks.SUITES["multilingual"])


def test_a_language_that_loses_has_its_own_row(mgsm: Path) -> None:
    """A stand-in for a quantized model that fails in one language alone."""
    loaded = tasks.load(TaskSpec(name="mgsm_direct"), mgsm)
    assert isinstance(loaded, tasks.LoadedOpen)
    sides: dict[str, list[Answer]] = {"before": [], "after": []}
    for question in loaded.questions:
        answer = question.grade([Completion(text="7", finish="stop")])
        right = Answer(**{**_fields(answer), "score": 1.0})
        sides["before"].append(right)
        sides["after"].append(Answer(**{**_fields(right), "score": float(not question.item.startswith("th/"))}))
    rows = compare_groups(sides["before"], sides["after"], min_recovery_pct=99, format="x")
    assert {row.task: row.recovery_pct for row in rows} == {
        f"mgsm_direct/{language}": 0.0 if language == "th" else 100.0 for language in multilingual.MGSM_LANGUAGES
    }


def _fields(answer: Answer) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in Answer.__dataclass_fields__}


def test_a_table_without_tabs_is_named(mgsm: Path) -> None:
    (mgsm / "mgsm" / "mgsm_bn.tsv").write_text("no answer here\n")
    with pytest.raises(BitworthError, match=r"mgsm_bn\.tsv cannot be read \(a line without a tab\)"):
        tasks.load(TaskSpec(name="mgsm_direct"), mgsm)


def test_real_problems_load(shared: Path) -> None:
    for name in ("mgsm_direct", "mgsm_native_cot"):
        loaded = tasks.load(TaskSpec(name=name, limit=4), shared / "data")
        assert loaded.facts["rows"] == tasks.get(name).questions


# --- what questions share -----------------------------------------------------------------------------------------


def test_a_quoted_source_is_what_comes_before_the_question() -> None:
    source = "This question refers to the following information.\nWe hold these truths\nThomas Jefferson, 1776"
    assert passages.introduced({"question": f"{source}\nWho wrote it?"}, 0) == source
    assert passages.introduced({"question": "What is\nthis?"}, 0) is None


def test_twins_share_their_options_in_any_order() -> None:
    one, two = {"option1": "cup", "option2": "box"}, {"option1": "box", "option2": "cup"}
    assert passages.choices(one, 0) == passages.choices(two, 1)


def test_a_column_that_is_not_there_makes_no_cluster() -> None:
    assert passages.column("source_id")({}, 3) is None


@pytest.mark.parametrize(
    ("name", "clusters", "alone"),
    [
        ("winogrande", 823, 0),
        pytest.param("hellaswag", 8407, 0, marks=pytest.mark.slow(beside=True)),
        pytest.param("mmlu", 201, 13436, marks=pytest.mark.slow(beside=True)),
        pytest.param("leaderboard_mmlu_pro", 145, 11796, marks=pytest.mark.slow(beside=True)),
    ],
)
def test_clusters_of_the_published_rows(shared: Path, name: str, clusters: int, alone: int) -> None:
    """Counted here from the files alone, as independent of the grader as can be."""
    from bitworth.tasks import rows

    task = tasks.get(name)
    assert isinstance(task, tasks.TaskDef)
    assert task.sharing is not None
    split = "validation" if name in ("winogrande", "hellaswag") else "test"
    found = [
        task.sharing(row, at)
        for config in task.configs()
        for at, row in enumerate(rows.read(task, config, split, shared / "data"))
    ]
    assert len({label for label in found if label is not None}) == clusters
    assert found.count(None) == alone


def test_shared_texts_widen_the_interval_where_they_flip_together() -> None:
    def answers(scores: list[float], sharing: bool) -> list[Answer]:
        return [
            Answer(task="t", item=str(at), prediction="", score=score, cluster=str(at // 5) if sharing else None)
            for at, score in enumerate(scores)
        ]

    before, after = [1.0] * 200, [0.0] * 10 + [1.0] * 190  # two whole passages flip
    widths = {}
    for sharing in (False, True):
        row = compare(answers(before, sharing), answers(after, sharing), min_recovery_pct=90, format="x")[0]
        widths[sharing] = row.ci95_pct[1] - row.ci95_pct[0]
    assert widths[True] > 1.5 * widths[False]
