"""Predictions as inputs of the decision: figures that say so, with intervals of the width that everything here has."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

from bitworth.errors import BitworthError
from bitworth.statistics import Z95
from bitworth.types import Figure, Hardware, QueryCost, UseCase


def predicted_figure(value: float, low: float, high: float, *, confidence_pct: float = 95.0) -> Figure:
    """A prediction that `confidence_pct` of its kind were within, widened to 95 % as a normal's logarithm would be.

    >>> predicted_figure(10.0, 9.0, 11.0).low
    9.0

    Raises:
        BitworthError: figures that are not positive and in order, or a confidence outside (0, 100).
    """
    if not 0 < low <= value <= high or not 0 < confidence_pct < 100:
        raise BitworthError(f"A prediction needs 0 < low <= value <= high, not {low:g}, {value:g}, {high:g}.")
    if confidence_pct == 95:
        return Figure(value=value, low=low, high=high, origin="predicted")
    stretch = Z95 / NormalDist().inv_cdf(0.5 + confidence_pct / 200)
    wider = value * (low / value) ** stretch, value * (high / value) ** stretch
    return Figure(value=value, low=wider[0], high=wider[1], origin="predicted")


def predicted_cost(
    format: str,
    use_case: UseCase,
    load: str,
    hardware: Hardware,
    queries_per_second: Figure,
    seconds: Mapping[str, Figure],
) -> QueryCost:
    """A predicted row that stands beside measured ones.

    Args:
        format: what is predicted.
        use_case: what is asked.
        load: a load's name.
        hardware: the devices, with their price for all of them.
        queries_per_second: of all of them.
        seconds: by name, such as `latency_mean`, `latency_p90`, `first_token_mean`.

    Raises:
        BitworthError: the hardware costs nothing.
    """
    if hardware.usd_per_hour <= 0:
        raise BitworthError(f"{hardware.name} needs a price above 0 USD an hour.")
    dollar = 3600 / hardware.usd_per_hour
    values = {name: figure.value for name, figure in seconds.items()}
    return QueryCost(
        format=format,
        use_case=use_case,
        load=load,
        hardware=hardware.name,
        count=hardware.count,
        usd_per_hour=hardware.usd_per_hour,
        latency_s=values.get("latency_mean"),
        latency_p90_s=values.get("latency_p90"),
        first_token_s=values.get("first_token_mean"),
        queries_per_second=queries_per_second.value,
        queries_per_usd=dollar * queries_per_second.value,
        ci95_queries_per_usd=(dollar * queries_per_second.low, dollar * queries_per_second.high),
        source="predicted",
        figures=dict(seconds),
    )
