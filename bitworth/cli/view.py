"""`bitworth view`: results folders as a local page."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from bitworth.cli.console import Json, Quiet, Terminal
from bitworth.errors import BitworthError

PORT = 8765


def view(
    results: Annotated[list[Path], typer.Argument(help="Folders that `bitworth run STUDY --out FOLDER` wrote.")],
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = PORT,
    host: Annotated[str, typer.Option(help="Address to serve on; another than this machine's own needs --expose.")] = (
        "127.0.0.1"
    ),
    expose: Annotated[
        bool, typer.Option("--expose", help="Let --host be reached by other machines: there is no password.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve results folders as a page on this machine: studies side by side, and the progress of those that run."""
    from bitworth.view.server import application, is_loopback, serve

    if not is_loopback(host) and not expose:
        raise BitworthError(
            f"Serving on {host} would show these studies' answers, figures and paths to everyone who can reach this "
            "machine, without a password; add --expose if that is meant, or leave --host out."
        )
    terminal = Terminal(as_json=json, quiet=quiet)
    folders = [folder.resolve() for folder in dict.fromkeys(results)]
    names = ["*", host, socket.gethostname()] if expose else []

    def ready(url: str) -> None:
        if not is_loopback(host):
            terminal.note("Everyone who can reach this machine can read the page; there is no password.")
        terminal.answer({"url": url, "studies": [str(folder) for folder in folders]}, lambda: Text(url))
        sys.stdout.flush()
        terminal.note("Ctrl-C ends it.")

    async def run() -> None:
        await serve(application(folders, names), host, port, ready)

    asyncio.run(run())
