"""Item by item beside lm-eval's HF backend: the same prompts, the same choices, the same texts, the same scores.

Every family of the two leaderboards whose rows are at hand, one model in float32, both sides in one process. Scored
choices: log-probabilities, the choice and its score. Written answers: greedy text of at most `--tokens` tokens on both
sides, and its score. A task whose rows or packages are not here is left out and said. Few-shot examples that the data
lack (HellaSwag's, MMLU-Pro's) make both sides ask without. GPQA's questions, and those of MuSR beyond its published
sample, are made up (`made_rows`) where the data lack them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from claims import Claim, say
from made_rows import add_made_rows
from whole_lm_eval import lm_evals, with_musr_sample

from bitworth import tasks
from bitworth.engines.prompts import render
from bitworth.engines.torch import TorchModel, load_exact
from bitworth.errors import BitworthError
from bitworth.evaluation import answer_questions
from bitworth.sources import demo_data, demo_model
from bitworth.types import TaskSpec

ASKED = (
    "arc_challenge",
    "mmlu",
    *(spec.name for spec in tasks.SUITES["leaderboard-v1"]),
    *(spec.name for spec in tasks.SUITES["leaderboard-v2"]),
    "bbh_cot_fewshot",
    "math500",
    "mgsm_native_cot",
    "belebele",
)
DRAWN = ("winogrande", "hellaswag")
"""Tasks whose examples come out of one stream over the split, so that lm-eval must be asked from its beginning."""
MOST_APART = 1e-3
"""Nats by which two log-probabilities of one continuation may differ in float32, summed in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task: questions, and of how many each thing is the same; the largest difference of log-probabilities."""

    name: str
    questions: int
    prompts: int
    answers: int
    scores: int
    apart_nats: float | None


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two questions a task, answers of at most 8 tokens")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", type=Path, help="a model folder; the demo's otherwise")
    parser.add_argument("--data", type=Path, help="a folder of benchmark rows; the demo's otherwise")
    parser.add_argument("--questions", type=int, help="of each task (100, or 2 with --quick)")
    parser.add_argument("--tokens", type=int, help="most tokens of a written answer (64, or 8 with --quick)")
    parser.add_argument("--task", action="append", help="only this task; may be given several times")
    given = parser.parse_args()
    count, tokens = given.questions or (2 if given.quick else 100), given.tokens or (8 if given.quick else 64)
    with tempfile.TemporaryDirectory() as scratch:
        data = with_musr_sample((given.data or demo_data(note)).resolve(), Path(scratch))
        add_made_rows(data, count)
        rows = measure(given.model or demo_model(note), data, given.task or ASKED, count, tokens)
    say(claims_of(rows), as_json=given.json)


def note(text: str) -> None:
    """Progress goes to standard error, past `quiet`."""
    print(text, file=sys.__stderr__, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's bars and warnings: a few for each of MMLU's 57 subjects."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def measure(model: Path, data: Path, names: Sequence[str], count: int, tokens: int) -> list[Row]:
    """Both on every task that can be loaded, one after the other."""
    from lm_eval.models.huggingface import HFLM

    engine = load_exact(model, device="cpu")
    peer = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=1)
    rows = []
    for name in names:
        began = time.monotonic()
        try:
            loaded, shots = questions_of(name, data, count, chat=engine.has_chat_template)
        except BitworthError as error:
            note(f"{name}: left out. {error}")
            continue
        side = choices if isinstance(loaded, tasks.Loaded) else texts
        with quiet():
            rows.append(side(loaded, shots, engine, peer, data, tokens))
        note(f"{rows[-1]} {time.monotonic() - began:.0f} s")
    return rows


def questions_of(
    name: str, data: Path, count: int, *, chat: bool
) -> tuple[tasks.Loaded | tasks.LoadedOpen, int | None]:
    """A task's questions and the number of examples, none where the data have none to take."""
    suites = {spec.name: spec.shots for suite in tasks.SUITES.values() for spec in suite if spec.shots is not None}
    shots = suites.get(name)
    limit = None if name in DRAWN else count
    try:
        loaded = tasks.load(TaskSpec(name=name, limit=limit, shots=shots), data, chat=chat)
    except BitworthError as error:
        if "few-shot examples" not in str(error):
            raise
        note(f"{name}: asked without examples. {error}")
        shots = 0
        loaded = tasks.load(TaskSpec(name=name, limit=count, shots=shots), data, chat=chat)
    if isinstance(loaded, tasks.LoadedOpen):
        return loaded, shots
    return replace(loaded, questions=loaded.questions[:count]), shots


