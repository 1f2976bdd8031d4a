"""A model's own answers: greedy, kept a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitworth.judging.files import Texts
from bitworth.ledger import Ledger, canonical
from bitworth.types import Cell, Message, Prompt, Sampling
from bitworth.versions import versions_of

BATCH = 16
"""Questions a cell."""


def write_answers(
    ledger: Ledger,
    questions: Texts,
    checkpoint: Path,
    identity: str,
    *,
    engine: str = "torch",
    max_tokens: int = 4096,
    by_name: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> dict[str, str]:
    """Every question's answer by the checkpoint; those that the ledger has are not written again.

    Args:
        ledger: where batches are kept; the caller holds its lock.
        questions: what to answer.
        checkpoint: the model's folder,
        identity: and the fingerprint of what lies in it.
        engine: see `engines.open_completer`.
        max_tokens: of an answer.
        by_name: see `engines.open_completer`.
        progress: told how many questions are answered, of how many.

    Raises:
        BitworthError: no such engine, or a model it cannot run.
        WorkFailed: the engine dies.
    """
    items = list(questions)
    batches = [items[at : at + BATCH] for at in range(0, len(items), BATCH)]
    how = {
        "engine": engine,
        "max_tokens": max_tokens,
        "versions": versions_of("torch", "transformers", engine=engine),
        **({"by_name": True} if by_name else {}),
    }
    cells = [_cell(checkpoint, identity, {item: questions[item] for item in batch}, how) for batch in batches]
    missing = [(cell, batch) for cell, batch in zip(cells, batches, strict=True) if not ledger.done(cell)]
    if missing:
        _write(ledger, missing, questions, checkpoint, how, progress)
    return {item: text for cell in cells for item, text in (ledger.get(cell) or {})["answers"].items()}


def _cell(checkpoint: Path, identity: str, batch: Texts, how: Mapping[str, Any]) -> Cell:
    digest = hashlib.sha256(canonical(list(batch.items())).encode()).hexdigest()
    return Cell(
        kind="write",
        title=f"answers of {checkpoint.name} to {len(batch)} questions",
        format=checkpoint.name,
        inputs={"model": identity, "questions": digest, **how},
        where={"checkpoint": str(checkpoint)},
    )


def _write(
    ledger: Ledger,
    missing: list[tuple[Cell, list[str]]],
    questions: Texts,
    checkpoint: Path,
    how: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> None:
    from bitworth.engines import open_completer
    from bitworth.engines.prompts import encode_prompt, has_chat_template, load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    chats = has_chat_template(tokenizer)
    prompts = {item: _prompt(questions[item], chats) for _, batch in missing for item in batch}
    longest = max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts.values())
    done, max_tokens, by_name = 0, how["max_tokens"], how.get("by_name", False)
    with open_completer(how["engine"], checkpoint, context_tokens=longest + max_tokens, by_name=by_name) as model:
        for cell, batch in missing:
            written = model.generate([prompts[item] for item in batch], Sampling(max_tokens=max_tokens))
            texts = {item: answers[0].text for item, answers in zip(batch, written, strict=True)}
            ledger.put(cell, {"answers": texts, "engine": model.facts.engine})
            done += len(batch)
            progress(done, len(prompts))


def _prompt(question: str, chats: bool) -> Prompt:
    return (Message(role="user", content=question),) if chats else question
