"""The paper's suites: what they expand to, what their protocol sets, how scores are normalized and averaged."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from bitworth import tasks
from bitworth.cli import tasks as cli_tasks
from bitworth.errors import BitworthError
from bitworth.statistics import share_interval
from bitworth.study import parse_study
from bitworth.tasks import leaderboard_v2
from bitworth.tasks.definitions import examples_are_fixed, settings_of
from bitworth.tasks.mirror import hub_rows
from bitworth.tasks.reasoning import pass_rate
from bitworth.tasks.suites import SUITES
from bitworth.types import Answer, Completion, Message, Sampling, TaskSpec

# --- names --------------------------------------------------------------------------------------------------------


def test_the_paper_asks_thirteen_leaderboard_tasks_with_its_shots() -> None:
    assert [
        (s.name, s.shots if s.shots is not None else tasks.get(s.name).shots) for s in SUITES["leaderboard-v1"]
    ] == [
        ("mmlu_llama", 5),
        ("mmlu_cot_llama", 0),
        ("arc_challenge_llama", 0),
        ("gsm8k_llama", 8),
        ("hellaswag", 10),
        ("winogrande", 5),
        ("truthfulqa_mc2", 0),
    ]
    assert {s.name: tasks.get(s.name).shots for s in SUITES["leaderboard-v2"]} == {
        "leaderboard_ifeval": 0,
        "leaderboard_bbh": 3,
        "leaderboard_math_hard": 4,
        "leaderboard_gpqa": 0,
        "leaderboard_musr": 0,
        "leaderboard_mmlu_pro": 5,
    }


def test_conversations_are_where_the_paper_had_them() -> None:
    turns = {s.name: (tasks.get(s.name).chat, tasks.get(s.name).multiturn) for s in tasks.SUITES["leaderboard-v1"]}
    assert turns == {
        "mmlu_llama": (True, True),
        "mmlu_cot_llama": (True, False),
        "arc_challenge_llama": (True, False),
        "gsm8k_llama": (True, True),
        "hellaswag": (False, False),
        "winogrande": (False, False),
        "truthfulqa_mc2": (False, False),
    }
    assert all(tasks.get(s.name).chat and tasks.get(s.name).multiturn for s in tasks.SUITES["leaderboard-v2"])


def test_reasoning_is_sampled_as_the_paper_samples() -> None:
    for spec in tasks.SUITES["reasoning"]:
        task = tasks.get(spec.name)
        assert (task.temperature, task.top_p, task.samples) == (0.6, 0.95, 20)


def test_suites_expand_in_order_and_a_tasks_own_entry_wins() -> None:
    found = tasks.expand(
        [TaskSpec(name="leaderboard-v1", limit=50, seed=3), TaskSpec(name="hellaswag", limit=7), TaskSpec(name="paper")]
    )
    names = [spec.name for spec in found]
    assert len(names) == len(set(names))
    assert names[:7] == [spec.name for spec in SUITES["leaderboard-v1"]]
    by_name = {spec.name: spec for spec in found}
    assert by_name["hellaswag"] == TaskSpec(name="hellaswag", limit=7)
    assert by_name["winogrande"] == TaskSpec(name="winogrande", limit=50, seed=3, shots=5)
    assert by_name["leaderboard_bbh"] == TaskSpec(name="leaderboard_bbh")
    for spec in tasks.expand([TaskSpec(name="code", samples=3, temperature=0.9, chat=False)]):
        assert (spec.samples, spec.temperature, spec.chat) == (3, 0.9, False)
    some = {spec.name: spec for spec in tasks.expand([TaskSpec(name="leaderboard-v1", temperature=0.5)])}
    assert some["gsm8k_llama"].temperature == 0.5
    assert some["hellaswag"].temperature is None, "it scores given answers"


def test_an_unknown_name_is_told_what_it_may_have_meant() -> None:
    with pytest.raises(BitworthError, match=r"Unknown task 'leaderboard_v2'.*suites: quick"):
        tasks.expand([TaskSpec(name="leaderboard_v2")])


def test_a_study_file_takes_suites() -> None:
    study = parse_study({"model": "m", "formats": ["baseline"], "tasks": ["quick", {"name": "mmlu", "limit": 5}]})
    assert [(spec.name, spec.limit) for spec in study.task_specs()] == [
        ("arc_challenge", 100),
        ("hellaswag", 100),
        ("winogrande", 100),
        ("mmlu", 5),
    ]
    with pytest.raises(BitworthError, match=r"did you mean 'quick'\?"):
        parse_study({"model": "m", "formats": ["baseline"], "tasks": ["quik"]})


# --- normalization ------------------------------------------------------------------------------------------------


def answered(task: str, scores: dict[str | None, list[float]]) -> list[Answer]:
    return [
        Answer(task=task, item=f"{group}/{at}", prediction="", score=score, group=group)
        for group, column in scores.items()
        for at, score in enumerate(column)
    ]


def test_chance_is_one_in_the_number_of_choices_that_lm_eval_lists() -> None:
    task = tasks.get("leaderboard_bbh")
    for subset in task.subsets:
        assert len(settings_of(task, subset)["doc_to_choice"]) == leaderboard_v2.BBH_CHOICES[subset]


def test_normalization_is_the_leaderboards() -> None:
    gpqa = tasks.get("leaderboard_gpqa")
    mixed = answered(gpqa.name, {"gpqa_main": [1, 0], "gpqa_diamond": [1, 1, 0, 0, 0, 0]})
    assert leaderboard_v2.normalized_pct(gpqa, mixed) == pytest.approx(100 * (3 / 8 - 0.25) / 0.75)
    musr = tasks.get("leaderboard_musr")
    scores: dict[str | None, list[float]] = {
        "murder_mysteries": [1, 1, 1, 0],  # 0.75 where guessing gives 0.5
        "object_placements": [0] * 10,  # below guessing: nothing
        "team_allocation": [1, 0],  # 0.5 where guessing gives a third
    }
    expected = 100 * fmean([0.5, 0.0, (0.5 - 1 / 3) / (2 / 3)])
    assert leaderboard_v2.normalized_pct(musr, answered(musr.name, scores)) == pytest.approx(expected)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=9), st.lists(st.just(1.0), min_size=1, max_size=9))
def test_scores_above_chance_average_to_the_leaderboards_figure(one: list[float], two: list[float]) -> None:
    musr = tasks.get("leaderboard_musr")
    rows = answered(musr.name, {"murder_mysteries": [*one, 1.0, 1.0, *[1.0] * len(one)], "team_allocation": two})
    moved = leaderboard_v2.above_chance(musr, rows)
    figure = leaderboard_v2.normalized_pct(musr, rows)
    assert 100 * fmean(answer.score for answer in moved) == pytest.approx(figure)


def test_published_averages_come_out_of_published_columns(shared: Path) -> None:
    """The paper's V1 average is the plain mean of seven columns."""
    table = shared / "paper" / "table02_leaderboard_v1.csv"
    if not table.is_file():
        pytest.skip("needs the paper's tables")
    lines = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    columns = [name for name in rows[0] if name not in ("size", "format", "recovery_pct", "average")]
    assert len(columns) == len(SUITES["leaderboard-v1"])
    for row in rows:
        assert fmean(float(row[name]) for name in columns) == pytest.approx(float(row["average"]), abs=0.06)


