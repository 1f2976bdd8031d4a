"""bitworth: what is each bit of your LLM worth?

The verbs of the command line, as functions:

>>> import bitworth
>>> result = bitworth.run("studies/demo.yaml", out="runs/demo")   # doctest: +SKIP
>>> result.recommendations[0].why                                # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bitworth.assembly import assemble
    from bitworth.benchmarking import benchmark
    from bitworth.errors import BitworthError
    from bitworth.evaluation import compare, diverge, evaluate
    from bitworth.quantization import quantize
    from bitworth.recipes import recipe
    from bitworth.recommendation import recommend
    from bitworth.report import write_report
    from bitworth.running import plan, run
    from bitworth.study import load_study, parse_study

__all__ = [
    "BitworthError",
    "__version__",
    "assemble",
    "benchmark",
    "compare",
    "diverge",
    "evaluate",
    "load_study",
    "parse_study",
    "plan",
    "quantize",
    "recipe",
    "recommend",
    "run",
    "write_report",
]

_HOMES = {
    "assemble": "assembly",
    "benchmark": "benchmarking",
    "BitworthError": "errors",
    "compare": "evaluation",
    "diverge": "evaluation",
    "evaluate": "evaluation",
    "load_study": "study",
    "parse_study": "study",
    "plan": "running",
    "quantize": "quantization",
    "recipe": "recipes",
    "recommend": "recommendation",
    "run": "running",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    """Import a verb when it is first asked for, so that deciding does not load torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"bitworth.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bitworth' has no attribute '{name}'")
