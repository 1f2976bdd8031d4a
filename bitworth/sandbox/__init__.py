"""Runs programs that nobody has read, such as those that a model writes, in processes that can do no harm.

>>> way = isolation()                                                        # doctest: +SKIP
>>> run_program("print(6 * 7)", isolation=way).output                        # doctest: +SKIP
'42\\n'
>>> judge("def f(x): return x + 1", Check(test="assert f(1) == 2"), isolation=way).passed     # doctest: +SKIP
True

docs/code.md says what is guaranteed and what is not.
"""

from __future__ import annotations

from bitworth.sandbox.rooms import Isolation, isolation, works
from bitworth.sandbox.running import Check, Limits, Ran, Verdict, judge, run_program

__all__ = ["Check", "Isolation", "Limits", "Ran", "Verdict", "isolation", "judge", "run_program", "works"]