def test_suite_averages_say_what_is_missing() -> None:
    v2 = [spec.name for spec in tasks.SUITES["leaderboard-v2"]]
    some = [one for name in v2[:1] for one in answered(name, {None: [1.0, 0.0]})]
    (row,) = cli_tasks.suite_averages(["leaderboard-v2"], {"model": some, "baseline": []})
    assert row["average_pct"] is None
    assert row["missing"] == v2[1:]
    assert row["columns_pct"] == {v2[0]: 50.0}


# --- pass@1 -------------------------------------------------------------------------------------------------------


def test_intervals_of_pass_at_1_cover_what_they_should() -> None:
    """Drawn from known rates: one interval covers the mean rate of these questions, the other that of all questions."""
    luck, inner, outer, rounds, samples = random.Random(0), 0, 0, 300, 20
    for _ in range(rounds):
        rates = [luck.betavariate(2, 2) for _ in range(60)]
        shares = [sum(luck.random() < rate for _ in range(samples)) / samples for rate in rates]
        found = pass_rate(answered("aime24", {None: shares}), samples)
        assert found.samples_ci95_pct is not None
        low, high = found.samples_ci95_pct
        inner += low <= 100 * fmean(rates) <= high
        outer += found.ci95_pct[0] <= 50.0 <= found.ci95_pct[1]
    assert 0.92 <= inner / rounds <= 0.98
    assert 0.92 <= outer / rounds <= 0.98


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_questions_that_all_score_alike_are_not_taken_for_certain(right: float) -> None:
    found = pass_rate(answered("aime24", {None: [right] * 30}), 20)
    assert found.pass_at_1_pct == 100 * right
    widths = []
    for interval in (found.ci95_pct, found.samples_ci95_pct):
        assert interval is not None
        assert interval[0] <= 100 * right <= interval[1]
        widths.append(interval[1] - interval[0])
    assert 8 < widths[0] < 14  # Clopper and Pearson's bound of none in 30 is 11.6 %
    assert 0.4 < widths[1] < 0.7  # and of none in 600, 0.6 %


