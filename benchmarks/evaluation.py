"""Questions a second beside lm-eval's HF backend: the same model in float32, the same prompts, one process.

Both score the same continuations of the same contexts, so their answers must be the same, question by question. The
peer runs with the best of several batch sizes, found on a few questions first. Questions of a subject of MMLU share
their five examples, so what counts is how many a subject has. It is asked three times: one subject whole, as in a full
run (246 questions a subject in the mean), three subjects at some 33 each, as a draw of 2,000 from all 57 has, and a
draw of no more questions than the other tasks have from all 57, one or two each.
Start-up is a whole process: for the peer until it could ask (its tasks indexed, its model loaded), for bitworth until
one question is answered.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from claims import Claim, say

from bitworth import tasks
from bitworth.sources import demo_data, demo_model
from bitworth.tasks.harness import load_questions
from bitworth.types import TaskSpec

BATCHES = (1, 4, 8, 16, 32)
#: Name, title, how many of its subjects are asked (None: all), how many times the peer's questions a second are wanted.
ASKED: tuple[tuple[str, str, int | None, float], ...] = (
    ("arc_challenge", "arc_challenge", None, 2.2),
    ("hellaswag", "hellaswag", None, 1.6),
    ("mmlu", "mmlu, one subject", 1, 4.0),
    ("mmlu", "mmlu, three subjects", 3, 4.0),
    ("mmlu", "mmlu, all subjects thinly", None, 4.0),
)
#: What the mix is made of.
MIXED = ("arc_challenge", "hellaswag", "mmlu, one subject")
MIX = 3.0
PEER_STARTS = """
import sys
from lm_eval.tasks import TaskManager
from lm_eval.models.huggingface import HFLM
TaskManager()
HFLM(pretrained=sys.argv[1], dtype="float32", device="cpu")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task: seconds for all its questions, by bitworth and by lm-eval at its best batch size."""

    name: str
    target: float
    questions: int
    ours_s: float
    peer_s: float
    batch: int
    alike: int


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", type=Path, help="a model folder; the demo's otherwise")
    parser.add_argument("--data", type=Path, help="a folder of benchmark rows; the demo's otherwise")
    parser.add_argument("--questions", type=int, help="of each task (100, or 8 with --quick)")
    arguments = parser.parse_args()
    model = arguments.model or demo_model(note)
    data = arguments.data or demo_data(note)
    count = arguments.questions or (8 if arguments.quick else 100)
    starts = startup(model, data)
    rows = measure(model, data, count, BATCHES[:3] if arguments.quick else BATCHES)
    say(claims_of(rows, *starts), as_json=arguments.json)


def note(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def startup(model: Path, data: Path) -> tuple[float, float]:
    """Seconds until ours has answered one question, and until the peer could ask its first."""
    asked = ["--task", "arc_challenge", "--limit", "1", "--data", str(data)]
    ours = [sys.executable, "-m", "bitworth", "evaluate", str(model), *asked, "--json"]
    return seconds(lambda: quietly(ours)), seconds(lambda: quietly([sys.executable, "-c", PEER_STARTS, str(model)]))


def quietly(command: list[str]) -> None:
    """Run a command whose output nobody reads, in a folder of its own."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measure(model: Path, data: Path, count: int, batches: tuple[int, ...]) -> list[Row]:
    """Both on every task, one after the other."""
    from lm_eval.models.huggingface import HFLM

    from bitworth.engines.torch import load_exact

    engine = load_exact(model, device="cpu")
    engine.packs()  # tried once a model
    peer = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=1)
    rows = []
    for name, title, subjects, target in ASKED:
        questions = chosen(name, data, count, subjects)
        note(f"{title}: {len(questions)} questions")
        rows.append(one_task(title, target, questions, engine, peer, batches))
    return rows


