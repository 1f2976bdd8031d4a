"""The report as short Markdown, for a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bitworth.load.savings import savings
from bitworth.report.figures import (
    UNKNOWN,
    chance,
    counterpart,
    flips,
    hardware_name,
    interval,
    number,
    percent,
    seconds,
    times,
)
from bitworth.report.sheets import noise_sheet
from bitworth.report.tables import facts_words, markdown_table, markdown_text
from bitworth.report.words import MOST_FLIPS, constraint_words, headline, moment, scenario_title, shape_words
from bitworth.types import QueryCost, Recommendation, Recovery, StudyResult


def render_markdown(result: StudyResult) -> str:
    """The recommendation with its reasons, then the figures in tables; equal results give equal text."""
    answer, gain = headline(result)
    parts = [
        f"# {markdown_text(answer)}",
        markdown_text(gain),
        f"**Model** {markdown_text(result.model)} · **study** {markdown_text(result.name)} · "
        f"**newest result** {markdown_text(moment(result.finished))} · "
        f"**constraint** {markdown_text('; '.join(constraint_words(result.constraint)))}",
        *_recommendations(result),
        *_recoveries(result),
        *_groups(result),
        *_noise(result),
        *_divergences(result),
        *_likenesses(result),
        *_costs(result),
        *_savings(result),
        *_checkpoints(result),
        *_missing(result),
        *_provenance(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _recommendations(result: StudyResult) -> Iterable[str]:
    for row in (*result.recommendations, *result.deployments):
        yield f"## {markdown_text(scenario_title(row.use_case, row.load))}"
        yield f"{markdown_text(shape_words(row.use_case))}: {_verdict(row)}"
        yield markdown_text(row.why)
        if row.next_step:
            yield f"*To settle it:* {markdown_text(' '.join(step.says for step in row.steps))}"
        if row.flips:
            yield "*What would change it:*"
            yield "\n".join(f"- {markdown_text(flip.says)}" for flip in row.flips[:MOST_FLIPS])


def _verdict(row: Recommendation) -> str:
    if row.choice is None:
        return "**nothing meets the constraint**"
    place = hardware_name(row.choice.cost)
    if row.choice.cost.load != row.load:
        place = f"{place}, {row.choice.cost.load}"
    predicted = ", recovery predicted" if row.choice.recovery_source == "predicted" else ""
    return (
        f"**{markdown_text(row.choice.format)}** on {markdown_text(place)} (cost {row.choice.cost.source}{predicted})"
    )


def _recoveries(result: StudyResult) -> Iterable[str]:
    if not result.recoveries:
        return
    yield "## Recovery"
    rows = [
        (
            *_kept(row),
            flips(row),
            "" if row.p_holm is None else chance(row.p_holm),
            "" if row.questions_needed is None else f"{row.questions_needed:,}",
        )
        for row in result.recoveries
    ]
    yield markdown_table(
        ("task", *_KEPT, "lost / won", "p adjusted within the format", "needed"), rows, text_columns=(0, 1, 7)
    )


def _groups(result: StudyResult) -> Iterable[str]:
    """Verdicts are each row's own, so the last column tells which of them many rows do not explain."""
    if not result.groups:
        return
    yield "## Recovery by subject or language"
    rows = [(*_kept(row), chance(row.p_holm)) for row in result.groups]
    yield markdown_table(("task/group", *_KEPT, "p adjusted for all rows of the format"), rows, text_columns=(0, 1, 7))


def _noise(result: StudyResult) -> Iterable[str]:
    sheet = noise_sheet(result)
    if sheet is not None:
        yield f"## {sheet.title}"
        yield markdown_table(sheet.head, sheet.rows, text_columns=(0, 1))


_KEPT = ("format", "baseline", "score", "recovery", "95 % interval", "questions", "verdict")


def _kept(row: Recovery) -> tuple[str, ...]:
    return (
        row.task,
        row.format,
        percent(100 * row.baseline),
        percent(100 * row.quantized),
        percent(row.recovery_pct, apart_from=row.min_recovery_pct),
        interval(row.ci95_pct, decimals=1),
        f"{row.questions:,}",
        row.verdict,
    )


