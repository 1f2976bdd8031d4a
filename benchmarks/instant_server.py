"""An OpenAI-compatible server that answers at once and does nothing else, so that a load generator is what is timed.

    python instant_server.py [--delay-s 0.0]        # prints its port, serves until it is stopped

It reads `max_tokens` from the request, then writes so many tokens, an event each, in one piece; HTTP is spoken by
hand on asyncio's bare transport, which takes some 50 microseconds a request where a web framework takes a millisecond.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: keep-alive\r\n\r\n"
)
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')
_IDS = re.compile(rb'"prompt":\s*\[([^\]]*)')
_WORDS = re.compile(rb"\s+")


class Connection(asyncio.Protocol):
    """One client's connection; requests on it are answered in turn."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s, self._received = delay_s, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._received += data
        while True:
            head, found, rest = self._received.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            size = int(length[1]) if length else 0
            if not found or len(rest) < size:
                return
            self._received = rest[size:]
            self._answer(head.split(b" ", 2)[1], rest[:size])

    def _answer(self, path: bytes, body: bytes) -> None:
        if path.endswith(b"/completions"):
            answer = _HEAD + _completion(body, chat=path.endswith(b"/chat/completions"))
        elif path.endswith(b"/models"):
            answer = _whole(json.dumps({"object": "list", "data": [{"id": "instant", "object": "model"}]}).encode())
        else:
            answer = _whole(b"{}")
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._transport.write, answer)
        else:
            self._transport.write(answer)


def _completion(body: bytes, *, chat: bool) -> bytes:
    """The chunks of a streamed answer of `max_tokens` tokens."""
    asked = _TOKENS.search(body)
    count = int(asked[1]) if asked else 16
    text = {"delta": {"content": "a"}} if chat else {"text": "a"}
    token = _chunk(json.dumps({"id": "0", "choices": [{"index": 0, **text, "finish_reason": None}]}).encode())
    ids = _IDS.search(body)
    prompt = ids[1].count(b",") + 1 if ids else len(_WORDS.split(body))
    usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
    tail = _chunk(json.dumps({"id": "0", "choices": [], "usage": usage}).encode())
    return token * count + tail + _chunk(b"[DONE]") + b"0\r\n\r\n"


def _chunk(event: bytes) -> bytes:
    line = b"data: " + event + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def serve(delay_s: float) -> None:
    """Print the port, then serve for ever."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(delay_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-s", type=float, default=0.0, help="wait before each answer")
    asyncio.run(serve(parser.parse_args().delay_s))
