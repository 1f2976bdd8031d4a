"""The model card of one checkpoint: front matter that the Hub reads, and the evidence as text.

The figures are those of recommendation.json. The front matter states a base model only where its Hub name is known,
and a licence only where the base model's folder states one.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitworth.errors import BitworthError
from bitworth.report.document import plain
from bitworth.report.figures import (
    counterpart,
    dollars,
    hardware_name,
    interval,
    limit,
    number,
    percent,
    seconds,
    times,
)
from bitworth.report.origin import Origin, read_origin
from bitworth.report.recipes import audit_rows, calibration_words, recipe_rows
from bitworth.report.tables import facts_words, markdown_table, markdown_text
from bitworth.report.words import constraint_words, moment, scenario_title, shape_words, tasks_in_order
from bitworth.types import BASELINE, Option, QuantizeResult, QueryCost, Recommendation, Recovery, StudyResult

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TASK_TYPE = "text-generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What the card is about."""

    result: StudyResult
    format: str
    made: QuantizeResult
    origin: Origin
    base_model: str | None

    @property
    def base_name(self) -> str:
        return self.base_model or Path(self.result.model).name

    @property
    def name(self) -> str:
        return f"{self.base_name.rpartition('/')[2].replace(':', '-')}-{self.format}"


def winner(result: StudyResult) -> str | None:
    """The format chosen most often that has a checkpoint, the first of equals; None where the baseline stays."""
    chosen = [row.choice.format for row in result.recommendations if row.choice is not None]
    counts = Counter(format for format in chosen if format in result.checkpoints)
    return max(counts, key=lambda format: counts[format], default=None)


def render_card(result: StudyResult, format: str, folder: Path, *, base_model: str | None = None) -> str:
    """The card of a format's checkpoint as Markdown; equal results and folders give equal text.

    Args:
        result: what the study says.
        format: whose checkpoint.
        folder: the results folder, in which relative paths of checkpoints lie.
        base_model: the model's name on the Hub, where the study names a folder.

    Raises:
        BitworthError: there is no such checkpoint, or `base_model` is no name of the Hub.
    """
    made = _checkpoint(result, format)
    if base_model is not None and not _HUB_NAME.fullmatch(base_model):
        raise BitworthError(f"{base_model} is no model of the Hub; name it as ORGANIZATION/NAME.")
    if base_model is None and _HUB_NAME.fullmatch(result.model) and not Path(result.model).exists():
        base_model = result.model
    origin = read_origin(folder / made.path)
    subject = _Subject(result=result, format=format, made=made, origin=origin, base_model=base_model)
    body = "\n\n".join(part for part in _body(subject) if part)
    return f"---\n{_front_matter(subject)}\n---\n\n{body}\n"


def _checkpoint(result: StudyResult, format: str) -> QuantizeResult:
    if format == BASELINE:
        raise BitworthError("The baseline is the model as it came and has a card of its own; name a quantized format.")
    if format not in result.checkpoints:
        there = ", ".join(result.checkpoints) or "none"
        raise BitworthError(f"The study has made no checkpoint of format {format}; there are: {there}.")
    return result.checkpoints[format]


# --- front matter -------------------------------------------------------------------------------------------------


def _front_matter(subject: _Subject) -> str:
    from huggingface_hub import ModelCardData

    based = {"base_model": subject.base_model, "base_model_relation": "quantized"} if subject.base_model else {}
    data = ModelCardData(
        **based,
        **subject.origin.license,
        library_name="transformers",
        pipeline_tag=_TASK_TYPE,
        tags=_tags(subject),
        model_name=subject.name,
        eval_results=[part for row in _recoveries(subject) for part in _eval_results(row)] or None,
    )
    text: str = data.to_yaml()
    return text


def _tags(subject: _Subject) -> list[str]:
    recipe = subject.origin.recipe
    found = ["bitworth", "quantized", "compressed-tensors", subject.format]
    if recipe is not None and recipe.scheme.weight is not None:
        found.append(f"{'int' if recipe.scheme.weight.kind == 'int' else 'fp'}{recipe.scheme.weight.bits}")
    return found


