"""Weights that torchvision's own models are saved with, for the same architectures in timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# timm's names of the architectures and torchvision's; ResNet, ResNeXt, Wide ResNet and DenseNet need no conversion.
# MobileNetV3, EfficientNet-B5 to -B7 and -V2 are absent: their batch norms have another epsilon in torchvision.
TORCHVISION_NAMES = {
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "vit_large_patch32_224": "vit_l_32",
    **{f"efficientnet_b{n}": f"efficientnet_b{n}" for n in range(5)},
    **{f"convnext_{size}": f"convnext_{size}" for size in ("tiny", "small", "base", "large")},
    "swin_tiny_patch4_window7_224": "swin_t",
    "swin_small_patch4_window7_224": "swin_s",
    "swin_base_patch4_window7_224": "swin_b",
    **{"regnetx_004_tv": "regnet_x_400mf", "regnetx_008": "regnet_x_800mf", "regnetx_016": "regnet_x_1_6gf"},
    **{"regnetx_032": "regnet_x_3_2gf", "regnetx_080": "regnet_x_8gf", "regnety_004": "regnet_y_400mf"},
    **{"regnety_008_tv": "regnet_y_800mf", "regnety_016": "regnet_y_1_6gf", "regnety_032": "regnet_y_3_2gf"},
    **{"regnety_080_tv": "regnet_y_8gf", "regnety_160": "regnet_y_16gf"},
    "mobilenetv2_100": "mobilenet_v2",
    **{f"vgg{depth}{norm}": f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
}
TORCHVISION_FAMILIES = "ViT, EfficientNet-B0 to -B4, ConvNeXt, Swin, RegNet, MobileNetV2, VGG, ResNet and DenseNet"
_FIRST_NAMES = ("conv_proj.", "encoder.layers.encoder_layer_0.", "features.0.", "trunk_output.")
_NOT_WEIGHTS = ("num_batches_tracked", "relative_position_index")


def has_torchvision_names(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict has key names that torchvision uses and timm does not."""
    return any(name.startswith(_FIRST_NAMES) for name in state)


def convert_torchvision_state(
    timm_name: str, state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """Give the weights of a torchvision model, without its classifier, the names and shapes that timm expects.

    Returns None unless they are the weights of torchvision's model of this architecture. Both libraries define the same
    tensors in the same order, apart from `_in_timms_order`; the classifier is the last.
    """
    name = TORCHVISION_NAMES.get(timm_name.partition(".")[0])
    if name is None or not has_torchvision_names(state):
        return None
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None)
    names = _in_timms_order([key for key in model.state_dict() if not key.endswith(_NOT_WEIGHTS)])
    timm_names = [key for key in expected if not key.endswith(_NOT_WEIGHTS)]
    classifier = names[len(timm_names) :]
    try:
        # by torchvision, which also knows the names of its older files
        difference = model.load_state_dict({k: v for k, v in state.items() if k not in classifier}, strict=False)
    except RuntimeError:  # other shapes
        return None
    missing = [key for key in difference.missing_keys if key not in classifier and not key.endswith(_NOT_WEIGHTS)]
    if missing or difference.unexpected_keys:
        return None
    weights = model.state_dict()
    return {new: weights[old].reshape(expected[new].shape) for new, old in zip(timm_names, names, strict=False)}


def torchvision_preprocessing(timm_name: str) -> dict[str, Any]:
    """Return the preprocessing of torchvision's newest weights, as a part of timm's record of weights."""
    import torchvision

    weights = torchvision.models.get_model_weights(TORCHVISION_NAMES[timm_name.partition(".")[0]]).DEFAULT
    transforms = weights.transforms()
    (crop,), (size,) = transforms.crop_size, transforms.resize_size
    return {
        "input_size": (3, crop, crop),
        "crop_pct": crop / size,
        "interpolation": transforms.interpolation.value,
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
    }


def _in_timms_order(names: list[str]) -> list[str]:
    """Move what timm defines later than torchvision to the end of its module."""
    modules = [re.sub(r"(^|\.)(conv_proj|encoder\.pos_embedding|proj|f|reduction|norm)\b.*", "", n) for n in names]
    positions = {module: position for position, module in reversed(list(enumerate(modules)))}
    later = re.compile(r"(^|\.)(conv_proj|proj|reduction)\.")
    return sorted(names, key=lambda n: (positions[modules[names.index(n)]], bool(later.search(n))))
