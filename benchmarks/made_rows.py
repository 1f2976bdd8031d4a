"""Made-up rows of GPQA's and MuSR's shape, from a seed, for where theirs are not: GPQA may not be passed on as text.

They say nothing of what a model knows; they go the same way through definitions, prompts, choices and scores, odd
spaces and brackets (which GPQA's definition takes out) included.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitworth import tasks
from bitworth.tasks.leaderboard_v2 import MUSR_CHOICES

_PEOPLE = ("Ada", "Boris", "Chen", "Dara", "Emil", "Fatou", "Goran", "Hana")
_PLACES = ("kitchen", "cellar", "garden", "attic", "workshop", "library", "garage")
_THINGS = ("ledger", "lamp", "violin", "map", "kettle", "camera")
_ASKED = {
    "murder_mysteries": "Who is the most likely murderer?",
    "object_placements": "Where would {who} look for the {what}?",
    "team_allocation": "Who should work with {who} on the {what}?",
}


def add_made_rows(data: Path, count: int) -> None:
    """Rows a subset in the folder, GPQA's where it has none, MuSR's after what is there of the published sample."""
    draw = random.Random(0)
    for subset in tasks.get("leaderboard_gpqa").subsets:
        file = data / "gpqa" / f"{subset}.jsonl"
        if not (data / "gpqa").is_symlink():
            _append(file, _gpqa(draw, count))
    for subset, choices in MUSR_CHOICES.items():
        if not (data / "TAUR-Lab").is_symlink():
            _append(data / "TAUR-Lab" / "MuSR" / f"{subset}.jsonl", _musr(draw, subset, choices, count))


def _append(file: Path, made: Iterator[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in made)


def _gpqa(draw: random.Random, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        mass, speed = draw.randint(2, 90), draw.randint(3, 60)
        right = mass * speed
        wrong = draw.sample([right + step for step in (-mass, mass, speed, 10 * mass, -speed, 7)], 3)
        noise = draw.choice(["", " [title]", " [a note]", "  "])
        asked = f"A body of {mass} kg moves at {speed} m/s.{noise} What is its momentum?"
        answers = [f"{value} kg  m/s{draw.choice(['', ' ', ' [sic]'])}" for value in (right, *wrong)]
        yield {
            "Question": asked,
            "Correct Answer": answers[0],
            **{f"Incorrect Answer {at}": text for at, text in enumerate(answers[1:], 1)},
        }


def _musr(draw: random.Random, subset: str, choices: int, count: int) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        told = [
            f"{draw.choice(_PEOPLE)} carried the {draw.choice(_THINGS)} from the {draw.choice(_PLACES)} to the "
            f"{draw.choice(_PLACES)} while {draw.choice(_PEOPLE)} was away."
            for _ in range(draw.randint(15, 30))
        ]
        given = draw.sample(_PLACES if subset == "object_placements" else _PEOPLE, choices)
        right = draw.randrange(choices)
        yield {
            "narrative": " ".join(told),
            "question": _ASKED[subset].format(who=draw.choice(_PEOPLE), what=draw.choice(_THINGS)),
            "choices": str(given),
            "answer_index": right,
            "answer_choice": given[right],
        }
