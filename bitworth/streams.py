"""Recipes on their way through a model's blocks, together where they read the same hidden states.

A GPTQ recipe carries its own quantization error forward and so has a stream to itself; recipes that only look at the
unquantized activations share one, and so does GPTQ where `Calibration.stream` says `shared`. What a stream has finished
is kept block by block, so that a killed run goes on from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitworth import schemes
from bitworth.blocks import BlockResult, round_block, skipped
from bitworth.ledger import revive
from bitworth.model import Arguments, Block, Decoder
from bitworth.ranks import ALONE, Ranks
from bitworth.sequential import BlockPass
from bitworth.stages import Producers
from bitworth.states import LABEL, TEACHER, Shape, States, writing
from bitworth.tuning import Beginning, run_tuned
from bitworth.types import Gptq, Recipe, StageAudit
from bitworth.writer import Onlooker, Writer

_JOURNAL, _WALKED = "journal.json", "walked.json"


@dataclass(slots=True, eq=False)
class Build:
    """One checkpoint in the making; `key` identifies everything that could change it."""

    recipe: Recipe
    writer: Writer | Onlooker
    key: str
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    audit: list[StageAudit] = field(default_factory=list)
    seconds: float = 0.0

    def kept(self) -> dict[str, Any]:
        """What a killed run needs to know of it, as JSON values."""
        audit = [asdict(stage) for stage in self.audit]
        row = {"pieces": self.writer.pieces, "notes": self.notes, "ignored": self.ignored, "audit": audit}
        return {**row, "seconds": self.seconds}

    def take_up(self, row: Mapping[str, Any]) -> None:
        """Be what `kept` said."""
        self.notes, self.ignored, self.seconds = row["notes"], row["ignored"], row["seconds"]
        self.audit = [revive(StageAudit, stage) for stage in row["audit"]]

    def keep_walked(self) -> None:
        """Note beside the pieces that all blocks are in them; the journal goes when the first build is finished."""
        _write_whole(self.writer.scratch / _WALKED, {"key": self.key, "build": self.kept()})

    def was_walked(self) -> bool:
        """Take up what an earlier run had only to finish; False where there is none, or not all of it."""
        page = _read(self.writer.scratch / _WALKED)
        if page is None or page.get("key") != self.key or not isinstance(self.writer, Writer):
            return False
        if not self.writer.take_up(page["build"]["pieces"]):
            return False
        self.take_up(page["build"])
        return True


@dataclass(slots=True)
class Stream:
    """Builds that read the same hidden states; `states` is None where they are made without data.

    `together`: there is memory for all chunks to wait inside a block. `ranks`: who walks along, each with states of its
    own; the first one writes. `teacher`: what the unquantized blocks make of the same data, where that is learnt from;
    `beginnings`, a block: what of it a step reads.
    """

    builds: list[Build]
    ranks: Ranks = ALONE
    propagate: bool = False
    together: bool = True
    states: States | None = None
    teacher: States | None = None
    beginnings: list[Beginning] = field(default_factory=list)
    producers: Producers = field(default_factory=dict)
    done: int = 0
    """Blocks finished and kept."""

    @property
    def folder(self) -> Path:
        """Where the journal and the states are kept."""
        return self.builds[0].writer.scratch

    @property
    def learns(self) -> bool:
        """Whether a block is learnt on after it is rounded; such a recipe walks alone."""
        return self.builds[0].recipe.tuning is not None

    @property
    def held(self) -> dict[str, States]:
        """The hidden states by what their files are called."""
        held = {LABEL: self.states, TEACHER: self.teacher}
        return {name: states for name, states in held.items() if states is not None}

    def label(self, name: str) -> str:
        """What this rank's files of those states are called."""
        return name if self.ranks.first else f"{name}-of-rank-{self.ranks.number}"

    def walk(self, decoder: Decoder, block: Block, kwargs: Arguments | None) -> None:
        """Take one block, write what it became and keep where that leaves the stream; its weights may be gone then."""
        began = time.monotonic()
        recipes = [build.recipe for build in self.builds]
        if self.states is None and not self.ranks.first:
            results = []
        elif self.states is None:
            results = [round_block(block, recipe, decoder.dtype) for recipe in recipes]
        else:
            assert kwargs is not None
            walk = BlockPass(
                block,
                recipes,
                decoder.dtype,
                propagate=self.propagate,
                together=self.together,
                producers=self.producers,
                ranks=self.ranks,
                spend=self.propagate and not self.learns,
            )
            if self.teacher is None:
                walk.run(self.states, kwargs)
            else:
                run_tuned(walk, self.states, self.teacher, kwargs, self.beginnings[block.index])
            results = walk.results
        if self.ranks.first:
            for build, result in zip(self.builds, results, strict=True):
                _write(decoder, block, build, result)
        kept: dict[str, str | None] = {}
        if self.states is not None:
            due = self.ranks.from_first(self.states.due)
            kept = {name: states.turn(self.folder, due=due) for name, states in self.held.items()}
        # The journal must not name files that are not whole yet; nor does anyone overwrite what it names before it is
        # written, since the next block begins with what the first rank hands round.
        self.ranks.agree(True)
        spent = (time.monotonic() - began) / len(self.builds)
        for build in self.builds:
            build.seconds += spent
        if None not in kept.values():
            self._keep(block.index + 1, kept)

    def _keep(self, blocks: int, states: Mapping[str, str | None]) -> None:
        self.done = blocks
        if not self.ranks.first:
            return
        page = {
            "key": self.key,
            "ranks": self.ranks.count,
            "blocks": blocks,
            "states": dict(states),
            "producers": [[list(layers), producer] for layers, producer in self.producers.items()],
            "builds": [build.kept() for build in self.builds],
        }
        _write_whole(self.folder / _JOURNAL, page)

    @property
    def key(self) -> str:
        """Identifies the builds together."""
        return " ".join(build.key for build in self.builds)

    def take_up(self, shapes: Sequence[Shape]) -> bool:
        """Go on where a killed run of the same builds stopped; False, and everything cleared, where there is none."""
        page = self.ranks.from_first(self._kept)
        if not self.ranks.agree(page is not None and self._has_states(page)) or page is None:
            for build in self.builds:
                build.writer.clear()
            self.ranks.agree(True)  # nobody writes before all is cleared
            return False
        for build, row in zip(self.builds, page["builds"], strict=True):
            build.take_up(row)
        self.producers = {tuple(layers): producer for layers, producer in page["producers"]}
        for name, states in self.held.items():
            states.load(self._own(name, page["states"][name]), shapes)
        self.done = page["blocks"]
        return True

    def _kept(self) -> dict[str, Any] | None:
        """The journal, if all that it lists is there."""
        page = self._journal()
        if page is None:
            return None
        for build, row in zip(self.builds, page["builds"], strict=True):
            if isinstance(build.writer, Writer) and not build.writer.take_up(row["pieces"]):
                return None
        return page

    def _has_states(self, page: Mapping[str, Any]) -> bool:
        return all(self._own(name, file).is_file() for name, file in page["states"].items())

    def _own(self, name: str, file: str) -> Path:
        """This rank's file beside the one that the journal names, which is the first rank's."""
        return self.folder / file.replace(name, self.label(name), 1)

    def _journal(self) -> dict[str, Any] | None:
        page = _read(self.folder / _JOURNAL)
        if page is None:
            return None
        return page if page.get("key") == self.key and page.get("ranks", 1) == self.ranks.count else None


