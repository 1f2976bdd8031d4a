"""Compiled functions where code can be kept and where it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from bitworth import jit


def double(value: float) -> float:
    return 2 * value


def test_code_that_cannot_be_kept_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    real = jit.njit

    def nowhere(**options: Any) -> Any:
        asked.append(options)
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function 'double': no locator available for file 'x'")
        return real(**options)

    monkeypatch.setattr(jit, "njit", nowhere)
    assert jit.kept(nogil=True)(double)(21.0) == 42.0
    assert len(asked) == 2
