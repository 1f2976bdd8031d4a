"""Every family of tasks, item by item, against lm-eval run whole: its prompts, its model, its filters, its scores."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE
from whole_lm_eval import lm_evals, with_musr_sample

from bitworth import tasks
from bitworth.engines.prompts import render
from bitworth.engines.torch import TorchModel, load_exact
from bitworth.errors import BitworthError
from bitworth.evaluation import answer_questions
from bitworth.types import Answer, Completion, TaskSpec

CHOICES = ("truthfulqa_mc2", "hellaswag", "mmlu", "leaderboard_bbh", "leaderboard_mmlu_pro", "leaderboard_musr")
WRITTEN = (
    "mmlu_llama",
    "mmlu_cot_llama",
    "arc_challenge_llama",
    "gsm8k_llama",
    "bbh_cot_fewshot",
    "leaderboard_math_hard",
    "leaderboard_ifeval",
    "math500",
    "mgsm_direct",
    "mgsm_native_cot",
)
TOKENS = 24
"""Of an answer here; what the definitions allow would take a tiny model minutes of nonsense."""


@pytest.fixture(scope="module")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    """A tiny Llama with a chat template and room for the longest prompts."""
    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(stories, folder)
    for name, changed in (
        ("config.json", {"max_position_embeddings": 32768}),
        ("tokenizer_config.json", {"chat_template": "{{ bos_token }}" + CHAT_TEMPLATE}),
    ):
        path = folder / name
        settings = json.loads(path.read_text()) | changed
        path.unlink()
        path.write_text(json.dumps(settings))
    return load_exact(folder, device="cpu")


@pytest.fixture(scope="module")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The developers' rows, MuSR's published sample among them where the whole is looked for."""
    return with_musr_sample((shared / "data").resolve(), tmp_path_factory.mktemp("data"))


def ours(name: str, data: Path, limit: int, **fields: Any) -> tasks.Loaded | tasks.LoadedOpen:
    try:
        return tasks.load(TaskSpec(name=name, limit=limit, **fields), data, chat=True)
    except BitworthError as error:
        if "is not here" in str(error) or "not installed" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def hflm(model: TorchModel) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_asked_and_scored_as_lm_eval_does(name: str, model: TorchModel, hflm: Any, data: Path) -> None:
    shots = {"hellaswag": 0, "leaderboard_mmlu_pro": 0}.get(name)  # their examples are not among the data here
    loaded = ours(name, data, 6, shots=shots)
    assert isinstance(loaded, tasks.Loaded)
    theirs = lm_evals(hflm, name, data, [question.item for question in loaded.questions], shots=shots)
    answers = answer_questions(model, loaded)
    for question, answer in zip(loaded.questions, answers, strict=True):
        (entry,) = theirs[question.item]
        asked = [(render(model.tokenizer, context), continuation) for context, continuation in question.requests]
        assert asked == [tuple(arguments) for arguments in entry["arguments"]]
        assert answer.logprobs == pytest.approx([float(found[0]) for found in entry["filtered_resps"]], abs=2e-3)
        assert answer.score == pytest.approx(float(entry[tasks.get(name).metric]), abs=1e-4)


@pytest.mark.slow
def test_drawn_examples_are_lm_evals(model: TorchModel, hflm: Any, data: Path) -> None:
    """Winogrande's five examples come out of one stream over the split, so lm-eval must begin at its beginning too."""
    loaded = ours("winogrande", data, 10**6, shots=5)
    assert isinstance(loaded, tasks.Loaded)
    first = replace(loaded, questions=loaded.questions[:8])
    theirs = lm_evals(hflm, "winogrande", data, [question.item for question in first.questions], shots=5)
    for question, answer in zip(first.questions, answer_questions(model, first), strict=True):
        (entry,) = theirs[question.item]
        assert [*question.requests] == [tuple(arguments) for arguments in entry["arguments"]]
        assert answer.score == float(entry["acc"])


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_answers_are_asked_for_and_written_as_lm_eval_does(name: str, model: TorchModel, hflm: Any, data: Path) -> None:
    loaded = ours(name, data, 3, samples=1)
    assert isinstance(loaded, tasks.LoadedOpen)
    assert loaded.sampling.max_tokens > 0
    greedy = replace(loaded.sampling, max_tokens=min(TOKENS, loaded.sampling.max_tokens), temperature=0.0, top_p=1.0)
    loaded = replace(loaded, sampling=greedy)

    def shorten(task: Any) -> None:
        asked = {"max_gen_toks": greedy.max_tokens, "do_sample": False, "temperature": 0.0}
        task.set_config(key="generation_kwargs", value=asked, update=True)

    theirs = lm_evals(hflm, name, data, [question.item for question in loaded.questions], change=shorten)
    prompts = [question.prompt for question in loaded.questions]
    written = model.generate(prompts, loaded.sampling)
    answers = answer_questions(model, loaded)
    for question, completions, answer in zip(loaded.questions, written, answers, strict=True):
        entries = theirs[question.item]
        context, asked = entries[0]["arguments"][0]
        assert render(model.tokenizer, question.prompt) == context
        until = asked.get("until") or ()
        ends = (until,) if isinstance(until, str) else tuple(until)
        assert loaded.sampling.stop == ends or (name.startswith("mgsm") and set(ends) < set(loaded.sampling.stop))
        assert completions[0].text.strip() == entries[0]["resps"][0][0].strip()
        assert answer.score == float(_counted(name, entries)[tasks.get(name).metric])


