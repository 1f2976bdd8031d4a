"""Benchmarks as their authors publish them, turned into the rows that the hub has of them.

Machines without a network hold benchmarks in folders; see `rows` for where files may lie. Where a file's rows already
have the hub's schema they are taken as they are; the others have a function here, by the hub's id of the data set.

>>> hub_rows("SaylorTwift/bbh", {"canary": "", "examples": [{"input": "not True is", "target": "False"}]})
[{'input': 'not True is', 'target': 'False'}]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]


def hub_rows(dataset: str, row: Mapping[str, Any]) -> list[Row]:
    """What one published row (or the object of a whole file) is on the hub: a row, or the questions of a passage."""
    convert = _PUBLISHED.get(dataset)
    return [dict(row)] if convert is None else convert(row)


def _arc(row: Mapping[str, Any]) -> list[Row]:
    """OLMo's ready-made prompts (query, choices, gold)."""
    if not ("query" in row and "gold" in row and isinstance(row.get("choices"), list)):
        return [dict(row)]
    labels = [chr(ord("A") + index) for index in range(len(row["choices"]))]
    question = str(row["query"]).removeprefix("Question: ").removesuffix("\nAnswer:")
    choices = {"text": row["choices"], "label": labels}
    return [{"id": row["id"], "question": question, "choices": choices, "answerKey": labels[row["gold"]]}]


def _truthfulqa(row: Mapping[str, Any]) -> list[Row]:
    """The authors' file gives each answer its label in an object; the hub has two lists."""

    def listed(targets: Any) -> Any:
        if "choices" in targets and "labels" in targets:
            return targets
        return {"choices": list(targets), "labels": list(targets.values())}

    return [{"question": row["question"]} | {key: listed(row[key]) for key in ("mc1_targets", "mc2_targets")}]


def _bbh(row: Mapping[str, Any]) -> list[Row]:
    """A file is one object with a canary and the examples."""
    return [dict(example) for example in row["examples"]] if "examples" in row else [dict(row)]


def _math(row: Mapping[str, Any]) -> list[Row]:
    """One file holds all seven subjects, which are configurations on the hub."""
    if "type" not in row:
        return [dict(row)]
    subject = str(row["type"]).lower().replace("&", "and").replace(" ", "_")
    return [{key: row[key] for key in ("problem", "solution", "level", "type")} | {"config": subject}]


def _musr(row: Mapping[str, Any]) -> list[Row]:
    """A story with its questions; the hub has a row a question."""
    if "questions" not in row:
        return [dict(row)]
    return [
        {
            "narrative": row["context"],
            "question": asked["question"],
            "choices": str(asked["choices"]),
            "answer_index": asked["answer"],
            "answer_choice": asked["choices"][asked["answer"]],
        }
        for asked in row["questions"]
    ]


def _mgsm(row: Mapping[str, Any]) -> list[Row]:
    """The authors' tables have a problem and its number; the hub's rows have an explanation too, of the examples."""
    if "answer_number" in row:
        return [dict(row)]
    number = float(str(row["answer"]).replace(",", ""))
    whole = int(number) if number.is_integer() else number
    return [{"question": row["question"], "answer": None, "answer_number": whole, "equation_solution": None}]


_PUBLISHED: Mapping[str, Callable[[Mapping[str, Any]], list[Row]]] = {
    "allenai/ai2_arc": _arc,
    "truthfulqa/truthful_qa": _truthfulqa,
    "SaylorTwift/bbh": _bbh,
    "DigitalLearningGmbH/MATH-lighteval": _math,
    "TAUR-Lab/MuSR": _musr,
    "juletxara/mgsm": _mgsm,
}
