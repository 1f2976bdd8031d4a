"""What a task's prompts look like to the model, looked at before it is asked: the mistakes that spoil a benchmark.

A doubled or missing BOS, a template that is not applied, beginnings cut off, stop strings that end every answer: each
lowers a score by points, alike in both models or not, and none of them shows in the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bitworth.engines.prompts import encode_prompt, has_chat_template, render
from bitworth.tasks import Loaded, LoadedOpen, get
from bitworth.types import Prompt

FITTING = 32
"""After so many of the longest prompts that fit, the shorter ones are believed to."""

Bos = Literal["once", "twice", "missing", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCheck:
    """How a task is asked.

    Attributes:
        prompt: plain text, or a conversation through the model's chat template.
        bos: `none` where the tokenizer puts none before plain text either.
        longest_tokens: that are read of a prompt and its choice, or of it and the longest answer.
        context_tokens: what the model can read.
        truncated: prompts that lose their beginning.
        stop: strings that end an answer; an end token does too. Empty for given choices.
        max_tokens: of an answer; 0 for given choices.
        first: the first prompt as the model gets it.
        warnings: what is probably wrong, a sentence each.
    """

    task: str
    prompt: Literal["text", "conversation"]
    bos: Bos
    longest_tokens: int
    context_tokens: int
    truncated: int
    stop: tuple[str, ...]
    max_tokens: int
    first: str
    warnings: tuple[str, ...]


def check_prompts(loaded: Loaded | LoadedOpen, tokenizer: Any, context_tokens: int) -> PromptCheck:
    """Look at a task's prompts with the model's tokenizer; nothing is computed.

    Raises:
        BitworthError: the chat template refuses a prompt.
    """
    prompts = prompts_of(loaded)
    sampling = loaded.sampling if isinstance(loaded, LoadedOpen) else None
    room = sampling.max_tokens if sampling else 0
    longest, truncated = _lengths(loaded, tokenizer, context_tokens, room)
    check = PromptCheck(
        task=loaded.task,
        prompt="text" if isinstance(prompts[0], str) else "conversation",
        bos=_bos(tokenizer, prompts[0]),
        longest_tokens=longest,
        context_tokens=context_tokens,
        truncated=truncated,
        stop=sampling.stop if sampling else (),
        max_tokens=room,
        first=render(tokenizer, prompts[0]),
        warnings=(),
    )
    return PromptCheck(**{**_fields(check), "warnings": tuple(_warnings(check, tokenizer, len(prompts)))})


def prompts_of(loaded: Loaded | LoadedOpen) -> list[Prompt]:
    """A question's prompt; of one with choices, the context of the first."""
    if isinstance(loaded, LoadedOpen):
        return [question.prompt for question in loaded.questions]
    return [question.requests[0][0] for question in loaded.questions]


def _bos(tokenizer: Any, prompt: Prompt) -> Bos:
    bos = tokenizer.bos_token_id
    if bos is None or (isinstance(prompt, str) and encode_prompt(tokenizer, "a")[:1] != [bos]):
        return "none"
    ids = encode_prompt(tokenizer, prompt)
    if ids[:2] == [bos, bos]:
        return "twice"
    if ids[:1] == [bos]:
        return "once"
    return "missing" if encode_prompt(tokenizer, "a")[:1] == [bos] else "none"


def _lengths(loaded: Loaded | LoadedOpen, tokenizer: Any, context: int, room: int) -> tuple[int, int]:
    """Tokens of the longest prompt with its answer, and how many do not fit."""
    texts: list[tuple[Prompt, str]]
    if isinstance(loaded, LoadedOpen):
        texts = [(question.prompt, "") for question in loaded.questions]
    else:
        texts = [max(question.requests, key=lambda one: len(one[1])) for question in loaded.questions]
    rendered = sorted((render(tokenizer, prompt) + answer for prompt, answer in texts), key=len, reverse=True)
    longest = truncated = fitting = 0
    for text in rendered:
        # the last token of a choice is predicted, not read
        tokens = len(encode_prompt(tokenizer, text)) + (room or -1)
        longest = max(longest, tokens)
        truncated, fitting = (truncated + 1, 0) if tokens > context else (truncated, fitting + 1)
        if fitting >= FITTING:
            break
    return longest, truncated


def _warnings(check: PromptCheck, tokenizer: Any, prompts: int) -> Sequence[str]:
    found = []
    if check.bos == "twice":
        found.append("prompts start with BOS twice")
    if check.bos == "missing":
        found.append("the chat template writes no BOS, which the tokenizer puts before plain text")
    if get(check.task).chat and not has_chat_template(tokenizer):
        found.append("it is asked in conversations, but the model has no chat template: it gets plain text")
    if check.truncated:
        needed, has = f"{check.longest_tokens:,}", f"{check.context_tokens:,}"
        lost = "room for the whole answer" if check.max_tokens else "their beginning"
        found.append(
            f"{check.truncated} of {prompts} prompts lose {lost} (up to {needed} tokens, the model reads {has})"
        )
    if check.max_tokens and not check.stop and tokenizer.eos_token_id is None:
        found.append("nothing ends an answer but its greatest length")
    return found


def _fields(check: PromptCheck) -> dict[str, Any]:
    return {name: getattr(check, name) for name in PromptCheck.__dataclass_fields__}