def _eval_results(row: Recovery) -> Iterator[Any]:
    """The task's own mean score in [0, 1], and the recovery in percent with what the verdict rests on.

    A bound that is infinite is left out, as the library does with what is null.
    """
    from huggingface_hub import EvalResult

    where = {"task_type": _TASK_TYPE, "dataset_type": row.task, "dataset_name": row.task}
    score = {"questions": row.questions, "baseline_score": row.baseline}
    low, high = row.ci95_pct
    kept = {
        "ci95_low_pct": low,
        "ci95_high_pct": high,
        "min_recovery_pct": row.min_recovery_pct,
        "verdict": row.verdict,
    }
    for kind, name, value, told in (
        ("score", "Score, mean over questions", row.quantized, score),
        ("recovery_pct", "Recovery of the baseline's score, %", row.recovery_pct, {**kept, "source": row.source}),
    ):
        yield EvalResult(
            **where, metric_type=kind, metric_name=name, metric_value=plain(value), metric_args=plain(told)
        )


# --- text ---------------------------------------------------------------------------------------------------------


def _body(subject: _Subject) -> Iterator[str]:
    result = subject.result
    yield f"# {markdown_text(subject.name)}"
    said = (
        f"{subject.base_name} quantized as {subject.format} and measured by bitworth, study {result.name}, newest "
        f"result {moment(result.finished)}. Asked for: {'; '.join(constraint_words(result.constraint))}."
    )
    yield f"{markdown_text(said)} {_license_words(subject)}"
    yield from _recipe(subject)
    yield from _accuracy(subject)
    yield from _speed(subject)
    yield from _use(subject)
    yield from _calibration(subject)
    yield from _provenance(subject)


def _license_words(subject: _Subject) -> str:
    stated = subject.origin.license.get("license")
    if stated is None:
        return "The base model's folder states no licence; that of the base model applies."
    return f"The licence is the base model's: {markdown_text(stated)}."


def _recipe(subject: _Subject) -> Iterator[str]:
    made, recipe = subject.made, subject.origin.recipe
    yield "## Recipe"
    rows = [] if recipe is None else list(recipe_rows(recipe))
    rows.append(("size", f"{number(made.size_mib, digits=4)} MiB, {number(made.bits_per_weight)} bits per weight"))
    rows.append(("made in", f"{seconds(made.seconds)}, at most {number(made.peak_rss_mib, digits=4)} MiB of memory"))
    yield markdown_table(("what", "how"), rows, text_columns=(0, 1))
    yield "\n".join(f"- {markdown_text(note)}" for note in made.notes)


def _recoveries(subject: _Subject) -> list[Recovery]:
    """The format's rows, means first."""
    rows = [row for row in subject.result.recoveries if row.format == subject.format]
    order = tasks_in_order(rows)
    return sorted(rows, key=lambda row: order.index(row.task))


def _accuracy(subject: _Subject) -> Iterator[str]:
    yield "## Accuracy"
    rows = _recoveries(subject)
    if not rows:
        yield "No task was evaluated, so what it keeps of the baseline's accuracy is not known."
    else:
        yield (
            "Recovery is 100 × the score / the baseline's over the same questions, with a 95 % interval; it holds "
            f"where the whole interval reaches {limit(rows[0].min_recovery_pct)} %."
        )
        titles = ("task", "baseline", "score", "recovery", "95 % interval", "questions", "verdict", "figures")
        yield markdown_table(titles, [_recovery_cells(row) for row in rows], text_columns=(0, 6, 7))
    divergence = subject.result.divergences.get(subject.format)
    if divergence is not None:
        yield (
            f"On {divergence.tokens:,} tokens of text: perplexity {number(divergence.perplexity, digits=4)} (baseline "
            f"{number(divergence.baseline_perplexity, digits=4)}), KL divergence {number(divergence.kl_nats)} nats, "
            f"another likeliest token in {percent(divergence.top1_flip_pct)} of the places."
        )
    facts = subject.result.evaluated_with.get(subject.format)
    if facts is not None:
        yield f"Answered with {markdown_text(facts_words(facts))}."


def _recovery_cells(row: Recovery) -> tuple[str, ...]:
    return (
        row.task,
        percent(100 * row.baseline),
        percent(100 * row.quantized),
        percent(row.recovery_pct, apart_from=row.min_recovery_pct),
        interval(row.ci95_pct, decimals=1),
        f"{row.questions:,}",
        row.verdict,
        row.source,
    )


