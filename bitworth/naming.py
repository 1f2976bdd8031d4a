"""What a checkpoint calls the tensors of a model, and where in it they lie.

transformers renames and fuses tensors as it loads them (Mixtral's `block_sparse_moe.experts.3.w1.weight` becomes a part
of `mlp.experts.gate_up_proj`). With mixtures taken apart (`experts`) a model's tensor is a stored tensor under another
name, or one expert's rows of a fused one; both ways to store a mixture are read, and the hub's names are written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bitworth.experts import Fusion, Role, unfuse
from bitworth.skeleton import text_body


@dataclass(frozen=True, slots=True)
class Source:
    """A stored tensor, or one projection of one expert in it."""

    name: str
    expert: int | None = None
    role: Role | None = None
    fusion: Fusion | None = None

    def cut(self, tensor: Tensor) -> Tensor:
        """The model's tensor, from the stored one, or from the expert's part of it."""
        if self.fusion is None or self.role is None:
            return tensor
        return self.fusion.piece(self.role, tensor).contiguous()


class Names:
    """Names of a model's tensors and of the stored ones that they come from."""

    def __init__(self, model: nn.Module, stored: Iterable[str]) -> None:
        """Take the model's mixtures apart and find its tensors among the stored ones.

        Raises:
            BitworthError: a mixture cannot be taken apart.
        """
        renamings, conversions = _transforms(model)
        self.fusions = unfuse(model, conversions, within=text_body(model)[0])
        self._back = [transform.reverse_transform() for transform in reversed(renamings)]
        self._wanted = {name for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
        self._base = getattr(model, "base_model_prefix", "")
        self._sources: dict[str, Source] = {}
        self._of: dict[str, str] = {}
        for name in stored:
            inside = self._of[name] = self._inside(name, renamings)
            path, _, leaf = inside.rpartition(".")
            if inside not in self._wanted and path in self.fusions:
                self._add_fused(name, path, leaf)
            else:
                self._sources[inside] = Source(name)
        self._fused_in_file = any(source.expert is not None for source in self._sources.values())

    def _inside(self, stored: str, renamings: list[Any]) -> str:
        """The model's name of a stored tensor; one that the model does not have keeps its own."""
        name = stored
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        for candidate in (name, f"{self._base}.{name}"):
            if candidate in self._wanted or candidate.rpartition(".")[0] in self.fusions:
                return candidate
        return stored

    def _add_fused(self, stored: str, path: str, leaf: str) -> None:
        fusion = self.fusions[path]
        for name, role in fusion.pieces(leaf).items():
            for number in range(fusion.count):
                self._sources[f"{path}.{number}.{name}"] = Source(stored, number, role, fusion)

    def of(self, stored: str) -> str:
        """The model's name of a stored tensor (of its mixture's fused parameter where it holds all experts)."""
        return self._of[stored]

    def source(self, name: str) -> Source | None:
        """Where the model's tensor of that name lies; None where nothing is stored for it."""
        return self._sources.get(name)

    def under(self, prefix: str) -> list[str]:
        """The model's names of what is stored below a prefix, in order."""
        return sorted(name for name in self._sources if name.startswith(f"{prefix}."))

    def in_file_order(self) -> list[str]:
        """The model's names of all that is stored, so that those which lie in one stored tensor follow each other."""
        return sorted(self._sources, key=lambda name: (self._sources[name].name, self._sources[name].expert or 0))

    def written(self, name: str) -> str:
        """What a checkpoint that holds one tensor a projection calls the model's tensor: what the hub calls it."""
        source = self._sources.get(name)
        if source is not None and not self._fused_in_file:
            return source.name
        for renaming in self._back if name in self._wanted else ():
            name, _ = renaming.rename_source_key(name)
        return name

    def layer(self, name: str) -> str:
        """What such a checkpoint calls a layer, by the model's name of it."""
        return self.written(f"{name}.weight").removesuffix(".weight")


def _transforms(model: Any) -> tuple[list[Any], list[Any]]:
    """transformers' renamings and conversions of an architecture's tensors, in their order."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightRenaming

    transforms = get_model_conversion_mapping(model, add_legacy=False)
    plain = [part for part in transforms if isinstance(part, WeightRenaming) and not isinstance(part, PrefixChange)]
    return plain, [part for part in transforms if not isinstance(part, WeightRenaming)]
