"""Pieces of work, what is known of each, and all that a study says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bitworth.types.accuracy import AnswerPair, Divergence, Likeness, Noise, Recovery
from bitworth.types.decision import Constraint, Recommendation
from bitworth.types.serving import EngineFacts, Hardware, QueryCost

CellKind = Literal["quantize", "evaluate", "diverge", "benchmark", "write", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The smallest piece of work worth keeping: `inputs` holds all that could change its result, JSON values only.

    `where` says where its inputs lie on this machine (paths do not change a result); `needs` are the keys of the
    cells whose results it reads.
    """

    kind: CellKind
    title: str
    format: str
    inputs: Mapping[str, Any]
    where: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def is_repeat(self) -> bool:
        """Whether it asks again what another cell asks: its answers are for the engine's noise alone."""
        return "repeat" in self.inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShare:
    """How many of the calibration's sequences one source gave."""

    source: str
    weight: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAudit:
    """What the calibration's sequences hold; shares are in [0, 1].

    `scripts` are shares of the letters by Unicode script, not languages. `chat_share` is that of the sequences with a
    marker of the model's chat template, None where it has none; `duplicates` counts sequences that repeat another.
    """

    tokens: int
    samples: int
    length: int
    sources: tuple[SourceShare, ...]
    scripts: Mapping[str, float]
    chat_markers: tuple[str, ...]
    chat_share: float | None
    bos_token: str | None
    tokenizer_adds_bos: bool
    bos_share: float
    special_share: float
    vocabulary_share: float
    duplicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAudit:
    """The inputs of layers that read one tensor; see `bitworth.audit` for the definitions.

    `outliers` counts the outlier columns, `outlier_columns` lists the largest of them. None where there was too little
    data for a figure.
    """

    layers: tuple[str, ...]
    tokens: int
    outlier_ratio: float | None = None
    outliers: int = 0
    outlier_columns: tuple[int, ...] = ()
    top_overlap: float | None = None
    rank_correlation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAudit:
    """Calibration tokens that each expert of one mixture saw, by its number, and the experts that saw none."""

    module: str
    tokens: Mapping[int, int]
    unreached: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What calibration data was, what it did inside the model, and what that puts in doubt, in sentences."""

    text: TextAudit
    stages: tuple[StageAudit, ...]
    experts: tuple[ExpertAudit, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """One checkpoint made, and what it took."""

    format: str
    path: Path
    seconds: float
    peak_rss_mib: float
    size_mib: float
    bits_per_weight: float
    notes: tuple[str, ...] = ()
    audit: Audit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A piece of a study that has no result, and the sentence that says why."""

    title: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """Everything a finished study says: a function of its ledger and its study file alone.

    `recoveries` has a row a task and format, then one a format with task `average`, then one a suite that the study
    names; `groups` one a subject or language of a task (`task/group`) and format; `noise` one a task that was asked
    several times and format; `evaluated_with` gives the engine behind each format's answers; `finished` is
    the ISO time of the newest result; `machine` and `settings` are printable provenance. `deployments` decide across
    loads, and for the study's mix of use cases. `apart` are questions that formats answered most unlike the baseline,
    `likenesses` how alike what was written is.
    """

    name: str
    model: str
    formats: tuple[str, ...]
    constraint: Constraint
    checkpoints: Mapping[str, QuantizeResult]
    recoveries: tuple[Recovery, ...]
    divergences: Mapping[str, Divergence]
    costs: tuple[QueryCost, ...]
    recommendations: tuple[Recommendation, ...]
    missing: tuple[Missing, ...]
    evaluated_with: Mapping[str, EngineFacts]
    hardware: tuple[Hardware, ...]
    machine: Mapping[str, str]
    settings: Mapping[str, str]
    finished: str | None
    groups: tuple[Recovery, ...] = ()
    noise: tuple[Noise, ...] = ()
    deployments: tuple[Recommendation, ...] = ()
    apart: tuple[AnswerPair, ...] = ()
    likenesses: tuple[Likeness, ...] = ()
