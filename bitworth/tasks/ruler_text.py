"""Texts of any length with something to find, follow or count in them, after RULER (arXiv 2404.06654), from a seed.

A family's `write` makes one question with `units` of filler: sentences, lines or words. What is asked is RULER's, with
its numbers of needles, hops and words; the wording is our own.

>>> question = FAMILIES["niah_single_1"].write(random.Random(0), 3, ())
>>> question.answers[0] in question.context
True
"""

from __future__ import annotations

import itertools
import random
import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

_NOISE = ("The path is long.", "The lake is still.", "Clouds drift by.", "We walk on, and come back again.")
_FIRST = """
    amber ancient brave bright calm clever crisp dusty eager early fancy fierce gentle giant golden grand hidden hollow
    humble icy jolly keen lively lucky mellow misty modest noble odd pale proud quick quiet rapid rusty silent silver
    smooth solemn steady sunny swift tender tidy vivid warm wild young
"""
_SECOND = """
    anchor apple arrow badger barrel basket beacon bridge candle canyon castle cedar chapel cloud comet copper crane
    dolphin falcon feather forest garden glacier hammer harbor heron island kettle lantern lemon marble meadow mirror
    oyster pepper pigeon planet quarry ribbon river saddle shadow spruce temple thunder tunnel valley walnut
"""
ADJECTIVES, NOUNS = tuple(_FIRST.split()), tuple(_SECOND.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """A question about a text: `lead` begins the answer, which is to hold every one of `answers`."""

    context: str
    ask: str
    lead: str
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        """Context and question."""
        return f"{self.context}\n\n{self.ask}"


Write = Callable[[random.Random, int, Sequence[str]], Hidden]
"""(luck, units of filler, sentences of essays) to a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One of RULER's kinds of question."""

    write: Write


def _key(luck: random.Random) -> str:
    return f"{luck.choice(ADJECTIVES)}-{luck.choice(NOUNS)}"


def _long_key(luck: random.Random) -> str:
    """There are enough of these for a text that holds nothing else."""
    return f"{_key(luck)}-{luck.choice(NOUNS)}"


def _number(luck: random.Random) -> str:
    return str(luck.randrange(10**6, 10**7))


def _uuid(luck: random.Random) -> str:
    return str(uuid.UUID(int=luck.getrandbits(128), version=4))


Maker = Callable[[random.Random], str]


def _distinct(make: Maker, count: int, luck: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make(luck)] = None
    return list(found)


def _needles(
    luck: random.Random,
    units: int,
    essays: Sequence[str],
    *,
    filler: str,
    key: Maker = _key,
    value: Maker = _number,
    keys: int = 1,
    asked: int = 1,
    values: int = 1,
) -> Hidden:
    """Keys with their values, hidden in noise, essays or more of the same kind; `asked` of the keys are asked for."""
    extra = units if filler == "needles" else 0
    names = _distinct(key, keys + extra, luck)
    held = {name: _distinct(value, values, luck) for name in names}
    lines = [f"The secret code of {name} is {code}." for name, codes in held.items() for code in codes]
    luck.shuffle(lines)
    context = "\n".join(lines) if extra else _spread(luck, lines, _filler(units, essays, filler))
    wanted = luck.sample(names, asked)
    answers = tuple(code for name in wanted for code in held[name])
    one = len(answers) == 1
    what = "is the secret code" if one else "are all the secret codes"
    whose = ", ".join(wanted)
    return Hidden(
        context=f"Secret codes are hidden in the text below. Remember them.\n\n{context}",
        ask=f"What {what} of {whose} in the text above?",
        lead=f"The secret {'code' if one else 'codes'} of {whose} in the text {'is' if one else 'are'}",
        answers=answers,
    )


def _filler(units: int, essays: Sequence[str], kind: str) -> list[str]:
    source = essays if kind == "essays" else _NOISE
    return [source[at % len(source)] for at in range(units)]


def _spread(luck: random.Random, lines: Sequence[str], filler: Sequence[str]) -> str:
    """The lines in their order, at random places among the sentences."""
    places = sorted(luck.randrange(len(filler) + 1) for _ in lines)
    parts, start = [], 0
    for line, place in zip(lines, places, strict=True):
        parts += [*filler[start:place], line]
        start = place
    return " ".join([*parts, *filler[start:]])


def _tracking(luck: random.Random, units: int, essays: Sequence[str], *, hops: int = 4) -> Hidden:
    """A value handed from variable to variable; all of them are asked for."""
    names = _distinct(_variable, hops + 1, luck)
    value = str(luck.randrange(10**4, 10**5))
    steps = [f"VAR {names[0]} = {value}."]
    steps += [f"VAR {new} = VAR {old}." for old, new in itertools.pairwise(names)]
    context = _spread(luck, steps, _filler(units, essays, "noise"))
    return Hidden(
        context=f"Variables get values in the text below, some by way of others. Follow them.\n\n{context}",
        ask=f"Which variables have the value {value} in the text above? There are {hops + 1}.",
        lead=f"The {hops + 1} variables with the value {value} are",
        answers=tuple(names),
    )


def _variable(luck: random.Random) -> str:
    return "".join(luck.choice(string.ascii_uppercase) for _ in range(5))


def _word(luck: random.Random) -> str:
    return "".join(luck.choice("bdfgklmnprstvz") + luck.choice("aeiou") for _ in range(3))


def _common(luck: random.Random, units: int, essays: Sequence[str], *, often: int = 30, seldom: int = 3) -> Hidden:
    """Ten words come often in a numbered list, all others seldom."""
    words = _distinct(_word, 10 + max(units, 1), luck)
    common, rest = words[:10], words[10:]
    listed = [word for word in common for _ in range(often)] + [word for word in rest for _ in range(seldom)]
    luck.shuffle(listed)
    lines = " ".join(f"{at + 1}. {word}" for at, word in enumerate(listed))
    return Hidden(
        context=f"The list below holds some words often and others seldom. Remember the frequent ones.\n\n{lines}",
        ask="Which 10 words come most often in the list above?",
        lead="The 10 words that come most often are",
        answers=tuple(common),
    )


def _frequent(luck: random.Random, units: int, essays: Sequence[str], *, alpha: float = 2.0) -> Hidden:
    """Words as often as a zeta distribution has them; the three most frequent are asked for."""
    words = _distinct(_word, 50, luck)
    total = max(units, 60)
    shares = [1 / rank**alpha for rank in range(1, len(words) + 1)]
    counts = [max(1, round(total * share / sum(shares))) for share in shares]
    coded = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    luck.shuffle(coded)
    return Hidden(
        context=f"Find out which words are the most frequent in this coded text.\n\n{' '.join(coded)}",
        ask="Which three words are the most frequent in the coded text above?",
        lead="The three most frequent words are",
        answers=tuple(words[:3]),
    )


def _niah(filler: str, **shape: object) -> Family:
    write = partial(_needles, filler=filler, **shape)  # type: ignore[arg-type]
    return Family(write=write)


FAMILIES: Mapping[str, Family] = {
    "niah_single_1": _niah("noise"),
    "niah_single_2": _niah("essays"),
    "niah_single_3": _niah("essays", value=_uuid),
    "niah_multikey_1": _niah("essays", keys=4),
    "niah_multikey_2": _niah("needles", key=_long_key),
    "niah_multikey_3": _niah("needles", key=_uuid, value=_uuid),
    "niah_multivalue": _niah("essays", values=4),
    "niah_multiquery": _niah("essays", keys=4, asked=4),
    "vt": Family(write=_tracking),
    "cwe": Family(write=_common),
    "fwe": Family(write=_frequent),
}
"""RULER's thirteen kinds but the two of question answering, which need SQuAD and HotpotQA."""
