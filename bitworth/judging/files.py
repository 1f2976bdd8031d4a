"""Questions and answers in JSON Lines files, as Arena-Hard-Auto publishes them or in the plainest form.

    questions   {"uid" | "question_id" | "id", "prompt"} or {..., "turns": [{"content"}]}
    answers     {"uid" | ..., "answer"}, {..., "messages": [..., {"content": text or {"answer"}}]}
                or {..., "choices": [{"turns": [{"content"}]}]}

Both may be compressed (.gz).
"""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.guard.documents import MOST_NESTED, json_of

ARENA_HARD = "arena_hard/v0.1_question.jsonl.gz"
"""Where a folder of benchmark data has the questions."""
_IDS = ("uid", "question_id", "id")

Texts = Mapping[str, str]
"""Id of a question to its text, or to an answer's."""


def read_questions(path: Path) -> dict[str, str]:
    """The questions of a file, or of a folder that holds `ARENA_HARD`, in their order.

    Raises:
        BitworthError: the file cannot be read, or a row is no question or is there twice.
    """
    return _read(path / ARENA_HARD if path.is_dir() else path, _question, "question")


def read_answers(path: Path) -> dict[str, str]:
    """The answers of a file.

    Raises:
        BitworthError: the file cannot be read, or a row is no answer or is there twice.
    """
    return _read(path, _answer, "answer")


def choose(questions: Texts, limit: int | None, seed: int) -> dict[str, str]:
    """The first `limit` of the questions in an order drawn by the seed, so that fewer are always among more."""
    drawn = sorted(questions)
    random.Random(seed).shuffle(drawn)
    return {item: questions[item] for item in drawn[:limit]}


def answers_to(questions: Texts, answers: Texts, where: Path) -> dict[str, str]:
    """The answers to these questions.

    Raises:
        BitworthError: some question has none; leaving it out would favour whoever did not answer.
    """
    absent = [item for item in questions if item not in answers]
    if absent:
        raise BitworthError(
            f"{where} answers {len(questions) - len(absent)} of {len(questions)} questions (not {absent[0]}); "
            "add the others, or name a file of fewer questions."
        )
    return {item: answers[item] for item in questions}


def _read(path: Path, text_of: Callable[[Any], Any], what: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, row in _rows(path):
        item = next((row[name] for name in _IDS if row.get(name) is not None), None)
        try:
            text = text_of(row)
        except (AttributeError, IndexError, KeyError, TypeError):
            text = None
        if item is None or not isinstance(text, str):
            raise BitworthError(f"{path}, line {number}: not {'an' if what == 'answer' else 'a'} {what} with its id.")
        if str(item) in found:
            raise BitworthError(f"{path}, line {number}: {item} was there before; keep one {what} of each id.")
        found[str(item)] = text
    if not found:
        raise BitworthError(f"{path} holds no {what}s.")
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json_of(line, nested=MOST_NESTED)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield number, row
    except (OSError, EOFError, ValueError, zlib.error) as error:
        place = f"{path}, line {number}," if number else str(path)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not JSON Lines"
        raise BitworthError(f"{place} cannot be read ({reason}).") from error


def _question(row: Any) -> Any:
    return row["prompt"] if "prompt" in row else _only(row["turns"])["content"]


def _answer(row: Any) -> Any:
    if "answer" in row:
        return row["answer"]
    if "choices" in row:
        return _only(row["choices"][0]["turns"])["content"]
    content = row["messages"][-1]["content"]
    return content["answer"] if isinstance(content, dict) else content


def _only(turns: list[Any]) -> Any:
    """The one turn; a conversation of several is another benchmark."""
    if len(list(islice(turns, 2))) != 1:
        raise KeyError("turns")
    return turns[0]
