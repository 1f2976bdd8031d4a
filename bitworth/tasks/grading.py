"""Scores of answers, given by lm-eval's own filters and metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bitworth.tasks.base import Score, TaskDef
from bitworth.types import Answer, Completion

SHOWN = 200
"""Most characters of an extracted answer that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grader:
    """Turns what a model gave for one question into an Answer."""

    task: TaskDef
    harness: Any
    doc: Any
    item: str
    group: str | None
    place: int

    def choices(self, scores: Sequence[Score]) -> Answer:
        """By the scores of the choices; the prediction is the letter of the one it picked."""
        import numpy as np

        results = self.harness.process_results(self.doc, [tuple(score) for score in scores])
        logprobs = np.array([score.logprob for score in scores])
        if self.task.metric == "acc_norm":
            lengths = np.array([float(len(choice)) for choice in self.harness.doc_to_choice(self.doc)])
            picked = int(np.argmax(logprobs / lengths))
        else:
            picked = int(np.argmax(logprobs))
        return self._answer(
            prediction=chr(ord("A") + picked),
            score=float(results[self.task.metric]),
            logprobs=tuple(float(value) for value in logprobs),
        )

    def written(self, completions: Sequence[Completion]) -> Answer:
        """By the text of the completions: the mean of their scores (of samples, pass@1), the first one's prediction.

        Further metrics, and those of further filters, are the answer's measures.
        """
        judged = [self._judge(completion.text) for completion in completions]
        figures = {name: fmean(found[name] for _, found in judged) for name in judged[0][1]}
        score = figures.pop(self.task.metric)
        text = completions[0].text
        return self._answer(prediction=judged[0][0][:SHOWN], score=score, measures=figures, text=text)

    def _judge(self, text: str) -> tuple[str, dict[str, float]]:
        """What the filter extracted, and every metric; of one with a figure an instruction (IFEval), the mean."""
        from lm_eval.api.instance import Instance

        asked = Instance(request_type="generate_until", doc=self.doc, arguments=("", {}), idx=0, resps=[text])
        for pipeline in self.harness._filters:
            pipeline.apply([asked])
        counts = self.task.filter or next(iter(asked.filtered_resps))
        found: dict[str, float] = {}
        for name, extracted in asked.filtered_resps.items():
            results = self.harness.process_results(self.doc, [extracted])
            numbers = {key: fmean(value) if isinstance(value, list) else float(value) for key, value in results.items()}
            if name == counts:
                found |= numbers
            else:
                found |= {name if key == self.task.metric else f"{name}.{key}": numbers[key] for key in numbers}
        return str(asked.filtered_resps[counts]), found

    def _answer(self, **fields: Any) -> Answer:
        return Answer(task=self.task.name, item=self.item, group=self.group, cluster=self._cluster(), **fields)

    def _cluster(self) -> str | None:
        shared = self.task.sharing(self.doc, self.place) if self.task.sharing is not None else None
        return None if shared is None else hashlib.sha256(shared.encode()).hexdigest()[:12]
