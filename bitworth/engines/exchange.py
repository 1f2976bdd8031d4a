"""What one exchange with a server over HTTP takes: its address and key, answers within bounds, failures in words."""

from __future__ import annotations

import asyncio
import errno
import importlib
import importlib.util
import json
import os
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from bitworth.engines.stream import complaint, one_line
from bitworth.errors import BitworthError
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.guard.keys import without_secrets

#: Where the key is looked for; it goes into the request's header and nowhere else.
KEY_VARIABLES = ("BITWORTH_API_KEY", "OPENAI_API_KEY")
#: Of an answer that comes as a whole.
MOST_BYTES = 256 << 20
SILENT = "the server was silent"

Result = TypeVar("Result")


def event_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, on uvloop where it is installed."""
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run(work)
    result: Result = importlib.import_module("uvloop").run(work)
    return result


def base_of(url: str) -> str:
    """The URL up to `/v1`.

    Raises:
        BitworthError: it is not a server's, or holds more than a path.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half a bracket, or a port that is none
        sound = False
    if not sound:
        raise BitworthError(f"'{without_secrets(url)}' is not the http:// or https:// URL of a server.")
    if parts.username or parts.password or parts.query:
        raise BitworthError(f"The URL of {parts.hostname} holds more than a path; give a key in {KEY_VARIABLES[0]}.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}/v1"


def key() -> str | None:
    """The key to send, None where the environment has none."""
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


async def get(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    """Status and JSON body (None where it is none)."""
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=30), allow_redirects=False) as response:
        try:
            return response.status, await body(response)
        except ValueError:
            return response.status, None


async def body(response: aiohttp.ClientResponse) -> Any:
    """The JSON of an answer.

    Raises:
        ValueError: it is not JSON, or longer than any answer.
    """
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > MOST_BYTES:
            raise ValueError(f"the server's answer is longer than {MOST_BYTES >> 20} MiB")
    return json_of(bytes(data), nested=MOST_NESTED)


async def refusal(response: aiohttp.ClientResponse) -> str:
    """What the server says about refusing, in brackets."""
    text = (await response.content.read(4096)).decode(errors="replace")
    try:
        message = complaint(json_of(text, nested=MOST_NESTED))
    except ValueError:
        message = one_line(text)
    return f" ({message})" if message else ""


def hint(status: int) -> str:
    """What a refusal may be about, to end a sentence with."""
    return f"; is the key in {KEY_VARIABLES[0]} right?" if status in (401, 403) else ""


def connection(error: Exception, timeout: aiohttp.ClientTimeout) -> str:
    """A failed exchange in words."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.SocketTimeoutError):
        return f"{SILENT} for {timeout.sock_read:g} s"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout.total:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        reason = os.strerror(number) if number > 0 else "no such host, or it refuses"
        return f"cannot connect to {error.host}:{error.port} ({reason})"
    closed = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionError)
    # What aiohttp raises of the system's errors is no ConnectionError; without a number it could not write a request.
    if closed or (isinstance(error, aiohttp.ClientOSError) and error.errno in (None, errno.ECONNRESET, errno.EPIPE)):
        return "the server closed the connection"
    if isinstance(error, json.JSONDecodeError):
        return "the server sends something other than JSON"
    return one_line(str(error)) or type(error).__name__