def streams_of(builds: Sequence[Build], *, shared: bool, ranks: Ranks = ALONE) -> list[Stream]:
    """Who walks with whom; `shared`: GPTQ too reads the unquantized stream."""
    without = [build for build in builds if not build.recipe.needs_calibration]
    alone = [build for build in builds if walks_alone(build.recipe, shared=shared)]
    together = [build for build in builds if build not in without and build not in alone]
    streams = [Stream([build], ranks, propagate=True) for build in alone]
    return [*streams, *(Stream(group, ranks) for group in (together, without) if group)]


def walks_alone(recipe: Recipe, *, shared: bool) -> bool:
    """Whether a recipe carries its own error forward: GPTQ and the search for cache scales do, unless told not to.

    One that learns on always does: what it learns is to make that error good.
    """
    own = isinstance(recipe.rounding, Gptq) or recipe.scheme.kv_cache is not None
    return recipe.tuning is not None or (recipe.needs_calibration and own and not shared)


def _write_whole(path: Path, page: Mapping[str, Any]) -> None:
    new = path.with_name(f"{path.name}.new")
    with writing(new) as file:
        file.write(json.dumps(page).encode())
    new.rename(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        page: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return page


def _write(decoder: Decoder, block: Block, build: Build, result: BlockResult) -> None:
    """One piece: the block's rounded layers, and its other tensors as they were or as a transform left them."""
    assert isinstance(build.writer, Writer)
    layout = schemes.layout_of(build.recipe.scheme)
    piece = {}
    for name, rounded in result.rounded.items():
        tensors = layout.encode(rounded.codes_OI, rounded.scale_OG, rounded.dtype) | rounded.beside
        if rounded.group_of_I is not None:
            tensors["weight_g_idx"] = rounded.group_of_I
        layer = decoder.names.layer(f"{block.prefix}.{name}")
        piece.update({f"{layer}.{part}": tensor for part, tensor in tensors.items()})
    scales = {f"{block.prefix}.{name}": scale.to(decoder.dtype) for name, scale in result.cache_scales.items()}
    piece.update({decoder.names.written(name): scale for name, scale in scales.items()})
    rounded_names = {f"{block.prefix}.{name}.weight" for name in result.rounded}
    for full in decoder.names.under(block.prefix):
        if full not in rounded_names:
            changed = result.changed.get(full.removeprefix(f"{block.prefix}."))
            kept = decoder.tensor(full)
            piece[decoder.names.written(full)] = kept if changed is None else changed.to(kept.dtype)
    build.writer.add(piece)
    build.notes.extend(result.notes)
    build.audit.extend(result.audit)
    build.ignored.extend(_ignored(decoder, block))


def _ignored(decoder: Decoder, block: Block) -> list[str]:
    """Routers, which stay as they are, by the checkpoint's name and by the model's; some are no linear layers."""
    named = [name for name, part in block.module.named_modules() if skipped(name) and "weight" in part._parameters]
    full = [f"{block.prefix}.{name}" for name in named]
    return [name for model_name in full for name in dict.fromkeys((decoder.names.layer(model_name), model_name))]
