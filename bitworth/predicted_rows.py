"""Devices of a study that nothing was timed on: their rows are predicted from the model's config, and say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitworth.engines.schedule import streams_of
from bitworth.errors import BitworthError
from bitworth.prediction import Range, predict, read_architecture
from bitworth.recommendation import predicted_cost, predicted_figure
from bitworth.types import BASELINE, EngineFacts, Figure, Hardware, Load, QueryCost, Recipe, UseCase

PREDICTION_PCT = 90.0
"""How many of its kind a prediction's range holds (`prediction.Range`)."""
_LOADS = ("synchronous", "throughput", "constant", "poisson")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedRows:
    """What predictions of a study's formats rest on: the model's config.json, None where it was not kept."""

    config: Mapping[str, Any] | None
    recipes: Mapping[str, Recipe | None]

    def cost(self, format: str, use_case: UseCase, load: Load, row: Hardware, *, one_shape: bool = True) -> QueryCost:
        """A format's row on a device that it was not timed on; without a figure where it cannot be predicted.

        Args:
            format: its name in the study.
            use_case: what is asked.
            load: how.
            row: the devices, with their price.
            one_shape: False for mixes and traces, which are not predicted.
        """
        try:
            return self._predicted(format, use_case, load, row, one_shape=one_shape)
        except BitworthError as error:
            return QueryCost(
                format=format,
                use_case=use_case,
                load=load.name,
                hardware=row.name,
                count=row.count,
                usd_per_hour=row.usd_per_hour,
                unsupported=f"not timed on {row.name}, where the study can be run, and not predicted: {error}",
            )

    def _predicted(self, format: str, use_case: UseCase, load: Load, row: Hardware, *, one_shape: bool) -> QueryCost:
        if self.config is None:
            raise BitworthError("the model's config is not among the results, which an earlier version wrote.")
        if not one_shape or load.kind not in _LOADS:
            raise BitworthError("mixes, traces and sweeps are measured only.")
        scheme, group_size = self._scheme(format)
        # As many streams as are measured where the load does not say: rows beside each other are under one load.
        asked = replace(load, streams=streams_of(load)) if load.kind == "throughput" else load
        found = predict(read_architecture(self.config), scheme, row, use_case, asked, group_size=group_size)
        seconds = {
            "latency_mean": _figure(found.latency_s),
            "latency_p90": _figure(found.latency_p90_s),
            "first_token_mean": _figure(found.first_token_s),
        }
        cost = predicted_cost(format, use_case, load.name, row, _figure(found.queries_per_second), seconds)
        facts = EngineFacts(engine="prediction", kernel="roofline of the model's config", device=row.name)
        return replace(cost, facts=facts)

    def _scheme(self, format: str) -> tuple[str, int | None]:
        recipe = self.recipes.get(format)
        if recipe is None:
            return BASELINE, None
        if recipe.scheme.kv_cache is not None:
            raise BitworthError("a quantized key-value cache is measured only.")
        weight = recipe.scheme.weight
        return recipe.scheme.name, weight.group_size if weight is not None else None


def _figure(range_: Range) -> Figure:
    return predicted_figure(range_.value, range_.low, range_.high, confidence_pct=PREDICTION_PCT)
