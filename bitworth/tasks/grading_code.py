"""From the programs written for a question to its Answer: each is judged in the sandbox; pass@k by its estimator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitworth.sandbox import Isolation, Limits, Verdict, judge
from bitworth.tasks.programs import Problem, program_of
from bitworth.types import Answer, Completion, Sample

KS = (10,)
"""Further k of pass@k, given where there are as many samples; pass@1 is the score."""
LIMITS = Limits(cpu_s=20, wall_s=120.0)
"""HumanEval+'s own solutions take up to 4 s of CPU time for all inputs of a question, and as long to be checked."""


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold one that passes: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance that k fresh samples do (arXiv 2107.03374, equation 1).

    Raises:
        ValueError: not 0 <= passed <= samples, or not 1 <= k <= samples.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {passed} among {samples}")
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grader:
    """Judges what was written for one question."""

    task: str
    problem: Problem
    chat: bool
    isolation: Isolation

    def grade(self, completions: Sequence[Completion]) -> Answer:
        """The score is pass@1; equal programs are run once."""
        verdicts: dict[str, Verdict] = {}
        samples = []
        for completion in completions:
            program = program_of(self.problem, completion.text, chat=self.chat)
            if program not in verdicts:
                verdicts[program] = judge(program, self.problem.check, isolation=self.isolation, limits=LIMITS)
            found = verdicts[program]
            samples.append(Sample(text=program, passed=found.passed, reason=found.reason))
        count, passed = len(samples), sum(sample.passed for sample in samples)
        return Answer(
            task=self.task,
            item=self.problem.item,
            prediction=f"{passed} of {count} pass",
            score=pass_at_k(count, passed, 1),
            measures={f"pass@{k}": pass_at_k(count, passed, k) for k in KS if k <= count},
            samples=tuple(samples),
        )