def _counted(name: str, entries: list[dict[str, Any]]) -> Mapping[str, Any]:
    wanted = tasks.get(name).filter
    return next(entry for entry in entries if wanted in (None, entry["filter"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["leaderboard_mmlu_pro", "arc_challenge_llama"])
def test_a_real_model_with_its_own_template_agrees(name: str, smollm2: Path, data: Path) -> None:
    real = load_exact(smollm2, device="cpu")
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=real.model, tokenizer=real.tokenizer, batch_size=1)
    check = test_choices_are_asked_and_scored_as_lm_eval_does
    if tasks.get(name).kind == "generated":
        check = test_answers_are_asked_for_and_written_as_lm_eval_does
    check(name, real, lm, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_right_and_wrong_is_what_lm_eval_says(name: str, data: Path) -> None:
    """Texts that hold the right answer in several forms, or none, from a stand-in for a model."""
    loaded = ours(name, data, 12, samples=1)
    assert isinstance(loaded, tasks.LoadedOpen)
    scores = defaultdict(set)
    for form in FORMS:
        lm = _scripted(form)
        theirs = lm_evals(lm, name, data, [question.item for question in loaded.questions])
        for question in loaded.questions:
            entries = theirs[question.item]
            text = entries[0]["resps"][0][0]
            answer: Answer = question.grade([Completion(text=text, finish="stop")])
            expected = float(_counted(name, entries)[tasks.get(name).metric])
            assert answer.score == expected, (name, form, question.item)
            scores[form].add(expected)
    assert {0.0, 1.0} <= set().union(*scores.values())


FORMS = (
    "{target}",
    " {target}.",
    "Let me see. The best answer is {target}.",
    "The final answer is {target}",
    "so the answer is {target}.",
    "Therefore $\\boxed{{{target}}}$ it is.\nFinal Answer: The final answer is ${target}$. I hope it is correct.",
    "I do not know",
    '"A title"\n\n* one *\n\nP.S. {target}',
)


def _scripted(form: str) -> Any:
    """A model in lm-eval's sense that answers each request with the right answer in that form."""
    from lm_eval.api.model import LM

    class Scripted(LM):  # type: ignore[misc]
        tokenizer_name = "none"

        def generate_until(self, requests: Any) -> list[str]:
            return [form.format(target=_target(request.doc)) for request in requests]

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: Any) -> Any:
            raise NotImplementedError

        def apply_chat_template(self, turns: Any, add_generation_prompt: bool = True) -> str:
            return str(turns)

    return Scripted()


def _target(doc: Mapping[str, Any]) -> str:
    """The right answer as the row has it."""
    if "choices" in doc and "answer" in doc:
        return "ABCD"[doc["answer"]]
    if "answerKey" in doc:
        return str(doc["answerKey"])
    if doc.get("answer_number") is not None:
        return str(doc["answer_number"])
    if "target" in doc:
        return str(doc["target"])
    return str(doc.get("answer", "")).rpartition("#### ")[2]


def test_optional_packages_are_named_when_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "math" / "math500.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"problem": "p", "solution": "\\boxed{1}", "answer": "1", "unique_id": "u"}) + "\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(BitworthError, match=r"needs the package math_verify.*bitworth\[tasks\]"):
        tasks.load(TaskSpec(name="math500"), tmp_path)
