"""Judgements: planned as cells, asked side by side, each kept the moment it comes.

A judgement's key hashes the judge's name, the whole conversation and the length allowed, so a killed run goes on where
it was, and a changed answer is judged again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import aiohttp

from bitworth.engines.exchange import event_loop
from bitworth.engines.http_chat import ChatReply, HttpChat
from bitworth.errors import WorkFailed
from bitworth.judging.costs import Budget, Counter, Price, tokens_of, worst_case
from bitworth.judging.files import Texts
from bitworth.judging.wording import VERSION, Conversation, conversation, once_more, read_verdict
from bitworth.ledger import Ledger, canonical
from bitworth.statistics.duels import Duel, Grade
from bitworth.types import Cell

TIE: Grade = "A=B"
LOST_AFTER = 5
"""Failures in a row after which the judge is taken for lost, and no more is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One verdict to have: on which question, with whose answer first."""

    item: str
    model_first: bool
    turns: Conversation
    cell: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How judgements are counted, paid and limited; without a price there is no limit."""

    count: Counter
    price: Price | None
    max_tokens: int
    limit_usd: float | None = None
    streams: int = 8


@dataclass(slots=True, kw_only=True)
class Spent:
    """What a run asked and what it came to, by the server's own counts where it gives them.

    `failures` are the causes of judgements that could not be had, `stopped` says why others were not asked.
    """

    judgements: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None
    failures: list[str] = field(default_factory=list)
    stopped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What the ledger holds: questions with two readable verdicts, and how many others there are.

    `identical` of the duels were ties of equal texts; `unreadable` counts judgements without a verdict, `absent` those
    not had yet; `left_out` are the questions of both.
    """

    duels: tuple[Duel, ...]
    identical: int
    unreadable: int
    absent: int
    left_out: tuple[str, ...]


def plan_judgements(questions: Texts, model: Texts, other: Texts, *, judge: str, max_tokens: int) -> list[Judgement]:
    """Both orders of every question; equal answers are a tie that nobody need be asked about."""
    return [
        _judgement(item, model_first, conversation(question, *pair), judge, max_tokens)
        for item, question in questions.items()
        if model[item] != other[item]
        for model_first, pair in ((True, (model[item], other[item])), (False, (other[item], model[item])))
    ]


def _judgement(item: str, model_first: bool, turns: Conversation, judge: str, max_tokens: int) -> Judgement:
    digest = hashlib.sha256(canonical(turns).encode()).hexdigest()
    cell = Cell(
        kind="judge",
        title=f"{judge} on {item}, the model's answer {'first' if model_first else 'second'}",
        format=judge,
        inputs={"wording": VERSION, "judge": judge, "turns": digest, "max_tokens": max_tokens},
    )
    return Judgement(item=item, model_first=model_first, turns=turns, cell=cell)


def unasked(ledger: Ledger, planned: Sequence[Judgement]) -> list[Judgement]:
    """Those that the ledger does not have."""
    return [one for one in planned if not ledger.done(one.cell)]


def collect(ledger: Ledger, questions: Texts, planned: Sequence[Judgement]) -> Verdicts:
    """The verdicts had so far; a question counts with both or not at all, or places would not cancel."""
    found = {(one.item, one.model_first): ledger.get(one.cell) for one in planned}
    asked = {item for item, _ in found}
    grades: dict[tuple[str, bool], Grade | None] = {
        key: result["grade"] if result is not None else None for key, result in found.items()
    }
    pairs = {item: (grades[item, True], grades[item, False]) if item in asked else (TIE, TIE) for item in questions}
    return Verdicts(
        duels=tuple(
            Duel(item=item, model_first=one, model_second=two) for item, (one, two) in pairs.items() if one and two
        ),
        identical=len(questions) - len(asked),
        unreadable=sum(result is not None and result["grade"] is None for result in found.values()),
        absent=sum(result is None for result in found.values()),
        left_out=tuple(item for item, pair in pairs.items() if None in pair),
    )


def ask_judge(
    ledger: Ledger,
    chat: HttpChat,
    asked: Sequence[Judgement],
    terms: Terms,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Spent:
    """Ask, and keep each verdict as it comes; a reply without a single verdict is asked for it once more.

    A judgement that fails is noted and passed over. Nothing is begun that could take the run beyond the limit.

    Raises:
        WorkFailed: a verdict cannot be kept.
    """
    return event_loop(_Round(ledger, chat, asked, terms, progress).run())


class _Round:
    """One run's asking."""

    def __init__(
        self,
        ledger: Ledger,
        chat: HttpChat,
        asked: Sequence[Judgement],
        terms: Terms,
        progress: Callable[[int, int], None],
    ) -> None:
        self._ledger, self._chat, self._terms = ledger, chat, terms
        self._progress, self._total = progress, len(asked)
        self._waiting: Iterator[Judgement] = iter(asked)
        self._budget, self._failed_in_a_row = Budget(terms.limit_usd), 0
        self._spent = Spent(usd=0.0 if terms.price else None)

    async def run(self) -> Spent:
        async with self._chat.session() as session:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._terms.streams):
                        group.create_task(self._stream(session))
            except* WorkFailed as failures:
                raise failures.exceptions[0] from None
        return self._spent

    async def _stream(self, session: aiohttp.ClientSession) -> None:
        for one, worst_usd in self._allowed():
            replies: list[ChatReply] = []
            cause = None
            try:
                await self._converse(session, one, replies)
            except WorkFailed as error:
                cause = str(error)
            self._budget.settle(worst_usd, self._pay(one, replies))
            if cause is None:
                self._keep(one, replies)
            else:
                self._note(one, cause)
            self._progress(self._spent.judgements + len(self._spent.failures), self._total)

    def _allowed(self) -> Iterator[tuple[Judgement, float]]:
        """The next judgements and what each could cost, until the limit or too many failures."""
        while self._spent.stopped is None and (one := next(self._waiting, None)) is not None:
            price, terms = self._terms.price, self._terms
            worst = worst_case(one.turns, terms.count, price, terms.max_tokens) if price else 0.0
            if self._budget.promise(worst):
                yield one, worst
            elif self._budget.promises:  # there may be room when those under way have ended
                self._waiting = chain([one], self._waiting)
                return
            else:
                self._spent.stopped = f"the next judgement could go beyond ${terms.limit_usd:g}"

    async def _converse(self, session: aiohttp.ClientSession, one: Judgement, replies: list[ChatReply]) -> None:
        replies.append(await self._chat.ask(session, one.turns))
        if read_verdict(replies[0].text) is None:
            replies.append(await self._chat.ask(session, once_more(one.turns, replies[0].text)))

    def _pay(self, one: Judgement, replies: Sequence[ChatReply]) -> float:
        """Add up what replies came to."""
        count = self._terms.count
        turns = (one.turns, once_more(one.turns, replies[0].text)) if len(replies) > 1 else (one.turns,)
        read = write = 0
        for asked, reply in zip(turns, replies, strict=False):  # none came of what failed
            read += tokens_of(asked, count) if reply.input_tokens is None else reply.input_tokens
            write += count(reply.text) if reply.output_tokens is None else reply.output_tokens
        self._spent.input_tokens += read
        self._spent.output_tokens += write
        usd = self._terms.price.usd(read, write) if self._terms.price else 0.0
        if self._spent.usd is not None:
            self._spent.usd += usd
        return usd

    def _keep(self, one: Judgement, replies: Sequence[ChatReply]) -> None:
        self._failed_in_a_row = 0
        self._spent.judgements += 1
        texts = [reply.text for reply in replies]
        ends = [reply.finish for reply in replies]
        self._ledger.put(one.cell, {"grade": read_verdict(texts[-1]), "replies": texts, "finish": ends})

    def _note(self, one: Judgement, cause: str) -> None:
        self._failed_in_a_row += 1
        self._spent.failures.append(cause)
        self._ledger.fail(one.cell, cause)
        if self._failed_in_a_row >= LOST_AFTER:
            self._spent.stopped = f"{LOST_AFTER} judgements in a row failed"
