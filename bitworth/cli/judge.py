"""`bitworth judge`: two models' answers before a third, the price first."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bitworth.cli.console import Json, Quiet, Terminal, pairs_table
from bitworth.errors import BitworthError, WorkFailed
from bitworth.ledger import Ledger

if TYPE_CHECKING:
    from bitworth.cells import Subject
    from bitworth.engines.http_chat import HttpChat
    from bitworth.judging import Estimate, Price, Spent, Verdicts


def judge(
    answers: Annotated[str, typer.Argument(help="The model: a file of answers (JSONL), or a model to write them.")],
    against: Annotated[str, typer.Argument(help="The other: a file of answers, or a model to write them.")],
    judge: Annotated[str, typer.Option("--judge", help="URL of the judge's OpenAI-compatible server.")],
    questions: Annotated[
        Path, typer.Option("--questions", help="File of questions (JSONL), or a data folder with arena_hard.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for verdicts; what is there is not asked again.")],
    judge_model: Annotated[str | None, typer.Option(help="The judge's name (the server's only model).")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions (all).", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed that picks the questions and draws the interval.")] = 0,
    engine: Annotated[str, typer.Option(help="What writes a model's answers: torch, vllm or a URL.")] = "torch",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer that is written.", min=1)] = 4096,
    judge_max_tokens: Annotated[int, typer.Option(help="Most tokens of a judge's reply.", min=1)] = 4096,
    usd_per_million_in: Annotated[float | None, typer.Option(help="Price of tokens read.", min=0)] = None,
    usd_per_million_out: Annotated[float | None, typer.Option(help="Price of tokens written.", min=0)] = None,
    reply_tokens: Annotated[int, typer.Option(help="Length of a reply, for the estimate.", min=1)] = 700,
    judge_tokenizer: Annotated[
        Path | None, typer.Option(help="Model folder whose tokenizer counts (a token for three bytes).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask whatever it costs.")] = False,
    max_usd: Annotated[float | None, typer.Option(help="Ask, and stop before this is exceeded.", min=0)] = None,
    strong_weight: Annotated[float, typer.Option(help="What a strong verdict counts.", min=1)] = 3.0,
    streams: Annotated[int, typer.Option(help="Judgements asked for at once.", min=1)] = 8,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Have a model's answers judged against another's, in both orders; says what it will cost and asks on --yes."""
    from bitworth import judging
    from bitworth.engines.http_chat import HttpChat
    from bitworth.judging.costs import Budget

    price = _price(usd_per_million_in, usd_per_million_out, max_usd)
    Budget(max_usd)
    count = judging.token_counter(judge_tokenizer)
    chosen = judging.choose(judging.read_questions(questions), limit, seed)
    terminal, ledger = Terminal(as_json=json, quiet=quiet), Ledger(out)
    with ledger.lock():
        texts = _both_texts(terminal, ledger, chosen, (answers, against), engine, max_tokens)
        chat = HttpChat(judge, judge_model, max_tokens=judge_max_tokens)
        planned = judging.plan_judgements(chosen, *texts, judge=chat.model, max_tokens=judge_max_tokens)
        left = judging.unasked(ledger, planned)
        before = judging.estimate(
            [one.turns for one in left], count, price, reply_tokens=reply_tokens, max_tokens=judge_max_tokens
        )
        terminal.note(_estimate_words(before))
        _check_limit(before, max_usd)
        spent = None
        if left and (yes or max_usd is not None):
            terms = judging.Terms(
                count=count, price=price, max_tokens=judge_max_tokens, limit_usd=max_usd, streams=streams
            )
            with terminal.steps("judging") as step:
                spent = judging.ask_judge(ledger, chat, left, terms, lambda done, total: step("verdicts", done, total))
        verdicts = judging.collect(ledger, chosen, planned)
    document = _document(answers, against, chat, before, spent, verdicts, strong_weight, seed)
    document["judge"]["max_tokens"] = judge_max_tokens
    document["characters"] = {
        name: sum(map(len, found.values())) / len(found) for name, found in zip(("model", "other"), texts, strict=True)
    }
    terminal.answer(document, lambda: _lines(document, before))
    if spent is not None and verdicts.absent:
        raise typer.Exit(WorkFailed.exit_code)  # the document says what is missing


def _price(read: float | None, write: float | None, max_usd: float | None) -> Price | None:
    from bitworth.judging import Price

    if (read is None) != (write is None):
        raise BitworthError("A price has two parts: give --usd-per-million-in and --usd-per-million-out.")
    if read is None or write is None:
        if max_usd is not None:
            raise BitworthError("--max-usd needs a price: give --usd-per-million-in and --usd-per-million-out.")
        return None
    if not (math.isfinite(read) and math.isfinite(write)):
        raise BitworthError("--usd-per-million-in and --usd-per-million-out are numbers of dollars.")
    return Price(usd_per_million_in=read, usd_per_million_out=write)


