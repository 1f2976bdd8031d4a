from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitworth.errors import BitworthError
from bitworth.workloads import NAMES, use_case

#: Paper, table 4: prompt and generated tokens.
PAPER = {
    "code_completion": (256, 1024),
    "docstring": (768, 128),
    "code_fixing": (1024, 1024),
    "rag": (1024, 128),
    "instruction_following": (256, 128),
    "multi_turn_chat": (512, 256),
    "summarization": (4096, 512),
}


def test_the_seven_use_cases_are_the_papers() -> None:
    assert {name: (use_case(name).prompt_tokens, use_case(name).output_tokens) for name in NAMES} == PAPER
    assert all(use_case(name).scale == 1 for name in NAMES)


@given(prompt=st.integers(1, 9_999_999), output=st.integers(1, 9_999_999))
def test_a_shape_names_itself(prompt: int, output: int) -> None:
    shape = use_case(f"{prompt}/{output}")
    assert (shape.name, shape.prompt_tokens, shape.output_tokens) == (f"{prompt}/{output}", prompt, output)


@pytest.mark.parametrize("name", ["ragg", "0/5", "5/0", "-1/2", "5", "5/", "1/2/3", "", "99999999/1"])
def test_anything_else_is_one_sentence(name: str) -> None:
    with pytest.raises(BitworthError, match=rf"^unknown use case '{name}'; .*known: code_completion.*PROMPT/OUTPUT"):
        use_case(name)


def test_a_slip_gets_a_hint() -> None:
    with pytest.raises(BitworthError, match="did you mean 'summarization'"):
        use_case("sumarization")


@given(name=st.sampled_from(NAMES), factor=st.floats(1e-6, 1))
def test_scaling_rounds_up_and_remembers(name: str, factor: float) -> None:
    whole, small = use_case(name), use_case(name).scaled(factor)
    assert small.scale == factor
    for tokens, of in ((small.prompt_tokens, whole.prompt_tokens), (small.output_tokens, whole.output_tokens)):
        assert 1 <= tokens <= of
        assert of * factor <= tokens < of * factor + 1 or tokens == 1
