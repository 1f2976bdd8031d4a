"""The client against a server that answers at a known pace, or misbehaves in a known way."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.engines import http, open_generator
from bitworth.engines.exchange import connection
from bitworth.engines.fake import FakeGenerator, FakeServer
from bitworth.engines.http import HttpGenerator
from bitworth.engines.schedule import arrivals
from bitworth.engines.stream import Reply
from bitworth.errors import BitworthError, WorkFailed
from bitworth.types import Load

SYNCHRONOUS = Load(kind="synchronous")
PROMPTS = [[index, 7, 8, 9] for index in range(6)]


@contextmanager
def served(server: FakeServer) -> Iterator[str]:
    """The server's URL, while a thread serves it."""
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), 0

    def serve() -> None:
        async def start() -> None:
            nonlocal port
            runner = web.AppRunner(server.application(), shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            ready.set()
            await stop.wait()
            await runner.cleanup()

        loop.run_until_complete(start())

    stop = asyncio.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def test_latency_and_first_token_are_the_servers() -> None:
    with served(FakeServer(first_s=0.10, token_s=0.02)) as url:
        timings = HttpGenerator(url).run(PROMPTS, 5, SYNCHRONOUS)
    assert [t.error for t in timings] == [None] * 6
    assert [(t.prompt_tokens, t.output_tokens) for t in timings] == [(4, 5)] * 6
    # Sleeps are never shorter than asked; on a busy machine a few are longer.
    firsts = [t.first_token_s - t.start_s for t in timings if t.first_token_s is not None]
    assert len(firsts) == 6
    assert min(firsts) > 0.099
    assert min(t.latency_s for t in timings) > 0.179
    assert np.median(firsts) == pytest.approx(0.10, abs=0.03)
    assert np.median([t.latency_s for t in timings]) == pytest.approx(0.18, abs=0.04)
    assert all(before.end_s <= after.start_s for before, after in pairwise(timings))


def test_asks_for_exactly_the_tokens_of_exactly_the_prompt() -> None:
    server = FakeServer()
    with served(server) as url:
        generator = HttpGenerator(f"{url}/v1/")
        generator.run(PROMPTS[:2], 3, SYNCHRONOUS)
    asked = server.requests[1]
    assert asked["prompt"] == PROMPTS[1]
    assert (asked["max_tokens"], asked["min_tokens"], asked["ignore_eos"], asked["temperature"]) == (3, 3, True, 0)
    assert asked["model"] == "fake"
    assert generator.facts.engine == f"{url}/v1"


def test_a_model_that_is_known_is_asked_for_whatever_the_server_lists() -> None:
    server = FakeServer(models=["another"])
    with served(server) as url:
        HttpGenerator(url, model="mine", choice="given").run([[1]], 1, SYNCHRONOUS)
    assert [asked["model"] for asked in server.requests] == ["mine"]


def test_throughput_keeps_all_streams_busy_and_no_more() -> None:
    server = FakeServer(first_s=0.05)
    with served(server) as url:
        timings = HttpGenerator(url).run([[1]] * 20, 1, Load(kind="throughput", streams=4))
    assert server.most_active == 4
    assert len(timings) == 20
    assert max(t.end_s for t in timings) == pytest.approx(0.25, abs=0.1)


def test_arrivals_do_not_wait_for_answers() -> None:
    server = FakeServer(first_s=0.3)
    with served(server) as url:
        timings = HttpGenerator(url).run([[1]] * 10, 1, Load(kind="constant", rate=50))
    late = np.array([t.start_s for t in timings]) - np.arange(10) * 0.02
    assert late.min() > -0.002
    assert np.median(late) < 0.01
    assert server.most_active == 10


@given(rate=st.floats(0.1, 1000), count=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_constant_arrivals_are_evenly_spaced_and_poisson_ascend(rate: float, count: int, seed: int) -> None:
    even = arrivals(Load(kind="constant", rate=rate), count, seed)
    assert even == pytest.approx([index / rate for index in range(count)])
    random = arrivals(Load(kind="poisson", rate=rate), count, seed)
    assert random == sorted(random)
    assert len(random) == count
    assert random[0] == 0


def test_poisson_gaps_are_exponential_and_seeded() -> None:
    load = Load(kind="poisson", rate=4)
    gaps = np.diff(arrivals(load, 20_001, 3))
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(0.25, rel=0.03)
    assert (gaps > 0.25 * np.log(2)).mean() == pytest.approx(0.5, abs=0.02)
    assert arrivals(load, 5, 3) == arrivals(load, 5, 3) != arrivals(load, 5, 4)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("refuse", "HTTP 500 (out of order (no key))"),
        ("break_off", "the answer broke off after 3 of 4 tokens"),
        ("miscount", "3 tokens were generated instead of 4"),
        ("report", "the server reports: engine dead"),
        ("no_usage", "the server does not say how many tokens it generated (stream_options.include_usage)"),
        ("garbage", "the server sends something other than JSON after 4 of 4 tokens"),
        ("hang", "the server was silent for 0.3 s"),
    ],
)
def test_a_failed_request_carries_its_cause_and_the_rest_go_on(fault: str, cause: str) -> None:
    with served(FakeServer(faults=["none", fault])) as url:  # type: ignore[list-item]
        timings = HttpGenerator(url, idle_s=0.3).run(PROMPTS[:3], 4, SYNCHRONOUS)
    assert [t.error for t in timings] == [None, cause, None]