def choices(loaded: Any, shots: int | None, engine: TorchModel, peer: Any, data: Path, _tokens: int) -> Row:
    """Given choices, scored by both."""
    items, chat = [question.item for question in loaded.questions], engine.has_chat_template
    theirs = lm_evals(peer, loaded.task, data, items, shots=shots, chat=chat)
    prompts = same = scores = 0
    apart = 0.0
    for question, answer in zip(loaded.questions, answer_questions(engine, loaded), strict=True):
        (entry,) = theirs[question.item]
        logged = [tasks.Score(float(one[0]), bool(one[1])) for one in entry["filtered_resps"]]
        asked = [(render(engine.tokenizer, context), continuation) for context, continuation in question.requests]
        prompts += asked == [tuple(arguments) for arguments in entry["arguments"]]
        same += answer.prediction == question.grade(logged).prediction
        scores += abs(answer.score - float(entry[tasks.get(loaded.task).metric])) < 1e-3
        apart = max(apart, *(abs(a - b.logprob) for a, b in zip(answer.logprobs, logged, strict=True)))
    return Row(
        name=loaded.task,
        questions=len(loaded.questions),
        prompts=prompts,
        answers=same,
        scores=scores,
        apart_nats=apart,
    )


def texts(loaded: Any, shots: int | None, engine: TorchModel, peer: Any, data: Path, tokens: int) -> Row:
    """Answers that both write, greedily and to the same length."""
    most = min(tokens, loaded.sampling.max_tokens)
    loaded = replace(loaded, sampling=replace(loaded.sampling, max_tokens=most, temperature=0.0, top_p=1.0, n=1))

    def shorten(task: Any) -> None:
        asked = {"max_gen_toks": most, "do_sample": False, "temperature": 0.0}
        task.set_config(key="generation_kwargs", value=asked, update=True)

    items = [question.item for question in loaded.questions]
    theirs = lm_evals(peer, loaded.task, data, items, shots=shots, change=shorten, chat=engine.has_chat_template)
    answers = answer_questions(engine, loaded)
    prompts = same = scores = 0
    for question, answer in zip(loaded.questions, answers, strict=True):
        entries = theirs[question.item]
        prompts += render(engine.tokenizer, question.prompt) == entries[0]["arguments"][0][0]
        same += answer.text.strip() == entries[0]["resps"][0][0].strip()
        scores += answer.score == score_of(loaded.task, entries)
    return Row(name=loaded.task, questions=len(items), prompts=prompts, answers=same, scores=scores, apart_nats=None)


def score_of(name: str, entries: Sequence[Mapping[str, Any]]) -> float:
    """lm-eval's score of a question, by the filter that counts."""
    task = tasks.get(name)
    assert isinstance(task, tasks.TaskDef)
    return float(next(entry for entry in entries if task.filter in (None, entry["filter"]))[task.metric])


def claims_of(rows: Sequence[Row]) -> list[Claim]:
    """Shares of what is the same, task by task and over all."""
    found = []
    for row in rows:
        what = "choices" if row.apart_nats is not None else "texts"
        for told, same in (("prompts", row.prompts), (what, row.answers), ("scores", row.scores)):
            share = 100 * same / row.questions
            found.append(Claim(f"{row.name}: identical {told} of {row.questions}", "100", share, "%", share == 100))
        if row.apart_nats is not None:
            holds = row.apart_nats <= MOST_APART
            found.append(Claim(f"{row.name}: largest difference", f"<= {MOST_APART:g}", row.apart_nats, "nats", holds))
    total = sum(row.questions for row in rows)
    if total:
        same = sum(row.scores for row in rows)
        found.append(Claim(f"identical scores of all {total}", "100", 100 * same / total, "%", same == total))
    return found


if __name__ == "__main__":
    main()
