"""Likeness of texts against naive references."""

from __future__ import annotations

import builtins
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitworth.apart import differing, likenesses
from bitworth.errors import BitworthError
from bitworth.similarity import compare_texts
from bitworth.types import Answer, Sample

WORDS = st.lists(st.sampled_from(["a", "cat", "sat", "on", "the", "red", "mat"]), max_size=8).map(" ".join)


def written(*texts: str, task: str = "t", **fields: Any) -> list[Answer]:
    return [
        Answer(task=task, item=str(at), prediction="", score=0.0, text=text, **fields) for at, text in enumerate(texts)
    ]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def f1(shared: int, one: int, two: int) -> float:
    return 2 * shared / (one + two) if shared else 0.0


def longest_common(one: list[str], two: list[str]) -> int:
    if not one or not two:
        return 0
    if one[0] == two[0]:
        return 1 + longest_common(one[1:], two[1:])
    return max(longest_common(one[1:], two), longest_common(one, two[1:]))


def mean_of(one: str, two: str, measure: str) -> float:
    (row,) = compare_texts(written(one), written(two), [measure])
    return row.mean


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first call imports the package
@given(WORDS, WORDS)
def test_rouge_is_that_of_its_definition(one: str, two: str) -> None:
    a, b = words(one), words(two)
    overlap = sum((Counter(a) & Counter(b)).values())
    assert mean_of(one, two, "rouge1") == pytest.approx(1.0 if one == two else f1(overlap, len(a), len(b)))
    common = longest_common(a, b)
    assert mean_of(one, two, "rougeL") == pytest.approx(1.0 if one == two else f1(common, len(a), len(b)))


@pytest.mark.parametrize("text", ["", "日本語", "plain"])
@pytest.mark.parametrize("measure", ["identical", "rouge1", "rougeL"])
def test_the_same_text_scores_one_in_any_script(text: str, measure: str) -> None:
    assert mean_of(text, text, measure) == 1.0


def test_rows_are_a_task_and_measure_and_hold_an_interval() -> None:
    before = [*written("a b", "c d", "e f", "g"), *written("x", task="u")]
    after = [*written("a b", "c x", "y z", "g"), *written("x", task="u")]
    rows = {(row.task, row.measure): row for row in compare_texts(before, after, ["identical", "rouge1"])}
    assert set(rows) == {("t", "identical"), ("t", "rouge1"), ("u", "identical"), ("u", "rouge1")}
    assert rows["t", "identical"].mean == 0.5
    assert rows["t", "rouge1"].mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    low, high = rows["t", "rouge1"].ci95
    assert 0 <= low < rows["t", "rouge1"].mean < high <= 1
    assert rows["t", "rouge1"].questions == 4


def programs(*questions: tuple[str, ...]) -> list[Answer]:
    """Answers as a code task gives them: the text is empty."""
    rows = [tuple(Sample(text=text, passed=False) for text in texts) for texts in questions]
    return [
        Answer(task="humaneval", item=str(at), prediction="", score=0.0, samples=row) for at, row in enumerate(rows)
    ]


def test_programs_are_compared_sample_by_sample_and_a_question_counts_once() -> None:
    ours = programs(("return a", "return b"), ("return a", "return b"))
    theirs = programs(("return a", "return c"), ("yield", "pass"))
    (row,) = compare_texts(ours, theirs, ["identical"])
    assert (row.mean, row.questions) == (0.25, 2)
    (row,) = compare_texts(ours, ours, ["identical"])
    assert row.mean == 1.0
    assert row.ci95[0] < row.ci95[1] == 1.0  # two equal answers do not make all equal
    assert likenesses(ours, theirs, format="w4")[0].mean == 0.5  # of the first programs alone
    first, _ = differing(ours, theirs, format="w4")
    assert (first.baseline, first.quantized) == ("return a", "yield")


def test_given_choices_are_passed_over() -> None:
    scored = written("", logprobs=(-1.0, -2.0))
    with pytest.raises(BitworthError, match="Nothing was written"):
        compare_texts(scored, scored)


