"""Number formats, recipes and what calibrates them.

>>> W4 = Grid(bits=4, granularity="group", group_size=128)
>>> W4.levels
(-8, 7)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["int", "float"]
Granularity = Literal["tensor", "channel", "group", "token"]
ScaleKind = Literal["float", "e4m3", "e8m0"]
Ordering = Literal["none", "weight", "group"]
StreamKind = Literal["own", "shared"]
Rule = Literal["auto", "always", "never"]
Spread = Literal["auto", "data", "recipes"]

BASELINE = "baseline"
"""The format of the model as it came, which everything is compared with."""
RANDOM_TOKENS, OWN_TEXT = "random", "self"
"""Calibration sources that are no text of the user's: uniform tokens of the vocabulary, and what the model writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The numbers a tensor may take: a code times a scale that a tensor, channel, group or token shares.

    `scales` says what a scale may be: a `float` of the model's dtype, an `e4m3` number under a float32 scale of the
    whole tensor (NVFP4), or a power of two, `e8m0` (the microscaling formats).
    """

    bits: int
    kind: Kind = "int"
    granularity: Granularity = "channel"
    group_size: int | None = None
    symmetric: bool = True
    dynamic: bool = False
    scales: ScaleKind = "float"

    @property
    def levels(self) -> tuple[float, float]:
        """Least and greatest code: two's complement for integers, the finite range of E4M3 or E2M1 for floats."""
        if self.kind == "float":
            return (-448.0, 448.0) if self.bits == 8 else (-6.0, 6.0)
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Which grid weights, activations and the key-value cache live on, and which modules stay as they are."""

    name: str
    weight: Grid | None = None
    activation: Grid | None = None
    kv_cache: Grid | None = None
    ignore: tuple[str, ...] = ("lm_head",)

    @property
    def has_static_scales(self) -> bool:
        """True when the checkpoint holds scales of activations, keys or values, which only data can give."""
        activation = self.activation
        stored = activation is not None and (activation.scales == "e4m3" or not activation.dynamic)
        return self.kv_cache is not None or stored

    @property
    def title(self) -> str:
        """The name, and what was done to the key-value cache."""
        return self.name if self.kv_cache is None else f"{self.name}+kv-fp8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """MSE-optimal clipping: shrink each scale by p = 1 - i/steps, i < shrink*steps, least sum |q - w|**norm wins."""

    norm: float = 2.4
    shrink: float = 0.80
    steps: int = 100
    hessian_weighted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rtn:
    """Round to nearest."""

    clip: Clip | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq:
    """GPTQ (arXiv 2210.17323): round column by column, spreading each error over the columns still to come.

    Afterwards `sweeps` times the best scales for the codes, then the best codes for the scales (`quantizers.refine`).
    """

    clip: Clip | None = None
    damping: float = 0.01
    block_size: int = 128
    ordering: Ordering = "none"
    sweeps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothQuant:
    """SmoothQuant (arXiv 2211.10438): move scale from activations into weights, s = max|x|**a / max|w|**(1-a)."""

    strength: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq:
    """AWQ (arXiv 2306.00978): search the per-channel scale s = mean|x|**r that loses least at the layer's output."""

    steps: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqScale:
    """The per-channel scale under which GPTQ will lose least, foreseen from what it cannot make good in each column.

    `steps` of a grid are searched, under Hessians damped by `damping`.
    """

    steps: int = 10
    damping: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Learning on after rounding (`bitworth.tuning`): a block's codes, scales and norms step by their gradients' signs.

    `steps` of `batch` calibration sequences each, of which a step reads the first `share`, at least `least` tokens;
    rates, which fall to 0 linearly, are parts of a code's step to the next (`code_rate`), of a scale (`scale_rate`) and
    of a norm's weight (`norm_rate`).
    """

    steps: int = 60
    batch: int = 1
    share: float = 0.5
    least: int = 256
    code_rate: float = 0.01
    scale_rate: float = 0.002
    norm_rate: float = 0.002

    def read(self, length: int) -> int:
        """How many of a sequence's tokens a step reads."""
        return min(length, max(self.least, round(self.share * length)))


Transform = SmoothQuant | Awq | GptqScale
"""What prepares weights before they are rounded: scales that move between a layer's inputs and its weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSource:
    """One source of a mix: a file, `random` or `self`; its share of the samples is its weight over all weights.

    `name` is what reports call it, where that is not the source itself.
    """

    source: str
    weight: float = 1.0
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a data-driven recipe sees: `samples` sequences of `length` tokens from `source`, or from a mix of `sources`.

    `chat_template`: auto renders conversations, always wraps plain text as a user's turn too, never joins the bare
    messages. `bos`: auto starts each sequence with BOS where the tokenizer itself starts texts so. `stream`: GPTQ reads
    at each block what its `own` quantized blocks give, as published, or what those of the unquantized model give, which
    all recipes of a study have `shared`.
    """

    source: str | None = None
    sources: tuple[CalibrationSource, ...] = ()
    samples: int = 256
    length: int = 512
    seed: int = 0
    chat_template: Rule = "auto"
    bos: Rule = "auto"
    stream: StreamKind = "own"

    @property
    def mix(self) -> tuple[CalibrationSource, ...]:
        """The sources, one or several."""
        return self.sources if self.source is None else (CalibrationSource(source=self.source), *self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A scheme, the transforms that prepare the weights, the rounding that puts them on the grid, what is learnt."""

    name: str
    scheme: Scheme
    rounding: Rtn | Gptq = field(default_factory=Rtn)
    transforms: tuple[Transform, ...] = ()
    tuning: Tuning | None = None

    @property
    def needs_calibration(self) -> bool:
        """True when any step reads activations."""
        looks = isinstance(self.rounding, Gptq) or bool(self.transforms) or self.tuning is not None
        return looks or self.scheme.has_static_scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model folder that the loaders read, and how it came to be; `recipe` is None for an unquantized model."""

    path: Path
    format: str = BASELINE
    recipe: Recipe | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
