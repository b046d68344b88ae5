"""Find a backbone by its short name, a timm name or a repository of the model hub."""

from __future__ import annotations

import difflib

from lookalike.errors import ModelError
from lookalike.models.backbone_files import parse_backbone_file
from lookalike.models.catalogue import ROWS, BackboneRow

PRETRAINED = "pretrained"  # values of the option `weights`
NONE = "none"  # random weights
BACKBONES = {row.name: row for row in ROWS}


def backbones() -> tuple[BackboneRow, ...]:
    """Return the backbones with a short name."""
    return ROWS


def hub_repository(name: str) -> str | None:
    """Return the repository of a backbone's name such as `hf-hub:org/name` or `timm/name`; None for other names."""
    prefix, separator, repository = name.partition(":")
    if separator and prefix in ("hf-hub", "hf_hub"):
        return repository
    return name if name.startswith("timm/") else None


def find_backbone(name: str) -> BackboneRow:
    """Return the row of a short name, a timm name, a repository of the model hub, or a file of the user.

    The architecture of a repository, `timm_name`, is empty until `weights.resolve_repository` reads it. The error for
    an unknown name lists the nearest ones.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    file = parse_backbone_file(name)
    if file is not None:
        file.require()
        return BackboneRow(name, file.library)
    import timm

    repository = hub_repository(name)
    timm_name = name if repository is None else repository.removeprefix("timm/")
    architecture, _, tag = timm_name.partition(".")
    if timm.is_model(architecture):
        tags = [pretrained.partition(".")[2] for pretrained in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            allowed = f"use one of {', '.join(sorted(tags))}" if tags else f"write {architecture} alone"
            raise ModelError(f"there are no weights tagged {tag!r} for {architecture}; {allowed}.", argument="backbone")
        return BackboneRow(name, timm_name)
    if repository is not None:
        return BackboneRow(name, "", repository=repository)
    near = difflib.get_close_matches(name, dict.fromkeys([*BACKBONES, *timm.list_models()]), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(BACKBONES)}, or any timm name."
    raise ModelError(f"there is no backbone named {name!r}; {hint}", argument="backbone")