@pytest.mark.parametrize("questions", [30, 200])
def test_an_interval_of_right_answers_covers_any_rate(questions: int) -> None:
    """Exactly, by the binomial distribution, over rates from hardly any to half."""
    bounds = [share_interval([1.0] * right + [0.0] * (questions - right)) for right in range(questions + 1)]
    for rate in np.linspace(0.002, 0.5, 250):
        chances = binom.pmf(np.arange(questions + 1), questions, rate)
        covered = sum(p for p, (low, high) in zip(chances, bounds, strict=True) if low <= rate <= high)
        assert covered > 0.91


def test_one_sample_has_no_interval_over_samples() -> None:
    found = pass_rate(answered("aime24", {None: [1.0, 0.0, 1.0]}), 1)
    assert found.samples_ci95_pct is None
    assert found.pass_at_1_pct == pytest.approx(200 / 3)


# --- rows ---------------------------------------------------------------------------------------------------------


def test_published_files_become_the_hubs_rows() -> None:
    story = {"context": "S", "questions": [{"question": "Who?", "answer": 1, "choices": ["A'a", "B"]}]}
    (row,) = hub_rows("TAUR-Lab/MuSR", story)
    assert row == {
        "narrative": "S",
        "question": "Who?",
        "choices": str(["A'a", "B"]),
        "answer_index": 1,
        "answer_choice": "B",
    }
    (row,) = hub_rows(
        "truthfulqa/truthful_qa", {"question": "Q", "mc1_targets": {"a": 1}, "mc2_targets": {"a": 1, "b": 0}}
    )
    assert row["mc2_targets"] == {"choices": ["a", "b"], "labels": [1, 0]}
    assert hub_rows("truthfulqa/truthful_qa", row) == [row]
    problem = {"problem": "p", "solution": "s", "level": "Level 5", "type": "Counting & Probability", "label": 3}
    assert hub_rows("DigitalLearningGmbH/MATH-lighteval", problem)[0]["config"] == "counting_and_probability"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def musr_rows(story: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "narrative": story,
            "question": f"Who {at}?",
            "choices": "['Ann', 'Bob']",
            "answer_index": at % 2,
            "answer_choice": ["Ann", "Bob"][at % 2],
        }
        for at in range(count)
    ]


def test_musrs_subsets_are_splits_and_stories_are_clusters(tmp_path: Path) -> None:
    for subset in leaderboard_v2.MUSR_CHOICES:
        rows = musr_rows(f"{subset} one", 2) + musr_rows(f"{subset} two", 2)
        write(tmp_path / "TAUR-Lab" / "MuSR" / f"{subset}.jsonl", rows)
    loaded = tasks.load(TaskSpec(name="leaderboard_musr"), tmp_path)
    assert isinstance(loaded, tasks.Loaded)
    assert loaded.facts["rows"] == 12
    answers = [question.grade([tasks.Score(-1.0, True), tasks.Score(-2.0, False)]) for question in loaded.questions]
    assert {answer.group for answer in answers} == set(leaderboard_v2.MUSR_CHOICES)
    assert len({answer.cluster for answer in answers}) == 6
    assert [answer.score for answer in answers[:4]] == [1.0, 0.0, 1.0, 0.0]


