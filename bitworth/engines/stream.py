"""One streamed completion as it arrives: a line `data: {...}` an event, then the usage, then `data: [DONE]`.

Most events are one more token, and parsing those would be most of the client's work: only the first event, and those
that could be something else, are parsed. Where the server counts along (vLLM's `continuous_usage_stats`), the count is
cut out of a read's last event, so an event of several tokens (speculative decoding) counts as several.
"""

from __future__ import annotations

from array import array
from typing import Any

from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.guard.text import visible
from bitworth.load.chunks import pack

_LONGEST_LINE = 1 << 20
#: Reads of one answer; a server that sends more than that for one request is not answering it.
_MOST_READS = 1 << 22
_MOST_DIGITS = 12
#: Inside a JSON string its quotes would be escaped, so this is found in a usage only.
_COUNTED = b'"completion_tokens":'
_EMPTY = (b'"choices":[]', b'"choices": []')
_NO_USAGE = (b'"usage":null', b'"usage": null')


class Reply:
    """Times are those of the reads that brought the events; `first` and `last` mean something once `events` is not 0.

    `times` and `totals` have an entry a read that brought tokens: when, and how many tokens there were then.
    """

    __slots__ = (
        "_latest", "counted", "error", "events", "finished", "first", "last", "output_tokens", "prompt_tokens", "rest",
        "times", "totals",
    )  # fmt: skip

    def __init__(self) -> None:
        self.events = 0
        self.first = self.last = 0.0
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.counted = False
        self.finished = False
        self.error: str | None = None
        self.rest = b""
        self.times = array("d")
        self.totals = array("q")
        self._latest = b""

    def feed(self, data: bytes, now: float) -> None:
        """Take in what has just been read.

        Raises:
            ValueError: a line without an end, or an event that is no completion.
        """
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > _LONGEST_LINE:
            raise ValueError("the server sends a line without an end")
        if len(self.times) > _MOST_READS:
            raise ValueError("the server's answer does not end")
        before = self.events
        try:
            for line in lines:
                if line.startswith(b"data:"):
                    self._event(line[5:].strip(), now)
        finally:
            if self.events > before:
                self.times.append(now)
                self.totals.append(self._counted() or self.events)

    def fault(self, output_tokens: int) -> str | None:
        """What is wrong with the finished answer, if anything."""
        if self.error is not None:
            return self.error
        if not self.finished:
            return f"the answer broke off after {self.tokens} of {output_tokens} tokens"
        if self.output_tokens is None:
            return "the server does not say how many tokens it generated (stream_options.include_usage)"
        if self.output_tokens != output_tokens or not self.events:
            return f"{self.output_tokens} tokens were generated instead of {output_tokens}"
        return None

    @property
    def tokens(self) -> int:
        """How many have come, as far as one knows while they come."""
        return self.totals[-1] if self.totals else 0

    def packed(self, start: float) -> str:
        """The chunks since `start`; tokens of a server that does not count along are spread evenly over its events."""
        totals = list(self.totals)
        if not self.counted and self.output_tokens and totals and totals[-1] != self.output_tokens:
            totals = [round(total * self.output_tokens / totals[-1]) for total in totals]
        return pack([time - start for time in self.times], totals)

    def _event(self, event: bytes, now: float) -> None:
        if self.events and event.startswith(b"{") and self._is_token(event):
            self.events, self.last, self._latest = self.events + 1, now, event
            return
        if event == b"[DONE]":
            self._end()
            return
        fields = json_of(event, nested=MOST_NESTED)
        if not isinstance(fields, dict):
            raise ValueError("the server sends something other than completions")
        if fields.get("error"):
            self.error = self.error or f"the server reports: {complaint(fields)}"
        usage = fields.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens, self.output_tokens = (
                _count(usage, f"{side}_tokens") for side in ("prompt", "completion")
            )
        if fields.get("choices") and not (isinstance(usage, dict) and usage.get("completion_tokens") == 0):
            self.first, self.last = (self.first if self.events else now), now
            self.events, self._latest = self.events + 1, event

    def _end(self) -> None:
        self.finished = True
        if self.counted and self.prompt_tokens is None:  # the last token's event was the only one with a usage
            usage = json_of(self._latest).get("usage")
            self.prompt_tokens = _count(usage, "prompt_tokens") if isinstance(usage, dict) else None

    def _is_token(self, event: bytes) -> bool:
        """Whether an event is one or more tokens for certain, and nothing else."""
        if b'"error"' in event:
            return False
        if b'"usage"' not in event or any(none in event for none in _NO_USAGE):
            return True
        return _COUNTED in event and not any(empty in event for empty in _EMPTY)

    def _counted(self) -> int | None:
        """The server's own count in the latest event with tokens."""
        _, found, rest = self._latest.rpartition(_COUNTED)
        number = rest.lstrip()
        digits = number[: len(number) - len(number.lstrip(b"0123456789"))]
        if not found or not digits:
            return None
        if len(digits) > _MOST_DIGITS:
            raise ValueError("the server counts more tokens than there can be")
        self.counted = True
        self.output_tokens = int(digits)
        return self.output_tokens


def _count(usage: dict[str, Any], key: str) -> int | None:
    value = usage.get(key)
    return value if type(value) is int and 0 <= value < 10**_MOST_DIGITS else None


def complaint(fields: Any) -> str:
    """The sentence in an error's body, wherever the server puts it."""
    inner = fields.get("error", fields) if isinstance(fields, dict) else fields
    found = (
        next((inner[key] for key in ("message", "detail") if inner.get(key)), inner)
        if isinstance(inner, dict)
        else inner
    )
    return one_line(str(found))


def one_line(text: str) -> str:
    """The text in one line of at most some 200 characters."""
    line = visible(" ".join(text[:_LONGEST_LINE].split())).rstrip(".")
    return line if len(line) <= 200 else line[:200] + "..."