def _both_texts(
    terminal: Terminal, ledger: Ledger, questions: dict[str, str], both: tuple[str, str], engine: str, max_tokens: int
) -> list[dict[str, str]]:
    """The answers of both sides: of a file, or written by a model.

    Raises:
        BitworthError: an answer or a model that cannot be had, or a server that cannot tell two models apart.
    """
    from bitworth import judging
    from bitworth.engines import is_url

    subjects = [_writer(terminal, who) for who in both]
    models = [Path(subject.path) for subject in subjects if subject is not None]
    by_name = is_url(engine) and len(models) > 1
    if by_name:
        from bitworth.engines.http_text import check_apart

        check_apart(engine, *models)
    return [
        judging.answers_to(questions, judging.read_answers(Path(who)), Path(who))
        if subject is None
        else _written(terminal, ledger, questions, subject, engine, max_tokens, by_name=by_name)
        for who, subject in zip(both, subjects, strict=True)
    ]


def _writer(terminal: Terminal, who: str) -> Subject | None:
    """The model that is to write, None for a file of answers."""
    from bitworth import planning

    path = Path(who)
    if path.is_file():
        return None
    if path.suffix in (".jsonl", ".gz"):
        raise BitworthError(f"{path} is not there; name a file of answers, a model folder or a hub id.")
    return planning.checkpoint_subject(who, "model", note=terminal.note)


def _written(
    terminal: Terminal,
    ledger: Ledger,
    questions: dict[str, str],
    subject: Subject,
    engine: str,
    max_tokens: int,
    *,
    by_name: bool,
) -> dict[str, str]:
    from bitworth import judging

    with terminal.steps(f"answers of {Path(subject.path).name}") as step:
        return judging.write_answers(
            ledger,
            questions,
            Path(subject.path),
            subject.identity,
            engine=engine,
            max_tokens=max_tokens,
            by_name=by_name,
            progress=lambda done, total: step("questions", done, total),
        )


def _check_limit(before: Estimate, max_usd: float | None) -> None:
    if max_usd is not None and before.usd is not None and before.usd > max_usd:
        raise BitworthError(
            f"{_estimate_words(before)} That is more than --max-usd {max_usd:g}; nothing was asked. "
            "Raise it, or take fewer questions with --limit."
        )


def _estimate_words(before: Estimate) -> str:
    if not before.judgements:
        return "Every verdict is here already; nothing is left to ask."
    tokens = f"{before.input_tokens:,} tokens read and about {before.output_tokens:,} written"
    if before.usd is None:
        return f"{before.judgements:,} judgements are left to ask: {tokens}; give a price to see what they cost."
    return (
        f"{before.judgements:,} judgements are left to ask: {tokens}, about ${before.usd:.2f}, "
        f"${before.most_usd:.2f} at the very most."
    )


def _document(
    model: str,
    other: str,
    chat: HttpChat,
    before: Estimate,
    spent: Spent | None,
    verdicts: Verdicts,
    strong_weight: float,
    seed: int,
) -> dict[str, Any]:
    """The verb's document; there is no win rate before anything was judged."""
    from bitworth.statistics.duels import win_rate

    document: dict[str, Any] = {
        "model": model,
        "other": other,
        "judge": {"model": chat.model, "url": chat.url, "temperature": chat.temperature},
        "estimate": asdict(before),
        "spent": asdict(spent) if spent is not None else None,
        "identical_answers": verdicts.identical,
        "unreadable_verdicts": verdicts.unreadable,
        "absent_verdicts": verdicts.absent,
        "questions_left_out": list(verdicts.left_out),
        "win_rate": None,
        "win_rate_unweighted": None,
    }
    finished = not verdicts.absent or (spent is not None and spent.stopped is None)
    if verdicts.duels and finished:  # before that, ties that cost nothing to know would stand beside few others
        document["win_rate"] = asdict(win_rate(verdicts.duels, strong_weight=strong_weight, seed=seed))
        document["win_rate"]["strong_weight"] = strong_weight
        document["win_rate_unweighted"] = asdict(win_rate(verdicts.duels, strong_weight=1.0, seed=seed))
    return document


def _lines(document: dict[str, Any], before: Estimate) -> RenderableType:
    spent, lines = document["spent"], []
    if spent is None and before.judgements:
        return Text(f"{_estimate_words(before)} Nothing was asked; add --yes, or a limit with --max-usd.")
    if (found := document["win_rate"]) is not None:
        low, high = found["ci95_pct"]
        lines.append(
            f"{document['model']} wins {found['rate_pct']:.1f} % ({low:.1f} to {high:.1f}) against "
            f"{document['other']}: {found['won']} won, {found['tied']} tied, {found['lost']} lost of "
            f"{found['questions']} questions."
        )
        lines.append(
            f"The answer shown first scores {found['first_place_pct']:.1f} %; on {found['contradicted']} questions the "
            "two orders name different winners."
        )
    if spent is not None and spent["stopped"]:
        lines.append(
            f"Not all was asked: {spent['stopped']}. The same command goes on; a smaller --limit of the same seed is "
            "finished sooner."
        )
    if spent is not None and spent["failures"]:
        lines.append(f"{len(spent['failures'])} judgements failed, first: {spent['failures'][0]}")
    rows = {name: document[name] for name in ("identical_answers", "unreadable_verdicts", "absent_verdicts")}
    rows |= {f"{name} (this run)": spent[name] for name in ("judgements", "usd")} if spent else {}
    return Group(*map(Text, lines), pairs_table("Verdicts", rows))
