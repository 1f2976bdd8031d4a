"""A streamed answer byte by byte: what counts as a token, when it came, what is wrong with it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.engines.stream import Reply, complaint, one_line
from bitworth.load.chunks import unpack


def event(total: int | None = None, *, text: str = "a", prompt: int = 9) -> bytes:
    """One more token; with the count so far where the server counts along."""
    fields: dict[str, object] = {"id": "x", "choices": [{"index": 0, "text": text}]}
    if total is not None:
        fields["usage"] = {"prompt_tokens": prompt, "total_tokens": prompt + total, "completion_tokens": total}
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def usage(count: int, prompt: int = 9) -> bytes:
    fields = {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": count}}
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def read(*parts: bytes) -> Reply:
    """A reply that got each part a second after the one before, the first at 1."""
    reply = Reply()
    for at, part in enumerate(parts, 1):
        reply.feed(part, float(at))
    return reply


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8), data=st.data())
def test_a_server_that_counts_along_is_believed_however_its_bytes_are_cut(
    sizes: list[int], data: st.DataObject
) -> None:
    totals = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    text = b"".join(event(total, text='"completion_tokens": 999 [DONE]') for total in totals) + usage(totals[-1]) + DONE
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    reply = read(*(text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)])))
    assert reply.fault(totals[-1]) is None
    assert (reply.prompt_tokens, reply.output_tokens, reply.counted) == (9, totals[-1], True)
    offsets, tokens = unpack(reply.packed(0.0))
    assert tokens.sum() == totals[-1]
    assert offsets.tolist() == sorted(offsets.tolist())


def test_events_of_several_tokens_without_a_count_are_spread_evenly() -> None:
    reply = read(event(), event(), event(), event() + usage(8) + DONE)
    offsets, tokens = unpack(reply.packed(0.5))
    assert offsets.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert tokens.tolist() == [2, 2, 2, 2]
    assert reply.fault(8) is None


def test_times_are_of_the_reads_that_brought_tokens() -> None:
    reply = read(b": comment\n\n", event(), b"data: {", event()[7:] + event(), usage(3), DONE)
    assert (reply.first, reply.last) == (2.0, 4.0)
    offsets, tokens = unpack(reply.packed(1.0))
    assert (offsets.tolist(), tokens.tolist()) == ([1.0, 3.0], [1, 2])


def test_a_first_event_with_a_role_and_no_token_is_no_token() -> None:
    reply = read(event(0, text=""), event(1), event(2), usage(2) + DONE)
    assert reply.first == 2.0
    assert reply.fault(2) is None


def test_a_count_in_the_last_token_is_enough() -> None:
    reply = read(event(1), event(2), DONE)
    assert (reply.prompt_tokens, reply.output_tokens, reply.fault(2)) == (9, 2, None)


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ([event(1), event(2)], "the answer broke off after 2 of 3 tokens"),
        ([], "the answer broke off after 0 of 3 tokens"),
        ([event(), DONE], "the server does not say how many tokens it generated (stream_options.include_usage)"),
        ([event(), usage(2), DONE], "2 tokens were generated instead of 3"),
        ([usage(3), DONE], "3 tokens were generated instead of 3"),
        ([event(), b'data: {"error": {"message": "no\\nmemory."}}\n\n', DONE], "the server reports: no memory"),
        ([event(), b'data: {"error": "dead"}\n\n'], "the server reports: dead"),
    ],
)
def test_what_is_wrong_is_said(parts: list[bytes], fault: str) -> None:
    assert read(*parts).fault(3) == fault


@pytest.mark.parametrize("line", [b"data: <html>\n", b"data: [1]\n", b"data: 5\n"])
def test_other_than_completions_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"completions|Expecting"):
        read(line)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "too long."}}, "too long"),
        ({"detail": "nope"}, "nope"),
        ({"error": "plain"}, "plain"),
        ({"message": "a\n b"}, "a b"),
        ("text", "text"),
    ],
)
def test_the_sentence_in_an_error(body: object, said: str) -> None:
    assert complaint(body) == said


def test_long_complaints_are_cut() -> None:
    assert one_line("x" * 500) == "x" * 200 + "..."
