from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_tasks import arc_row, write_jsonl

from bitworth import evaluation as verbs
from bitworth import tasks
from bitworth.engines.scorer import Progress, Scorer
from bitworth.errors import BitworthError
from bitworth.tasks.base import Request, Score
from bitworth.types import Answer, TaskSpec

VOCABULARY = 16


class FakeScorer:
    """Bytes modulo 16 as tokens; logits and scores by rule."""

    def __init__(self, score: Callable[[Request], float] = lambda _: -1.0, *, seed: int | None = None) -> None:
        self._score, self._seed = score, seed

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        return [byte % VOCABULARY for byte in text.encode()]

    def loglikelihoods(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Score]:
        if progress is not None:
            progress(len(requests), len(requests))
        return [Score(self._score(request), False) for request in requests]

    def logits(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        if self._seed is None:
            return torch.zeros(*tokens_BT.shape, VOCABULARY)
        table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(self._seed))
        return table[tokens_BT]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "arc" / "challenge_test.jsonl", [arc_row(index) for index in range(12)])
    return tmp_path


def green(request: Request) -> float:
    return -1.0 if "green" in request[1] else -20.0


def answers(scores: Sequence[float], task: str = "t") -> list[Answer]:
    return [Answer(task=task, item=str(i), prediction="A", score=score) for i, score in enumerate(scores)]


# --- tasks --------------------------------------------------------------------------------------------------------


def test_one_answer_a_question_with_progress(data: Path) -> None:
    told: list[tuple[str, int, int]] = []
    spec = TaskSpec(name="arc_challenge", limit=8)
    found = verbs.evaluate(FakeScorer(green), [spec], data=data, progress=lambda *args: told.append(args))
    assert len(found) == 8
    assert {answer.score for answer in found} == {1.0}
    assert {answer.prediction for answer in found} == {"C"}
    assert all(len(answer.logprobs) == 4 for answer in found)
    assert told == [("arc_challenge", 32, 32)]
    assert isinstance(FakeScorer(), Scorer)


def test_missing_rows_are_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="hellaswag"):
        verbs.evaluate(tmp_path / "no model", [TaskSpec(name="hellaswag")], data=tmp_path)


# --- divergence ---------------------------------------------------------------------------------------------------


def test_uniform_model_has_the_vocabularys_perplexity() -> None:
    found = verbs.diverge(FakeScorer(), None, "any text at all " * 4, window=8)
    assert found.perplexity == pytest.approx(VOCABULARY)
    assert (found.baseline_perplexity, found.kl_nats, found.top1_flip_pct) == (None, None, None)
    assert found.tokens == 8 * 7


def test_a_model_does_not_diverge_from_itself() -> None:
    found = verbs.diverge(FakeScorer(seed=1), FakeScorer(seed=1), "some text " * 30, window=20)
    assert found.kl_nats == 0.0
    assert found.top1_flip_pct == 0.0
    assert found.perplexity == found.baseline_perplexity


def test_divergence_equals_its_definition() -> None:
    text = "the quick brown fox " * 20
    model, baseline, window = FakeScorer(seed=1), FakeScorer(seed=2), 300
    found = verbs.diverge(model, baseline, text, window=window)
    tokens = torch.tensor([model.encode(text)[:window]])
    q, p = (scorer.logits(tokens)[0, :-1].double().log_softmax(-1) for scorer in (model, baseline))
    targets = tokens[0, 1:, None]
    assert found.perplexity == pytest.approx(math.exp(-q.gather(1, targets).mean()), rel=1e-5)
    assert found.baseline_perplexity == pytest.approx(math.exp(-p.gather(1, targets).mean()), rel=1e-5)
    assert found.kl_nats == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    assert found.top1_flip_pct == pytest.approx(100 * float((p.argmax(-1) != q.argmax(-1)).double().mean()))
    assert found.tokens == window - 1
    kl_T = (p.exp() * (p - q)).sum(-1)
    spans = [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127), (128, 255), (256, 299)]
    assert [(span.first, span.last) for span in found.kl_by_position] == spans
    for span in found.kl_by_position:
        assert span.kl_nats == pytest.approx(float(kl_T[span.first - 1 : span.last].mean()), rel=1e-5)


def test_limit_and_progress_of_windows() -> None:
    told: list[tuple[str, int, int]] = []
    found = verbs.diverge(
        FakeScorer(), None, "x" * 100, window=10, limit_windows=3, progress=lambda *args: told.append(args)
    )
    assert found.tokens == 27
    assert told == [("text", 1, 3), ("text", 2, 3), ("text", 3, 3)]


