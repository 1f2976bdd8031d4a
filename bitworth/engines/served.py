"""Which model a server has, and what it says of itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

import aiohttp

from bitworth.engines.exchange import connection, get, hint
from bitworth.engines.stream import one_line
from bitworth.errors import BitworthError, WorkFailed

Choice = Literal["preferred", "listed", "given"]
"""What a model's name is worth: `preferred` takes the model of that name or else a server's only one, `listed` none but
that of the name, and `given` asks for the name whatever the server lists, which is not asked then."""
#: What to do where a server cannot tell two models apart.
BOTH_NAMED = "models that are compared have to be served under the names of their folders"
_RETRY_S = 0.2


async def discover(
    session: aiohttp.ClientSession, url: str, name: str | None, choice: Choice, wait_s: float
) -> tuple[str, dict[str, str]]:
    """The model's id, and the versions that the server tells.

    Args:
        session: to ask through.
        url: of the server, up to `/v1`.
        name: the model's, if it is known.
        choice: what the name is worth.
        wait_s: how long to wait for a server that is still starting.

    Raises:
        BitworthError: not one model to choose.
        WorkFailed: it does not answer.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            status, listing = await get(session, f"{url}/models")
            if status != 503 or time.monotonic() >= deadline:
                break
        except (aiohttp.ClientError, OSError) as error:
            if time.monotonic() >= deadline:
                raise WorkFailed(f"{url} does not answer: {connection(error, session.timeout)}.") from error
        await asyncio.sleep(_RETRY_S)
    if status != 200:
        raise WorkFailed(f"{url}/models answers HTTP {status}{hint(status)}.")
    return chosen(listing, url, name, choice), await versions_of(session, url)


def chosen(listing: Any, url: str, name: str | None, choice: Choice = "preferred") -> str:
    """The id of the model among those that a server lists.

    Raises:
        BitworthError: there is not one to choose.
    """
    served = listing.get("data") if isinstance(listing, dict) else None
    rows = served if isinstance(served, list) else []
    ids = [one_line(str(row["id"])) for row in rows if isinstance(row, dict) and "id" in row]
    found = [model for model in ids if model == name]
    if choice == "listed" and not found:
        listed = ", ".join(ids[:3]) or "no model"
        raise BitworthError(f"{url} serves {listed} and nothing called {name}; {BOTH_NAMED}.")
    found = found or ids
    if len(found) != 1:
        listed = f"several models ({', '.join(found[:3])}, ...)" if found else "no model"
        raise BitworthError(f"{url} serves {listed}; it should serve one, or one named as the checkpoint.")
    return found[0]


async def versions_of(session: aiohttp.ClientSession, url: str) -> dict[str, str]:
    """The version of a server that is vLLM; nothing of others."""
    try:
        _, about = await get(session, f"{url.removesuffix('/v1')}/version")
    except (aiohttp.ClientError, OSError):
        return {}  # it lists its models, so it does serve
    told = about.get("version") if isinstance(about, dict) else None
    return {"vllm": one_line(str(told))} if told else {}
