"""What a checkpoint's own folder says of how it was made, and what its model's folder says of its licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bitworth.errors import BitworthError
from bitworth.guard.documents import config_of, yaml_of
from bitworth.ledger import revive
from bitworth.types import Audit, Calibration, Recipe

_PROVENANCE = "bitworth.json"
_LICENSE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """None, or empty, where the folders do not say; `license` has the fields of a model card's front matter."""

    recipe: Recipe | None = None
    calibration: Calibration | None = None
    audit: Audit | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    license: Mapping[str, Any] = field(default_factory=dict)


def read_origin(folder: Path) -> Origin:
    """What `folder` (a checkpoint's) holds beside the weights; an absent or foreign file says nothing."""
    try:
        page = config_of((folder / _PROVENANCE).read_bytes())
        base = Path(page["base"]["path"])
        return Origin(
            recipe=_noun(Recipe, page.get("recipe")),
            calibration=_noun(Calibration, page.get("calibration")),
            audit=_noun(Audit, page.get("audit")),
            versions={str(name): str(version) for name, version in page.get("versions", {}).items()},
            license=read_license(base),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Origin()


def read_license(folder: Path) -> dict[str, Any]:
    """The licence that the front matter of the folder's README.md states; empty where it states none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front = yaml_of(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    if not isinstance(front, dict) or not isinstance(front.get("license"), str):
        return {}
    return {name: front[name] for name in _LICENSE_FIELDS if isinstance(front.get(name), str)}


def _noun(kind: type[Any], row: Any) -> Any:
    """The noun, or None where an earlier version wrote it in another shape."""
    try:
        return None if row is None else revive(kind, row)
    except BitworthError:
        return None