def test_collections_in_a_run_look_at_what_it_makes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "gc", gc)
    with http._short_collections():
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
    gc.freeze()  # as for all tests of this file


def test_a_slow_answer_is_cut_off_in_the_end() -> None:
    with (
        served(FakeServer(first_s=0.1, token_s=0.1)) as url,
        pytest.raises(WorkFailed, match=r"no answer within 0\.5 s"),
    ):
        HttpGenerator(url, total_s=0.5).run([[1]], 100, SYNCHRONOUS)


def test_when_all_fail_the_first_cause_is_named() -> None:
    with served(FakeServer(faults=["refuse", "break_off"])) as url, pytest.raises(WorkFailed) as caught:
        HttpGenerator(url).run(PROMPTS[:2], 4, SYNCHRONOUS)
    assert str(caught.value) == f"None of 2 requests to {url}/v1 succeeded: HTTP 500 (out of order (no key))."


def test_no_server_is_one_sentence() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(WorkFailed, match=rf"^http://127.0.0.1:{port}/v1 does not answer: .*refused\)\.$"):
        HttpGenerator(f"http://127.0.0.1:{port}")


def test_a_server_that_goes_away_fails_its_requests() -> None:
    with served(FakeServer()) as url:
        generator = HttpGenerator(url)
    with pytest.raises(WorkFailed, match="cannot connect"):
        generator.run(PROMPTS, 4, SYNCHRONOUS)


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://user:secret@127.0.0.1:1", "http://127.0.0.1:1/v1?key=secret"]
)
def test_a_url_that_will_not_do(url: str) -> None:
    with pytest.raises(BitworthError) as caught:
        HttpGenerator(url)
    assert "secret" not in str(caught.value)


def test_the_key_is_sent_and_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = FakeServer(faults=["none", "refuse"])
    with served(server) as url:
        generator = HttpGenerator(url)
        timings = generator.run(PROMPTS[:2], 4, SYNCHRONOUS)
    assert server.keys == {"Bearer sk-secret"}
    assert "sk-secret" not in f"{timings} {generator.facts} {vars(generator)}"
    assert timings[1].error == "HTTP 500 (out of order (Bearer (key)))"
    monkeypatch.setenv("BITWORTH_API_KEY", "sk-mine")
    server = FakeServer()
    with served(server) as url:
        HttpGenerator(url)
        HttpGenerator(url, send_key=False)
    assert server.keys == {"Bearer sk-mine", None}