def test_unknown_measures_and_absent_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BitworthError, match="Unknown measure of likeness 'bleu'"):
        compare_texts(written("a"), written("b"), ["bleu"])
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("sentence_transformers"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BitworthError, match=r"sentence_transformers.*bitworth\[similarity\]"):
        compare_texts(written("a"), written("b"), ["sts"])


@pytest.mark.slow
def test_an_encoder_tells_paraphrase_from_other_matters(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from bitworth.sources import demo_encoder

    try:
        encoder = demo_encoder()
    except BitworthError as error:
        pytest.skip(str(error))
    before = written("The cat is asleep on the sofa.", "The cat is asleep on the sofa.")
    near, far = "A cat sleeps on the couch.", "Interest rates rose by a quarter point."
    (alike,) = compare_texts(before[:1], written(near), ["sts"], encoder=encoder)
    (apart,) = compare_texts(before[:1], written(far), ["sts"], encoder=encoder)
    assert alike.mean > 0.7 > 0.3 > apart.mean


# --- against what others compute ----------------------------------------------------------------------------------

TEXTS = (
    ("The cat is asleep on the sofa.", "A cat sleeps on the couch."),
    ("The total is 42 dollars.", "The total is 24 dollars."),
    ("Paris is the capital of France.", "Interest rates rose by a quarter point."),
    ("the same words", "the same words"),
)


def encoder_folder() -> Path:
    from bitworth.sources import demo_encoder

    try:
        return demo_encoder()
    except BitworthError as error:
        pytest.skip(str(error))


def greedy_f1(folder: Path, layers: int, one: str, two: str) -> float:
    """BERTScore's F by its definition (arXiv 1904.09675, section 3), with transformers alone.

    As in its authors' code the two special tokens count for nothing themselves, but others may be matched with them.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def vectors(text: str) -> torch.Tensor:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[layers]
        return torch.nn.functional.normalize(states[0], dim=-1)

    likeness = vectors(one) @ vectors(two).T
    recall, precision = (likeness.max(dim=dim).values[1:-1].mean() for dim in (1, 0))
    return float(2 * recall * precision / (recall + precision))


@pytest.mark.slow
def test_bertscore_is_its_librarys_and_its_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small encoder in RoBERTa's place: six layers, of which the fourth."""
    library = pytest.importorskip("bert_score")
    from bitworth import similarity

    folder = encoder_folder()
    monkeypatch.setattr(similarity, "BERTSCORE_MODEL", str(folder))
    monkeypatch.setattr(similarity, "BERTSCORE_LAYERS", 4)
    _, _, theirs = library.score(
        [two for _, two in TEXTS], [one for one, _ in TEXTS], model_type=str(folder), num_layers=4
    )
    for (one, two), expected in zip(TEXTS, theirs.tolist(), strict=True):
        ours = mean_of(one, two, "bertscore")
        assert ours == pytest.approx(expected, abs=1e-5)
        assert ours == pytest.approx(greedy_f1(folder, 4, one, two), abs=1e-4)


def test_bertscore_asks_for_the_layer_its_authors_chose() -> None:
    utils = pytest.importorskip("bert_score.utils")
    from bitworth.similarity import BERTSCORE_LAYERS, BERTSCORE_MODEL

    assert utils.model2layers[BERTSCORE_MODEL] == BERTSCORE_LAYERS


@pytest.mark.slow
def test_sentence_embeddings_rank_pairs_as_people_do(shared: Path) -> None:
    """STS-B's test set against its human scores; the encoder's authors publish a Spearman correlation of 0.82."""
    pytest.importorskip("sentence_transformers")
    from scipy.stats import spearmanr

    from bitworth.similarity import _sts

    lines = (shared / "data" / "stsb" / "sts-test.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    human = [float(row[4]) for row in rows]
    found = _sts(encoder_folder())([row[5] for row in rows], [row[6] for row in rows])
    assert len(rows) == 1379
    assert spearmanr(found, human).statistic == pytest.approx(0.82, abs=0.01)
