"""What a checkpoint runs on: in process with torch, a server, a URL, or a fake; each engine is one file here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitworth.engines.generator import Completer, Generator
from bitworth.errors import BitworthError

NAMES = ("torch", "vllm", "fake")


def is_url(engine: str) -> bool:
    """Whether an engine's name is the URL of a server, which runs what it runs."""
    return engine.startswith(("http://", "https://"))


@contextmanager
def open_generator(
    engine: str,
    checkpoint: Path | None,
    *,
    context_tokens: int,
    device: str | None = None,
    name: str | None = None,
    silent_s: float = 600.0,
    wait_s: float = 0.0,
) -> Iterator[Generator]:
    """The engine of that name with the checkpoint loaded, released on leaving.

    Args:
        engine: one of `NAMES`, or the http(s) URL of an OpenAI-compatible server that serves the checkpoint.
        checkpoint: a model folder; a server at a URL is believed to serve it, by the folder's name if it has several.
            None will do for a server that takes prompts as token ids.
        context_tokens: the longest prompt and answer together.
        device: as the engine calls it; None lets the engine choose.
        name: the model's at a URL, if not the folder's.
        silent_s: a request to a URL fails when the server is silent for so long.
        wait_s: how long to wait for a server at a URL that is still starting.

    Raises:
        BitworthError: no such engine, or it is not installed.
        Unsupported: the engine cannot run the checkpoint's number format here.
        WorkFailed: its server does not start or answer.
    """
    if is_url(engine):
        from bitworth.engines.http import HttpGenerator
        from bitworth.load.prompts import ExactText

        decode = None if checkpoint is None else ExactText(checkpoint)
        name = name or (checkpoint.name if checkpoint is not None else None)
        yield HttpGenerator(engine, model=name, decode=decode, idle_s=silent_s, wait_s=wait_s)
    elif engine in NAMES and checkpoint is None:
        raise BitworthError(f"The engine {engine} runs a model folder; only a server needs none.")
    elif engine == "vllm" and checkpoint is not None:
        from bitworth.engines.vllm import serve

        with serve(checkpoint, context_tokens=context_tokens, device=device) as server:
            yield server
    elif engine == "torch" and checkpoint is not None:
        from bitworth.engines.torch_speed import open_torch

        yield open_torch(checkpoint, device)
    elif engine == "fake":
        from bitworth.engines.fake import FakeGenerator

        yield FakeGenerator()
    else:
        raise _unknown(engine)


@contextmanager
def open_completer(
    engine: str, checkpoint: Path, *, context_tokens: int, device: str | None = None, by_name: bool = False
) -> Iterator[Completer]:
    """The engine of that name, ready to write; see `open_generator` for the arguments and what it raises.

    `by_name` takes no model of a server at a URL but the one that is called as the checkpoint's folder.

    `torch` computes the checkpoint's exact arithmetic in float32; servers run their own kernels. `fake` writes the same
    word whatever it is asked.
    """
    if is_url(engine):
        from bitworth.engines.http_text import HttpCompleter

        yield HttpCompleter(engine, checkpoint, choice="listed" if by_name else "preferred")
    elif engine == "vllm":
        from bitworth.engines.http_text import HttpCompleter
        from bitworth.engines.vllm import serve

        with serve(checkpoint, context_tokens=context_tokens, device=device) as server:
            yield HttpCompleter(
                server.url, checkpoint, model=server.model, choice="given", facts=server.facts, send_key=False
            )
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