def gpqa_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "Question": f"What is {at}?",
            "Correct Answer": f"right {at}",
            **{f"Incorrect Answer {number}": f"wrong {at} {number}" for number in (1, 2, 3)},
        }
        for at in range(count)
    ]


@pytest.fixture
def gpqa(tmp_path: Path) -> Path:
    for subset in tasks.get("leaderboard_gpqa").subsets:
        write(tmp_path / "gpqa" / f"{subset}.jsonl", gpqa_rows(12))
    return tmp_path


def test_gpqas_choices_lie_the_same_whatever_is_asked_and_ran_before(gpqa: Path) -> None:
    random.seed(5)
    state = random.getstate()
    whole = tasks.load(TaskSpec(name="leaderboard_gpqa"), gpqa)
    assert random.getstate() == state
    random.seed(99)
    part = tasks.load(TaskSpec(name="leaderboard_gpqa", limit=7), gpqa)
    assert isinstance(whole, tasks.Loaded)
    assert isinstance(part, tasks.Loaded)
    prompts = {question.item: question.requests for question in whole.questions}
    assert len({question.requests[0][0] for question in part.questions}) > 1
    assert all(prompts[question.item] == question.requests for question in part.questions)


def test_letters_in_parentheses_are_found_in_reasoning(gpqa: Path) -> None:
    loaded = tasks.load(TaskSpec(name="gpqa_diamond", samples=4), gpqa, chat=True)
    assert isinstance(loaded, tasks.LoadedOpen)
    assert (loaded.sampling.n, loaded.sampling.temperature, loaded.sampling.stop) == (4, 0.6, ())
    question = loaded.questions[0]
    (turn,) = question.prompt
    assert isinstance(turn, Message)
    right = next(line[:3] for line in turn.content.splitlines() if "right" in line)
    wrong = next(line[:3] for line in turn.content.splitlines() if "wrong" in line)
    texts = [f"Not {wrong} but {right}", f"{right}, no: {wrong}", f"It is {right}.", "?"]
    answer = question.grade([Completion(text=text, finish="stop") for text in texts])
    assert answer.score == 0.5


def test_boxed_answers_are_found_in_reasoning(tmp_path: Path) -> None:
    rows = [{"ID": "2024-I-1", "Problem": "One and one?", "Solution": "", "Answer": 204}]
    write(tmp_path / "aime" / "aime24.jsonl", rows)
    loaded = tasks.load(TaskSpec(name="aime24"), tmp_path)
    assert isinstance(loaded, tasks.LoadedOpen)
    assert loaded.sampling.n == 20
    assert str(loaded.questions[0].prompt).startswith("One and one?")
    texts = ["so \\boxed{204}", "\\boxed{3} then \\boxed{204}.", "\\boxed{7}", "204 maybe \\boxed{20}"]
    answer = loaded.questions[0].grade([Completion(text=text, finish="stop") for text in texts])
    assert answer.score == 0.5
    assert answer.item == "2024-I-1"


def test_sampling_draws_from_the_seed_and_greedy_tasks_write_once(tmp_path: Path) -> None:
    rows = [{"ID": "2024-I-1", "Problem": "One and one?", "Solution": "", "Answer": 204}]
    write(tmp_path / "aime" / "aime24.jsonl", rows)
    write(tmp_path / "gsm8k" / "test.jsonl", [{"question": "1 + 1 = ?", "answer": "It is. #### 2"}])

    def sampling(name: str, **asked: Any) -> Sampling:
        loaded = tasks.load(TaskSpec(name=name, shots=0, **asked), tmp_path)
        assert isinstance(loaded, tasks.LoadedOpen)
        return loaded.sampling

    assert [sampling("aime24", seed=seed).seed for seed in (0, 7)] == [0, 7]
    cold = sampling("aime24", temperature=0)
    assert (cold.n, cold.temperature, cold.top_p) == (1, 0.0, 1.0)
    with pytest.raises(BitworthError, match="Task aime24: 20 samples at temperature 0 are all alike"):
        sampling("aime24", samples=20, temperature=0)
    with pytest.raises(BitworthError, match="Task gsm8k_llama: 4 samples at temperature 0 are all alike"):
        sampling("gsm8k_llama", samples=4)
    warm = sampling("gsm8k_llama", samples=4, temperature=0.5)
    assert (warm.n, warm.temperature) == (4, 0.5)