def _divergences(result: StudyResult) -> Iterable[str]:
    if not result.divergences:
        return
    yield "## Divergence on text"
    rows = [
        (
            format,
            number(row.perplexity, digits=4),
            number(row.baseline_perplexity, digits=4),
            number(row.kl_nats),
            percent(row.top1_flip_pct),
            f"{row.tokens:,}",
        )
        for format, row in result.divergences.items()
    ]
    titles = ("format", "perplexity", "baseline's", "KL, nats", "top token differs", "tokens")
    yield markdown_table(titles, rows, text_columns=(0,))


def _likenesses(result: StudyResult) -> Iterable[str]:
    if not result.likenesses:
        return
    yield "## Likeness of what was written to the baseline's"
    rows = [
        (
            row.task,
            row.format,
            row.measure,
            *map(number, (row.mean, row.p10, row.median, row.p90)),
            f"{row.questions:,}",
        )
        for row in result.likenesses
    ]
    titles = ("task", "format", "measure", "mean", "10 % below", "median", "10 % above", "answers")
    yield markdown_table(titles, rows, text_columns=(0, 1, 2))


def _costs(result: StudyResult) -> Iterable[str]:
    if not result.costs:
        return
    yield "## Cost"
    titles = (
        "use case, load",
        "format",
        "hardware",
        "queries per USD",
        "× baseline",
        "latency",
        "first token",
        "queries/s",
        "figures",
    )
    yield markdown_table(titles, [_cost(cost, result) for cost in result.costs], text_columns=(0, 1, 2, 8))


def _cost(cost: QueryCost, result: StudyResult) -> Sequence[str]:
    place = scenario_title(cost.use_case, cost.load), cost.format, hardware_name(cost)
    if cost.unsupported is not None:
        return (*place, *[UNKNOWN] * 5, f"none: {cost.unsupported}")
    found = times(cost, counterpart(cost, result.costs))
    ratio, bounds = found or (None, None)
    return (
        *place,
        _with(number(cost.queries_per_usd), cost.ci95_queries_per_usd),
        _with(number(ratio), bounds),
        seconds(cost.latency_s),
        seconds(cost.first_token_s),
        number(cost.queries_per_second),
        cost.source if cost.facts is None else f"{cost.source}: {facts_words(cost.facts)}",
    )


def _savings(result: StudyResult) -> Iterable[str]:
    rows = [row for row in savings(result.costs) if len(row.use_cases) > 1]
    if not rows:
        return
    yield "## Savings, means over use cases"
    titles = ("format", "load", "hardware", "use cases", "queries per USD, × baseline", "queries/s, ×", "latency, ÷")
    cells = [
        (
            row.format,
            row.load,
            row.hardware if row.count == 1 else f"{row.count} × {row.hardware}",
            str(len(row.use_cases)),
            number(row.cost_reduction),
            number(row.speedup),
            number(row.latency_reduction),
        )
        for row in rows
    ]
    yield markdown_table(titles, cells, text_columns=(0, 1, 2))


def _checkpoints(result: StudyResult) -> Iterable[str]:
    if not result.checkpoints:
        return
    yield "## Checkpoints"
    rows = [
        (
            format,
            number(row.size_mib, digits=4),
            number(row.bits_per_weight),
            seconds(row.seconds),
            " ".join(row.notes),
        )
        for format, row in result.checkpoints.items()
    ]
    yield markdown_table(("format", "MiB", "bits per weight", "time", "notes"), rows, text_columns=(0, 4))


def _missing(result: StudyResult) -> Iterable[str]:
    if result.missing:
        yield "## Missing"
        yield "\n".join(f"- {markdown_text(row.title)}: {markdown_text(row.cause)}" for row in result.missing)


def _provenance(result: StudyResult) -> Iterable[str]:
    rows = [(format, f"answers: {facts_words(facts)}") for format, facts in result.evaluated_with.items()]
    rows += [
        (hardware.name, f"{hardware.count} × at USD {hardware.usd_per_hour:g} an hour in all ({hardware.price_source})")
        for hardware in result.hardware
    ]
    rows += [*result.machine.items(), *result.settings.items()]
    if rows:
        yield "## How it was measured"
        yield "\n".join(f"- {markdown_text(what)}: {markdown_text(value)}" for what, value in rows)


def _with(figure: str, bounds: tuple[float, float] | None) -> str:
    return f"{figure} ({interval(bounds)})" if bounds else figure