def test_a_server_that_takes_no_ids_gets_text() -> None:
    server = FakeServer(faults=["no_ids"] * 6)
    with served(server) as url:
        generator = HttpGenerator(url, decode=lambda ids: "ab" * len(ids))
        timings = generator.run(PROMPTS[:3], 2, SYNCHRONOUS)
        assert [t.error for t in timings] == [None] * 3
        generator.run(PROMPTS[:1], 2, SYNCHRONOUS)
    assert [type(asked["prompt"]) for asked in server.requests] == [list] * 3 + [str] * 4


def test_open_by_url_decodes_with_the_checkpoints_tokenizer(tiny_llama: Path) -> None:
    server = FakeServer(faults=["no_ids"], models=["other", tiny_llama.name])
    with served(server) as url, open_generator(url, tiny_llama, context_tokens=8) as generator:
        generator.run([[65, 66]], 2, SYNCHRONOUS)
    assert isinstance(server.requests[-1]["prompt"], str)
    assert server.requests[-1]["model"] == tiny_llama.name


@pytest.mark.parametrize("models", [[], ["a", "b"]])
def test_a_server_without_one_model_to_choose(models: list[str]) -> None:
    with served(FakeServer(models=models)) as url, pytest.raises(BitworthError, match=r"serves (no model|several)"):
        HttpGenerator(url)


@settings(max_examples=50)
@given(cuts=st.lists(st.integers(0, 400), max_size=8), count=st.integers(1, 5))
def test_a_reply_reads_the_same_however_it_is_cut(cuts: list[int], count: int) -> None:
    token = json.dumps({"choices": [{"text": '"usage": "error"'}]})
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": count}})
    text = "".join(f"data: {event}\r\n\r\n" for event in [*[token] * count, usage, "[DONE]"]).encode()
    edges = [0, *sorted(cut % len(text) for cut in cuts), len(text)]
    reply = Reply()
    for at, (start, end) in enumerate(pairwise(edges)):
        reply.feed(text[start:end], float(at))
    assert reply.fault(count) is None
    assert (reply.events, reply.prompt_tokens, reply.output_tokens) == (count, 9, count)
    assert reply.first <= reply.last <= len(edges)


def test_an_endless_line_is_refused() -> None:
    reply = Reply()
    reply.feed(b"x" * 600_000, 0.0)
    with pytest.raises(ValueError, match="without an end"):
        reply.feed(b"x" * 600_000, 0.0)


def test_progress_counts_every_request() -> None:
    seen: list[tuple[int, int]] = []
    with served(FakeServer(faults=["refuse"])) as url:
        HttpGenerator(url).run(PROMPTS, 2, Load(kind="throughput"), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_unknown_engine_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match="unknown engine 'tensorrt'; known: torch, vllm, fake, or the http"):  # noqa: SIM117
        with open_generator("tensorrt", tmp_path, context_tokens=1):
            pass


def test_the_fake_computes_what_a_server_would_take() -> None:
    fake = FakeGenerator(prefill_s=0.01, decode_s=0.1)
    began = time.monotonic()
    one = fake.run(PROMPTS, 5, SYNCHRONOUS)
    assert [t.latency_s for t in one] == pytest.approx([0.54] * 6)
    assert one[-1].end_s == pytest.approx(6 * 0.54)
    assert one[0].first_token_s == pytest.approx(0.14)
    many = fake.run(PROMPTS, 5, Load(kind="throughput", streams=3))
    assert max(t.end_s for t in many) == pytest.approx(2 * 0.54)
    rated = fake.run(PROMPTS, 5, Load(kind="constant", rate=2))
    assert [t.start_s for t in rated] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("number", [None, errno.EPIPE, errno.ECONNRESET])
def test_a_request_that_cannot_be_written_is_a_closed_connection(number: int | None) -> None:
    error = aiohttp.ClientOSError(number, "Can not write request body for http://127.0.0.1:1/v1/completions")
    assert connection(error, aiohttp.ClientTimeout()) == "the server closed the connection"