def test_arc_of_four_choices_only_and_written(tmp_path: Path) -> None:
    def row(at: int, count: int) -> dict[str, Any]:
        labels = list("ABCDE"[:count])
        choices = {"text": [f"t{label}" for label in labels], "label": labels}
        return {"id": f"Q{at}", "question": f"Which {at}?", "choices": choices, "answerKey": "B"}

    write(tmp_path / "arc" / "challenge_test.jsonl", [row(0, 4), row(1, 3), row(2, 4), row(3, 5)])
    loaded = tasks.load(TaskSpec(name="arc_challenge_llama"), tmp_path, chat=True)
    assert isinstance(loaded, tasks.LoadedOpen)
    assert [question.item for question in loaded.questions] == ["Q0", "Q2"]
    prompt = loaded.questions[0].prompt
    assert [turn.role for turn in prompt if isinstance(turn, Message)] == ["user", "assistant"]
    texts = [" B", "B.", " b", " C", "B because"]
    scores = [loaded.questions[0].grade([Completion(text=text, finish="stop")]).score for text in texts]
    assert scores == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k" / "test.jsonl.gz"
    path.parent.mkdir()
    with gzip.open(path, "wt") as lines:
        lines.write(json.dumps({"question": "Two and two?", "answer": "2+2 = <<2+2=4>>4\n#### 4"}) + "\n")
    return tmp_path


def test_examples_are_turns_of_their_own_where_the_paper_had_them(gsm8k: Path) -> None:
    loaded = tasks.load(TaskSpec(name="gsm8k_llama"), gsm8k, chat=True)
    assert isinstance(loaded, tasks.LoadedOpen)
    turns = [turn for turn in loaded.questions[0].prompt if isinstance(turn, Message)]
    assert [turn.role for turn in turns] == ["user", "assistant"] * 8 + ["user"]
    assert "Two and two?" in turns[-1].content
    assert loaded.sampling.max_tokens == 1024
    plain = tasks.load(TaskSpec(name="gsm8k_llama"), gsm8k)
    assert isinstance(plain, tasks.LoadedOpen)
    assert isinstance(plain.questions[0].prompt, str)


def test_lenient_filters_are_measures_beside_the_strict_score(gsm8k: Path) -> None:
    loaded = tasks.load(TaskSpec(name="gsm8k_llama"), gsm8k)
    assert isinstance(loaded, tasks.LoadedOpen)
    grade = loaded.questions[0].grade
    strict = grade([Completion(text="So. The final answer is 4.", finish="stop")])
    assert (strict.score, dict(strict.measures)) == (1.0, {"flexible_extract": 1.0})
    lenient = grade([Completion(text="That makes $4.00, or 4", finish="length")])
    assert (lenient.score, dict(lenient.measures)) == (0.0, {"flexible_extract": 1.0})


def test_fixed_examples_need_no_split() -> None:
    assert examples_are_fixed(settings_of(tasks.get("leaderboard_bbh"), "snarks"))
    assert not examples_are_fixed(settings_of(tasks.get("mmlu_llama"), "anatomy"))


def test_absent_rows_name_the_terms_and_the_places(tmp_path: Path) -> None:
    with pytest.raises(tasks.RowsAbsent, match=r"accepted its terms.*gpqa/gpqa_diamond\.jsonl"):
        tasks.load(TaskSpec(name="leaderboard_gpqa"), tmp_path)
    with pytest.raises(tasks.RowsAbsent, match=r"MuSR/none/murder_mysteries"):
        tasks.load(TaskSpec(name="leaderboard_musr"), tmp_path)


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "truthfulqa_mc2",
        "arc_challenge_llama",
        "gsm8k_llama",
        "leaderboard_bbh",
        "bbh_cot_fewshot",
        pytest.param("mmlu_llama", marks=pytest.mark.slow(beside=True)),
    ],
)
def test_sizes_are_those_of_the_data(shared: Path, name: str) -> None:
    loaded = tasks.load(TaskSpec(name=name, limit=1), shared / "data")
    assert loaded.facts["rows"] == tasks.get(name).questions
