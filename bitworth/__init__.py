"""bitworth: what is each bit of your LLM worth?

The verbs of the command line, as functions:

>>> import bitworth
>>> result = bitworth.run("studies/demo.yaml", out="runs/demo")   # doctest: +SKIP
>>> result.recommendations[0].why                                # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "quantize": "bitworth.quantize",
    "evaluate": "bitworth.evaluate",
    "diverge": "bitworth.evaluate",
    "compare": "bitworth.evaluate",
    "benchmark": "bitworth.benchmark",
    "recommend": "bitworth.recommend",
    "load_study": "bitworth.study",
    "plan": "bitworth.run",
    "run": "bitworth.run",
    "BitworthError": "bitworth.errors",
}

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from bitworth.benchmark import benchmark
    from bitworth.errors import BitworthError
    from bitworth.evaluate import compare, diverge, evaluate
    from bitworth.quantize import quantize
    from bitworth.recommend import recommend
    from bitworth.run import plan, run
    from bitworth.study import load_study


def __getattr__(name: str) -> Any:
    """Import a verb when it is first asked for, so that deciding does not load torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bitworth' has no attribute '{name}'")