def _speed(subject: _Subject) -> Iterator[str]:
    costs = [cost for cost in subject.result.costs if cost.format == subject.format]
    yield "## Speed, cost and hardware"
    if not costs:
        yield "It was not timed."
        return
    before = ("use case, load", "tokens", "hardware", "outcome", "queries per USD", "× baseline")
    titles = (*before, "mean latency", "first token", "queries/s", "figures")
    rows = [_cost_cells(cost, subject) for cost in costs]
    yield markdown_table(titles, rows, text_columns=(0, 1, 2, 3, 9))
    yield _intended(subject)


def _cost_cells(cost: QueryCost, subject: _Subject) -> tuple[str, ...]:
    place = f"{hardware_name(cost)}, USD {dollars(cost.usd_per_hour)} an hour"
    scene = (
        scenario_title(cost.use_case, cost.load),
        shape_words(cost.use_case),
        place,
        _outcome(cost, subject.result),
    )
    if cost.unsupported is not None:
        return (*scene, *["–"] * 5, f"none: {cost.unsupported}")
    ratio, bounds = times(cost, counterpart(cost, subject.result.costs)) or (None, None)
    return (
        *scene,
        _with(cost.queries_per_usd, cost.ci95_queries_per_usd),
        _with(ratio, bounds),
        seconds(cost.latency_s),
        seconds(cost.first_token_s),
        number(cost.queries_per_second),
        cost.source if cost.facts is None else f"{cost.source}: {facts_words(cost.facts)}",
    )


def _with(value: float | None, bounds: tuple[float, float] | None) -> str:
    return f"{number(value)} ({interval(bounds)})" if bounds else number(value)


def _outcome(cost: QueryCost, result: StudyResult) -> str:
    """`the choice`, `feasible`, or why it falls out."""
    for row in result.recommendations:
        option = _option_of(cost, row)
        if option is not None:
            kept = "the choice" if option == row.choice else "feasible"
            return "; ".join(option.rejected) or kept
    return "not compared"


def _option_of(cost: QueryCost, row: Recommendation) -> Option | None:
    return next((option for option in row.options if option.cost == cost), None)


def _intended(subject: _Subject) -> str:
    """Where the study would deploy it."""
    chosen = [
        row for row in subject.result.recommendations if row.choice is not None and row.choice.format == subject.format
    ]
    if not chosen:
        return "The study chose another format, or the baseline, everywhere."
    places: dict[str, list[str]] = {}
    for row in chosen:
        assert row.choice is not None
        places.setdefault(hardware_name(row.choice.cost), []).append(scenario_title(row.use_case, row.load))
    told = "; ".join(f"{place} ({', '.join(scenes)})" for place, scenes in places.items())
    return f"Intended hardware, where it was the cheapest that met the constraint: {markdown_text(told)}."


def _use(subject: _Subject) -> Iterator[str]:
    folder = shlex.quote(" ".join(subject.made.path.name.split()))
    recipe = subject.origin.recipe
    cache = " --kv-cache-dtype fp8" if recipe is not None and recipe.scheme.kv_cache is not None else ""
    yield "## How to run it"
    yield f"With vLLM, from the folder that holds the checkpoint:\n\n```bash\nvllm serve {folder}{cache}\n```"
    yield (
        "With transformers, which needs the package compressed-tensors for it:\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"folder = {' '.join(subject.made.path.name.split())!r}\n"
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n```"
    )


def _calibration(subject: _Subject) -> Iterator[str]:
    recipe, calibration = subject.origin.recipe, subject.origin.calibration
    audit = subject.made.audit or subject.origin.audit
    yield "## Calibration"
    if recipe is not None and not recipe.needs_calibration:
        yield "It needs none: the recipe reads no activations."
        return
    yield "" if calibration is None else f"{markdown_text(calibration_words(calibration))}."
    if audit is None:
        yield "What the calibration data did in the model was not kept."
        return
    yield markdown_table(("what", "figure"), audit_rows(audit), text_columns=(0, 1))
    doubts = "\n".join(f"- {markdown_text(doubt)}." for doubt in audit.doubts)
    yield f"In doubt:\n\n{doubts}" if doubts else "The audit found nothing that puts the calibration in doubt."


def _provenance(subject: _Subject) -> Iterator[str]:
    yield "## How it was measured"
    rows = [*subject.result.machine.items(), *subject.result.settings.items()]
    rows += [(f"quantized with {name}", version) for name, version in subject.origin.versions.items()]
    yield "\n".join(f"- {markdown_text(what)}: {markdown_text(value)}" for what, value in rows)
    yield "Measured figures are of that machine; predicted ones are marked so. All of them are in recommendation.json."