@pytest.mark.parametrize(
    ("text", "window", "said"), [("short", 10, "fewer than one window"), ("text", 1, "at least 2")]
)
def test_texts_and_windows_that_predict_nothing_are_refused(text: str, window: int, said: str) -> None:
    with pytest.raises(BitworthError, match=said):
        verbs.diverge(FakeScorer(), None, text, window=window)


def test_two_vocabularies_are_refused() -> None:
    class Other(FakeScorer):
        def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
            return [1] * len(text)

    with pytest.raises(BitworthError, match="tokenize the text differently"):
        verbs.diverge(FakeScorer(), Other(), "some text", window=4)


# --- recovery -----------------------------------------------------------------------------------------------------


def test_recovery_pairs_by_item_whatever_the_order() -> None:
    baseline, quantized = answers([1, 1, 0, 1] * 50), answers([1, 1, 0, 0] * 50)
    task, average = verbs.compare(baseline, quantized[::-1], min_recovery_pct=99, format="w4")
    assert task.recovery_pct == pytest.approx(100 * 2 / 3)
    assert (task.baseline, task.quantized, task.questions) == (0.75, 0.5, 200)
    assert (task.task, task.format, task.verdict) == ("t", "w4", "loses")
    assert task.ci95_pct[0] < task.recovery_pct < task.ci95_pct[1]
    assert (average.task, average.recovery_pct) == ("average", task.recovery_pct)


def test_average_is_the_plain_mean_of_tasks() -> None:
    """As the paper averages: a task of many questions counts no more than one of few."""
    baseline = [*answers([1] * 90 + [0] * 10, "big"), *answers([1, 0] * 5, "small")]
    quantized = [*answers([1] * 80 + [0] * 20, "big"), *answers([1, 0] * 5, "small")]
    *rows, average = verbs.compare(baseline, quantized, min_recovery_pct=99, format="w4")
    assert [row.task for row in rows] == ["big", "small"]
    assert average.baseline == pytest.approx((0.9 + 0.5) / 2)
    assert average.recovery_pct == pytest.approx(100 * (0.8 + 0.5) / (0.9 + 0.5))
    assert average.questions == 110


def test_a_model_that_lacks_a_task_has_no_average() -> None:
    baseline = [*answers([1, 0] * 20, "one"), *answers([1, 0] * 20, "other")]
    found = verbs.compare(baseline, answers([1, 0] * 20, "one"), min_recovery_pct=99, format="w4")
    assert [row.task for row in found] == ["one"]
    more = verbs.compare(answers([1, 0] * 20, "one"), baseline, min_recovery_pct=99, format="w4")
    assert [row.task for row in more] == ["one", "average"]


def test_same_answers_hold_once_there_are_enough_of_them() -> None:
    few, many = answers([1, 0, 1, 1] * 10), answers([1, 0, 1, 1] * 250)
    undecided = verbs.compare(few, few, min_recovery_pct=99, format="w8")[0]
    assert (undecided.recovery_pct, undecided.verdict) == (100.0, "undecided")
    assert undecided.questions_needed is not None
    holds = verbs.compare(many, many, min_recovery_pct=99, format="w8")[0]
    assert (holds.recovery_pct, holds.verdict, holds.questions_needed) == (100.0, "holds", None)


def grouped(scores: Sequence[float], labels: Sequence[str], field: str = "group") -> list[Answer]:
    return [replace(answer, **{field: label}) for answer, label in zip(answers(scores), labels, strict=True)]


def test_p_values_are_adjusted_over_the_tasks_alone() -> None:
    baseline = [*answers([1, 1, 0, 1] * 50, "a"), *answers([1, 0] * 100, "b")]
    quantized = [*answers([1, 1, 0, 0] * 50, "a"), *answers([1, 0] * 100, "b")]
    a, b, average = verbs.compare(baseline, quantized, min_recovery_pct=99, format="w4")
    assert a.p_value is not None
    assert a.p_holm == pytest.approx(min(1, 2 * a.p_value))
    assert b.p_holm == b.p_value
    assert (average.p_value is not None, average.p_holm) == (True, None)


def test_groups_are_compared_apart() -> None:
    """A subject that loses is told from one that does not; a subject without a right answer has no row."""
    labels = ["law"] * 200 + ["art"] * 200 + ["zen"] * 5
    baseline = grouped([1] * 200 + [1, 0] * 100 + [0] * 5, labels)
    quantized = grouped([1] * 100 + [0] * 100 + [1, 0] * 100 + [0] * 5, labels)
    art, law = verbs.compare_groups(baseline, quantized, min_recovery_pct=90, format="w4")
    assert (art.task, art.recovery_pct, art.questions) == ("t/art", 100.0, 200)
    assert (law.task, law.recovery_pct, law.verdict) == ("t/law", 50.0, "loses")
    assert law.p_value is not None
    assert law.p_holm == pytest.approx(2 * law.p_value)
    assert verbs.compare_groups(answers([1, 0]), answers([1, 0]), min_recovery_pct=90, format="w4") == []


