"""What a checkpoint runs on: in process with torch, a server, a URL, or a fake; each engine is one file here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from bitworth.engines.generator import Completer, Generator
from bitworth.errors import BitworthError

NAMES = ("torch", "vllm", "fake")


@contextmanager
def open_generator(
    engine: str, checkpoint: Path, *, context_tokens: int, device: str | None = None
) -> Iterator[Generator]:
    """The engine of that name with the checkpoint loaded, released on leaving.

    Args:
        engine: one of `NAMES`, or the http(s) URL of an OpenAI-compatible server that serves the checkpoint.
        checkpoint: a model folder; a server at a URL is believed to serve it, by the folder's name if it has several.
        context_tokens: the longest prompt and answer together.
        device: as the engine calls it; None lets the engine choose.

    Raises:
        BitworthError: no such engine, or it is not installed.
        Unsupported: the engine cannot run the checkpoint's number format here.
        WorkFailed: its server does not start or answer.
    """
    if engine.startswith(("http://", "https://")):
        from bitworth.engines.http import HttpGenerator

        yield HttpGenerator(engine, name=checkpoint.name, decode=_decoder(checkpoint))
    elif engine == "vllm":
        from bitworth.engines.vllm import serve

        with serve(checkpoint, context_tokens=context_tokens, device=device) as server:
            yield server
    elif engine == "torch":
        from bitworth.engines.torch_speed import open_torch

        yield open_torch(checkpoint, device)
    elif engine == "fake":
        from bitworth.engines.fake import FakeGenerator

        yield FakeGenerator()
    else:
        raise _unknown(engine)


@contextmanager
def open_completer(
    engine: str, checkpoint: Path, *, context_tokens: int, device: str | None = None
) -> Iterator[Completer]:
    """The engine of that name, ready to write; see `open_generator` for the arguments and what it raises.

    `torch` computes the checkpoint's exact arithmetic in float32; servers run their own kernels. `fake` writes the same
    word whatever it is asked.
    """
    if engine.startswith(("http://", "https://")):
        from bitworth.engines.http_text import HttpCompleter

        yield HttpCompleter(engine, checkpoint)
    elif engine == "vllm":
        from bitworth.engines.http_text import HttpCompleter
        from bitworth.engines.vllm import serve

        with serve(checkpoint, context_tokens=context_tokens, device=device) as server:
            yield HttpCompleter(server.url, checkpoint, facts=server.facts, send_key=False)
    elif engine == "torch":
        from bitworth.engines.torch import load_exact

        yield load_exact(checkpoint, device=device)
    elif engine == "fake":
        from bitworth.engines.fake import FakeCompleter

        yield FakeCompleter()
    else:
        raise _unknown(engine)


def _unknown(engine: str) -> BitworthError:
    known = ", ".join(NAMES)
    return BitworthError(
        f"unknown engine '{engine}'; known: {known}, or the http:// URL of an OpenAI-compatible server"
    )


def _decoder(checkpoint: Path) -> Callable[[Sequence[int]], str]:
    """Token ids to text by the checkpoint's tokenizer, loaded when first needed."""

    @cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        except (OSError, ValueError) as error:
            raise BitworthError(
                f"The server takes text only, and {checkpoint} has no tokenizer that transformers can load."
            ) from error

    return lambda tokens: str(tokenizer().decode(list(tokens)))