def chosen(name: str, data: Path, count: int, subjects: int | None) -> list[tasks.Question]:
    """The questions: a seeded draw from the first so many subjects, or from all."""
    spec = TaskSpec(name=name, limit=count, shots=None if name == "mmlu" else 0)
    task = tasks.get(name)
    assert isinstance(task, tasks.TaskDef)
    if subjects is not None:
        task = replace(task, subsets=task.subsets[:subjects])
    questions = load_questions(task, spec, data).questions
    return [question for question in questions if isinstance(question, tasks.Question)]


def one_task(
    title: str, target: float, questions: list[tasks.Question], engine: Any, peer: Any, batches: tuple[int, ...]
) -> Row:
    """Time both and compare their answers; ours before and after the peer, so that both meet the machine's moods."""
    requests = [request for question in questions for request in question.requests]
    batch = best_batch(peer, [request for question in questions[:16] for request in question.requests], batches)
    times = [time.monotonic()]
    ours = engine.loglikelihoods(requests)
    times.append(time.monotonic())
    theirs = ask(peer, requests, batch)
    times.append(time.monotonic())
    engine.loglikelihoods(requests)
    times.append(time.monotonic())
    before, peers, after = (later - earlier for earlier, later in pairwise(times))
    pairs = zip(graded(questions, ours), graded(questions, theirs), strict=True)
    alike = sum(one == other for one, other in pairs)
    row = Row(
        name=title,
        target=target,
        questions=len(questions),
        ours_s=(before + after) / 2,
        peer_s=peers,
        batch=batch,
        alike=alike,
    )
    note(
        f"  bitworth {before:.1f} and {after:.1f} s, lm-eval {row.peer_s:.1f} s at batch {batch}, {alike} answers alike"
    )
    return row


def best_batch(peer: Any, requests: list[tasks.Request], batches: tuple[int, ...]) -> int:
    """The peer's fastest batch size on a few questions."""
    return min(batches, key=lambda batch: seconds(lambda: ask(peer, requests, batch)))


def ask(peer: Any, requests: list[tasks.Request], batch: int) -> list[tasks.Score]:
    """lm-eval's answers to the requests."""
    from lm_eval.api.instance import Instance

    peer.batch_size_per_gpu = batch
    made = [Instance(request_type="loglikelihood", doc={}, arguments=request, idx=0) for request in requests]
    return [tasks.Score(*score) for score in peer.loglikelihood(made, disable_tqdm=True)]


def graded(questions: list[tasks.Question], scores: list[tasks.Score]) -> list[tuple[Any, Any]]:
    """Prediction and score of every question."""
    left = iter(scores)
    answers = [question.grade([next(left) for _ in question.requests]) for question in questions]
    return [(answer.prediction, answer.score) for answer in answers]


def claims_of(rows: list[Row], ours_starts: float, peer_starts: float) -> list[Claim]:
    """What the figures say."""
    claims = []
    for row in rows:
        ratio = row.peer_s / row.ours_s
        claims += [
            Claim(f"{row.name}: questions a second", "", row.questions / row.ours_s, "1/s", True),
            Claim(f"{row.name}: lm-eval at batch {row.batch}", "", row.questions / row.peer_s, "1/s", True),
            Claim(f"{row.name}: times lm-eval's", f">= {row.target:g}", ratio, "x", ratio >= row.target),
        ]
    mix = [row for row in rows if row.name in MIXED]
    total = sum(row.peer_s / row.questions for row in mix) / sum(row.ours_s / row.questions for row in mix)
    alike, asked = sum(row.alike for row in rows), sum(row.questions for row in rows)
    return [
        *claims,
        Claim("as many of ARC, HellaSwag and an MMLU subject", f">= {MIX:g}", total, "x", total >= MIX),
        Claim("answers unlike lm-eval's", "0", float(asked - alike), "answers", alike == asked),
        Claim("start-up until one question is answered", "<= 10", ours_starts, "s", ours_starts <= 10),
        Claim("lm-eval's start-up until it could ask one", "", peer_starts, "s", True),
    ]


if __name__ == "__main__":
    main()
