"""Who may ask the page, and for what: GET, at this machine's own addresses; nothing it sends points elsewhere.

A page of another site may not read it: there are no cross-origin headers, no frame may hold it, and a request must name
a host that is an address of the loopback interface (a name of another site that is made to resolve to one, as in DNS
rebinding, is refused).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import re
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from bitworth.errors import BitworthError
from bitworth.ledger import Ledger
from bitworth.view.answers import Which, answer_page, answered
from bitworth.view.page import (
    Shown,
    asset,
    render_answers,
    render_figures,
    render_home,
    render_problem,
    state_of,
    versions_of,
)
from bitworth.view.rows import Filters
from bitworth.view.watching import PATIENCE_S, Watched

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_STUDIES: web.AppKey[list[Watched]] = web.AppKey("studies", list)


def application(roots: Sequence[Path], hosts: Sequence[str] = ()) -> web.Application:
    """The page of these results folders; `hosts` are names it may be asked by besides those of this machine's loopback.

    Any address is taken where `hosts` holds `*`: an address cannot be made to resolve elsewhere, only a name can.

    Raises:
        BitworthError: a folder holds no study.
    """
    app = web.Application(middlewares=[_guard(frozenset(name.lower() for name in hosts)), _problems])
    app[_STUDIES] = [Watched(place, root) for place, root in enumerate(roots)]
    app.on_response_prepare.append(_harden)
    app.router.add_get("/", _home)
    app.router.add_get("/figures", _figures)
    app.router.add_get("/state.json", _state)
    app.router.add_get("/view.css", _asset)
    app.router.add_get("/view.js", _asset)
    app.router.add_get("/study/{place:[0-9]{1,4}}/report.html", _report)
    app.router.add_get("/study/{place:[0-9]{1,4}}/recommendation.json", _document)
    app.router.add_get("/study/{place:[0-9]{1,4}}/answers", _answers)
    return app


async def serve(app: web.Application, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is told the page's address once it answers.

    Raises:
        BitworthError: the port is taken, or the host is no address of this machine.
    """
    if not os.environ.get("BITWORTH_DEBUG"):  # it logs a traceback for whatever is no request
        logging.getLogger("aiohttp.server").addHandler(logging.NullHandler())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await _listen(runner, host, port)
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        taken = runner.addresses[0][1]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{taken}/")
        await stopped.wait()
    finally:
        await runner.cleanup()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except socket.gaierror as error:
        raise BitworthError(f"{host} is no address of this machine; leave --host out to serve on 127.0.0.1.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BitworthError(f"Port {port} is in use; choose another with --port, or --port 0 for any.") from error
        raise BitworthError(f"Port {port} of {host} cannot be served: {error.strerror or error}.") from error


# --- who may ask --------------------------------------------------------------------------------------------------


def _guard(hosts: frozenset[str]) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_ours(request.host, hosts):
            raise web.HTTPForbidden(text="This page answers only to the address that bitworth printed.\n")
        return await handler(request)

    return guard


def _is_ours(host: str, hosts: frozenset[str]) -> bool:
    """Whether a Host header names this machine: a loopback address or `localhost`, any address under `*`, or a name."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", host)
    if found is None:
        return False
    name = found[1].strip("[]").lower()
    return is_loopback(name) or name in hosts or ("*" in hosts and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except BitworthError as error:
        return _html(render_problem(str(error)), status=503)
    except Exception as error:
        if os.environ.get("BITWORTH_DEBUG"):
            traceback.print_exc()
        sentence = f"Unexpected {type(error).__name__} (BITWORTH_DEBUG=1 shows on the terminal where it came from)."
        return _html(render_problem(sentence), status=500)


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.pop("Server", None)


# --- what for -----------------------------------------------------------------------------------------------------


async def _shown(request: web.Request, patience_s: float = 0.0) -> list[Shown]:
    return list(await asyncio.gather(*(study.shown(patience_s=patience_s) for study in request.app[_STUDIES])))


def _study(request: web.Request) -> Watched:
    studies = request.app[_STUDIES]
    place = int(request.match_info["place"])
    if place >= len(studies):
        raise web.HTTPNotFound(text="There is no such study.\n")
    return studies[place]


async def _home(request: web.Request) -> web.Response:
    return _html(render_home(await _shown(request, PATIENCE_S), Filters.of(request.query)))


async def _figures(request: web.Request) -> web.Response:
    return _html(render_figures(await _shown(request, PATIENCE_S), Filters.of(request.query)))


async def _state(request: web.Request) -> web.Response:
    shown = await _shown(request)
    return web.json_response({"versions": versions_of(shown), "studies": [state_of(study) for study in shown]})


async def _asset(request: web.Request) -> web.Response:
    name = request.path.removeprefix("/")
    kind = "text/css" if name.endswith(".css") else "text/javascript"
    return web.Response(text=asset(name), content_type=kind)


async def _report(request: web.Request) -> web.Response:
    page = await _study(request).report()
    return _html(page, policy=_report_policy(page))


async def _document(request: web.Request) -> web.Response:
    return web.Response(text=await _study(request).document(), content_type="application/json")


async def _answers(request: web.Request) -> web.Response:
    study, query = _study(request), request.query
    ledger = Ledger(study.root)
    tasks = await asyncio.to_thread(lambda: answered(ledger.read_plan()))
    task = query.get("task") or next(iter(tasks), "")
    format = query.get("format") or next(iter(tasks.get(task, ())), "")
    which: Which = "all" if query.get("which") == "all" else "changed"
    page = int(query["page"]) if re.fullmatch(r"[0-9]{1,6}", query.get("page", "")) else 1
    found = await asyncio.to_thread(answer_page, ledger, task, format, which=which, page=page)
    asked = {"task": task, "format": format, "which": which}
    return _html(render_answers(await study.shown(), tasks, asked, found))


def _html(text: str, *, status: int = 200, policy: str = POLICY) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html", headers={"Content-Security-Policy": policy})


def _report_policy(page: str) -> str:
    """The report's own policy, which names its program by its hash; no frame may hold it."""
    own = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    return f"{own[1].replace('&#39;', chr(39)) if own else POLICY}; frame-ancestors 'none'"