def test_suites_are_plain_means_of_their_tasks() -> None:
    baseline = [*answers([1] * 100, "a"), *answers([1, 0] * 10, "b"), *answers([1] * 10, "c")]
    quantized = [*answers([1] * 90 + [0] * 10, "a"), *answers([1, 0] * 10, "b"), *answers([1] * 10, "c")]
    suites = {"first": ("a", "b"), "second": ("c",)}
    first, second = verbs.compare_suites(baseline, quantized, suites, min_recovery_pct=99, format="w4")
    assert (first.task, first.questions) == ("first", 120)
    assert first.recovery_pct == pytest.approx(100 * (0.9 + 0.5) / (1 + 0.5))
    assert second.recovery_pct == 100.0
    with pytest.raises(BitworthError, match="did not both answer d"):
        verbs.compare_suites(baseline, quantized, {"s": ("d",)}, min_recovery_pct=99, format="w4")


def test_questions_that_share_a_passage_count_as_one_sample() -> None:
    """Each question five times over: as clusters they tell what one of each tells."""
    scores = [1, 1, 0, 1, 1, 0, 1, 0] * 20
    worse = [1, 1, 0, 1, 1, 0, 0, 0] * 20
    labels = [f"passage {index // 5}" for index in range(5 * len(scores))]
    copies = [grouped([s for s in column for _ in range(5)], labels, "cluster") for column in (scores, worse)]
    clustered = verbs.compare(*copies, min_recovery_pct=99, format="w4")[0]
    single = verbs.compare(answers(scores), answers(worse), min_recovery_pct=99, format="w4")[0]
    assert clustered.ci95_pct == pytest.approx(single.ci95_pct, abs=0.5)
    assert clustered.questions == 5 * single.questions


def test_unpaired_answers_are_refused() -> None:
    with pytest.raises(BitworthError, match="different questions"):
        verbs.compare(answers([1, 0]), answers([1, 0, 1]), min_recovery_pct=99, format="f")
    with pytest.raises(BitworthError, match="no task in common"):
        verbs.compare(answers([1]), answers([1], task="u"), min_recovery_pct=99, format="f")
    with pytest.raises(BitworthError, match="twice"):
        verbs.compare(answers([1]) * 2, answers([1]), min_recovery_pct=99, format="f")
    with pytest.raises(BitworthError, match="no task in common"):
        verbs.compare([], [], min_recovery_pct=99, format="f")


# --- against the field's own programs -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name", "limit"),
    [
        *[("stories", name, limit) for name, limit in (("arc_challenge", 60), ("winogrande", 60), ("mmlu", 50))],
        ("stories", "hellaswag", 50),
        ("smollm2", "arc_challenge", 30),
        ("smollm2", "winogrande", 40),
    ],
)
def test_answers_are_lm_evals_item_by_item(
    shared: Path, request: pytest.FixtureRequest, model: str, name: str, limit: int
) -> None:
    """lm-eval's HF backend scores the same prompts: the same predictions, log-probabilities within 1e-3."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from bitworth.engines.torch import load_exact

    engine = load_exact(request.getfixturevalue(model), device="cpu")
    loaded = tasks.load(TaskSpec(name=name, limit=limit), shared / "data")
    peer = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=8)
    instances = [
        Instance(request_type="loglikelihood", doc={}, arguments=request, idx=0)
        for question in loaded.questions
        for request in question.requests
    ]
    scores = iter(peer.loglikelihood(instances, disable_tqdm=True))
    for question, answer in zip(loaded.questions, verbs.answer_questions(engine, loaded), strict=True):
        expected = question.grade([Score(*next(scores)) for _ in question.requests])
        assert (answer.item, answer.prediction, answer.score) == (expected.item, expected.prediction, expected.score)
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-3)


@pytest.mark.slow
def test_perplexity_of_the_demo_model_on_wikitext(shared: Path, smollm2: Path) -> None:
    """28.8 on the first 39 windows of 512 tokens, as llm-compressor's and other runs of this model give."""
    text = (shared / "data" / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    found = verbs.diverge(smollm2, None, text, window=512, limit_windows=39)
    assert found.perplexity == pytest.approx(28.8, abs=0.1)
    assert found.tokens == 39 * 511
