"""Does it fit, does it run: answers from a config.json and a row of the catalogue, before anything is started.

>>> from bitworth.hardware import hardware
>>> from bitworth.prediction.evidence import MODELS
>>> from bitworth.workloads import use_case
>>> found = check(MODELS["70B"], "w8a8-fp", hardware("A100"), use_case("rag"))
>>> found.fits, found.verdict.runs, found.verdict.kernels
(True, 'fallback', ('MarlinFP8 or Humming',))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bitworth import schemes
from bitworth.errors import BitworthError
from bitworth.hardware import LOCAL, hardware
from bitworth.hardware import NAMES as DEVICES
from bitworth.prediction import Architecture
from bitworth.prediction.formats import BF16
from bitworth.preflight.kernels import VLLM, Verdict, judge
from bitworth.preflight.memory import Memory, memory_of
from bitworth.preflight.shapes import Split, matrices, split_of
from bitworth.types import BASELINE, Hardware, Scheme, UseCase

__all__ = ["NAMES", "VLLM", "Finding", "Memory", "Split", "Verdict", "check", "judged", "scheme_of"]

NAMES = (BF16, *schemes.NAMES)
"""Every format that can be asked for."""
_COUNTS = (1, 2, 4, 8, 16, 32)
_GROUPS = (128, 64, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One format on one row: its memory, its kernels, and what would do where it does not fit or run natively.

    `instead` has up to four keys: `formats` on the same devices, `group_size`, `count` of the same device, `devices` of
    the catalogue in the same number. Each of them fits and runs natively, or as before where memory was at fault.
    """

    format: str
    group_size: int | None
    streams: int
    split: Split
    memory: Memory
    verdict: Verdict
    instead: Mapping[str, tuple[str, ...] | int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether all streams have their room at once."""
        return self.memory.most_streams >= self.streams

    @property
    def starts(self) -> bool:
        """Whether one request has room, so that a server would start and let the others wait."""
        return self.memory.most_streams >= 1

    @property
    def sentence(self) -> str:
        """What there is to say about memory."""
        m = self.memory
        if self.fits:
            return f"{m.needed_gib:.1f} of {m.there_gib:.1f} GiB a device"
        if self.starts:
            return f"room for {m.most_streams} of {self.streams} streams; the others wait"
        return (
            f"needs {m.needed_gib - m.cache_gib:.1f} GiB a device before any request, and there are {m.there_gib:.1f}"
        )


def check(
    architecture: Architecture,
    format: str,
    row: Hardware,
    case: UseCase,
    *,
    streams: int = 1,
    tensor: int | None = None,
    group_size: int | None = None,
) -> Finding:
    """Judge a format on all devices of a row as one copy of the model.

    Args:
        architecture: the model's sizes.
        format: one of `NAMES`, or `baseline`.
        row: the devices; their memory and capability count.
        case: the shape of a request.
        streams: requests at once.
        tensor: devices that share each block; as many of a machine as can, unless said.
        group_size: weights that share a scale, where the format has groups.

    Raises:
        BitworthError: no such format, streams below 1, or devices that `tensor` does not divide.
    """
    scheme = scheme_of(format, group_size)
    if streams < 1:
        raise BitworthError(f"{streams} streams cannot be; give 1 or more.")
    split = split_of(architecture, row.count, tensor)
    found = judged(architecture, scheme, row, case, streams, split)
    if found.fits and found.verdict.runs == "native":
        return found
    return replace(found, instead=dict(_instead(found, architecture, scheme, row, case)))


def scheme_of(format: str, group_size: int | None = None) -> Scheme | None:
    """The scheme of a name; None for the unquantized model.

    Raises:
        BitworthError: no such format.
    """
    if format in (BF16, BASELINE):
        return None
    if format not in NAMES:
        raise BitworthError(f"Unknown number format '{format}'; known: {', '.join(NAMES)}.")
    return schemes.get(format, group_size=group_size)


def judged(a: Architecture, scheme: Scheme | None, row: Hardware, case: UseCase, streams: int, split: Split) -> Finding:
    """A finding without what would do instead; see `check` for the arguments."""
    name = BF16 if scheme is None else scheme.name
    uneven = a.unsplittable(split.tensor)
    if uneven is None:
        verdict = judge(name, scheme, matrices(a, split.tensor), row.capability)
    else:
        verdict = Verdict(runs="no", why=uneven)
    return Finding(
        format=name,
        group_size=None if scheme is None or scheme.weight is None else scheme.weight.group_size,
        streams=streams,
        split=split,
        memory=memory_of(a, scheme, row, split, case, streams),
        verdict=verdict,
    )


def _instead(
    found: Finding, a: Architecture, scheme: Scheme | None, row: Hardware, case: UseCase
) -> Iterable[tuple[str, tuple[str, ...] | int]]:
    """What would do, of each kind that there is."""
    accepted = {"native"} if found.fits else {"native", found.verdict.runs} - {"no"}

    def does(other: Scheme | None, at: Hardware, split: Split) -> bool:
        one = judged(a, other, at, case, found.streams, split)
        return one.fits and one.verdict.runs in accepted

    formats = tuple(name for name in NAMES if name != found.format and does(scheme_of(name), row, found.split))
    if formats:
        yield "formats", formats
    sizes = _GROUPS if found.format in ("w4a16-int", "w4a8-fp", "w4a8-int") else ()
    group = next(
        (n for n in sizes if n != found.group_size and does(scheme_of(found.format, n), row, found.split)), None
    )
    if group is not None:
        yield "group_size", group
    counts = (n for n in _COUNTS if n != row.count and n <= a.layers)
    count = next((n for n in counts if does(scheme, replace(row, count=n), split_of(a, n))), None)
    if count is not None:
        yield "count", count
    rows = (hardware(name, row.count) for name in DEVICES if name not in (LOCAL, row.name))
    devices = tuple(other.name for other in rows if does(scheme, other, found.split))
    if devices:
        yield "devices", devices
